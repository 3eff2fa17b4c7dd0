"""detectron2's Cascade Mask R-CNN with FPN: three box heads, each of which refines the boxes of the one before.

The network of `cascade_mask_rcnn_R_50_FPN`. It is that of `detectron2` but for the box heads:

- The first head gets the proposals, the second and third the boxes of the head before, clipped to the image. Empty
  boxes stay, so that there is one box of each head for every proposal.
- A head refines one box, whatever its class; its offsets have divisors of their own.
- A score is the mean of the scores of all heads. The boxes are those of the last one.

The mask head is as without a cascade.

References: https://arxiv.org/abs/1712.00726; https://github.com/facebookresearch/detectron2,
modeling/roi_heads/cascade_rcnn.py.
"""

from itertools import pairwise

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from ..forward import Forward, all_finite, clipped_to
from ..roi_align import Pyramid
from .detectron2 import build_detectron2
from .rcnn_config import CascadeConfig

__all__ = ["CascadeForward", "build_cascade"]


def build_cascade(
    body: str, masks: bool, num_classes: int, min_size: int, max_size: int, config: CascadeConfig
) -> FasterRCNN:
    """Build a network with random weights; the arguments are those of `build_detectron2`.

    Its box heads and predictors are lists. torchvision's `forward` cannot run it; `CascadeForward` does.
    """
    network = build_detectron2(body, masks, num_classes, min_size, max_size, config)
    heads = network.roi_heads
    first, predictor = heads.box_head.fc6, heads.box_predictor.cls_score
    heads.box_head = nn.ModuleList(
        TwoMLPHead(first.in_features, first.out_features) for _ in range(config.stages)
    )
    heads.box_predictor = nn.ModuleList(
        FastRCNNPredictor(predictor.in_features, num_classes) for _ in range(config.stages)
    )
    for each in heads.box_predictor:
        each.bbox_pred = nn.Linear(predictor.in_features, 4)
    heads.box_coders = [
        BoxCoder(config.box_weights[start : start + 4]) for start in range(0, 4 * config.stages, 4)
    ]
    return network


class CascadeForward(Forward):
    """As `forward.Forward`, with a list of box heads."""

    def classify(
        self, pyramid: Pyramid | list[Tensor], proposals: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Classify proposals, and return the offsets from the boxes of the last head but one.

        The logits are logarithms of the mean probabilities, which are their softmax.
        """
        heads = self._network.roi_heads
        stages = list(zip(heads.box_head, heads.box_predictor, heads.box_coders, strict=True))
        logits, deltas = self._predicted(pyramid, proposals, *stages[0][:2])
        boxes, total, finite = proposals, logits.softmax(-1), all_finite(logits) & all_finite(deltas)
        for (_, _, coder), (head, predictor, _) in pairwise(stages):
            refined = coder.decode_single(deltas.flatten(0, 1), boxes.flatten(0, 1)).view_as(boxes)
            boxes = clipped_to(refined.nan_to_num(), limits[:, None])
            logits, deltas = self._predicted(pyramid, boxes, head, predictor)
            total = total + logits.softmax(-1)
            finite = finite & all_finite(logits) & all_finite(deltas)
        mean = total / len(stages)
        of_classes = deltas[:, :, None].expand(-1, -1, mean.shape[2], -1)
        return mean.log(), of_classes, boxes, finite
