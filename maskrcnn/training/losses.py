r"""The five losses of Mask R-CNN: definitions, normalization in torchvision, and differences from the papers.

The loss of an image is the unweighted sum

    L = L_objectness + L_rpn_box + L_class + L_box + L_mask                                   (He et al., section 3)

Faster R-CNN has the first four.

RPN (Ren et al., equation 1). From all anchors, including those that cross the border of the image,
`rpn.batch_size_per_image` are drawn: at most half of them positive (IoU of at least 0.7 with an object, or the highest
IoU with an object), the others negative (IoU below 0.3 with each object). With p_i the objectness of the drawn anchor
i, p*_i in {0, 1}, N the number drawn, and t the four numbers of a box as encoded relative to its anchor by
`torchvision.models.detection._utils.BoxCoder`:

    loss_objectness   = 1/N  sum_i  -[p*_i log p_i + (1 - p*_i) log(1 - p_i)]
    loss_rpn_box_reg  = 1/N  sum_i  p*_i  smooth(t_i - t*_i)          summed over the four numbers

    smooth(x) = x^2 / (2 beta)  where |x| < beta,  |x| - beta/2  elsewhere,  beta = 1/9

Heads (Girshick 2015, equations 1 to 3; He et al., section 3). From the proposals and the ground-truth
boxes, `roi_heads.fg_bg_sampler.batch_size_per_image` are drawn, at most a quarter (light network: a third) of them
positive, that is, with an IoU of at least 0.5 with an object. With c_i the class of the drawn box i (0: background),
q_i the softmax over the classes, N the number drawn:

    loss_classifier   = 1/N  sum_i  -log q_i[c_i]
    loss_box_reg      = 1/N  sum_i  [c_i > 0]  smooth(t_i[c_i] - t*_i)    t scaled by 10, 10, 5, 5; beta = 1/9

Mask (He et al., section 3). For each of the P positive boxes, with m_i[c_i] the M x M logits of its own class only,
passed through a sigmoid, and m*_i the mask of its object in the box, as sampled by RoIAlign:

    loss_mask         = 1/(P M^2)  sum_i  sum_xy  binary cross entropy(m_i[c_i], m*_i)

Differences between torchvision, and so this project, and the papers:

- Ren et al. divide the RPN's box loss by the number of anchor locations (about 2,400) and multiply it by 10, which
  they call roughly equal weighting; torchvision divides by the number drawn, and multiplies by 1.
- The papers use an L1 loss that is smooth below 1; torchvision's is smooth below 1/9.
- Girshick's weight lambda = 1 is kept. He et al. train the mask branch on the same boxes; their targets are binary,
  those here are RoIAlign's averages of a binary mask, in [0, 1].
- He et al. draw 64 (C4) or 512 (FPN) boxes per image, with one positive to three negative boxes, as here.
- In torchvision N and P are totals of a whole batch. Here each image is a batch of its own on the CPU, and the batch's
  loss is the mean over its images, which does not depend on the distribution of images over workers. On CUDA a worker's
  share of a batch is one forward pass, and N and P are totals of the share.
- Crowd annotations are regions to ignore: negatives that lie in them are not drawn (see `crowds`); torchvision's
  references leave them out, so that their regions are background. Where nothing is left to draw in a whole forward
  pass, the losses that it would be drawn for are 0.

`tests/training/test_losses.py` computes each of the five from these equations.

References: S. Ren et al., Faster R-CNN, 2015, arXiv:1506.01497; R. Girshick, Fast R-CNN, 2015, arXiv:1504.08083;
K. He et al., Mask R-CNN, 2017, arXiv:1703.06870.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList

from .config import LOSSES
from .crowds import lie_in_crowds

Target = dict[str, Tensor]
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


class ImageLosses(nn.Module):
    """A network whose output is its losses; its random choices depend on the images' seeds alone.

    Args:
        network: the network, in either mode; its samplers are replaced.
    """

    names: tuple[str, ...]
    """Of its losses, in the order of `LOSSES`."""

    def __init__(self, network: FasterRCNN) -> None:
        super().__init__()
        self.network = network
        self.names = LOSSES if network.roi_heads.has_mask() else LOSSES[:-1]
        for part in (network.rpn, network.roi_heads):
            sampler = part.fg_bg_sampler
            part.fg_bg_sampler = SeededSampler(sampler.batch_size_per_image, sampler.positive_fraction)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target], seeds: Sequence[int]
    ) -> dict[str, Tensor]:
        """Compute the losses of one forward pass.

        Args:
            images: (3, H, W) float32 in [0, 1], all of the same size; H and W are multiples of 32.
            targets: for each image, `boxes` (N, 4) xmin, ymin, xmax, ymax in pixels, `labels` (N,) int64 from 1,
                for a network with masks `masks` (N, H, W) uint8, and for an image with crowds `crowds` (H, W) uint8, 1
                in their region.
            seeds: for each image, the seed of its random choices.

        Returns:
            A scalar for each of `names`.
        """
        network = self.network
        for part in (network.rpn, network.roi_heads):
            part.fg_bg_sampler.seeds = tuple(seeds)
        batch = torch.stack([network.transform.normalize(image) for image in images])
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        features = network.backbone(batch)
        listed = ImageList(batch, sizes)
        has_crowds = any("crowds" in target for target in targets)
        anchors = network.rpn.anchor_generator(listed, list(features.values())) if has_crowds else None
        network.rpn.fg_bg_sampler.ignored = _ignored(anchors, targets)
        proposals, losses = network.rpn(listed, features, list(targets))
        losses = _without_stand_in(network.rpn.fg_bg_sampler, losses)
        # The candidates that torchvision draws from: the proposals, then the ground-truth boxes.
        candidates = [
            torch.cat([boxes, target["boxes"]]) for boxes, target in zip(proposals, targets, strict=True)
        ]
        network.roi_heads.fg_bg_sampler.boxes = candidates
        network.roi_heads.fg_bg_sampler.ignored = _ignored(candidates if has_crowds else None, targets)
        _, of_heads = network.roi_heads(features, proposals, sizes, list(targets))
        losses |= _without_stand_in(network.roi_heads.fg_bg_sampler, of_heads)
        return {name: losses[name] for name in self.names}


def _ignored(candidates: Sequence[Tensor] | None, targets: Sequence[Target]) -> list[Tensor | None] | None:
    """Return which candidates of each image lie in its crowds; None where it has none, or no image has any."""
    if candidates is None:
        return None
    return [
        lie_in_crowds(boxes, target["crowds"]) if "crowds" in target else None
        for boxes, target in zip(candidates, targets, strict=True)
    ]


def _without_stand_in(sampler: "SeededSampler", losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the losses of the RPN or the heads, or zeros where their sampler drew a stand-in alone."""
    return {name: 0 * loss for name, loss in losses.items()} if sampler.stood_in else losses


