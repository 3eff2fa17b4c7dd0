"""Non-maximum suppression."""

from typing import Final, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import nms

_MAX_AT_ONCE: Final = 100_000
"""The number of boxes above which CUDA does not compare all pairs at once: at one bit per pair, 1.2 GB."""


ABSENT: Final = -1.0
"""The score of boxes that are not selected."""


class Selection(NamedTuple):
    """Boxes of a batch in the order of image and score."""

    order: Tensor
    """(N,) int64."""
    kept: Tensor
    """(N,) bool, in that order: whether a box is not suppressed, and among the best of its image."""


def select(
    image: Tensor, label: Tensor, boxes: Tensor, score: Tensor, threshold: float, limits: tuple[int, int, int]
) -> Selection:
    """Suppress boxes of one image and label, and keep the best of each image.

    Args:
        image: (N,) int64, the image of each box.
        label: (N,) int64.
        boxes: (N, 4) float32.
        score: (N,) float32; `ABSENT` for boxes that are not selected.
        threshold: of `not_suppressed`.
        limits: the number of images, of labels, and the maximum number of boxes per image.
    """
    n_images, n_labels, most = limits
    # By image and label for the suppression, …
    group = image * n_labels + label
    order = group.argsort(stable=True)
    counts = torch.zeros(n_images * n_labels, dtype=torch.int64, device=group.device)
    counts.index_add_(0, group, torch.ones_like(group))
    kept = torch.empty_like(order, dtype=torch.bool)
    kept[order] = not_suppressed(boxes[order], score[order], counts, threshold)
    score = score.where(kept, ABSENT)

    # … by image and score for the limit.
    order, rank = ranked(image, score, n_images)
    return Selection(order, (rank < most) & (score[order] > ABSENT))


def ranked(group: Tensor, score: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """Return the order by group and descending score, (N,), and the rank of each within its group, in that order."""
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    counts = torch.zeros(n_groups, dtype=torch.int64, device=group.device)
    counts.index_add_(0, group, torch.ones_like(group))
    before = counts.cumsum(0) - counts
    return order, torch.arange(len(order), device=order.device) - before[group[order]]


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
