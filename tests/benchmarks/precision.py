"""What convolutions in half precision cost: average precision of the embedded model on unseen scenes, on the CPU.

    python -m tests.benchmarks.precision [--scenes 100] [--json PATH]

The same scenes go through the segmenter in each dtype. Prints a line a dtype: AP and AP50 of masks and of boxes in
points (hundredths), the differences to float32, and how far the strong boxes have moved.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maskrcnn.evaluation.pycocotools_reference import average_precision
from maskrcnn.models.model import load_model
from maskrcnn.models.segmenter import DTYPES, MaskRCNNSegmenter
from maskrcnn.synthetic.scenes import Scene, coco_dataset, render_scene
from maskrcnn.training.train_scenes import EVALUATION_SEED, IMAGE_SIZE
from maskrcnn.types import Detections

STRONG = 0.5
"""Detections with a score above this must be found again."""
SAME_IOU = 0.5
"""Boxes of one label that overlap by so much are the same find."""


@dataclass(frozen=True, slots=True)
class Moved:
    """How the strong detections of a reference are found by another."""

    strong: int
    """Of the reference."""
    distances: NDArray[np.float64]
    """(M,) of those found again: the mean absolute difference of the four coordinates, pixels."""
    farthest_px: float
    """Of any coordinate."""

    @property
    def share(self) -> float:
        """Of the strong ones that were found again; NaN where none is strong."""
        return len(self.distances) / self.strong if self.strong else float("nan")

    @property
    def mean_px(self) -> float:
        """The mean of `distances`; NaN where there is none."""
        return float(self.distances.mean()) if len(self.distances) else float("nan")


def moved(found: Sequence[Detections], reference: Sequence[Detections], strong: float = STRONG) -> Moved:
    """Find the strong detections of a reference again, each once, the best by score first."""
    total, distances = 0, []
    for ours, theirs in zip(found, reference, strict=True):
        overlaps = box_ious(theirs.boxes, ours.boxes)
        overlaps[theirs.labels[:, None] != ours.labels[None]] = 0.0
        for i in np.flatnonzero(theirs.scores > strong):
            total += 1
            if len(ours) and overlaps[i].max() >= SAME_IOU:
                j = int(overlaps[i].argmax())
                overlaps[:, j] = 0.0
                distances.append(np.abs(theirs.boxes[i].astype(np.float64) - ours.boxes[j]))
    differences = np.array(distances).reshape(-1, 4)
    return Moved(total, differences.mean(1), float(differences.max(initial=0.0)))


def box_ious(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the intersections over unions of boxes, (N, M).

    >>> box_ious(np.float32([[0, 0, 2, 2]]), np.float32([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]])).round(3)
    array([[1.   , 0.333, 0.   ]])
    """
    a, b = left.astype(np.float64)[:, None], right.astype(np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = sides.clip(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (a, b)]
    return np.asarray(common / np.maximum(areas[0] + areas[1] - common, 1e-9))


def results(found: Sequence[Detections]) -> list[dict[str, object]]:
    """Return detections in COCO results form, both shapes; images are numbered from 1."""
    rows: list[dict[str, object]] = []
    for image_id, one in enumerate(found, start=1):
        sides = one.boxes[:, 2:] - one.boxes[:, :2]
        boxes = np.concatenate([one.boxes[:, :2], sides], axis=1).tolist()
        columns = zip(one.labels.tolist(), one.scores.tolist(), boxes, one.rles(), strict=True)
        rows += [
            {"image_id": image_id, "category_id": label, "score": score, "bbox": box, "segmentation": rle}
            for label, score, box, rle in columns
        ]
    return rows


def compare(scenes: Sequence[Scene], dtypes: Sequence[str] = DTYPES) -> dict[str, dict[str, float]]:
    """Return the figures of each dtype, the first of which is what the others are compared with."""
    model, ground_truth = load_model("scenes"), coco_dataset(scenes)
    figures: dict[str, dict[str, float]] = {}
    reference: list[Detections] = []
    for dtype in dtypes:
        segmenter = MaskRCNNSegmenter(model, dtype=dtype)
        found = [segmenter.segment([scene.image])[0] for scene in scenes]
        reference = reference or found
        rows = results(found)
        masks, boxes = (average_precision(ground_truth, rows, kind) for kind in ("segm", "bbox"))
        change = moved(found, reference)
        figures[dtype] = {
            "mask_ap": 100 * masks.ap,
            "mask_ap50": 100 * masks.ap50,
            "box_ap": 100 * boxes.ap,
            "box_ap50": 100 * boxes.ap50,
            "strong": change.strong,
            "found_again": change.share,
            "mean_px": change.mean_px,
            "max_px": change.farthest_px,
        }
        print(line(dtype, figures[dtype], figures[dtypes[0]]), flush=True)
    return figures


def line(dtype: str, figures: dict[str, float], reference: dict[str, float]) -> str:
    """Return a dtype's figures as text."""
    points = "  ".join(
        f"{name} {figures[name]:.2f} ({figures[name] - reference[name]:+.3f})"
        for name in ("mask_ap", "mask_ap50", "box_ap", "box_ap50")
    )
    again = f"{figures['found_again']:.4f} of {figures['strong']:.0f} strong"
    return f"{dtype:8}  {points}  {again}, boxes {figures['mean_px']:.4f} px, at most {figures['max_px']:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    figures = compare([render_scene(EVALUATION_SEED + i, IMAGE_SIZE) for i in range(options.scenes)])
    if options.json:
        content = {"scenes": options.scenes, "first_seed": EVALUATION_SEED, "dtypes": figures}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
