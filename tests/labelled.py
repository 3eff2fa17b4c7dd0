"""A COCO dataset of generated scenes, for training."""

import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn.synthetic.scenes import coco_dataset, render_scene


def write_labels(folder: Path, seeds: Iterable[int], side: int, crowd_every: int | None = None) -> Path:
    """Write scenes of these seeds and their labels into a folder; return the path of the JSON.

    Args:
        folder: where the JSON and the images are written.
        seeds: one for each scene.
        side: of the scenes, in pixels.
        crowd_every: of so many objects one is labelled as a crowd; None: none is.
    """
    scenes = [render_scene(seed, side) for seed in seeds]
    content = coco_dataset(scenes)
    for image, scene in zip(content["images"], scenes, strict=True):
        Image.fromarray(scene.image).save(folder / image["file_name"])
    for number, entry in enumerate(content["annotations"], start=1):
        entry["iscrowd"] = int(crowd_every is not None and number % crowd_every == 0)
        rle = entry["segmentation"]
        entry["bbox"] = coco_mask.toBbox(rle).tolist()
        rle["counts"] = rle["counts"].decode() if isinstance(rle["counts"], bytes) else rle["counts"]
    (folder / "labels.json").write_text(json.dumps(content))
    return folder / "labels.json"
