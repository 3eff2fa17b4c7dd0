"""Which image and which category is which, and that nobody guesses."""

from collections.abc import Sequence

import numpy as np
import pytest

from maskrcnn.errors import UsageError
from maskrcnn.evaluation.alignment import PairedCategories, PairedImages, pair_categories, pair_images
from maskrcnn.formats.coco_reader import CocoCategory, CocoImages
from maskrcnn.models.registry import COCO_CATEGORIES
from maskrcnn.types import Category


def ground_truth(**names: int) -> CocoImages:
    """A ground truth whose images have these names, each with its id."""
    return CocoImages(list(names.values()), list(names), np.zeros((len(names), 2), np.int64))


def paired(
    given: dict[str, int], run: dict[str, int], *, ids_given: bool = False
) -> tuple[PairedImages, list[int]]:
    pairs = pair_images(ground_truth(**given), list(run.values()), list(run), ids_given=ids_given)
    return pairs, pairs.ground_truth.tolist()


# Images


def test_ids_count_only_where_they_were_given() -> None:
    """A run that numbers its images by name has ids too, and they mean nothing to the ground truth."""
    given, run = {"a.png": 2, "b.png": 1}, {"a.png": 1, "b.png": 2}
    assert paired(given, run)[1] == [0, 1]
    by_id, places = paired(given, run, ids_given=True)
    assert places == [1, 0]
    assert (by_id.by, by_id.renamed) == ("id", 2)


def test_names_count_then_the_last_part_where_it_is_unique() -> None:
    pairs, places = paired({"a.png": 5, "val/b.png": 6, "c.png": 7}, {"a.png": 1, "b.png": 2, "d.png": 3})
    assert places == [0, 1, -1]
    assert pairs.by == "name and base name"
    assert pairs.missing.tolist() == [2]
    assert paired({"val/b.png": 6}, {"test/b.png": 1})[0].by == "base name"
    assert paired({"val\\b.png": 6}, {"b.png": 1})[1] == [0]
    both = paired({"a/x.png": 5, "b/x.png": 6}, {"b\\x.png": 1, "a\\x.png": 2})
    assert (both[0].by, both[1]) == ("name", [1, 0])


def test_ids_that_were_given_and_agree_in_none_give_way_to_names() -> None:
    pairs, places = paired({"a.png": 500}, {"a.png": 1}, ids_given=True)
    assert (pairs.by, places) == ("name", [0])


