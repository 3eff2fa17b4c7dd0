"""A user's own network as a segmenter: what its factory gets, and checks of what it returns.

The factory is called as `factory(options, **arguments)`, where `options` are `SegmenterOptions` and `arguments` those
of `--model-arg`. It returns a `types.Segmenter`, such as a `TorchvisionSegmenter`. `OwnSegmenter` stands between it and
the rest of the program: what breaks the interface ends the run in one line, and the limits hold whatever it does.
"""

import inspect
import json
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...errors import ItemError, MaskrcnnError, OwnNetworkError, UsageError, plural
from ...masks.rle_decode import read_masks
from ...types import (
    Category,
    Detections,
    InvalidDetectionsError,
    Pixels,
    Segmenter,
    areas_of_boxes,
    detection_order,
    pixels_of_boxes,
    shown_value,
)
from .own_code import OwnNetwork, find_code, import_factory, own_digest, raised

__all__ = [
    "MEMBERS",
    "OwnSegmenter",
    "Planned",
    "SegmenterOptions",
    "build_own",
    "call_factory",
    "check_categories",
    "check_planned",
]

MEMBERS: Final = (
    "categories", "has_masks", "batch_size", "max_side", "execution", "lanes", "canvas", "outcomes",
)  # fmt: skip
"""What a segmenter has, see `types.Segmenter`."""


@dataclass(frozen=True, slots=True)
class SegmenterOptions:
    """What the factory of a network of the user's own gets as its first argument, from the command's options.

    A factory that returns a `TorchvisionSegmenter` passes them on. A segmenter of another kind uses what it can: the
    first three are enforced whatever it does.
    """

    min_score: float = 0.05
    """Only detections with a higher score are kept."""
    max_detections: int = 100
    """The maximum number of detections per image, the best by score."""
    categories: tuple[str, ...] = ()
    """Names of the categories to keep; empty: all. The others do not count toward the maximum."""
    device: str = "cpu"
    """`cpu` or `cuda`; `auto`: `cuda` if torch finds it."""
    batch_size: int | None = None
    """Images per forward pass; None: 1 on the CPU, 8 on CUDA."""
    threads: int | None = None
    """Threads of torch on the CPU for each image; None: leave them unchanged."""
    dtype: str | None = None
    """`float32`, `bfloat16` or `float16`; None: the network's own."""
    rescale: bool = True
    """False if the images are windows, all of which should be processed at one scale."""
    lanes: int = 1
    """The number of threads on the CPU that may call the segmenter at the same time."""


def call_factory(
    name: str, factory: Callable[..., Any], options: SegmenterOptions, arguments: Mapping[str, Any]
) -> Segmenter:
    """Call the factory of a network, and check what it returns.

    Raises:
        UsageError: it does not take these arguments, raises, or returns something else than a segmenter.
    """
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # a function that is not written in Python
        signature = None
    if signature is not None:
        try:
            signature.bind(options, **arguments)
        except TypeError as error:
            raise UsageError(
                f"--model {name}: its factory is called with the options and by name with each --model-arg: {error}; "
                f"it takes {signature}"
            ) from error
    try:
        made = factory(options, **arguments)
    except MaskrcnnError:
        raise
    except (Exception, SystemExit) as error:  # what the user's function does may raise anything
        raise UsageError(f"--model {name}: its factory raised {raised(error)}") from error
    return _checked(name, made)


