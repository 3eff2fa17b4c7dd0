"""Test-time augmentation: run a network on several copies of each image, and combine what it finds.

The method is that of detectron2's `GeneralizedRCNNWithTTA` (detectron2/modeling/test_time_augmentation.py). The boxes
of all copies, with their scores, are mapped back to the image, where those of one label suppress one another, and the
best are kept. The masks are then computed for the boxes that are kept, in every copy: the mask of an instance is the
mean of its probabilities over the copies, in the coordinates of its box.

Where it differs: the maps of a copy are kept until its masks are computed, instead of being computed twice; and every
copy has the same limits on score and number as an image without augmentation.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .forward import Forward, Found, with_masks
from .forward_one_stage import OneStageForward
from .nms import select
from .roi_align import Pyramid

__all__ = ["AugmentedForward", "Copy"]

Maps = Pyramid | list[Tensor]
"""What masks are computed from, as of `Forward.detect`."""


class Copy(NamedTuple):
    """A batch of images, all resized by the same factor, and all flipped or none."""

    batch: Tensor
    """(B, 3, H, W) float32, as of `Forward.__call__`."""
    sizes: Tensor
    """(B, 2) float32, height and width of each image without its padding."""
    scale: float
    """In relation to the network's own size."""
    flip: bool
    """Whether the images are flipped horizontally."""


class AugmentedForward:
    """Mask R-CNN or a detector of boxes on several copies of a batch.

    Args:
        forward: runs the network on a batch.
        n_labels: the number of labels, the background included.
        max_detections: the maximum number of detections per image.
    """

    def __init__(self, forward: Forward | OneStageForward, n_labels: int, max_detections: int) -> None:
        self._forward = forward
        self._masks = forward if isinstance(forward, Forward) and forward.has_masks else None
        self._n_labels = n_labels
        self._max_detections = max_detections

    @torch.inference_mode()
    def __call__(self, copies: Iterable[Copy], canvas: tuple[int, int], sizes: Tensor) -> Found:
        """Find the instances of a batch; boxes are in the coordinates of the network's own size, not flipped.

        Args:
            copies: of the same images, at least one; each is taken when the one before it has been processed.
            canvas: height and width of the batch at the network's own size, pixels.
            sizes: (B, 2) float32, height and width of each image at that size.
        """
        own = self._forward.frames(canvas, sizes)
        found, views = [], []
        maps: list[Maps] = []
        for copy in copies:
            in_copy, pyramid = self._forward.detect(copy.batch, copy.sizes)
            frame = self._forward.frames((copy.batch.shape[2], copy.batch.shape[3]), copy.sizes)
            view = _View(own, frame, flip=copy.flip, resized=copy.scale != 1)
            found.append(in_copy._replace(boxes=view.to_own(in_copy.boxes, in_copy.image)))
            views.append(view)
            if self._masks is not None:
                maps.append(pyramid)
        best = self._best(found)
        return best if self._masks is None else with_masks(best, self._mean(self._masks, best, views, maps))

    def _best(self, found: list[Found]) -> Found:
        """Return the instances of all copies that are not suppressed, the best of each image."""
        image, boxes, label, score = (
            torch.cat([getattr(each, name) for each in found])
            for name in ("image", "boxes", "labels", "scores")
        )
        finite = torch.stack([each.finite for each in found]).all(0)
        sizes = (len(finite), self._n_labels, self._max_detections)
        order, kept = select(image, label, boxes, score, self._forward.nms_threshold, sizes)
        best = order[kept.nonzero().squeeze(1)]
        return Found(image[best], boxes[best], label[best], score[best], None, finite)

    def _mean(self, forward: Forward, best: Found, views: "list[_View]", maps: list[Maps]) -> Tensor:
        """Return the mean of each instance's mask over all copies, (N, M, M) float32."""
        squares = []
        for view, in_copy in zip(views, maps, strict=True):
            boxes = view.from_own(best.boxes, best.image)
            square = forward.probabilities(in_copy, best.image, boxes, best.labels)
            squares.append(square.flip(-1) if view.flip else square)
        return torch.stack(squares).mean(0)


class _View(NamedTuple):
    """How the coordinates of boxes in a copy are related to those at the network's own size."""

    own: Tensor
    """(B, 4): what each image covers of its canvas at the network's own size, as of `Forward.frames`."""
    frame: Tensor
    """(B, 4): the same of the copy."""
    flip: bool
    resized: bool
    """False if the copy has the network's own size."""

    def to_own(self, boxes: Tensor, image: Tensor) -> Tensor:
        """Map (N, 4) boxes of the copy back; `image` is the number of the image of each, (N,)."""
        boxes = _flipped(boxes, self.frame[image]) if self.flip else boxes
        return _moved(boxes, self.frame[image], self.own[image]) if self.resized else boxes

    def from_own(self, boxes: Tensor, image: Tensor) -> Tensor:
        """Map (N, 4) boxes into the copy."""
        boxes = _moved(boxes, self.own[image], self.frame[image]) if self.resized else boxes
        return _flipped(boxes, self.frame[image]) if self.flip else boxes


def _flipped(boxes: Tensor, frame: Tensor) -> Tensor:
    xmin, ymin, xmax, ymax = boxes.unbind(1)
    both = frame[:, 0] + frame[:, 2]
    return torch.stack([both - xmax, ymin, both - xmin, ymax], 1)


def _moved(boxes: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Map boxes linearly from one frame to another, (N, 4) each; an axis of no extent is mapped to its start."""
    low, high = target[:, [0, 1, 0, 1]], target[:, [2, 3, 2, 3]]
    start = source[:, [0, 1, 0, 1]]
    extent = source[:, [2, 3, 2, 3]] - start
    ratio = ((high - low) / extent).where(extent > 0, 0.0)
    return torch.minimum(torch.maximum((boxes - start) * ratio + low, low), high)
