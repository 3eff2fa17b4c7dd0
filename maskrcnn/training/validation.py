"""Validation: the average precision of a network on a stored dataset, whose images the processes divide (torch)."""

from typing import Any

import pyarrow as pa
import torch.distributed as dist

from ..evaluation.pycocotools_reference import average_precision
from ..models.segmenter import MaskRCNNSegmenter
from ..types import Category, Detections
from .data_loading import read_pixels
from .dataset import coco_ground_truth

__all__ = ["validate"]


def validate(
    segmenter: MaskRCNNSegmenter,
    images: pa.Table,
    categories: tuple[Category, ...],
    max_detections: int,
    *,
    rank: int = 0,
    world: int = 1,
) -> dict[str, float]:
    """Evaluate a network on a dataset.

    Args:
        segmenter: the network.
        images: a table of `dataset.SCHEMA`; may be empty.
        categories: those of the dataset.
        max_detections: maximum number of instances per image that count.
        rank: of this process among all processes, each of which calls this.
        world: the number of processes.

    Returns:
        The columns `config.MEASURED`, or of a network without masks `config.MEASURED_BOXES`; none for an empty dataset
        and in other processes than that of rank 0.

    Raises:
        ItemError, RunError: as `read_pixels`.
    """
    if not images.num_rows:
        return {}
    results: list[dict[str, Any]] = []
    for row in range(rank, images.num_rows, world):
        entry = images.slice(row, 1).to_pylist()[0]
        (detections,) = segmenter.segment([read_pixels(entry["uri"])])
        results += _entries(entry["image_id"], detections)
    if world > 1:
        shares: list[Any] | None = [None] * world if rank == 0 else None
        dist.gather_object(results, shares)
        results = [entry for share in shares or [] for entry in share]
    if rank != 0:
        return {}
    ground_truth = coco_ground_truth(images, categories)
    most = max(max_detections, 11)
    boxes = average_precision(ground_truth, results, "bbox", most)
    if not segmenter.has_masks:
        return {"box_ap": boxes.ap, "box_ap50": boxes.ap50}
    masks = average_precision(ground_truth, results, "segm", most)
    return {"mask_ap": masks.ap, "mask_ap50": masks.ap50, "box_ap": boxes.ap}


def _entries(image_id: int, detections: Detections) -> list[dict[str, Any]]:
    """Return detections in COCO results form."""
    rles = [None] * len(detections) if detections.masks is None else detections.rles()
    entries = []
    for i, rle in enumerate(rles):
        x0, y0, x1, y1 = detections.boxes[i].tolist()
        entries.append(
            {
                "image_id": image_id,
                "category_id": int(detections.labels[i]),
                "score": float(detections.scores[i]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                **({} if rle is None else {"segmentation": rle}),
            }
        )
    return entries
