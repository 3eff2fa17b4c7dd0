"""A network of the user's own: its factory's call, what it must return, and the limits that hold whatever it does."""

import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_images import random_instances

from maskrcnn.errors import ItemError, OwnNetworkError, UsageError
from maskrcnn.models.own.own_segmenter import (
    MEMBERS,
    OwnSegmenter,
    Planned,
    SegmenterOptions,
    call_factory,
    check_planned,
    problem_of,
)
from maskrcnn.synthetic.planted import PlantedSegmenter, plant
from maskrcnn.types import Category, Detections

DEFAULTS = SegmenterOptions()


def image_of(seed, count=6):
    random = np.random.Generator(np.random.PCG64(seed))
    return plant((80, 96), random_instances(random, 80, 96, count))


class Wrapped(PlantedSegmenter):
    """A segmenter that finds all planted instances, in an order of its own, and changes its results."""

    def __init__(self, change=lambda found: found, **options):
        super().__init__(min_score=0.0, **options)
        self._change = change

    def outcomes(self, images):
        return [
            self._change(found.take(np.arange(len(found))[::-1].copy())) for found in self.segment(images)
        ]


@given(
    st.integers(0, 10**6),
    st.floats(0, 0.99),
    st.integers(1, 8),
    st.sets(st.sampled_from(["plank", "coin", "leaf"])),
    st.booleans(),
)
def test_the_limits_hold_for_a_network_that_ignores_them(seed, min_score, most, names, has_masks):
    """The oracle is the planted segmenter, which obeys them itself."""
    image = image_of(seed)
    options = SegmenterOptions(min_score, most, tuple(sorted(names)))
    own = OwnSegmenter("nets:build", Wrapped(has_masks=has_masks), options)
    expected = PlantedSegmenter(
        min_score=min_score, max_detections=most, keep=names, has_masks=has_masks
    ).segment([image])
    [found] = own.outcomes([image])
    assert found.masks == expected[0].masks
    assert found.capped == expected[0].capped
    for name in ("boxes", "labels", "scores", "areas", "mask_boxes"):
        assert np.array_equal(getattr(found, name), getattr(expected[0], name))
    assert problem_of(found, 80, 96, {1, 2, 5}, has_masks=has_masks) is None


def changed(name, value):
    """Change the first value of a column."""

    def change(found):
        column = getattr(found, name).copy()
        column[0] = value
        return replace(found, **{name: column})

    return change


BREAKS = {
    "nothing": (lambda found: None, r"its `outcomes` returned None for an image, expected a list with maskrcnn\."),
    "a dict": (lambda found: {}, "its `outcomes` returned a dict of length 0 for an image"),
    "another size": (
        lambda found: Detections.empty(96, 80),
        "it returned detections of 96 x 80 pixels for an image of 80 x 96",
    ),
    "no masks": (
        lambda found: Detections.of_boxes(80, 96, found.boxes, found.labels, found.scores, capped=False),
        "it returned no masks, but its has_masks is True",
    ),
    "an unknown label": (changed("labels", 3), "it returned the category 3, which its `categories` lacks"),
    "the background": (changed("labels", 0), "it returned the category 0"),
    "a score above 1": (changed("scores", 1.5), r"it returned the score 1\.5: scores are from 0 to 1"),
    "a negative score": (changed("scores", -0.5), r"it returned the score -0\.5"),
    "an inverted box": (changed("boxes", [9, 9, 3, 12]), r"it returned the box \(9, 9, 3, 12\): boxes are xmin, ymin"),
    "another area": (changed("areas", 7), "it returned `areas` or `mask_boxes` that are not those of its masks"),
    "another mask box": (changed("mask_boxes", 7), "it returned `areas` or `mask_boxes`"),
    "a mask of another image": (
        lambda found: replace(found, masks=(b"0", *found.masks[1:])),
        "it returned a mask that is not COCO's run lengths",
    ),
    **{
        f"{name} as {value}": (
            lambda found, name=name, of=of: replace(found, **{name: of(found)}),
            rf"it made maskrcnn\.Detections that are not valid: `{name}(\[0\])?` is .*{value}"
            r".*, expected .* \(test_own_segmenter\.py, line \d+\)$",
        )
        for name, value, of in (
            ("boxes", "float64", lambda found: found.boxes.astype(np.float64)),
            ("boxes", "a list", lambda found: found.boxes.tolist()),
            ("boxes", "Tensor of torch.float32", lambda found: Tensor(found.boxes.shape, "torch.float32")),
            ("labels", "int64", lambda found: found.labels.astype(np.int64)),
            ("labels", "None", lambda found: None),
            ("scores", "float32", lambda found: found.scores[:, None]),
            ("masks", "bool", lambda found: np.zeros((len(found), 80, 96), bool)),
            ("masks", "array of uint8", lambda found: [np.zeros((80, 96), np.uint8) for _ in found.labels]),
            ("masks", "dict", lambda found: found.rles()),
            ("masks", "type bytes", lambda found: b"0"),
            ("capped", "0", lambda found: 0),
            ("height", "80.0", lambda found: 80.0),
        )
    },
}  # fmt: skip


