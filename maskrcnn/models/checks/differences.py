"""By how much two results of one image differ, where instances that are equal but for rounding are the same."""

from typing import Final

import numpy as np

from ...types import Detections

__all__ = ["differences", "equal"]

_BOX_PX: Final = 0.05
"""Boxes that differ by less, and scores that differ by less than …"""
_SCORE: Final = 1e-3
"""… are equal but for rounding; scores this close to the limit may be on either side of it."""


def equal(one: Detections, other: Detections) -> bool:
    """Return whether all columns and masks of two results are equal."""
    columns = ("boxes", "labels", "scores", "areas", "mask_boxes")
    same = len(one) == len(other) and one.masks == other.masks
    return same and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)


def differences(one: Detections, other: Detections) -> tuple[float, float] | None:
    """Return the largest difference of boxes in pixels and of scores; None if instances differ by more than rounding.

    Instances whose scores are close to the lowest of a full result may be missing in the other.
    """
    boxes = scores = 0.0
    for a, b in ((one, other), (other, one)):
        lowest = min((float(each.scores.min()) for each in (a, b) if len(each)), default=0.0)
        for box, label, score in zip(a.boxes, a.labels, a.scores, strict=True):
            if score <= lowest + _SCORE and len(a) != len(b):
                continue
            near = np.flatnonzero((b.labels == label) & (np.abs(b.scores - score) <= _SCORE))
            apart = np.abs(b.boxes[near] - box).max(axis=1) if len(near) else np.array([np.inf])
            best = int(apart.argmin())
            if apart[best] > _BOX_PX:
                if score <= lowest + _SCORE:
                    continue
                return None
            boxes = max(boxes, float(apart[best]))
            scores = max(scores, float(abs(b.scores[near[best]] - score)))
    return boxes, scores
