"""Values that pass between rooms: frozen, and checked when they are constructed.

torchvision's names (`boxes, labels, scores, masks`) are used up to Parquet, COCO's (`category_id, segmentation, area`)
from there on; only `schema.instances_table` converts between them.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import ItemError, plural

Pixels = NDArray[np.uint8]
"""An image: (height, width, 3), RGB, uint8."""


@dataclass(frozen=True, slots=True)
class Category:
    """One class of objects."""

    id: int
    """The id in the outputs: a name, >= 0, int32, gaps allowed. `ModelCard.category_ids` states the label of each."""
    name: str

    def __post_init__(self) -> None:
        if not 0 <= self.id < 2**31:
            raise ValueError(f"a category id is from 0 to {2**31 - 1}, not {self.id}")


class InvalidDetectionsError(ValueError):
    """A field of `Detections` is of another type, shape or dtype than stated; the message names it, and what is due."""


@dataclass(frozen=True, slots=True)
class Detections:
    """The instances of one image, as columns of equal length N, in their final order.

    Raises:
        InvalidDetectionsError: the columns differ in length, or a field is of another type, shape or dtype than stated.
    """

    height: int
    """Height of the image in pixels."""
    width: int
    """Width of the image in pixels."""
    boxes: NDArray[np.float32]
    """(N, 4) xmin, ymin, xmax, ymax in pixels of the image, the model's own boxes."""
    labels: NDArray[np.int32]
    """(N,) category ids."""
    scores: NDArray[np.float32]
    """(N,) in [0, 1]."""
    masks: tuple[bytes, ...] | None
    """N COCO compressed RLE strings of the whole image; None: the model detects boxes only."""
    areas: NDArray[np.int64]
    """(N,) number of mask pixels; without masks, of the box, rounded."""
    mask_boxes: NDArray[np.int32]
    """(N, 4) xmin, ymin, xmax, ymax of the mask's pixels, the last two exclusive; zeros for an empty mask. Without
    masks, of the pixels that the box covers, wholly or partly."""
    capped: bool
    """Whether the limit on detections was reached, so that some with lower scores may be missing."""
    frames: NDArray[np.int32] | None = None
    """(N, 4) col_off, row_off, width, height of the rectangle that each mask covers; None: the whole image. Only
    images of 2^32 pixels and more have frames, since a COCO mask cannot cover them."""

    def __repr__(self) -> str:
        """Return the number of instances, and the image's size; the bytes of masks are of no use to a reader."""
        return f"<Detections: {plural(len(self), 'instance')} in an image of {self.height} x {self.width} pixels>"

    def __post_init__(self) -> None:
        whole, boolean = (int, np.integer), (bool, np.bool_)
        for name, kinds in (("height", whole), ("width", whole), ("capped", boolean)):
            value = getattr(self, name)
            if not isinstance(value, kinds):
                raise InvalidDetectionsError(
                    f"`{name}` is {shown_value(value)}, expected {kinds[0].__name__}"
                )
        labels: Any = self.labels
        n = len(labels) if hasattr(labels, "__len__") and getattr(labels, "ndim", None) != 0 else 0
        expected: tuple[tuple[str, tuple[int, ...], type], ...] = (
            ("labels", (n,), np.int32),
            ("boxes", (n, 4), np.float32),
            ("scores", (n,), np.float32),
            ("areas", (n,), np.int64),
            ("mask_boxes", (n, 4), np.int32),
            *([] if self.frames is None else [("frames", (n, 4), np.int32)]),
        )
        for name, shape, dtype in expected:
            column = getattr(self, name)
            if not isinstance(column, np.ndarray) or column.shape != shape or column.dtype != dtype:
                raise InvalidDetectionsError(
                    f"`{name}` is {shown_value(column)}, expected an array of {dtype.__name__} {shape}, as there are "
                    f"{plural(n, 'label')}"
                )
        if self.masks is not None:
            _check_masks(self.masks, n)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def touches_border(self) -> NDArray[np.bool_]:
        """(N,) whether the mask touches the image's border; without masks, whether the box does."""
        return touching_border(self.mask_boxes, self.height, self.width)

    @property
    def mask_sizes(self) -> NDArray[np.int32]:
        """(N, 2) height and width of the rectangle that each mask covers."""
        if self.frames is not None:
            return self.frames[:, [3, 2]]
        return np.tile(np.array([self.height, self.width], np.int32), (len(self), 1))

    @staticmethod
    def of_boxes(
        height: int,
        width: int,
        boxes: NDArray[np.float32],
        labels: NDArray[np.int32],
        scores: NDArray[np.float32],
        *,
        capped: bool,
    ) -> "Detections":
        """Return detections without masks, whose areas and pixels are those of their boxes.

        Raises:
            InvalidDetectionsError: as `Detections`.
        """
        if not isinstance(boxes, np.ndarray) or boxes.shape[1:] != (4,):
            raise InvalidDetectionsError(
                f"`boxes` is {shown_value(boxes)}, expected an array of float32 (N, 4)"
            )
        areas, pixels = areas_of_boxes(boxes), pixels_of_boxes(boxes, height, width)
        return Detections(
            height=height,
            width=width,
            boxes=boxes,
            labels=labels,
            scores=scores,
            masks=None,
            areas=areas,
            mask_boxes=pixels,
            capped=capped,
        )

    @staticmethod
    def empty(height: int, width: int) -> "Detections":
        """Return zero detections, of an image of this size."""
        return Detections(
            height=height,
            width=width,
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int32),
            scores=np.zeros(0, np.float32),
            masks=(),
            areas=np.zeros(0, np.int64),
            mask_boxes=np.zeros((0, 4), np.int32),
            capped=False,
        )

    def take(self, indices: NDArray[np.intp]) -> "Detections":
        """Return the instances with these (K,) indices, in that order."""
        return replace(
            self,
            boxes=self.boxes[indices],
            labels=self.labels[indices],
            scores=self.scores[indices],
            masks=None if self.masks is None else tuple(self.masks[i] for i in indices.tolist()),
            areas=self.areas[indices],
            mask_boxes=self.mask_boxes[indices],
            frames=None if self.frames is None else self.frames[indices],
        )

    @property
    def counts(self) -> tuple[bytes, ...]:
        """The `masks` of a model that detects them.

        Raises:
            ValueError: there are boxes only.
        """
        if self.masks is None:
            raise ValueError("the model detects boxes only: there are no masks")
        return self.masks

    def rles(self) -> list[dict[str, Any]]:
        """Return the masks in the form of `pycocotools.mask`: [{"size": [height, width], "counts": bytes}].

        Raises:
            ValueError: there are boxes only.
        """
        sizes = self.mask_sizes.tolist()
        return [{"size": size, "counts": counts} for size, counts in zip(sizes, self.counts, strict=True)]


