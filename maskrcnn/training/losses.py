r"""The five losses of Mask R-CNN: what they are, how torchvision normalises them, and where the papers differ.

The loss of an image is the plain sum

    L = L_objectness + L_rpn_box + L_class + L_box + L_mask                                   (He et al., section 3)

RPN (Ren et al., equation 1). Of all anchors that lie in the image or reach out of it, `rpn.batch_size_per_image` are
drawn: up to a half positive (IoU of at least 0.7 with an object, or the best of an object), the others negative (IoU
below 0.3 with each). With p_i the objectness of the drawn anchor i, p*_i in {0, 1}, N the number drawn, and t the four
numbers of a box as `torchvision.models.detection._utils.BoxCoder` encodes it against its anchor:

    loss_objectness   = 1/N  sum_i  -[p*_i log p_i + (1 - p*_i) log(1 - p_i)]
    loss_rpn_box_reg  = 1/N  sum_i  p*_i  smooth(t_i - t*_i)          summed over the four numbers

    smooth(x) = x^2 / (2 beta)  where |x| < beta,  |x| - beta/2  elsewhere,  beta = 1/9

Heads (Girshick 2015, equations 1 to 3; He et al., section 3). Of the proposals and the true boxes
`roi_heads.fg_bg_sampler.batch_size_per_image` are drawn, up to a quarter (the light network: a third) positive, which
means an IoU of at least 0.5 with an object. With c_i the class of the drawn box i (0: background), q_i the softmax over
the classes, N the number drawn:

    loss_classifier   = 1/N  sum_i  -log q_i[c_i]
    loss_box_reg      = 1/N  sum_i  [c_i > 0]  smooth(t_i[c_i] - t*_i)    t scaled by 10, 10, 5, 5; beta = 1/9

Mask (He et al., section 3). Of the P positive boxes each, with m_i[c_i] the M x M logits of its own class only, passed
through a sigmoid, and m*_i its object's mask in the box, as RoIAlign samples it:

    loss_mask         = 1/(P M^2)  sum_i  sum_xy  binary cross entropy(m_i[c_i], m*_i)

Where torchvision, and so this project, differs from the papers:

- Ren et al. divide the RPN's box loss by the number of anchor places (some 2,400) and weigh it by 10, which they call
  roughly equal; torchvision divides by the number drawn, and weighs by 1.
- Both use L1 that is smooth below 1; torchvision below 1/9.
- Girshick's weight lambda = 1 is kept. He et al. train the mask branch on the same boxes; their targets are binary,
  those here are RoIAlign's averages of a binary mask, in [0, 1].
- He et al. draw 64 (C4) or 512 (FPN) boxes an image, one positive to three negative, as here.
- In torchvision N and P count a whole batch. Here each image is a batch of its own on the CPU, and the batch's loss is
  the mean over its images: then it does not matter how images are spread over workers. On CUDA a worker's share of a
  batch is one forward pass, and N and P count the share.
- Crowds are not learned from, neither as objects nor as background to be left out.

`tests/test_losses.py` computes each of the five from these equations.

References: S. Ren et al., Faster R-CNN, 2015, arXiv:1506.01497; R. Girshick, Fast R-CNN, 2015, arXiv:1504.08083;
K. He et al., Mask R-CNN, 2017, arXiv:1703.06870.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList

from .config import LOSSES

Target = dict[str, Tensor]
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


class ImageLosses(nn.Module):
    """A network that answers its losses; what is drawn at random depends on the images' seeds alone.

    Args:
        network: in training mode or not; its samplers are replaced.
    """

    def __init__(self, network: MaskRCNN) -> None:
        super().__init__()
        self.network = network
        for part in (network.rpn, network.roi_heads):
            sampler = part.fg_bg_sampler
            part.fg_bg_sampler = SeededSampler(sampler.batch_size_per_image, sampler.positive_fraction)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target], seeds: Sequence[int]
    ) -> dict[str, Tensor]:
        """Compute the losses of one forward pass.

        Args:
            images: (3, H, W) float32 in [0, 1], all of one size, a multiple of 32.
            targets: of each image `boxes` (N, 4) xmin, ymin, xmax, ymax in pixels, `labels` (N,) int64 from 1,
                `masks` (N, H, W) uint8.
            seeds: of what is drawn for each image.

        Returns:
            a scalar for each of `LOSSES`.
        """
        network = self.network
        for part in (network.rpn, network.roi_heads):
            part.fg_bg_sampler.seeds = tuple(seeds)
        batch = torch.stack([network.transform.normalize(image) for image in images])
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        features = network.backbone(batch)
        proposals, losses = network.rpn(ImageList(batch, sizes), features, list(targets))
        # What torchvision draws from: the proposals, then the true boxes.
        network.roi_heads.fg_bg_sampler.boxes = [
            torch.cat([boxes, target["boxes"]]) for boxes, target in zip(proposals, targets, strict=True)
        ]
        _, of_heads = network.roi_heads(features, proposals, sizes, list(targets))
        losses = losses | of_heads
        return {name: losses[name] for name in LOSSES}


class SeededSampler:
    """torchvision's `BalancedPositiveNegativeSampler`, in which each candidate has a lot of its own.

    Lots follow from the image's seed and from what the candidate is, not from how many others there are: one that
    rounding adds or removes takes no other's place, so that trainings on other machines or workers stay together.

    Args:
        batch_size_per_image: how many are drawn.
        positive_fraction: at most so many of them positive.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.seeds: tuple[int, ...] = ()
        self.boxes: Sequence[Tensor] | None = None
        """(A, 4) of each image: what candidates are; None: their numbers."""

    def __call__(self, matched: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Draw from each image.

        Args:
            matched: (A,) each: 0 is negative, above 0 positive, below 0 neither.

        Returns:
            (A,) uint8 each: 1 where a positive is drawn; and the same of negatives.
        """
        boxes: Sequence[Tensor | None] = self.boxes or [None] * len(matched)
        pairs = [self._drawn(*image) for image in zip(matched, self.seeds, boxes, strict=True)]
        return [positive for positive, _ in pairs], [negative for _, negative in pairs]

    def _drawn(self, labels: Tensor, seed: int, boxes: Tensor | None) -> tuple[Tensor, Tensor]:
        lots = _lots(len(labels), seed, None if boxes is None else boxes.detach().cpu().numpy())
        values = labels.cpu().numpy()
        left = self.batch_size_per_image
        masks = []
        for among, most in ((values >= 1, int(left * self.positive_fraction)), (values == 0, left)):
            candidates = np.flatnonzero(among)
            chosen = candidates[np.argsort(lots[candidates], kind="stable")[: min(most, left)]]
            mask = np.zeros(len(values), np.uint8)
            mask[chosen] = 1
            left -= len(chosen)
            masks.append(torch.from_numpy(mask).to(labels.device))
        return masks[0], masks[1]


def _lots(count: int, seed: int, boxes: NDArray[np.float32] | None) -> NDArray[np.uint64]:
    """Return a number for each candidate, as good as random.

    Reference: the finalizer of SplitMix64, G. Steele et al., Fast splittable pseudorandom number generators, 2014.
    """
    # Rounding errors move a corner by far less than a pixel.
    kinds = [np.arange(count)] if boxes is None else list(np.round(boxes).astype(np.int64).T)
    lots = np.full(count, seed, np.uint64)
    for kind in kinds:
        lots = lots * _GOLDEN + kind.astype(np.uint64) + np.uint64(1)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            lots = (lots ^ (lots >> np.uint64(shift))) * np.uint64(factor)
        lots ^= lots >> np.uint64(31)
    return lots
