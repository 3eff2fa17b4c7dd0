"""One forward pass of Mask R-CNN or Faster R-CNN over a batch, with few synchronizations between device and host.

The steps are those of torchvision, `GeneralizedRCNN.forward` to `RoIHeads.forward` in torchvision/models/detection, on
the same weights. torchvision loops over images, levels and classes, and each selection in between (`where`, a mask as
an index, `item`) makes the host wait for the device. Here a batch is processed as a whole: what is not selected keeps
its place, with a score below all others. Only two counts are needed on the host: that of the boxes above the score
threshold, and that of the boxes that remain. (On CUDA torchvision's `nms` synchronizes twice more, and a few sizes go
from the host to the device.) The number of synchronizations does not depend on the number of instances.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

from .nms import ABSENT, not_suppressed, select
from .roi_align import Pyramid, pool, pyramid_of

MIN_BOX_SIDE_PX: Final = 1e-2
"""Thinner boxes are dropped, as in torchvision."""

_SMALLEST_PX: Final = torch.finfo(torch.float32).tiny
"""Boxes that are not empty are at least this wide and high."""

PROPOSALS: Final = 2.5
"""The minimum number of proposals per detection that an image may have, where more detections are asked for than the
network was made for; it raises the limits of the network."""


class Found(NamedTuple):
    """The instances of a batch, image by image, by descending score; boxes are in pixels of the resized images."""

    image: Tensor
    """(N,) int64, the number of the image within the batch."""
    boxes: Tensor
    """(N, 4) float32 xmin, ymin, xmax, ymax."""
    labels: Tensor
    """(N,) int64."""
    scores: Tensor
    """(N,) float32."""
    probabilities: Tensor | None
    """(N, M, M) float32: the mask probabilities inside each box, for its own label; None: boxes only."""
    finite: Tensor
    """(B,) bool: whether the network returned finite numbers only; if not, the rest has no meaning."""


def with_masks(found: Found, probabilities: Tensor) -> Found:
    """Return instances with their masks, (N, M, M); an image with a mask that is not finite is not finite."""
    faults = torch.zeros(len(found.finite), device=probabilities.device)
    faults.index_add_(0, found.image, (~all_finite(probabilities)).float())
    return found._replace(probabilities=probabilities, finite=found.finite & (faults == 0))


class Forward:
    """Mask R-CNN without its resize and without its pasting, or Faster R-CNN without its resize.

    Args:
        network: in eval mode; the dtype of its weights is that of its convolutions, all else is float32.
        labels: those that may be detected.
        min_score: detections with a lower score are dropped.
        max_detections: the maximum number of detections per image.
    """

    def __init__(
        self, network: FasterRCNN, labels: Sequence[int], min_score: float, max_detections: int
    ) -> None:
        self._network = network
        parameter = next(network.parameters())
        self._dtype = parameter.dtype
        self._labels = torch.tensor(labels, dtype=torch.int64, device=parameter.device)
        self._min_score = min_score
        self._max_detections = max_detections
        # Anchors depend only on the padded size, which has fewer than a hundred values.
        self._anchors = lru_cache(maxsize=128)(self._make_anchors)

    @property
    def network(self) -> FasterRCNN:
        """The network that it runs."""
        return self._network

    @property
    def has_masks(self) -> bool:
        """Whether the network detects masks; else boxes only."""
        return bool(self._network.roi_heads.has_mask())

    @torch.inference_mode()
    def __call__(self, batch: Tensor, sizes: Tensor) -> Found:
        """Find the instances of a batch.

        Args:
            batch: (B, 3, H, W) float32, resized, normalised, padded to multiples of 32.
            sizes: (B, 2) float32, height and width of each image without its padding.
        """
        found, pyramid = self.detect(batch, sizes)
        if not self.has_masks:
            return found
        return with_masks(found, self.probabilities(pyramid, found.image, found.boxes, found.labels))

    @torch.inference_mode()
    def detect(self, batch: Tensor, sizes: Tensor) -> tuple[Found, Pyramid | list[Tensor]]:
        """Find the boxes of a batch; return them, and the maps from which `probabilities` computes masks.

        Args:
            batch: as of `__call__`.
            sizes: as of `__call__`.
        """
        features = self._network.backbone(batch.to(self._dtype, memory_format=torch.channels_last))
        if isinstance(features, Tensor):
            features = OrderedDict([("0", features)])
        limits = self.limits((batch.shape[2], batch.shape[3]), sizes)
        proposals, present, finite = self.propose(features, (batch.shape[2], batch.shape[3]), limits)
        heads = self._network.roi_heads
        pyramid = pyramid_of(features, heads.box_roi_pool, batch.shape[-2])
        logits, deltas, proposals, finite_heads = self.classify(pyramid, proposals, limits)
        finite = finite & finite_heads

        image, boxes, labels, scores = self.choose(logits, deltas, proposals, present, limits)
        return Found(image, boxes, labels, scores, None, finite), pyramid

    def frames(self, canvas: tuple[int, int], sizes: Tensor) -> Tensor:
        """Return the part of the canvas that each image covers, (B, 4): xmin, ymin, xmax, ymax, as boxes are."""
        del canvas
        return torch.nn.functional.pad(sizes.flip(1), (2, 0))

    @property
    def nms_threshold(self) -> float:
        """The intersection over union above which the lower-scoring box of two of one label is dropped."""
        return float(self._network.roi_heads.nms_thresh)

    def limits(self, canvas: tuple[int, int], sizes: Tensor) -> Tensor:
        """Return the bounds that boxes are clipped to, (B, 4): width, height, width, height of each image, pixels."""
        del canvas
        return sizes.flip(1).repeat(1, 2)

    def _make_anchors(
        self, canvas: tuple[int, int], grids: tuple[tuple[int, int], ...]
    ) -> tuple[Tensor, ...]:
        """Return the anchors of each level, (H * W * A, 4) float32, pixels of the canvas."""
        device = self._labels.device
        generator = self._network.rpn.anchor_generator
        images = ImageList(torch.empty((1, 3, *canvas), device=device), [canvas])
        (anchors,) = generator(images, [torch.empty((1, 1, *grid), device=device) for grid in grids])
        per_place = generator.num_anchors_per_location()
        levels: tuple[Tensor, ...] = anchors.split(
            [h * w * a for (h, w), a in zip(grids, per_place, strict=True)]
        )
        if device.type == "cuda":  # another lane may use them, on its own stream
            torch.cuda.current_stream(device).synchronize()
        return levels

    def propose(
        self, features: dict[str, Tensor], canvas: tuple[int, int], limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the region proposals.

        Returns:
            (B, P, 4) float32 boxes, (B, P) bool whether each is present, (B,) bool whether all numbers are finite.

        Reference: `RegionProposalNetwork.filter_proposals`, which decodes the boxes of all anchors first.
        """
        rpn = self._network.rpn
        usual = self._max_detections <= self._network.roi_heads.detections_per_img
        enough = 0 if usual else math.ceil(PROPOSALS * self._max_detections)
        maps = list(features.values())
        anchors = self._anchors(canvas, tuple((m.shape[-2], m.shape[-1]) for m in maps))
        boxes, scores = [], []
        for objectness, offsets, level_anchors in zip(*rpn.head(maps), anchors, strict=True):
            # (B, A, H, W) to (B, H * W * A), the order of the anchors.
            score = objectness.permute(0, 2, 3, 1).flatten(1).float()
            score, best = score.topk(min(max(rpn.pre_nms_top_n(), enough), score.shape[1]), dim=1)
            deltas = offsets.permute(0, 2, 3, 1).reshape(len(offsets), -1, 4)
            deltas = rows_of(deltas, best).float()
            decoded = rpn.box_coder.decode_single(deltas.flatten(0, 1), level_anchors[best.flatten()])
            boxes.append(decoded.view_as(deltas))
            scores.append(score)
        counts = [score.shape[1] for score in scores]
        box, score = torch.cat(boxes, 1), torch.cat(scores, 1)
        # NaN sorts above all numbers: if there is one, it is among the best.
        finite = all_finite(box) & all_finite(score)
        box = clipped_to(box.nan_to_num(), limits[:, None])
        present = _wide(box, rpn.min_size)
        # detectron2 ranks by logits; sigmoids of high ones are equal in float32.
        if not getattr(rpn, "ranks_by_logits", False):
            score = score.sigmoid()
            present &= score >= rpn.score_thresh
        score = score.where(present, -math.inf)
        kept = not_suppressed(box.flatten(0, 1), score.flatten(), counts * len(box), rpn.nms_thresh)
        score = score.where(kept.view_as(score), -math.inf)
        # Stable as torchvision's: of equal scores the first level has precedence.
        score, best = score.sort(dim=1, descending=True, stable=True)
        count = max(rpn.post_nms_top_n(), enough)
        return rows_of(box, best[:, :count]), score[:, :count] > -math.inf, finite

    def classify(
        self, pyramid: Pyramid | list[Tensor], proposals: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Classify proposals, and return the offsets to the boxes of each class.

        Args:
            pyramid: the maps of a batch, for the aligner of the box head.
            proposals: (B, P, 4), pixels of the resized images.
            limits: (B, 4) width, height, width, height of the resized images, pixels.

        Returns:
            (B, P, C) logits of the classes, the background first; (B, P, C * 4) or (B, P, C, 4) offsets; (B, P, 4) the
            boxes that these start from; (B,) bool whether all numbers are finite.
        """
        del limits
        heads = self._network.roi_heads
        logits, deltas = self._predicted(pyramid, proposals, heads.box_head, heads.box_predictor)
        return logits, deltas, proposals, all_finite(logits) & all_finite(deltas)

    def _predicted(
        self, pyramid: Pyramid | list[Tensor], boxes: Tensor, head: nn.Module, predictor: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """Return what a predictor returns for boxes, (B, P, 4): its logits and offsets, (B, P, …) float32."""
        image = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
        pooled = pool(pyramid, self._network.roi_heads.box_roi_pool, boxes.flatten(0, 1), image)
        logits, deltas = predictor(head(pooled.to(self._dtype)))
        shape = (*boxes.shape[:2], -1)
        return logits.float().view(shape), deltas.float().view(shape)

    def choose(
        self, logits: Tensor, deltas: Tensor, proposals: Tensor, present: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return image, box, label and score of the detections: above `min_score`, not suppressed, among the best.

        Args:
            logits: (B, P, C) of the classes, the background first.
            deltas: (B, P, C * 4) or (B, P, C, 4), the offsets from proposals to boxes.
            proposals: (B, P, 4), pixels of the resized image.
            present: (B, P) bool.
            limits: (B, 4) width, height, width, height of the resized image, pixels.

        Reference: `RoIHeads.postprocess_detections`, which decodes the boxes of all classes first.
        """
        heads = self._network.roi_heads
        n_images, n_proposals, n_labels = logits.shape
        scores = logits.softmax(-1)[..., self._labels]
        scores = scores.where(present[..., None], ABSENT)
        image, row, column = (scores > self._min_score).nonzero().unbind(1)
        score, label = scores[image, row, column], self._labels[column]
        picked = deltas.view(n_images, n_proposals, n_labels, 4)[image, row, label]
        boxes = heads.box_coder.decode_single(picked, proposals[image, row])
        boxes = clipped_to(boxes.nan_to_num(), limits[image])
        # detectron2 counts empty boxes among the best, and drops them afterwards.
        last = getattr(heads, "drops_empty_boxes_last", False)
        wide = _wide(boxes, _SMALLEST_PX if last else MIN_BOX_SIDE_PX)
        score = score if last else score.where(wide, ABSENT)

        sizes = (n_images, n_labels, self._max_detections)
        order, chosen = select(image, label, boxes, score, heads.nms_thresh, sizes)
        best = order[(chosen & (wide[order] | (not last))).nonzero().squeeze(1)]
        return image[best], boxes[best], label[best], score[best]

    def probabilities(
        self, pyramid: Pyramid | list[Tensor], image: Tensor, boxes: Tensor, labels: Tensor
    ) -> Tensor:
        """Return the mask probabilities of each box for its own label, (N, M, M) float32.

        Reference: `MaskRCNNPredictor`, which computes the masks for all labels.
        """
        if len(labels) == 0:
            return torch.empty((0, 1, 1), device=labels.device)
        heads = self._network.roi_heads
        x = self._mask_features(pyramid, boxes, image)
        predictor = heads.mask_predictor
        if not isinstance(predictor, MaskRCNNPredictor):
            own: Tensor = predictor(x, labels)
            return own.float().sigmoid()
        x = predictor.relu(predictor.conv5_mask(x))
        last = predictor.mask_fcn_logits
        n, channels, height, width = x.shape
        weight = last.weight.view(-1, channels, 1)[labels]
        rows = x.permute(0, 2, 3, 1).reshape(n, height * width, channels)
        logits: Tensor = torch.baddbmm(last.bias[labels, None, None], rows, weight)
        return logits.view(n, height, width).float().sigmoid()

    def _mask_features(self, pyramid: Pyramid | list[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """Return what the mask predictor gets for boxes, (N, C, S, S)."""
        heads = self._network.roi_heads
        features: Tensor = heads.mask_head(pool(pyramid, heads.mask_roi_pool, boxes, image).to(self._dtype))
        return features


# Boxes


def rows_of(table: Tensor, index: Tensor) -> Tensor:
    """Return rows of each image, (B, K, 4), from (B, R, 4) by (B, K)."""
    return table.gather(1, index[..., None].expand(-1, -1, table.shape[2]))


def all_finite(values: Tensor) -> Tensor:
    """Return for each entry along the first axis whether all its values are finite."""
    return torch.isfinite(values).flatten(1).all(1)


def clipped_to(boxes: Tensor, limits: Tensor) -> Tensor:
    """Return boxes clipped to zero and to width, height, width, height of their images, (…, 4)."""
    return torch.minimum(boxes.clamp(min=0), limits)


def _wide(boxes: Tensor, side_px: float) -> Tensor:
    return ((boxes[..., 2] - boxes[..., 0]) >= side_px) & ((boxes[..., 3] - boxes[..., 1]) >= side_px)
