"""Crowds as regions to ignore: a candidate that would be background, but lies in a crowd, is not trained on (torch).

A crowd (COCO's `iscrowd` 1) is a region with objects that are not annotated one by one. COCO's evaluation ignores a
detection without an object of its own if at least the share t of it, the IoU threshold, lies in a crowd of its
category; the lowest t is 0.5. Training does the same with anchors and proposals:

- The share of a candidate's own area that lies in the crowds' masks is what counts, with all crowds of an image as one
  region. Detectron takes the crowds' boxes and a share above 0.7 (`TRAIN.CROWD_FILTER_THRESH`); a box also holds what
  is around and between a crowd. MMDetection has the same rule (`ignore_iof_thr` of `MaxIoUAssigner`), off in its
  configurations; detectron2 and torchvision's references leave crowds out, so that they are background.
- For a network that detects boxes only, a crowd's region is its box, as in COCO's evaluation of boxes.
- Any category's crowd counts: objectness has no category, and in the softmax of the heads background cannot be
  taught for some classes only.
- A candidate that matches an object is trained on as such, wherever it lies.
"""

from typing import Final, Protocol

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


class AnchorLosses(Protocol):
    """`compute_loss` of torchvision's detectors of one stage."""

    def __call__(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
        /,
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch, given for each image (A, 4) anchors, and (A,) the object of each.

        The object is negative for none.
        """


def outside_of_crowds(compute: AnchorLosses, *, is_mean: bool) -> AnchorLosses:
    """Return a function of the losses that leaves out the anchors that have no object and lie in crowds.

    Args:
        compute: computes the losses of all anchors.
        is_mean: whether they are means over the images of a batch; else they are sums over its images, divided by the
            number of its anchors with an object, at least 1.

    Returns:
        A function equal to `compute` for a batch without crowds.
    """

    def computed(
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        if not any("crowds" in target for target in targets):
            return compute(targets, head_outputs, anchors, matched_idxs)
        parts = []
        counts = [int((matched >= 0).sum()) for matched in matched_idxs]
        for at, (target, boxes, matched) in enumerate(zip(targets, anchors, matched_idxs, strict=True)):
            kept = torch.ones_like(matched, dtype=torch.bool)
            if "crowds" in target:
                kept = (matched >= 0) | ~lie_in_crowds(boxes, target["crowds"])
            outputs = {name: output[at : at + 1, kept] for name, output in head_outputs.items()}
            losses = compute([target], outputs, [boxes[kept]], [matched[kept]])
            weight = 1 / len(targets) if is_mean else max(counts[at], 1) / max(sum(counts), 1)
            parts.append({name: loss * weight for name, loss in losses.items()})
        return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}

    return computed


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
