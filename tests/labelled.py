"""A COCO dataset of generated scenes, for training."""

import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn.synthetic.scenes import coco_dataset, render_scene


def write_labels(folder: Path, seeds: Iterable[int], side: int) -> Path:
    """Write scenes of these seeds and their labels into a folder; return the path of the JSON."""
    scenes = [render_scene(seed, side) for seed in seeds]
    content = coco_dataset(scenes)
    for image, scene in zip(content["images"], scenes, strict=True):
        Image.fromarray(scene.image).save(folder / image["file_name"])
    for entry in content["annotations"]:
        rle = entry["segmentation"]
        entry["bbox"] = coco_mask.toBbox(rle).tolist()
        rle["counts"] = rle["counts"].decode() if isinstance(rle["counts"], bytes) else rle["counts"]
    (folder / "labels.json").write_text(json.dumps(content))
    return folder / "labels.json"
