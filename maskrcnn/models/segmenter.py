"""Segment images: group them into batches, run a forward pass for each, and map boxes and masks back to the images."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from ..config import Augmentations, parse_tta
from ..errors import ItemError, UsageError
from ..masks.encode import detections_from_network, encode_masks
from ..masks.encode_resized import encode_crops, encode_resized
from ..types import Category, Detections, Pixels, detection_order
from .architectures.detectron2 import ShortestEdgeTransform
from .architectures.matterport import SquareTransform, corner
from .architectures.torchvision_resize import prepared
from .forward import Found
from .forward_augmented import AugmentedForward, Copy
from .fuse import for_cpu, fused
from .model import Model
from .networks import NETWORKS, check_tta
from .registry import NO_CATEGORY, category_ids_named

log = logging.getLogger("maskrcnn")

DEFAULT_CUDA_BATCH: Final = 8
DTYPES: Final = ("float32", "bfloat16", "float16")


class MaskRCNNSegmenter:
    """A `types.Segmenter` that runs a network.

    On the CPU images are processed one by one, because the results for an image in a batch differ from those for the
    image alone in the last digits. On CUDA images of one padded size share a batch.

    Args:
        model: as `load_model` returns it; it is copied, not changed.
        min_score: detections with a lower score are dropped.
        max_detections: the maximum number of detections per image, the best by score. A network that keeps fewer than
            2.5 proposals for each of them keeps that number.
        categories: names of the categories to keep; empty: all. The others do not count toward the maximum.
        tta: test-time augmentation, as of `--tta`: `flip`, `scales`, `scales=0.8/1/1.25`, or `flip` and one of them
            with a comma. The network runs on a copy of each image at each scale, and on a flipped one.
        device: `cpu`, `cuda`, or `auto`: CUDA if available.
        batch_size: images per forward pass; None: 1 on CPU, 8 on CUDA.
        threads: of torch on the CPU, for the whole process; None: leave them unchanged.
        dtype: of the convolutions, one of `DTYPES`; None: float32 on CPU, float16 on CUDA. Boxes, scores, RoIAlign
            and suppression are float32 or more.
        rescale: resize images as for training; otherwise the network processes them at their own resolution.
        lanes: the number of concurrent calls of `outcomes` on the CPU, each of which uses `threads` threads; None:
            one. On CUDA it is always two.

    Raises:
        UsageError: the model lacks a category, the device or dtype does not exist, or `tta` is not valid, or not
            possible with this model.
    """

    def __init__(
        self,
        model: Model,
        *,
        min_score: float = 0.05,
        max_detections: int = 100,
        categories: Sequence[str] = (),
        tta: str | None = None,
        device: str = "cpu",
        batch_size: int | None = None,
        threads: int | None = None,
        dtype: str | None = None,
        rescale: bool = True,
        lanes: int | None = None,
    ) -> None:
        check_tta(tta, model.card.name, model.card.architecture)
        self._augmentations = Augmentations(flip=False, scales=(1.0,)) if tta is None else parse_tta(tta)
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = chosen_device(device)
        cuda = self._device.type == "cuda"
        # With TF32, "float32" convolutions would round their inputs to ten bits of mantissa.
        torch.backends.cudnn.allow_tf32 = False
        self._batch_size = batch_size or (DEFAULT_CUDA_BATCH if cuda else 1)
        self._n_lanes = 2 if cuda else lanes or 1
        self._dtype = chosen_dtype(dtype or ("float16" if cuda else "float32"))
        self._categories = model.categories
        self._category_ids = np.array(model.card.category_ids, dtype=np.int32)
        kept = (
            category_ids_named(model.categories, categories)
            if categories
            else set(self._category_ids) - {NO_CATEGORY}
        )
        labels = [label for label, category in enumerate(self._category_ids) if category in kept]
        network = fused(model.module).to(self._device, self._dtype)
        if not cuda and self._dtype == torch.float32:
            network = for_cpu(network)
        architecture = NETWORKS[model.card.architecture]
        self.forward = architecture.forward_class()(network, labels, min_score, max_detections)
        self._augmented = (
            None if tta is None else AugmentedForward(self.forward, len(self._category_ids), max_detections)
        )
        self._has_masks = architecture.has_masks
        self._transform = model.module.transform
        self._rescale = rescale
        self._mean, self._std = (
            torch.tensor(values, device=self._device)[:, None, None]
            for values in (self._transform.image_mean, self._transform.image_std)
        )
        self._max_detections = max_detections
        self._halvings = 0
        self._lanes = _Lanes(self.lanes)
        self._streams = threading.local()

    @property
    def categories(self) -> tuple[Category, ...]:
        """All categories of the model, including those that are not kept."""
        return self._categories

    @property
    def has_masks(self) -> bool:
        """Whether the network detects masks; else boxes only."""
        return self._has_masks

    @property
    def batch_size(self) -> int:
        """The number of images in a forward pass, if their padded sizes are equal."""
        return self._batch_size

    @property
    def lanes(self) -> int:
        """The number of concurrent calls of `outcomes`: on CUDA one computes while another encodes its results."""
        return self._n_lanes

    @property
    def max_side(self) -> int:
        """The longest side in pixels after the network's resize."""
        return int(self._transform.max_size)

    @property
    def execution(self) -> dict[str, Any]:
        """What the last digits depend on; `halvings` counts the batches so far that did not fit into memory."""
        cuda = self._device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self._device) if cuda else "cpu",
            "dtype": str(self._dtype).removeprefix("torch."),
            "batch_size": self._batch_size,
            "halvings": self._halvings,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }

    def segment(self, images: Sequence[Pixels]) -> list[Detections]:
        """Find the instances of each image.

        Args:
            images: (height, width, 3), RGB, uint8, of any sizes.

        Returns:
            one `Detections` per image, in their order.

        Raises:
            ItemError: the first that `outcomes` returns instead of detections.
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
            images: (height, width, 3), RGB, uint8, of any sizes; those of one `canvas` share a forward pass.

        Returns:
            one `Detections` per image, in their order, or an `ItemError`: `out_of_memory` if the image alone does not
            fit into the GPU's memory; `not_finite` if the network returns NaN or infinity for it; `aspect` if the
            network's resize leaves no pixel of its shorter side.
        """
        outcomes: dict[int, Detections | ItemError] = {
            i: ItemError("aspect", f"{image.shape[0]} x {image.shape[1]} pixels cannot be resized")
            for i, image in enumerate(images)
            if 0 in self._resized(*image.shape[:2])
        }
        for batch in self._batches(images):
            outcomes.update(zip(batch, self._halving([images[i] for i in batch]), strict=True))
        return [outcomes[i] for i in range(len(images))]

    def _batches(self, images: Sequence[Pixels]) -> list[list[int]]:
        """Return the indices of each forward pass: images of one padded size, in order, at most `batch_size`."""
        by_canvas: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            if 0 in self._resized(*image.shape[:2]):
                continue
            by_canvas.setdefault(self.canvas(image.shape[0], image.shape[1]), []).append(i)
        return [
            group[start : start + self._batch_size]
            for group in by_canvas.values()
            for start in range(0, len(group), self._batch_size)
        ]

    def canvas(self, height: int, width: int) -> tuple[int, ...]:
        """Return an image's size after resize and padding, pixels: height and width at each scale."""
        scales = self._augmentations.scales
        return tuple(side for scale in scales for side in self._canvas(height, width, scale))

    def _canvas(self, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
        stride = self._transform.size_divisible
        resized = self._resized(height, width, scale)
        if isinstance(self._transform, SquareTransform):
            return self._transform.canvas(resized, rescaled=self._rescale, scale=scale)
        return -(-resized[0] // stride) * stride, -(-resized[1] // stride) * stride

    def _resized(self, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
        """Return an image's size after the network's resize; rounded as by torchvision.

        Args:
            height: of the image, pixels.
            width: of the image, pixels.
            scale: of the result in relation to the network's own size.
        """
        if scale != 1:
            height, width = self._resized(height, width)
            return max(round(height * scale), 1), max(round(width * scale), 1)
        transform = self._transform
        if transform.fixed_size is not None:
            fixed_width, fixed_height = transform.fixed_size
            return fixed_height, fixed_width
        if not self._rescale:
            return height, width
        if isinstance(transform, ShortestEdgeTransform | SquareTransform):
            return transform.resized(height, width)
        scale = min(transform.min_size[-1] / min(height, width), transform.max_size / max(height, width))
        return int(height * scale), int(width * scale)

    def _halving(self, images: list[Pixels]) -> list[Detections | ItemError]:
        """Run a batch; if it does not fit into the GPU's memory, run one half after the other.

        A batch that did not fit while another lane was running is tried again alone: whether an image fits must not
        depend on other images.
        """
        with self._lanes.one():
            try:
                return self._run(images)
            except torch.cuda.OutOfMemoryError:
                pass
        # Outside the `except` block, whose traceback would keep the tensors of the failed batch alive.
        with self._lanes.all():
            return self._halving_alone(images)

    def _halving_alone(self, images: list[Pixels]) -> list[Detections | ItemError]:
        torch.cuda.empty_cache()
        try:
            return self._run(images)
        except torch.cuda.OutOfMemoryError:
            if len(images) == 1:
                height, width, _ = images[0].shape
                message = f"{height} x {width} pixels do not fit into the GPU's memory"
                return [ItemError("out_of_memory", message)]
        self._halvings += 1
        log.warning("%d images do not fit into the GPU's memory; halving the batch", len(images))
        half = len(images) // 2
        return self._halving_alone(images[:half]) + self._halving_alone(images[half:])

    def _run(self, images: list[Pixels]) -> list[Detections | ItemError]:
        """Run one forward pass over images of one canvas."""
        if self._device.type != "cuda":
            return self._detections(self._transfer(images), images)
        # Each lane has its own stream; below, the host waits for this stream alone.
        if not hasattr(self._streams, "own"):
            self._streams.own = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._streams.own):
            packed = self._transfer(images)
        self._streams.own.synchronize()
        return self._detections(packed, images)

    @torch.inference_mode()
    def _transfer(self, images: list[Pixels]) -> tuple[Tensor, Tensor]:
        """Return the detections as two tensors on the host: one row per instance, and whether each image is finite.

        A row is image, label, score, box and the M * M mask probabilities, float32.
        """
        found = self._found(images)
        columns = [found.image[:, None], found.labels[:, None], found.scores[:, None], found.boxes]
        if found.probabilities is not None:
            columns.append(found.probabilities.flatten(1))
        packed = torch.cat(columns, dim=1)
        return packed.to("cpu", non_blocking=True), found.finite.to("cpu", non_blocking=True)

    def _found(self, images: list[Pixels]) -> Found:
        """Run the network on the images, or on their copies."""
        if self._augmented is None:
            return self.forward(*self.batch_of(images))
        sizes = torch.tensor([self._resized(*image.shape[:2]) for image in images], device=self._device)
        copies = (
            Copy(*self.batch_of(images, scale, flip=flip), scale, flip)
            for scale, flip in self._augmentations.copies
        )
        return self._augmented(copies, self._canvas(*images[0].shape[:2]), sizes.float())

    @torch.inference_mode()
    def batch_of(
        self, images: Sequence[Pixels], scale: float = 1.0, *, flip: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return images of one canvas as input of `forward`: on the device, normalised, resized, padded.

        Args:
            images: (height, width, 3), RGB, uint8.
            scale: of the images in relation to the network's own size.
            flip: whether they are flipped horizontally.

        Returns:
            (B, 3, H, W) float32, and (B, 2) float32: height and width of each image after its resize.
        """
        shapes = [(image.shape[0], image.shape[1]) for image in images]
        sizes = [self._resized(*shape, scale) for shape in shapes]
        canvas = self._canvas(*shapes[0], scale)
        centred = isinstance(self._transform, SquareTransform)
        if centred:
            batch = self._transform.empty(len(images), canvas, self._device)
        else:
            batch = torch.zeros((len(images), 3, *canvas), device=self._device)
        for slot, pixels, size in zip(batch, self._upload(images), sizes, strict=True):
            top, left = corner(size, canvas) if centred else (0, 0)
            image = self._prepared(pixels, size)
            slot[:, top : top + size[0], left : left + size[1]] = image.flip(2) if flip else image
        return batch, torch.tensor(sizes, dtype=torch.float32, device=self._device)

    def _upload(self, images: Sequence[Pixels]) -> list[Tensor]:
        """Return the images on the device, (height, width, 3) uint8; on CUDA by one copy from pinned memory."""
        # torch warns about read-only arrays, such as decoded images.
        if self._device.type != "cuda":
            return [torch.from_numpy(np.require(image, requirements=("C", "W"))) for image in images]
        staging = torch.empty(sum(image.size for image in images), dtype=torch.uint8, pin_memory=True)
        np.concatenate([image.ravel() for image in images], out=staging.numpy())
        pixels = staging.to(self._device, non_blocking=True)
        stops = np.cumsum([image.size for image in images]).tolist()
        starts = [0, *stops]
        return [
            pixels[start:stop].view(image.shape)
            for start, stop, image in zip(starts, stops, images, strict=False)
        ]

    def _prepared(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Return an image normalised and resized, (3, height, width) float32."""
        if isinstance(self._transform, ShortestEdgeTransform | SquareTransform):
            return self._transform.prepared(pixels, size)
        return prepared(pixels, size, self._mean, self._std)

    def _detections(
        self, packed: tuple[Tensor, Tensor], images: list[Pixels]
    ) -> list[Detections | ItemError]:
        """Map the detections back to the pixels of each image."""
        rows, finite = (tensor.numpy() for tensor in packed)
        stops = np.searchsorted(rows[:, 0], np.arange(len(images)), side="right").tolist()
        outcomes: list[Detections | ItemError] = []
        for image, start, stop, sound in zip(images, [0, *stops], stops, finite.tolist(), strict=False):
            if sound:
                outcomes.append(self._detections_of(rows[start:stop], *image.shape[:2]))
            else:
                outcomes.append(
                    ItemError("not_finite", "the network returned NaN or infinity for this image")
                )
        return outcomes

    def _detections_of(self, rows: NDArray[np.float32], height: int, width: int) -> Detections:
        size, capped = self._resized(height, width), len(rows) == self._max_detections
        transform = self._transform
        if isinstance(transform, SquareTransform):
            canvas = transform.canvas(size, rescaled=self._rescale)
            boxes = transform.boxes(rows[:, 3:7], size, canvas, (height, width))
            # Rounding to whole pixels makes some boxes empty, after the limit on their number was applied.
            wide = (boxes[:, 2:] > boxes[:, :2]).all(1)
            rows, boxes, encode = rows[wide], boxes[wide], encode_resized
        else:
            ratio = np.array([height, width], np.float32) / np.array(size, np.float32)
            boxes = np.multiply(rows[:, 3:7], ratio[[1, 0, 1, 0]])
            encode = encode_crops if isinstance(transform, ShortestEdgeTransform) else encode_masks
        labels, scores = self._category_ids[rows[:, 1].astype(np.int64)], np.ascontiguousarray(rows[:, 2])
        if not self._has_masks:
            order = detection_order(boxes, labels, scores)
            best = boxes[order], labels[order], scores[order]
            return Detections.of_boxes(height, width, *best, capped=capped)
        side = round(float(rows.shape[1] - 7) ** 0.5)
        return detections_from_network(
            boxes,
            labels,
            scores,
            rows[:, 7:].reshape(-1, side, side),
            height=height,
            width=width,
            capped=capped,
            encode=encode,
        )


class _Lanes:
    """Lets up to `count` threads use a device's memory at once, or one thread exclusively."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = threading.Semaphore(count)
        self._taking_all = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Wait for a lane."""
        with self._free:
            yield

    @contextmanager
    def all(self) -> Iterator[None]:
        """Wait until all lanes are free."""
        with (
            self._taking_all,
            ExitStack() as stack,
        ):  # without it, two threads could wait for each other's lanes forever
            for _ in range(self._count):
                stack.enter_context(self._free)
            yield


def chosen_device(name: str) -> torch.device:
    """Return the device that an option names; `auto`: CUDA if available.

    Raises:
        UsageError: there is no CUDA device.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    if name.startswith("cuda") and not available:
        raise UsageError(f"--device {name}: torch finds no CUDA device: use --device cpu")
    return torch.device(name)


def chosen_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name, one of `DTYPES`. Raises UsageError for another name."""
    if name not in DTYPES:
        raise UsageError(f"--dtype {name}: give one of {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
