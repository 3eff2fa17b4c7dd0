"""The values that flow: frozen, and valid or not there.

torchvision's words (`boxes, labels, scores, masks`) hold up to Parquet, COCO's (`category_id, segmentation,
area`) from there; `schema.instances_table` is the one place that renames.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import ItemError

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


@dataclass(frozen=True, slots=True)
class Detections:
    """The instances of one image, as columns of equal length N, in their final order.

    Raises:
        ValueError: the columns disagree in length, or have another shape or dtype than stated.
    """

    height: int
    """Of the image, pixels."""
    width: int
    boxes: NDArray[np.float32]
    """(N, 4) xmin, ymin, xmax, ymax in pixels of the image, the model's own boxes."""
    labels: NDArray[np.int32]
    """(N,) category ids."""
    scores: NDArray[np.float32]
    """(N,) in [0, 1]."""
    masks: tuple[bytes, ...]
    """N COCO compressed RLE strings over the whole image."""
    areas: NDArray[np.int64]
    """(N,) mask pixels."""
    mask_boxes: NDArray[np.int32]
    """(N, 4) xmin, ymin, xmax, ymax of the mask's pixels, the last two exclusive; zeros where it is empty."""
    capped: bool
    """Whether the limit on detections was reached, so that weaker ones may be missing."""
    frames: NDArray[np.int32] | None = None
    """(N, 4) col_off, row_off, width, height of the rectangle that each mask is drawn in; None: the whole image. Only
    images of 2^32 pixels and more have them, which no COCO mask can cover."""

    def __post_init__(self) -> None:
        n = len(self.masks)
        expected: tuple[tuple[str, tuple[int, ...], type], ...] = (
            ("boxes", (n, 4), np.float32),
            ("labels", (n,), np.int32),
            ("scores", (n,), np.float32),
            ("areas", (n,), np.int64),
            ("mask_boxes", (n, 4), np.int32),
            *([] if self.frames is None else [("frames", (n, 4), np.int32)]),
        )
        for name, shape, dtype in expected:
            column = getattr(self, name)
            if column.shape != shape or column.dtype != dtype:
                raise ValueError(f"{name}: {column.dtype}{column.shape}, expected {dtype.__name__}{shape}")

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def touches_border(self) -> NDArray[np.bool_]:
        """(N,) whether the mask touches the image's border."""
        xmin, ymin, xmax, ymax = self.mask_boxes.T
        touching = (xmin == 0) | (ymin == 0) | (xmax == self.width) | (ymax == self.height)
        return np.asarray(touching & (xmax > 0))

    @property
    def mask_sizes(self) -> NDArray[np.int32]:
        """(N, 2) height and width of what each mask is drawn in."""
        if self.frames is not None:
            return self.frames[:, [3, 2]]
        return np.tile(np.array([self.height, self.width], np.int32), (len(self), 1))

    @staticmethod
    def empty(height: int, width: int) -> "Detections":
        """Return the detections of an image of this size in which nothing was found."""
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
        """Return some of the instances, by (K,) indices, in that order."""
        return replace(
            self,
            boxes=self.boxes[indices],
            labels=self.labels[indices],
            scores=self.scores[indices],
            masks=tuple(self.masks[i] for i in indices.tolist()),
            areas=self.areas[indices],
            mask_boxes=self.mask_boxes[indices],
            frames=None if self.frames is None else self.frames[indices],
        )

    def rles(self) -> list[dict[str, Any]]:
        """Return the masks as `pycocotools.mask` takes them: [{"size": [height, width], "counts": bytes}]."""
        sizes = self.mask_sizes.tolist()
        return [{"size": size, "counts": counts} for size, counts in zip(sizes, self.masks, strict=True)]


def detection_order(
    boxes: NDArray[np.float32], labels: NDArray[np.int32], scores: NDArray[np.float32]
) -> NDArray[np.intp]:
    """Return the order of the instances of an image: by score descending, then category, then box."""
    return np.lexsort((boxes[:, 3], boxes[:, 2], boxes[:, 1], boxes[:, 0], labels, -scores))


class Segmenter(Protocol):
    """What turns pixels into instances: a network, or `planted.PlantedSegmenter` in tests."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """What it can find."""
        ...

    @property
    def batch_size(self) -> int:
        """How many images of a shard are handed to `outcomes` at once, if there are so many of one canvas."""
        ...

    @property
    def max_side(self) -> int:
        """The longest side in pixels after the network's resize; an aspect ratio above it cannot be resized."""
        ...

    @property
    def execution(self) -> dict[str, Any]:
        """What the last digits depend on, for the receipts: device, dtype, batch_size, threads, libraries."""
        ...

    @property
    def lanes(self) -> int:
        """How many calls of `outcomes` may run at once, each in a thread of its own."""
        ...

    def canvas(self, height: int, width: int) -> Hashable:
        """Return what images must have in common to share a batch."""
        ...

    def outcomes(self, images: Sequence[Pixels]) -> list[Detections | ItemError]:
        """Find the instances of each image, or say why there are none: `out_of_memory` or `not_finite`."""
        ...