class Tensor:
    """What a message needs of a tensor of torch, which is not imported for it."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, dtype


@pytest.mark.parametrize("case", BREAKS)
def test_what_is_no_result_ends_the_run_in_one_line(case):
    change, message = BREAKS[case]
    own = OwnSegmenter("nets:build", Wrapped(change), DEFAULTS)
    with pytest.raises(OwnNetworkError, match=rf"^--model nets:build: {message}") as caught:
        own.outcomes([image_of(1)])
    assert "\n" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # from an actor to its driver
    assert (str(again), again.what) == (str(caught.value), caught.value.what)


def test_a_value_error_of_the_network_itself_is_no_such_result():
    own = OwnSegmenter("nets:build", Wrapped(lambda found: float("x")), DEFAULTS)
    with pytest.raises(ValueError, match="could not convert"):
        own.outcomes([image_of(1)])


NAMES = st.lists(st.sampled_from("abcdef"), min_size=1, unique=True)


@given(NAMES, NAMES, st.booleans(), st.booleans())
def test_a_network_is_refused_where_another_process_planned_another(planned, built, with_masks, has_masks):
    def of(names, masks):
        return Planned(tuple(Category(ord(name), name) for name in names), masks)

    one, other = of(planned, with_masks), of(built, has_masks)
    if one == other:
        check_planned("nets:build", one, other)
        return
    with pytest.raises(OwnNetworkError, match=r"change.* from process to process") as caught:
        check_planned("nets:build", one, other)
    assert ("in another order" in str(caught.value)) == (
        planned != built and sorted(planned) == sorted(built)
    )


@pytest.mark.parametrize("column", ["boxes", "scores"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_with_a_number_that_is_not_finite_fails_alone(column, value):
    broken, sound = image_of(1), image_of(2)

    def change(found):
        return changed(column, value)(found) if np.array_equal(found.boxes, wrong.boxes) else found

    wrong = Wrapped().outcomes([broken])[0]
    first, second = OwnSegmenter("nets:build", Wrapped(change), DEFAULTS).outcomes([broken, sound])
    assert first.code == "not_finite"
    assert len(second) > 0


def test_a_failure_of_one_image_is_kept_and_too_few_results_are_refused():
    failed = ItemError("out_of_memory", "too large")
    own = OwnSegmenter("nets:build", Wrapped(lambda found: failed), DEFAULTS)
    assert own.outcomes([image_of(1)]) == [failed]
    for results in ([], None, 3, iter([]), np.zeros(2)):
        planted = PlantedSegmenter()
        planted.outcomes = lambda images, results=results: results
        with pytest.raises(UsageError, match=r"expected a list with .* for each of 2 images"):
            OwnSegmenter("nets:build", planted, DEFAULTS).outcomes([image_of(1), image_of(2)])


def test_a_network_that_ends_python_fails_like_one_that_raises():
    planted = PlantedSegmenter()
    planted.outcomes = lambda images: sys.exit(3)
    with pytest.raises(RuntimeError, match="it ended Python with SystemExit: 3"):
        OwnSegmenter("nets:build", planted, DEFAULTS).outcomes([image_of(1)])


@pytest.mark.parametrize("canvas", [lambda *size: list(size), lambda *size: 1 // 0])
def test_a_canvas_that_is_no_key_or_raises_is_one_line(canvas):
    planted = PlantedSegmenter()
    planted.canvas = canvas
    with pytest.raises(UsageError, match="`canvas` must return a key of images of 30 x 40 pixels"):
        OwnSegmenter("nets:build", planted, DEFAULTS).canvas(30, 40)


# The factory


class Segmenter(PlantedSegmenter):
    """A segmenter some of whose members are other values."""


def segmenter(**members):
    return type(
        "Segmenter", (Segmenter,), {name: property(lambda _, v=v: v) for name, v in members.items()}
    )()


def without(member):
    def raises(_):
        raise AttributeError(member)

    return type("Segmenter", (Segmenter,), {member: property(raises)})()


CATEGORY = Category(1, "cat")
RETURNS = {
    "nothing": (lambda options: None, "its factory returned None, which has no categories, has_masks, "),
    "a function": (lambda options: len, "wrap it in maskrcnn.TorchvisionSegmenter"),
    "a class": (lambda options: Segmenter, "`categories` must be a tuple"),
    "no categories": (lambda options: segmenter(categories=()), "`categories` is empty: name at least one"),
    "names": (lambda options: segmenter(categories=("cat",)), "`categories` must be .* it holds 'cat'"),
    "one text": (lambda options: segmenter(categories="cat"), "`categories` must be a tuple of maskrcnn.Category"),
    "two of one id": (lambda options: segmenter(categories=(CATEGORY, Category(1, "dog"))), "has 'dog' with .* twice"),
    "two of one name": (lambda options: segmenter(categories=(CATEGORY, Category(2, "cat"))), "twice"),
    "no name": (lambda options: segmenter(categories=(Category(1, " "),)), "has the id 1 with the name ' '"),
    "half a character": (lambda options: segmenter(categories=(Category(1, "\ud800"),)), r"the name '\\ud800'"),
    "masks as text": (lambda options: segmenter(has_masks="no"), "`has_masks` .* must be True or False, not 'no'"),
    "no batch": (lambda options: segmenter(batch_size=0), "`batch_size` .* must be a whole number from 1, not 0"),
    "half a side": (lambda options: segmenter(max_side=0.5), "`max_side` .* not 0.5"),
    "lanes as text": (lambda options: segmenter(lanes="1"), "`lanes` .* not '1'"),
    "an array": (lambda options: segmenter(execution={"a": np.ones(1)}), "`execution` .* must be a dict that JSON"),
    "a list": (lambda options: segmenter(execution=[3]), "`execution`"),
    "a number": (lambda options: segmenter(outcomes=3), "`outcomes` of its Segmenter must be a method"),
    "an exception": (lambda options: {}["x"], r"its factory raised KeyError: 'x' \(test_own_segmenter\.py, line \d+\)"),
    "an exit": (lambda options: sys.exit(), "its factory raised SystemExit"),
    "other arguments": (lambda options, depth: 3, r"missing a required argument: 'depth'; it takes \(options, depth\)"),
    "no options": (lambda: 3, "too many positional arguments"),
}  # fmt: skip


@pytest.mark.parametrize("case", RETURNS)
def test_a_factory_that_returns_no_segmenter_is_one_line(case):
    factory, message = RETURNS[case]
    with pytest.raises(UsageError, match=f"^--model nets:build: .*{message}") as caught:
        call_factory("nets:build", factory, DEFAULTS, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("member", MEMBERS)
def test_what_is_missing_is_named(member):
    with pytest.raises(UsageError, match=f"Segmenter, which has no {member}: see"):
        call_factory("nets:build", lambda options: without(member), DEFAULTS, {})


def test_the_factory_gets_options_and_arguments():
    seen = []

    def factory(options, *, depth=18, **others):
        seen.append((options, depth, others))
        return PlantedSegmenter()

    call_factory("nets:build", factory, DEFAULTS, {"depth": 50, "weights": "a.pth"})
    assert seen == [(DEFAULTS, 50, {"weights": "a.pth"})]
