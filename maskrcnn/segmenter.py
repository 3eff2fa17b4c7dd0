"""From pixels to instances: torchvision's network, cut before it pastes.

The steps are those of `GeneralizedRCNN.forward` and `RoIHeads.forward` in torchvision/models/detection, with
the same functions in the same order. The boxes' post-processing is written anew, because categories are
chosen there, before suppression and limit. Masks stay squares inside their boxes.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import boxes as box_ops

from .errors import ItemError, UsageError
from .masks import detections_from_network
from .model import Model
from .types import Category, Detections, Pixels
from .weights import category_ids_named

DEFAULT_CUDA_BATCH: Final = 8
MIN_BOX_SIDE_PX: Final = 1e-2
"""Thinner boxes are dropped, as torchvision does."""


class MaskRCNNSegmenter:
    """A `types.Segmenter` that runs a network.

    On the CPU images go through one by one, since an image in a batch differs from the same image alone in
    the last digits. On CUDA images of one padded size share a batch.

    Args:
        model: of `load_model`; it is copied, not changed.
        min_score: weaker detections are left out.
        max_detections: the most an image may have, the best by score.
        categories: names of the categories to keep; empty: all. The others do not displace them.
        device: `cpu`, `cuda`, or `auto`: CUDA if there is one.
        batch_size: images a forward pass; None: 1 on CPU, 8 on CUDA.
        threads: of torch on the CPU, for the whole process; None: as they are.

    Raises:
        UsageError: the model has no category of a name, or there is no such device.
    """

    def __init__(
        self,
        model: Model,
        *,
        min_score: float = 0.05,
        max_detections: int = 100,
        categories: Sequence[str] = (),
        device: str = "cpu",
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = _device(device)
        self._batch_size = batch_size or (DEFAULT_CUDA_BATCH if self._device.type == "cuda" else 1)
        self._module = copy.deepcopy(model.module).eval().to(self._device)
        self._categories = model.categories
        self._category_ids = np.array(model.card.category_ids, dtype=np.int32)
        kept = (
            category_ids_named(model.categories, categories) if categories else set(self._category_ids) - {0}
        )
        labels = [label for label, category in enumerate(self._category_ids) if category in kept]
        self._labels = torch.tensor(labels, dtype=torch.int64, device=self._device)
        self._min_score = min_score
        self._max_detections = max_detections

    @property
    def categories(self) -> tuple[Category, ...]:
        """All categories of the model, also where only some are kept."""
        return self._categories

    @property
    def batch_size(self) -> int:
        """How many images go through the network at once, if their padded sizes are equal."""
        return self._batch_size

    @property
    def max_side(self) -> int:
        """The longest side in pixels after the network's resize."""
        return int(self._module.transform.max_size)

    @property
    def execution(self) -> dict[str, Any]:
        """What the last digits depend on."""
        cuda = self._device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self._device) if cuda else "cpu",
            "dtype": "float32",
            "batch_size": self._batch_size,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }

    def segment(self, images: Sequence[Pixels]) -> list[Detections]:
        """Find the instances of each image.

        Args:
            images: (height, width, 3), RGB, uint8, of any sizes.

        Returns:
            one `Detections` an image, in their order.

        Raises:
            ItemError: `out_of_memory`, where an image alone does not fit into the GPU's memory; `not_finite`, where
                the network gives NaN or infinity for one of them.
        """
        found: dict[int, Detections] = {}
        for batch in self._batches(images):
            found.update(zip(batch, self._halving([images[i] for i in batch]), strict=True))
        return [found[i] for i in range(len(images))]

    def _batches(self, images: Sequence[Pixels]) -> list[list[int]]:
        """Return the images of each forward pass: of one padded size, in order, at most `batch_size`."""
        by_canvas: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            by_canvas.setdefault(self._canvas(image.shape[0], image.shape[1]), []).append(i)
        return [
            group[start : start + self._batch_size]
            for group in by_canvas.values()
            for start in range(0, len(group), self._batch_size)
        ]

    def _canvas(self, height: int, width: int) -> tuple[int, int]:
        """Return an image's size after resize and padding."""
        transform = self._module.transform
        shorter, longer = min(height, width), max(height, width)
        scale = min(transform.min_size[-1] / shorter, transform.max_size / longer)
        stride = transform.size_divisible
        return -(-int(height * scale) // stride) * stride, -(-int(width * scale) // stride) * stride

    def _halving(self, images: list[Pixels]) -> list[Detections]:
        """Run a batch; where the GPU's memory does not hold it, one half after the other."""
        try:
            return self._forward(images)
        except torch.cuda.OutOfMemoryError as error:
            if len(images) == 1:
                height, width, _ = images[0].shape
                message = f"{height} x {width} pixels do not fit into the GPU's memory"
                raise ItemError("out_of_memory", message) from error
        # Outside of `except`, whose traceback would keep the failed batch's tensors alive.
        torch.cuda.empty_cache()
        half = len(images) // 2
        return self._halving(images[:half]) + self._halving(images[half:])

    @torch.inference_mode()
    def _forward(self, images: list[Pixels]) -> list[Detections]:
        inputs, _ = self._module.transform([self._to_tensor(image) for image in images])
        features = self._module.backbone(inputs.tensors)
        if isinstance(features, Tensor):
            features = OrderedDict([("0", features)])
        proposals, _ = self._module.rpn(inputs, features)
        heads = self._module.roi_heads
        pooled = heads.box_roi_pool(features, proposals, inputs.image_sizes)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        counts = [len(boxes) for boxes in proposals]
        found = [
            self._choose(*one)
            for one in zip(
                logits.split(counts), deltas.split(counts), proposals, inputs.image_sizes, strict=True
            )
        ]
        masks = self._masks(features, found, inputs.image_sizes)
        return [
            self._detections(one, square, size, image)
            for one, square, size, image in zip(found, masks, inputs.image_sizes, images, strict=True)
        ]

    def _to_tensor(self, image: Pixels) -> Tensor:
        # torch warns where an array is read-only, and decoded images are.
        pixels = torch.from_numpy(np.require(image, requirements=("C", "W")))
        return pixels.to(self._device).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)

    def _choose(self, logits: Tensor, deltas: Tensor, proposals: Tensor, size: tuple[int, int]) -> "_Found":
        """Return the boxes of one image: above the score, not suppressed, the best.

        Args:
            logits: (P, C) of the classes, the background first.
            deltas: (P, C * 4), from proposals to boxes.
            proposals: (P, 4), pixels of the resized image.
            size: height and width of the resized image, pixels.

        Reference: `RoIHeads.postprocess_detections`, which decodes the boxes of all classes first.
        """
        heads = self._module.roi_heads
        # A NaN is above no score: without this it would look like an image in which nothing is.
        if not (torch.isfinite(logits).all() and torch.isfinite(deltas).all()):
            raise ItemError("not_finite", "the network gave NaN or infinity for a score or box")
        scores = logits.softmax(-1)[:, self._labels]  # (P, kept labels)
        rows, columns = torch.where(scores > self._min_score)
        scores, labels = scores[rows, columns], self._labels[columns]
        deltas = deltas.reshape(len(logits), -1, 4)[rows, labels]
        boxes = heads.box_coder.decode_single(deltas, proposals[rows])
        boxes = box_ops.clip_boxes_to_image(boxes, size)
        keep = box_ops.remove_small_boxes(boxes, MIN_BOX_SIDE_PX)
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        keep = box_ops.batched_nms(boxes, scores, labels, heads.nms_thresh)[: self._max_detections]
        return _Found(boxes[keep], labels[keep], scores[keep])

    def _masks(
        self, features: dict[str, Tensor], found: "Sequence[_Found]", sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, ...]:
        """Return for each image the probabilities inside its boxes, (N, M, M), of each box's own label."""
        heads = self._module.roi_heads
        pooled = heads.mask_roi_pool(features, [one.boxes for one in found], sizes)
        logits = heads.mask_predictor(heads.mask_head(pooled))  # (all boxes, C, M, M)
        labels = torch.cat([one.labels for one in found])
        own = logits[torch.arange(len(labels), device=labels.device), labels]
        return tuple(own.sigmoid().split([len(one.labels) for one in found]))

    def _detections(
        self, found: "_Found", squares: Tensor, size: tuple[int, int], image: Pixels
    ) -> Detections:
        """Bring the findings of one image back to its own pixels."""
        height, width, _ = image.shape
        boxes = resize_boxes(found.boxes, size, (height, width))
        return detections_from_network(
            _to_numpy(boxes),
            self._category_ids[found.labels.cpu().numpy()],
            _to_numpy(found.scores),
            _to_numpy(squares),
            height=height,
            width=width,
            capped=len(found.labels) == self._max_detections,
        )


class _Found(NamedTuple):
    """The boxes of one image, in pixels of the resized image, by score descending."""

    boxes: Tensor  # (N, 4)
    labels: Tensor  # (N,)
    scores: Tensor  # (N,)


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    if name.startswith("cuda") and not available:
        raise UsageError(f"--device {name}: torch finds no CUDA device here; use --device cpu")
    return torch.device(name)


def _to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.cpu().numpy(), dtype=np.float32)
