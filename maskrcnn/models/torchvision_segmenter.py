"""A segmenter around any module with the interface of torchvision's detectors, for networks of the user's own."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from ..errors import ItemError, UsageError, plural
from ..masks.rle import rle_areas, rle_boxes_xyxy
from ..types import Category, Detections, Pixels, detection_order, shown_value
from .own.own_segmenter import SegmenterOptions, check_categories, shown_box
from .segmenter import DEFAULT_CUDA_BATCH, chosen_device, chosen_dtype

__all__ = ["TorchvisionSegmenter"]

Module = Callable[[list[Tensor]], list[dict[str, Tensor]]]

_UNUSED: Final = ("__background__", "N/A")
"""Names that torchvision gives to labels which are no category."""
_MASK: Final = 0.5
"""A pixel belongs to a mask if its value is above this."""
_ROUNDING: Final = 1e-5
"""By how much a score may lie outside [0, 1]."""


class TorchvisionSegmenter:
    """A segmenter of a module that is called as torchvision's detectors are.

    The module takes a list of (3, H, W) float32 tensors from 0 to 1, RGB, of any sizes, and returns for each a dict:
    `boxes` (N, 4) xmin, ymin, xmax, ymax in pixels of the image, `labels` (N,) integers, `scores` (N,) from 0 to 1, and
    with masks `masks`, (N, 1, H, W) or (N, H, W), probabilities or booleans. Its own resize applies, to windows too.

    Detections above the lowest score are kept, in the categories asked for, the best of them; boxes are clipped to the
    image. An image for which the module returns NaN or infinity fails with `not_finite`. Images of one size share a
    batch. An image that does not fit into the GPU's memory alone fails with `out_of_memory`.

    Args:
        module: is put into eval mode, and moved to the device.
        categories: names of the labels 1, 2, …, in their order, or `Category` values whose ids are the labels. A list
            that begins with `__background__` begins with the label 0; `N/A` marks a label that is no category, and
            whose detections are dropped.
        options: what the factory got.
        has_masks: whether to read `masks`; without them, it is a model of boxes only.
        max_side: the longest side in pixels after the module's resize; None: what its `transform` says, else 1333.
        lanes: the number of threads that may call the module at the same time on the CPU; 1, if its `forward` keeps
            values between calls. None: as many as the run uses.

    Raises:
        UsageError: the categories are not valid, or the device or dtype does not exist.
    """

    def __init__(
        self,
        module: Module,
        categories: Sequence[str | Category],
        options: SegmenterOptions | None = None,
        *,
        has_masks: bool,
        max_side: int | None = None,
        lanes: int | None = None,
    ) -> None:
        options = SegmenterOptions() if options is None else options
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._device = chosen_device(options.device)
        self._dtype = None if options.dtype is None else chosen_dtype(options.dtype)
        cuda = self._device.type == "cuda"
        self._categories, self._unused = _categories(categories)
        self._has_masks = has_masks
        self._options = options
        wanted = [c.id for c in self._categories if not options.categories or c.name in options.categories]
        self._kept = np.array(wanted, np.int32)
        self._lanes = 1 if cuda else lanes or options.lanes
        self._batch_size = options.batch_size or (DEFAULT_CUDA_BATCH if cuda else 1)
        self._max_side = max_side or _max_side(module)
        if isinstance(module, torch.nn.Module):
            module = module.eval().to(self._device)
        self._module = module

    @property
    def categories(self) -> tuple[Category, ...]:
        """All categories, including those that are not kept."""
        return self._categories

    @property
    def has_masks(self) -> bool:
        """Whether it detects masks; else boxes only."""
        return self._has_masks

    @property
    def batch_size(self) -> int:
        """The number of images in a forward pass, if their sizes are equal."""
        return self._batch_size

    @property
    def lanes(self) -> int:
        """The number of concurrent calls of `outcomes`."""
        return self._lanes

    @property
    def max_side(self) -> int:
        """The longest side in pixels after the module's resize."""
        return self._max_side

    @property
    def execution(self) -> dict[str, Any]:
        """What the last digits depend on."""
        return {
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu",
            "dtype": self._options.dtype or "module",
            "batch_size": self._batch_size,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Return the image's size: modules pad images of a batch to the largest, which changes their results."""
        return height, width

    def segment(self, images: Sequence[Pixels]) -> list[Detections]:
        """Find the instances of each image.

        Args:
            images: (height, width, 3), RGB, uint8, of any sizes.

        Raises:
            ItemError: the first that `outcomes` returns instead of detections.
            UsageError: as `outcomes`.
        """
        found = []
        for outcome in self.outcomes(images):
            if isinstance(outcome, ItemError):
                raise outcome
            found.append(outcome)
        return found

    def outcomes(self, images: Sequence[Pixels]) -> list[Detections | ItemError]:
        """Find the instances of each image, or the reason why the image failed.

        Args:
            images: (height, width, 3), RGB, uint8, of any sizes.

        Raises:
            UsageError: the module returned something else than detections of these images.
        """
        by_size: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            by_size.setdefault(image.shape[:2], []).append(i)
        outcomes: dict[int, Detections | ItemError] = {}
        for group in by_size.values():
            for start in range(0, len(group), self._batch_size):
                batch = group[start : start + self._batch_size]
                outcomes.update(zip(batch, self._halving([images[i] for i in batch]), strict=True))
        return [outcomes[i] for i in range(len(images))]

    def _halving(self, images: list[Pixels]) -> list[Detections | ItemError]:
        """Run a batch; if it does not fit into the GPU's memory, run one half after the other."""
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            return self._run(images)
        # Outside the block above, whose traceback would keep the tensors of the failed batch alive.
        torch.cuda.empty_cache()
        if len(images) == 1:
            height, width, _ = images[0].shape
            return [ItemError("out_of_memory", f"{height} x {width} pixels do not fit into the GPU's memory")]
        half = len(images) // 2
        return self._halving(images[:half]) + self._halving(images[half:])

    @torch.inference_mode()
    def _run(self, images: list[Pixels]) -> list[Detections | ItemError]:
        # torch warns about read-only arrays, such as decoded images.
        pixels = [torch.from_numpy(np.require(image, requirements=("C", "W"))) for image in images]
        inputs = [each.to(self._device).permute(2, 0, 1).to(torch.float32) / 255 for each in pixels]
        with self._autocast():
            found = self._module(inputs)
        if not isinstance(found, list | tuple) or len(found) != len(images):
            what = plural(len(found), "result") if isinstance(found, list | tuple) else shown_value(found)
            raise UsageError(
                f"the module returned {what} for {plural(len(images), 'image')}: a list of dicts is needed"
            )
        return [self._detections(each, *image.shape[:2]) for each, image in zip(found, images, strict=True)]

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        reduced = self._dtype not in (None, torch.float32)
        with torch.autocast(self._device.type, self._dtype, enabled=reduced):
            yield

    def _detections(self, found: Any, height: int, width: int) -> Detections | ItemError:
        boxes, labels, scores = _columns(found)
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            return ItemError("not_finite", "the network returned NaN or infinity for this image")
        outside = (scores < -_ROUNDING) | (scores > 1 + _ROUNDING)
        if outside.any():
            raise UsageError(f"the module returned the score {scores[outside][0]:g}: scores are from 0 to 1")
        inverted = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
        if inverted.any():
            box = shown_box(boxes[inverted][0])
            raise UsageError(f"the module returned the box {box}: boxes are xmin, ymin, xmax, ymax in pixels")
        known = {category.id for category in self._categories} | self._unused
        if unknown := sorted(set(labels.tolist()) - known):
            raise UsageError(
                f"the module returned the label {unknown[0]}, for which its categories have no name"
            )
        scores = scores.clip(0, 1)
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
        kept = np.flatnonzero(np.isin(labels, self._kept) & (scores > np.float32(self._options.min_score)))
        order = detection_order(boxes[kept], labels[kept], scores[kept])[: self._options.max_detections]
        best = kept[order]
        capped = len(best) == self._options.max_detections
        columns = boxes[best], labels[best], scores[best]
        if not self._has_masks:
            return Detections.of_boxes(height, width, *columns, capped=capped)
        masks = _encoded(found, best, len(scores), height, width)
        if masks is None:
            return ItemError("not_finite", "the network returned NaN or infinity for this image")
        rles = [{"size": [height, width], "counts": mask} for mask in masks]
        return Detections(
            height, width, *columns, masks, rle_areas(rles), rle_boxes_xyxy(rles), capped=capped
        )


def _categories(categories: Sequence[str | Category]) -> tuple[tuple[Category, ...], set[int]]:
    """Return the categories, and the labels that are no category."""
    if isinstance(categories, str) or not isinstance(categories, Sequence):
        raise UsageError(f"categories must be a list of names, not {type(categories).__name__}")
    first = 0 if categories and categories[0] == _UNUSED[0] else 1
    named, unused = [], {0}
    for label, category in enumerate(categories, first):
        if isinstance(category, str) and category in _UNUSED:
            unused.add(label)
        else:
            named.append(Category(label, category) if isinstance(category, str) else category)
    check_categories(tuple(named), "TorchvisionSegmenter")
    return tuple(named), unused - {category.id for category in named}


def _max_side(module: object) -> int:
    side = getattr(getattr(module, "transform", None), "max_size", None)
    return side if type(side) is int and side >= 1 else 1333


def _columns(found: Any) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    """Return boxes, labels and scores of one image."""
    if not isinstance(found, Mapping):
        raise UsageError(f"the module returned {shown_value(found)} for an image: a dict is needed")
    for name in ("boxes", "labels", "scores"):
        if not isinstance(found.get(name), Tensor):
            what = f"it is {shown_value(found[name])}" if name in found else "it is missing"
            raise UsageError(f"the module's dicts must have a tensor `{name}`: {what}")
    boxes, labels, scores = found["boxes"], found["labels"], found["scores"]
    n = len(scores) if scores.dim() else -1
    for name, tensor, shape in (("scores", scores, (n,)), ("labels", labels, (n,)), ("boxes", boxes, (n, 4))):
        if tuple(tensor.shape) != shape:
            wanted = "(N, 4)" if name == "boxes" else "(N,)"
            raise UsageError(
                f"the module returned `{name}` of the shape {tuple(tensor.shape)}: {wanted} is needed, with the same N "
                "for boxes, labels and scores"
            )
        if tensor.is_complex():
            raise UsageError(
                f"the module returned `{name}` of the dtype {tensor.dtype}: real numbers are needed"
            )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise UsageError(f"the module returned `labels` of the dtype {labels.dtype}: they are integers")
    host = functools.partial(torch.Tensor.to, device="cpu")
    wide = host(labels).to(torch.int64).numpy()
    if n and (wide.max() >= 2**31 or wide.min() < 0):
        raise UsageError(f"the module returned the label {wide.max() if wide.min() >= 0 else wide.min()}")
    return host(boxes).float().numpy(), wide.astype(np.int32), host(scores).float().numpy()


def _encoded(
    found: Mapping[str, Any], best: NDArray[np.intp], n: int, height: int, width: int
) -> tuple[bytes, ...] | None:
    """Return the masks of the best detections as run lengths; None if one is not finite."""
    masks = found.get("masks")
    if not isinstance(masks, Tensor):
        raise UsageError("the module's dicts must have a tensor `masks`, or has_masks=False")
    if masks.dim() == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if tuple(masks.shape) != (n, height, width):
        raise UsageError(
            f"the module returned `masks` of the shape {tuple(masks.shape)} for {plural(n, 'detection')} in an image "
            f"of {height} x {width} pixels: (N, 1, H, W) is needed"
        )
    encoded = []
    for index in best.tolist():
        mask = masks[index]
        if mask.is_floating_point() and not bool(torch.isfinite(mask).all()):
            return None
        pixels = (mask > _MASK).to("cpu", torch.uint8).numpy()
        encoded.append(coco_mask.encode(np.asfortranarray(pixels))["counts"])
    return tuple(encoded)