def _checked(name: str, made: Any) -> Segmenter:
    """Return what a factory returned, if it is a segmenter with valid properties."""
    kind = type(made).__name__
    lacking, values = [], {}
    for member in MEMBERS:
        try:
            values[member] = getattr(made, member)
        except AttributeError:
            lacking.append(member)
        except (Exception, SystemExit) as error:  # a property of the user's may raise anything
            raise UsageError(f"--model {name}: `{member}` of its {kind} raised {raised(error)}") from error
    if lacking:
        hint = (
            "wrap it in maskrcnn.TorchvisionSegmenter"
            if callable(made)
            else "see the guide `Your own network`"
        )
        raise UsageError(
            f"--model {name}: its factory returned {shown_value(made)}, which has no {', '.join(lacking)}: {hint}"
        )
    check_categories(values["categories"], f"--model {name}")
    for member in ("batch_size", "max_side", "lanes"):
        if type(values[member]) is not int or values[member] < 1:
            raise UsageError(
                f"--model {name}: `{member}` of its {kind} must be a whole number from 1, not "
                f"{shown_value(values[member])}"
            )
    if type(values["has_masks"]) is not bool:
        raise UsageError(
            f"--model {name}: `has_masks` of its {kind} must be True or False, not {shown_value(values['has_masks'])}"
        )
    for member in ("canvas", "outcomes"):
        if not callable(values[member]):
            raise UsageError(f"--model {name}: `{member}` of its {kind} must be a method")
    try:
        json.dumps(values["execution"], allow_nan=False)
        dict(values["execution"])
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--model {name}: `execution` of its {kind} must be a dict that JSON can hold: {error}"
        ) from error
    return made  # type: ignore[no-any-return]


def check_categories(categories: Any, what: str) -> None:
    """Raise UsageError, which begins with `what`, unless categories are valid: some, each with its own id and name."""
    if not isinstance(categories, Sequence) or isinstance(categories, str):
        raise UsageError(
            f"{what}: `categories` must be a tuple of maskrcnn.Category, not {shown_value(categories)}"
        )
    if not categories:
        raise UsageError(f"{what}: `categories` is empty: name at least one")
    ids, names = set(), set()
    for category in categories:
        if not isinstance(category, Category):
            raise UsageError(
                f"{what}: `categories` must be a tuple of maskrcnn.Category; it holds {shown_value(category)}"
            )
        number, name = category.id, category.name
        if type(number) is not int or not isinstance(name, str) or not name.strip() or not _is_utf8(name):
            raise UsageError(f"{what}: `categories` has the id {number!a} with the name {name!a}")
        if number in ids or name in names:
            raise UsageError(f"{what}: `categories` has {name!r} with the id {number} twice")
        ids.add(number)
        names.add(name)


def _is_utf8(text: str) -> bool:
    return text.encode(errors="replace").decode() == text


def build_own(
    own: OwnNetwork,
    options: SegmenterOptions,
    arguments: Mapping[str, Any],
    folder: str | None = None,
    expected_sha256: str | None = None,
) -> Segmenter:
    """Build the segmenter of a network in this process, with checks around it.

    Args:
        own: the network.
        options: of its factory.
        arguments: of its factory, as `own_arguments.checked_arguments` returns them.
        folder: the folder that holds its code; None: the working directory.
        expected_sha256: as of `own_code.own_digest`; other code or arguments are refused.

    Raises:
        UsageError: its code is not the expected one, or does not build a segmenter.
    """
    code = find_code(own, folder)
    if expected_sha256 is not None and own_digest(own, code, arguments) != expected_sha256:
        raise UsageError(
            f"--model {own.name}: its code, an argument, or a file that one names is not as it was when the run was "
            "planned; restore it, or name another output"
        )
    made = call_factory(own.name, import_factory(own, code), options, arguments)
    return OwnSegmenter(own.name, made, options)


@dataclass(frozen=True, slots=True)
class Planned:
    """What a run was planned with, which a network that is built in another process must have too."""

    categories: tuple[Category, ...]
    has_masks: bool

    @classmethod
    def of_run(cls, model: Mapping[str, Any]) -> "Planned":
        """Return that of the entry `model` of `run.json`."""
        categories = tuple(Category(each["id"], each["name"]) for each in model["categories"])
        return cls(categories, model.get("masks", True))


