"""One forward pass of RetinaNet, FCOS or SSD over a batch, on torchvision's weights, with few synchronizations.

The steps are those of `postprocess_detections` of torchvision's `RetinaNet`, `FCOS` and `SSD`, which loop over images,
levels or classes, and compute the score of every class of every anchor. Here a logit is first compared with the one
that the minimum score needs at least; only what passes is scored, ranked and decoded, for the whole batch at once.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD

from .forward import Found, all_finite
from .nms import ranked, select

__all__ = ["OneStageForward"]

_MARGIN: Final = 1e-3
"""Of a logit below the one that a score needs: scores are compared once they are computed."""


class OneStageForward:
    """A detector of one stage without its resize.

    Args:
        network: in eval mode; the dtype of its weights is that of its convolutions, all else is float32.
        labels: those that may be detected.
        min_score: detections with this score or less are dropped.
        max_detections: the maximum number of detections per image.
    """

    def __init__(
        self, network: RetinaNet | FCOS | SSD, labels: Sequence[int], min_score: float, max_detections: int
    ) -> None:
        self._network = network
        parameter = next(network.parameters())
        self._dtype = parameter.dtype
        self._labels = torch.tensor(labels, dtype=torch.int64, device=parameter.device)
        self._min_score = min_score
        self._max_detections = max_detections
        self._anchors = lru_cache(maxsize=128)(self._make_anchors)

    @property
    def network(self) -> RetinaNet | FCOS | SSD:
        """The network that it runs."""
        return self._network

    @torch.inference_mode()
    def __call__(self, batch: Tensor, sizes: Tensor) -> Found:
        """Find the instances of a batch.

        Args:
            batch: (B, 3, H, W) float32, resized, normalised, padded.
            sizes: (B, 2) float32, height and width of each image without its padding.
        """
        features = self._network.backbone(batch.to(self._dtype, memory_format=torch.channels_last))
        if isinstance(features, Tensor):
            features = OrderedDict([("0", features)])
        maps = list(features.values())
        outputs = {name: values.float() for name, values in self._network.head(maps).items()}
        logits, offsets = outputs["cls_logits"], outputs["bbox_regression"]
        finite = all_finite(logits) & all_finite(offsets)
        canvas = (batch.shape[2], batch.shape[3])
        anchors, level = self._anchors(
            canvas, tuple((m.shape[-2], m.shape[-1]) for m in maps), logits.shape[1]
        )

        n_images, _, n_labels = logits.shape
        most = max(self._network.topk_candidates, self._max_detections)
        if isinstance(self._network, SSD):
            image, anchor, label, score = self._by_softmax(logits, most)
        else:
            image, anchor, label, score = self._by_sigmoid(logits, outputs.get("bbox_ctrness"))
            n_levels = len(maps)
            order, rank = ranked(image * n_levels + level[anchor], score, n_images * n_levels)
            best = order[(rank < most).nonzero().squeeze(1)]
            image, anchor, label, score = image[best], anchor[best], label[best], score[best]

        limits = sizes.flip(1).repeat(1, 2)[image]
        boxes = self._decoded(offsets[image, anchor], anchors[anchor]).nan_to_num()
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        chosen = select(
            image, label, boxes, score, self._network.nms_thresh, (n_images, n_labels, self._max_detections)
        )
        best = chosen.order[chosen.kept.nonzero().squeeze(1)]
        return Found(image[best], boxes[best], label[best], score[best], None, finite)

    def detect(self, batch: Tensor, sizes: Tensor) -> tuple[Found, list[Tensor]]:
        """Find the boxes of a batch, as `__call__`; return them, and no maps, from which no masks are computed."""
        return self(batch, sizes), []

    def frames(self, canvas: tuple[int, int], sizes: Tensor) -> Tensor:
        """Return the part of the canvas that each image covers, (B, 4): xmin, ymin, xmax, ymax, pixels."""
        del canvas
        return torch.nn.functional.pad(sizes.flip(1), (2, 0))

    @property
    def nms_threshold(self) -> float:
        """The intersection over union above which the lower-scoring box of two of one label is dropped."""
        return float(self._network.nms_thresh)

    def _by_sigmoid(self, logits: Tensor, centerness: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return image, anchor, label and score of what scores more than the minimum, (N,) each.

        Args:
            logits: (B, A, C) of the classes.
            centerness: (B, A, 1) logits that FCOS multiplies into the score; None: a RetinaNet.
        """
        least = self._min_score if centerness is None else self._min_score**2
        cut = (
            math.log(least / (1 - least)) - _MARGIN if 0 < least < 1 else math.copysign(math.inf, least - 0.5)
        )
        image, anchor, column = (logits[..., self._labels] > cut).nonzero().unbind(1)
        label = self._labels[column]
        score = logits[image, anchor, label].sigmoid()
        if centerness is not None:
            score = torch.sqrt(score * centerness[image, anchor, 0].sigmoid())
        above = (score > self._min_score).nonzero().squeeze(1)
        return image[above], anchor[above], label[above], score[above]

    def _by_softmax(self, logits: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return image, anchor, label and score of an SSD's best `most` of each label above the minimum, (N,) each.

        Of hundreds of thousands of scores `topk` costs a fraction of a sort.
        """
        scores = logits.softmax(-1)[..., self._labels].transpose(1, 2)
        best = scores.topk(min(most, scores.shape[2]), dim=2)
        image, column, place = (best.values > self._min_score).nonzero().unbind(1)
        anchor = best.indices[image, column, place]
        return image, anchor, self._labels[column], best.values[image, column, place]

    def _decoded(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        coder = self._network.box_coder
        boxes: Tensor
        if isinstance(self._network, FCOS):
            boxes = coder.decode(offsets, anchors)
        else:
            boxes = coder.decode_single(offsets, anchors)
        return boxes

    def _make_anchors(
        self, canvas: tuple[int, int], grids: tuple[tuple[int, int], ...], count: int
    ) -> tuple[Tensor, Tensor]:
        """Return the anchors of all levels, (A, 4) float32, pixels of the canvas, and the level of each, (A,)."""
        device = self._labels.device
        images = ImageList(torch.empty((1, 3, *canvas), device=device), [canvas])
        maps = [torch.empty((1, 1, *grid), device=device) for grid in grids]
        (anchors,) = self._network.anchor_generator(images, maps)
        cells = torch.tensor([height * width for height, width in grids], device=device)
        # An SSD, whose levels have different numbers of anchors, does not need their levels.
        per_cell = cells * (count // int(cells.sum()))
        level = torch.arange(len(grids), device=device).repeat_interleave(per_cell)
        if device.type == "cuda":  # another lane may use them, on its own stream
            torch.cuda.current_stream(device).synchronize()
        return anchors, level
