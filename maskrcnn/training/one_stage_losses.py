r"""The losses of RetinaNet, FCOS and SSD: torchvision's own, with their definitions and normalization.

The loss of an image is the unweighted sum of its parts. Each anchor is matched with at most one object; P is the number
of anchors with an object, at least 1.

RetinaNet (Lin et al., sections 3 and 4). An anchor with an IoU of at least 0.5 with an object, or the highest IoU with
an object, is positive, one below 0.4 with each negative; the others have no classification loss:

    loss_classification  = 1/P  sum_i sum_c  focal(p_ic, p*_ic)     alpha = 0.25, gamma = 2
    loss_bbox_regression = 1/P  sum_i  p*_i  |t_i - t*_i|           t as in `losses`, not scaled; in v2 1 - GIoU

FCOS (Tian et al., section 3; its revision of 2020). The points near the center of an object, on the level of its size,
are positive:

    loss_classification  = 1/P  sum_i sum_c  focal(p_ic, p*_ic)
    loss_bbox_regression = 1/P  sum_i  p*_i  (1 - GIoU(b_i, b*_i))
    loss_bbox_ctrness    = 1/P  sum_i  p*_i  binary cross entropy(c_i, c*_i)

SSD, also SSDLite (Liu et al., section 2.2). An anchor with an IoU of at least 0.5 with an object, or the highest IoU
with an object, is positive; of the others the three times as many with the highest loss are negative:

    loss_bbox_regression = 1/P  sum_i  p*_i  smooth(t_i - t*_i)     t scaled by 10, 10, 5, 5; smooth below 1
    loss_classification  = 1/P  sum_i  -log q_i[c_i]                over positive and negative anchors

As with `losses`, each image is a batch of its own on the CPU, and the loss of a batch is the mean over its images; on
CUDA a worker's share of a batch is one forward pass. torchvision's RetinaNet takes that mean by itself; its FCOS and
SSD divide by the P of a whole batch. Nothing is drawn at random. An image without an object has no loss in an SSD:
there are no positive anchors, and so no negative ones. Anchors without an object that lie in a crowd have no loss, see
`crowds`.

References: T.-Y. Lin et al., Focal loss for dense object detection, 2017, arXiv:1708.02002; Z. Tian et al., FCOS, 2019,
arXiv:1904.01355 and arXiv:2006.09214; W. Liu et al., SSD, 2016, arXiv:1512.02325.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.ssd import SSD

from .crowds import outside_of_crowds
from .losses import Target

PREFIX = "loss_"
"""Before torchvision's names."""


class OneStageLosses(nn.Module):
    """A detector of one stage whose output is its losses.

    Args:
        network: the network; must be in training mode when this is called. In training mode it no longer resizes.
    """

    names: tuple[str, ...]
    """Of its losses."""

    def __init__(self, network: RetinaNet | FCOS | SSD) -> None:
        super().__init__()
        self.network = network
        parts = (
            "classification",
            "bbox_regression",
            *(["bbox_ctrness"] if isinstance(network, FCOS) else []),
        )
        self.names = tuple(f"{PREFIX}{part}" for part in parts)
        # torchvision's own means for images that are resized already.
        network.transform._skip_resize = True  # noqa: SLF001 no public name for it
        part: Any = network if isinstance(network, SSD) else network.head
        part.compute_loss = outside_of_crowds(part.compute_loss, is_mean=isinstance(network, RetinaNet))

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target], seeds: Sequence[int]
    ) -> dict[str, Tensor]:
        """Compute the losses of one forward pass.

        Args:
            images: (3, H, W) float32 in [0, 1], all of the same size; for an SSD its own size, else multiples of 32.
            targets: for each image, `boxes` (N, 4) xmin, ymin, xmax, ymax in pixels, `labels` (N,) int64 from 1, and
                for an image with crowds `crowds` (H, W) uint8, 1 in their region.
            seeds: nothing is drawn.

        Returns:
            A scalar for each of `names`.
        """
        del seeds
        losses = self.network(list(images), list(targets))
        return {name: losses[name.removeprefix(PREFIX)] for name in self.names}