@pytest.mark.parametrize(
    ("given", "run", "complaint"),
    [
        (
            {"x/a.png": 1, "y/a.png": 2},
            {"a.png": 1},
            "ambiguous which image is 'a.png'.*1 and the ground truth 2",
        ),
        (
            {"a.png": 1},
            {"x/a.png": 1, "y/a.png": 2},
            "ambiguous which image is 'a.png'.*2 and the ground truth 1",
        ),
        ({"a.png": 1}, {"b.png": 1}, "no image in common: the run has 'b.png'; the ground truth has 'a.png'"),
    ],
)
def test_images_that_might_be_several_or_none_are_refused(
    given: dict[str, int], run: dict[str, int], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        paired(given, run)


def test_an_exact_name_is_clear_whatever_its_last_part() -> None:
    assert paired({"x/a.png": 1, "y/a.png": 2}, {"x/a.png": 1, "y/a.png": 2})[1] == [0, 1]


def test_a_name_may_begin_with_the_folder_that_it_is_in() -> None:
    images = {"./x/a.png": 1, "./y/a.png": 2, ".\\z\\a.png": 3}
    assert paired(images, {"x/a.png": 1, "y/a.png": 2, "z/a.png": 3})[1] == [0, 1, 2]


@pytest.mark.parametrize("again", ["a.png", "./a.png"])
def test_two_images_of_one_name_are_refused(again: str) -> None:
    twice = CocoImages([1, 2], ["a.png", again], np.zeros((2, 2), np.int64))
    with pytest.raises(UsageError, match=r"two images with the same file_name: 'a.png'"):
        pair_images(twice, [1], ["a.png"], ids_given=False)


# Categories


def listed(*names: str | None, first: int = 1) -> list[CocoCategory]:
    return [CocoCategory(number, name) for number, name in enumerate(names, first)]


def evaluated(pairs: PairedCategories, run: Sequence[Category]) -> dict[str, str]:
    """Return the ground truth's name by the run's."""
    names = {category.id: category.name for category in run}
    return {names[id_]: pairs.names[place] for id_, place in pairs.of_run.items()}


RUN = (Category(4, "car"), Category(2, "nuclei"), Category(9, "boat"))


def test_categories_go_by_name_in_the_order_of_the_ground_truths_ids() -> None:
    given = [CocoCategory(8, "car"), CocoCategory(3, "boat"), CocoCategory(5, "kite")]
    pairs = pair_categories(given, {0, 1}, RUN)
    assert pairs.names == ("boat", "kite", "car")
    assert pairs.of_ground_truth.tolist() == [2, 0, 1]
    assert pairs.of_run == {4: 2, 9: 0}


def test_a_category_that_the_run_does_not_have_is_refused_with_the_nearest_and_can_be_renamed() -> None:
    with pytest.raises(UsageError, match=r"'nucleus'; is it 'nuclei'\? Then add --map nuclei=nucleus"):
        pair_categories(listed("nucleus"), {0}, RUN)
    pairs = pair_categories(listed("nucleus"), {0}, RUN, rename={"nuclei": "nucleus"})
    assert evaluated(pairs, RUN) == {"nuclei": "nucleus"}


def test_a_suggestion_looks_over_capitals_and_quotes_blanks() -> None:
    run = (Category(1, "Traffic Light"),)
    with pytest.raises(UsageError, match='--map "Traffic Light=traffic light"'):
        pair_categories(listed("traffic light"), {0}, run)


def test_several_categories_of_the_run_can_be_one_of_the_ground_truth() -> None:
    pairs = pair_categories(listed("vehicle"), {0}, RUN, rename={"car": "vehicle", "boat": "vehicle"})
    assert pairs.of_run == {4: 0, 9: 0}


def test_categories_can_be_left_out_or_taken_as_one() -> None:
    only = pair_categories(listed("car", "kite"), {0, 1}, RUN, only=("car",))
    assert (only.names, only.of_ground_truth.tolist(), only.of_run) == (("car",), [0, -1], {4: 0})
    agnostic = pair_categories(listed("a", "b"), {0, 1}, RUN, class_agnostic=True)
    assert (agnostic.of_ground_truth.tolist(), agnostic.of_run) == ([0, 0], {4: 0, 2: 0, 9: 0})


@pytest.mark.parametrize("first", [0, 1])
def test_cocos_categories_in_a_row_are_recognised_without_names(first: int) -> None:
    """Conversions number the 80 categories 0 to 79 or 1 to 80; COCO itself uses 90."""
    for names in ([None] * 80, [str(number) for number in range(first, first + 80)]):
        pairs = pair_categories(listed(*names, first=first), set(range(80)), COCO_CATEGORIES)
        assert pairs.by == "order"
        assert pairs.names == tuple(category.name for category in COCO_CATEGORIES)
        assert evaluated(pairs, COCO_CATEGORIES) == {name: name for name in pairs.names}


def test_cocos_own_ids_are_recognised_without_names() -> None:
    given = [CocoCategory(category.id, None) for category in COCO_CATEGORIES]
    assert pair_categories(given, {0}, COCO_CATEGORIES).by == "id"
    some = [CocoCategory(1, "1"), CocoCategory(90, "90")]
    assert pair_categories(some, {0}, COCO_CATEGORIES).names == ("person", "toothbrush")


def test_ids_between_two_countings_are_refused() -> None:
    with pytest.raises(UsageError, match="have no names"):
        pair_categories([CocoCategory(18, None)], {0}, COCO_CATEGORIES)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"rename": {"cart": "car"}}, "the run has no category 'cart'; is it 'car'"),
        ({"rename": {"car": "cat"}}, "the ground truth has no category 'cat'; is it 'car'"),
        ({"only": ("carr",)}, "--categories: the ground truth has no category 'carr'; is it 'car'"),
        ({"class_agnostic": True, "only": ("car",)}, "leave out --map and --categories"),
    ],
)
def test_an_option_that_names_nothing_is_refused(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        pair_categories(listed("car"), {0}, RUN, **options)  # type: ignore[arg-type]


def test_two_categories_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two categories with the name 'car'"):
        pair_categories(listed("car", "car"), {0}, RUN)
