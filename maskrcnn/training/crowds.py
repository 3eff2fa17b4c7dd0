"""Crowds as regions to ignore: a candidate that would be background, but lies in a crowd, is not trained on (torch).

A crowd (COCO's `iscrowd` 1) is a region with objects that are not annotated one by one. COCO's evaluation ignores a
detection without an object of its own if at least the share t of it, the IoU threshold, lies in a crowd of its
category; the lowest t is 0.5. Training does the same with anchors and proposals:

- The share of a candidate's own area that lies in the crowds' masks is what counts, with all crowds of an image as one
  region. Detectron takes the crowds' boxes and a share above 0.7 (`TRAIN.CROWD_FILTER_THRESH`); a box also holds what
  is around and between a crowd. MMDetection has the same rule (`ignore_iof_thr` of `MaxIoUAssigner`), off in its
  configurations; detectron2 and torchvision's references leave crowds out, so that they are background.
- Any category's crowd counts: objectness has no category, and the classes of the heads are one softmax, in which
  background cannot be taught for some classes only.
- A candidate that matches an object is trained on as such, wherever it lies.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

MIN_SHARE: Final = 0.5
"""A box lies in crowds if at least this share of its area is covered by them."""


def lie_in_crowds(boxes: Tensor, crowds: Tensor) -> Tensor:
    """Return which boxes lie in crowds; it depends on each box alone, and is exact up to float64.

    Args:
        boxes: (N, 4) xmin, ymin, xmax, ymax in pixels; what is outside of the image is in no crowd.
        crowds: (H, W) 1 where there is a crowd, 0 elsewhere.

    Returns:
        (N,) bool.
    """
    # (H + 1, W + 1) the number of pixels of crowds above and to the left.
    table = F.pad(crowds.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    left, top, right, bottom = boxes.detach().double().unbind(1)
    covered = (
        _sum_before(table, right, bottom)
        - _sum_before(table, left, bottom)
        - _sum_before(table, right, top)
        + _sum_before(table, left, top)
    )
    area = (right - left) * (bottom - top)
    return (area > 0) & (covered >= MIN_SHARE * area)


def _sum_before(table: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the (N,) area of crowds above and to the left of points: between four sums it is bilinear."""
    row, below = _cell(y, table.shape[0] - 1)
    column, beyond = _cell(x, table.shape[1] - 1)
    upper = torch.lerp(table[row, column], table[row, column + 1], beyond)
    lower = torch.lerp(table[row + 1, column], table[row + 1, column + 1], beyond)
    return torch.lerp(upper, lower, below)


def _cell(at: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the pixel in which coordinates lie, of `size` pixels, and how far into it, in [0, 1]."""
    at = at.clamp(0, size)
    cell = at.floor().clamp(max=size - 1)
    return cell.long(), at - cell