def _check_masks(masks: Any, n: int) -> None:
    """Raise InvalidDetectionsError unless masks are n byte strings."""
    due = f"expected a tuple of {n} bytes: COCO's compressed run lengths of each mask, or None for boxes only"
    if not isinstance(masks, tuple | list):
        raise InvalidDetectionsError(f"`masks` is {shown_value(masks)}, {due}")
    if len(masks) != n:
        raise InvalidDetectionsError(f"`masks` has {plural(len(masks), 'mask')}, {due}")
    wrong = next((index for index, mask in enumerate(masks) if not isinstance(mask, bytes)), None)
    if wrong is not None:
        raise InvalidDetectionsError(f"`masks[{wrong}]` is {shown_value(masks[wrong])}, {due}")


def shown_value(value: Any) -> str:
    """Return what a value is, for a message: small ones themselves, arrays by dtype and shape, others by their type.

    >>> shown_value(None), shown_value(0.5), shown_value(np.zeros((2, 4))), shown_value([1, 2])
    ('None', '0.5', 'an array of float64 (2, 4)', 'a list of length 2')
    """
    if value is None or isinstance(value, bool | int | float | str):
        return ascii(value)[:100]
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    kind = type(value).__name__
    if isinstance(value, list | tuple | dict | set):
        return f"a {kind} of length {len(value)}"
    shape = getattr(value, "shape", None)  # a tensor of torch, say, which is not imported here
    if isinstance(shape, tuple) and hasattr(value, "dtype"):
        return f"a {kind} of {value.dtype} {tuple(shape)}"
    return f"an object of the type {kind}"


def areas_of_boxes(boxes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the areas of (N, 4) boxes in pixels, (N,), rounded."""
    sides = np.maximum(boxes[:, 2:].astype(np.float64) - boxes[:, :2], 0)
    with np.errstate(invalid="ignore"):  # boxes that are not finite are found where results are checked
        areas: NDArray[np.int64] = np.rint(sides.prod(axis=1)).astype(np.int64)
    return areas


def pixels_of_boxes(boxes: NDArray[np.float32], height: Any, width: Any) -> NDArray[np.int32]:
    """Return the pixels that boxes cover wholly or partly, (N, 4): xmin, ymin, xmax, ymax, the last two exclusive.

    Args:
        boxes: (N, 4), pixels of an image.
        height: of the image, or (N,) of the image of each.
        width: likewise.
    """
    corners = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1)
    limits = np.stack(np.broadcast_arrays(width, height, width, height), axis=-1)
    with np.errstate(invalid="ignore"):  # likewise
        pixels: NDArray[np.int32] = np.clip(corners, 0, limits).astype(np.int32)
    return pixels


def touching_border(pixels: NDArray[np.int32], height: Any, width: Any) -> NDArray[np.bool_]:
    """Return which boxes of pixels, (N, 4), the last two sides exclusive, touch the border of their image."""
    xmin, ymin, xmax, ymax = pixels.T
    return np.asarray(((xmin == 0) | (ymin == 0) | (xmax == width) | (ymax == height)) & (xmax > 0))


def detection_order(
    boxes: NDArray[np.float32], labels: NDArray[np.int32], scores: NDArray[np.float32]
) -> NDArray[np.intp]:
    """Return the order of the instances of an image: by score descending, then category, then box."""
    return np.lexsort((boxes[:, 3], boxes[:, 2], boxes[:, 1], boxes[:, 0], labels, -scores))


class Segmenter(Protocol):
    """Finds instances in pixels: a network, or `planted.PlantedSegmenter` in tests."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """The categories that it can detect."""
        ...

    @property
    def has_masks(self) -> bool:
        """Whether its detections have masks; else they have boxes only."""
        ...

    @property
    def batch_size(self) -> int:
        """Number of images of a shard in one call of `outcomes`, if enough of them share a canvas."""
        ...

    @property
    def max_side(self) -> int:
        """Maximum side in pixels after the network's resize; an image with a larger aspect ratio cannot be resized."""
        ...

    @property
    def execution(self) -> dict[str, Any]:
        """Values that the last digits depend on, for the receipts: device, dtype, batch_size, threads, libraries."""
        ...

    @property
    def lanes(self) -> int:
        """Number of calls of `outcomes` that may run at the same time, in separate threads."""
        ...

    def canvas(self, height: int, width: int) -> Hashable:
        """Return a key that is equal for images that may share a batch."""
        ...

    def outcomes(self, images: Sequence[Pixels]) -> list[Detections | ItemError]:
        """Return the instances of each image, or its failure: `out_of_memory` or `not_finite`."""
        ...
