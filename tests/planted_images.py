"""Collections of planted images, and random instances to plant."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.masks.rle import rle_boxes_xywh
from maskrcnn.synthetic.planted import PLANTED_CATEGORIES, PlantedInstance, PlantedSegmenter, plant, png


def random_instances(rng: np.random.Generator, height: int, width: int, count: int) -> list[PlantedInstance]:
    """Return random instances of all categories and shapes, with scores from 0.1; some cross the border."""
    instances = []
    for _ in range(count):
        category = int(rng.integers(len(PLANTED_CATEGORIES)))
        instances.append(
            PlantedInstance(
                shape="rectangle" if category == 0 else "ellipse",
                category_id=PLANTED_CATEGORIES[category].id,
                score=round(float(rng.uniform(0.1, 1.0)), 4),
                x=round(float(rng.uniform(0, width)), 2),
                y=round(float(rng.uniform(0, height)), 2),
                width=round(float(rng.uniform(3, width / 2)), 2),
                height=round(float(rng.uniform(3, height / 2)), 2),
                degrees=round(float(rng.uniform(0, 180)), 1),
            )
        )
    return instances


def write_planted(folder: str | Path, count: int, seed: int) -> None:
    """Write `count` planted PNG files with sides of 64 to 96 pixels, and their ground truth as `instances.json`.

    Each image has zero to six instances. The JSON is a COCO dataset: compressed RLE, mask area, tight bbox, ids
    from 1, instances in the order of `Detections`; categories are `PLANTED_CATEGORIES`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.Generator(np.random.PCG64(seed))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    segmenter = PlantedSegmenter()
    for index in range(count):
        height, width = (int(side) for side in rng.integers(64, 97, 2))
        pixels = plant((height, width), random_instances(rng, height, width, int(rng.integers(0, 7))))
        name = f"planted-{index:06d}.png"
        (folder / name).write_bytes(png(pixels))
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        (detections,) = segmenter.segment([pixels])
        boxes = rle_boxes_xywh(detections.rles()).tolist()
        for label, counts, area, bbox in zip(
            detections.labels, detections.masks, detections.areas, boxes, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": int(label),
                    "segmentation": {"size": [height, width], "counts": counts.decode("ascii")},
                    "area": int(area),
                    "bbox": bbox,
                    "iscrowd": 0,
                }
            )
    categories = [dataclasses.asdict(category) for category in PLANTED_CATEGORIES]
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(dataset), encoding="utf-8")