def check_planned(name: str, planned: Planned, built: Planned) -> None:
    """Compare what a network of the same code is in two processes.

    Raises:
        OwnNetworkError: it has other categories, or the same in another order, or masks in one of the two only.
    """
    remedy = "make it the same in each process, then start again in an empty directory"
    if built.categories != planned.categories:
        pairs = zip_longest(planned.categories, built.categories)
        before, now = next(
            ["none" if each is None else f"{each.id} {each.name}" for each in pair]
            for pair in pairs
            if pair[0] != pair[1]
        )
        same = sorted(planned.categories, key=_id_of) == sorted(built.categories, key=_id_of)
        hint = ", in another order" if same else ""
        raise OwnNetworkError(
            name,
            f"its categories change from process to process{hint}, as those of a set do: {before} was planned where "
            f"{now} is now: {remedy}",
        )
    if built.has_masks != planned.has_masks:
        raise OwnNetworkError(
            name,
            f"its has_masks changes from process to process: {planned.has_masks} was planned, and it is "
            f"{built.has_masks} now: {remedy}",
        )


def _id_of(category: Category) -> int:
    return category.id


class OwnSegmenter:
    """A `types.Segmenter` around one of the user's, whose results it checks, orders and limits.

    Args:
        name: of the model, for messages.
        segmenter: as `call_factory` returns it.
        options: what the factory got; its limits are enforced.
    """

    def __init__(self, name: str, segmenter: Segmenter, options: SegmenterOptions) -> None:
        self._name = name
        self._segmenter = segmenter
        self._options = options
        self._categories = tuple(segmenter.categories)
        self._has_masks = segmenter.has_masks
        self._ids = {category.id for category in self._categories}
        wanted = {category.id for category in self._categories if category.name in options.categories}
        self._kept = np.array(sorted(wanted or self._ids), np.int32)

    @property
    def categories(self) -> tuple[Category, ...]:
        """All categories of the network."""
        return self._categories

    @property
    def has_masks(self) -> bool:
        """Whether it detects masks; else boxes only."""
        return self._has_masks

    @property
    def batch_size(self) -> int:
        """The number of images in a call of `outcomes`."""
        return self._segmenter.batch_size

    @property
    def max_side(self) -> int:
        """The longest side in pixels after the network's resize."""
        return self._segmenter.max_side

    @property
    def execution(self) -> dict[str, Any]:
        """What the network says of its execution."""
        return dict(self._segmenter.execution)

    @property
    def lanes(self) -> int:
        """The number of concurrent calls of `outcomes` that the network allows."""
        return self._segmenter.lanes

    def canvas(self, height: int, width: int) -> Hashable:
        """Return the network's key of images that may share a batch.

        Raises:
            OwnNetworkError: it raised something, or returned what cannot be a key.
        """
        try:
            key = self._segmenter.canvas(height, width)
            hash(key)
        except Exception as error:  # the user's code may raise anything
            raise OwnNetworkError(
                self._name,
                f"its `canvas` must return a key of images of {height} x {width} pixels, such as a tuple: "
                f"{raised(error)}",
            ) from error
        return key

    def outcomes(self, images: Sequence[Pixels]) -> list[Detections | ItemError]:
        """Return the instances of each image, checked, in their order, and at most as many as the options allow.

        Raises:
            OwnNetworkError: the network returned something that is not valid detections of these images.
        """
        return [
            self._outcome(each, *image.shape[:2])
            for each, image in zip(self.raw_outcomes(images), images, strict=True)
        ]

    def raw_outcomes(self, images: Sequence[Pixels]) -> list[Detections | ItemError]:
        """Return what the network itself returns for each image, of which only the types are checked.

        Raises:
            OwnNetworkError: it is no list with detections or a failure for each image.
        """
        try:
            found: Any = self._segmenter.outcomes(images)
        except UsageError as error:
            raise OwnNetworkError(self._name, str(error)) from error
        except InvalidDetectionsError as error:
            what = raised(error).removeprefix(f"{InvalidDetectionsError.__name__}: ")
            raise OwnNetworkError(
                self._name, f"it made maskrcnn.Detections that are not valid: {what}"
            ) from error
        except SystemExit as error:
            raise RuntimeError(f"it ended Python with {raised(error)}") from error
        due = f"a list with maskrcnn.Detections or maskrcnn.ItemError for each of {plural(len(images), 'image')}"
        if not isinstance(found, list | tuple):
            raise OwnNetworkError(self._name, f"its `outcomes` returned {shown_value(found)}, expected {due}")
        if len(found) != len(images):
            what = plural(len(found), "result")
            raise OwnNetworkError(self._name, f"its `outcomes` returned {what}, expected {due}")
        for each in found:
            if not isinstance(each, Detections | ItemError):
                raise OwnNetworkError(
                    self._name, f"its `outcomes` returned {shown_value(each)} for an image, expected {due}"
                )
        return list(found)

    def _outcome(self, found: Detections | ItemError, height: int, width: int) -> Detections | ItemError:
        if isinstance(found, ItemError):
            return found
        problem = problem_of(found, height, width, self._ids, has_masks=self._has_masks)
        if problem is not None:
            raise OwnNetworkError(self._name, problem)
        if not is_finite(found):
            return ItemError("not_finite", "the network returned NaN or infinity for this image")
        return self._limited(found)

    def _limited(self, found: Detections) -> Detections:
        options = self._options
        kept = np.flatnonzero(
            np.isin(found.labels, self._kept) & (found.scores > np.float32(options.min_score))
        )
        best = detection_order(found.boxes[kept], found.labels[kept], found.scores[kept])
        chosen = kept[best[: options.max_detections]]
        limited = replace(found.take(chosen), capped=found.capped or len(chosen) == options.max_detections)
        if len(limited) or (limited.masks is not None) == self._has_masks:
            return limited
        return replace(limited, masks=() if self._has_masks else None)  # `Detections.empty` fits both


