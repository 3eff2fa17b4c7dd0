"""Non-maximum suppression."""

from typing import Final

import torch
from torch import Tensor
from torchvision.ops import nms

_MAX_AT_ONCE: Final = 100_000
"""The number of boxes above which CUDA does not compare all pairs at once: at one bit per pair, 1.2 GB."""


def not_suppressed(boxes: Tensor, scores: Tensor, counts: Tensor | list[int], threshold: float) -> Tensor:
    """Return which boxes are not overlapped by a better one of their group (non-maximum suppression).

    On CUDA all groups are processed at once, unless there are too many boxes: groups are shifted apart by multiples of
    a distance, in float64, where the shift does not change the boxes; torchvision does so in float32. On the CPU, where
    the time grows with the square of the number of boxes, groups are processed one by one.

    Args:
        boxes: (N, 4) float32, group by group.
        scores: (N,)
        counts: the number of boxes in each group.
        threshold: on the intersection over union.

    Returns:
        (N,) bool.
    """
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    if boxes.is_cuda and 0 < len(boxes) <= _MAX_AT_ONCE:
        groups = torch.as_tensor(counts, device=boxes.device)
        group = torch.arange(len(groups), device=boxes.device).repeat_interleave(
            groups, output_size=len(boxes)
        )
        span = boxes.amax().ceil().double() + 1
        kept[nms(boxes.double() + (group * span)[:, None], scores.double(), threshold)] = True
        return kept
    start = 0
    for count in counts if isinstance(counts, list) else counts.tolist():
        if count:
            part = slice(start, start + count)
            kept[start + nms(boxes[part], scores[part], threshold)] = True
        start += count
    return kept