class SeededSampler:
    """torchvision's `BalancedPositiveNegativeSampler`, with a pseudorandom key for each candidate.

    Candidates with the smallest keys are drawn. A key depends on the image's seed and the candidate itself, not on the
    number of other candidates: a candidate that rounding adds or removes does not change the keys of the others, so
    that training runs on different machines or with different workers stay close to each other.

    Args:
        batch_size_per_image: number of candidates drawn per image.
        positive_fraction: maximum share of positives among them.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.seeds: tuple[int, ...] = ()
        self.boxes: Sequence[Tensor] | None = None
        """The candidates of each image, (A, 4), from which keys are computed; None: from their indices."""
        self.ignored: Sequence[Tensor | None] | None = None
        """For each image, (A,) bool, which candidates are not drawn as negatives; None: all may be."""
        self.stood_in = False
        """Whether the last call could draw nothing, and returned one negative in place of the mean over none."""

    def __call__(self, matched: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Draw candidates from each image.

        Args:
            matched: for each image, (A,): 0 for a negative, above 0 for a positive, below 0 for neither.

        Returns:
            For each image, (A,) uint8, 1 where a positive is drawn; and the same for negatives.
        """
        boxes: Sequence[Tensor | None] = self.boxes or [None] * len(matched)
        if self.ignored is not None:
            matched = [
                labels if ignored is None else labels.masked_fill(ignored & (labels == 0), -1)
                for labels, ignored in zip(matched, self.ignored, strict=True)
            ]
        pairs = [self._drawn(*image) for image in zip(matched, self.seeds, boxes, strict=True)]
        positives, negatives = [positive for positive, _ in pairs], [negative for _, negative in pairs]
        self.stood_in = self.ignored is not None and not any(mask.any() for mask in (*positives, *negatives))
        if self.stood_in:
            negatives[0][:1] = 1
        return positives, negatives

    def _drawn(self, labels: Tensor, seed: int, boxes: Tensor | None) -> tuple[Tensor, Tensor]:
        keys = _keys(len(labels), seed, None if boxes is None else boxes.detach().cpu().numpy())
        values = labels.cpu().numpy()
        left = self.batch_size_per_image
        masks = []
        for among, limit in ((values >= 1, int(left * self.positive_fraction)), (values == 0, left)):
            candidates = np.flatnonzero(among)
            chosen = candidates[np.argsort(keys[candidates], kind="stable")[: min(limit, left)]]
            mask = np.zeros(len(values), np.uint8)
            mask[chosen] = 1
            left -= len(chosen)
            masks.append(torch.from_numpy(mask).to(labels.device))
        return masks[0], masks[1]


def _keys(count: int, seed: int, boxes: NDArray[np.float32] | None) -> NDArray[np.uint64]:
    """Return a pseudorandom number for each candidate.

    Reference: the finalizer of SplitMix64, G. Steele et al., Fast splittable pseudorandom number generators, 2014.
    """
    # Corners are rounded to pixels, since rounding errors move them by far less.
    parts = [np.arange(count)] if boxes is None else list(np.round(boxes).astype(np.int64).T)
    keys = np.full(count, seed, np.uint64)
    for part in parts:
        keys = keys * _GOLDEN + part.astype(np.uint64) + np.uint64(1)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
        keys ^= keys >> np.uint64(31)
    return keys
