"""Measure what test-time augmentation costs: seconds per image with each augmentation, against none.

Run `python -m tests.benchmarks.tta`: generated scenes and the embedded model, or `--model` and photos of a folder with
`--photos`. All run in this process on one thread, image by image in turns.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskrcnn.models.model import load_model
from maskrcnn.models.segmenter import MaskRCNNSegmenter
from maskrcnn.synthetic.scenes import render_scene
from maskrcnn.types import Pixels

AUGMENTATIONS = ("flip", "scales", "flip,scales")


def measure(segmenters: list[MaskRCNNSegmenter], images: list[Pixels]) -> tuple[list[list[float]], list[int]]:
    """Return the wall and CPU seconds of each segmenter for all images, and the instances that it finds."""
    spent, counts = [[0.0, 0.0] for _ in segmenters], [0] * len(segmenters)
    for image in images:
        for number, segmenter in enumerate(segmenters):
            began, cpu = time.perf_counter(), time.process_time()
            (found,) = segmenter.segment([image])
            spent[number][0] += time.perf_counter() - began
            spent[number][1] += time.process_time() - cpu
            counts[number] += len(found)
    return spent, counts


def main() -> None:
    """Print a line without augmentation, and one for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "augmentations", nargs="*", default=list(AUGMENTATIONS), help="as of --tta; by default all"
    )
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--labels", metavar="FILE", help="names of the categories of a .pth file")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="photos; by default generated scenes")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--max-detections", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    paths = sorted(options.photos.iterdir())[: options.images] if options.photos else []
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    images = images or [render_scene(seed, 512).image for seed in range(options.images)]
    torch.set_num_threads(1)
    model = load_model(options.model, options.labels)
    segmenters = [
        MaskRCNNSegmenter(model, max_detections=options.max_detections, tta=tta)
        for tta in (None, *options.augmentations)
    ]
    measure(segmenters, images[:1])  # the warm-up
    runs = [measure(segmenters, images) for _ in range(options.repeats)]
    print(
        f"{len(images)} images, {options.model}, torch {torch.__version__}, 1 thread, {options.repeats} repeats"
    )
    print(f"{'--tta':24} {'instances':>9} {'s/image':>8} {'CPU s/image':>11}  CPU time, of that without")
    for number, name in enumerate(("none", *options.augmentations)):
        wall, cpu = (statistics.median(spent[number][i] for spent, _ in runs) / len(images) for i in (0, 1))
        ratios = [spent[number][1] / spent[0][1] for spent, _ in runs]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:24} {runs[0][1][number]:9} {wall:8.3f} {cpu:11.3f}  {spread}", flush=True)


if __name__ == "__main__":
    main()