def is_finite(found: Detections) -> bool:
    """Return whether all boxes and scores are finite."""
    return bool(np.isfinite(found.boxes).all() and np.isfinite(found.scores).all())


def problem_of(
    found: Detections, height: int, width: int, ids: Collection[int], *, has_masks: bool
) -> str | None:
    """Return in what detections are not valid ones of an image; None if they are.

    Numbers that are not finite are no such problem, see `is_finite`.

    Args:
        found: what the network returned for the image.
        height: of the image, pixels.
        width: of the image, pixels.
        ids: of the network's categories.
        has_masks: whether the network says that it detects masks.
    """
    outside = (found.scores < 0) | (found.scores > 1)
    inverted = (found.boxes[:, 2:] < found.boxes[:, :2]).any(axis=1)
    problem = None
    if (found.height, found.width) != (height, width):
        problem = f"detections of {found.height} x {found.width} pixels for an image of {height} x {width}"
    elif len(found) and (found.masks is not None) != has_masks:
        problem = "no masks, but its has_masks is True" if has_masks else "masks, but its has_masks is False"
    elif unknown := sorted(set(found.labels.tolist()) - set(ids)):
        problem = f"the category {unknown[0]}, which its `categories` lacks"
    elif (outside & np.isfinite(found.scores)).any():
        problem = f"the score {found.scores[outside][0]:g}: scores are from 0 to 1"
    elif inverted.any():
        problem = f"the box {shown_box(found.boxes[inverted][0])}: boxes are xmin, ymin, xmax, ymax in pixels"
    elif is_finite(found):
        problem = _problem_of_areas(found)
    return None if problem is None else f"it returned {problem}"


def shown_box(box: NDArray[np.float32]) -> str:
    """Return a box for a message."""
    return f"({', '.join(f'{side:.6g}' for side in box.tolist())})"


def _problem_of_areas(found: Detections) -> str | None:
    """Return what of masks, areas and their boxes is not valid; None if all are."""
    if found.masks is None:
        areas, boxes = areas_of_boxes(found.boxes), pixels_of_boxes(found.boxes, found.height, found.width)
    else:
        text = np.frombuffer(b"".join(found.masks), np.uint8)
        offsets = np.cumsum([0, *map(len, found.masks)])
        sizes = (np.full(len(found), side, np.int64) for side in (found.height, found.width))
        masks = read_masks(text, offsets, *sizes)
        if not masks.intact.all():
            return "a mask that is not COCO's run lengths of the image"
        areas, boxes = masks.areas, masks.boxes
    if (areas != found.areas).any() or (boxes != found.mask_boxes).any():
        return "`areas` or `mask_boxes` that are not those of its masks or boxes"
    return None
