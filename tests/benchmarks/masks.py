"""Masks: from 28 x 28 probabilities to COCO run lengths, against torchvision's paste and pycocotools' encode.

    python tests/benchmarks/masks.py [--repeats 5]

One thread for both sides, 100 masks, smooth, box sides log-uniform with a mean area of 3.8 % of the image. The
sides alternate within a repeat; their bytes are compared first. Prints one JSON object: medians in seconds, the
ratio, and its spread over the repeats.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch.nn import functional
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn.masks import encode_masks

MEAN_AREA = 0.038


def instances(height: int, width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes inside the image and smooth probabilities."""
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(np.log(0.02), np.log(0.9), (count, 2)))
    sides *= np.sqrt(MEAN_AREA / np.mean(sides[:, 0] * sides[:, 1]))
    sizes = np.minimum(sides, 1.0) * [width, height]
    corners = rng.uniform(0, 1, (count, 2)) * ([width, height] - sizes)
    boxes = np.concatenate([corners, corners + sizes], axis=1).astype(np.float32)
    coarse = torch.from_numpy(rng.normal(0, 2, (count, 1, 5, 5)).astype(np.float32))
    smooth = functional.interpolate(coarse, (28, 28), mode="bicubic").sigmoid()
    return boxes, smooth[:, 0].numpy()


def reference(boxes: np.ndarray, masks: np.ndarray, height: int, width: int) -> tuple[bytes, ...]:
    """Return what torchvision's post-processing and pycocotools give."""
    pasted = paste_masks_in_image(torch.from_numpy(masks[:, None]), torch.from_numpy(boxes), (height, width))
    bits = (pasted[:, 0] > 0.5).numpy()
    return tuple(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"] for mask in bits)


def seconds(function: Callable[[], object]) -> float:
    """Return how long one call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def compare(height: int, width: int, count: int, repeats: int) -> dict[str, object]:
    """Return medians and the ratio at one size of image."""
    boxes, masks = instances(height, width, count)
    if encode_masks(boxes, masks, height, width) != reference(boxes, masks, height, width):
        raise SystemExit("the two sides disagree")
    ours, theirs = [], []
    for _ in range(repeats):
        theirs.append(seconds(lambda: reference(boxes, masks, height, width)))
        ours.append(seconds(lambda: encode_masks(boxes, masks, height, width)))
    ratios = sorted(a / b for a, b in zip(theirs, ours, strict=True))
    return {
        "image": f"{height} x {width}",
        "masks": count,
        "torchvision_s": round(statistics.median(theirs), 4),
        "maskrcnn_s": round(statistics.median(ours), 4),
        "ratio": round(statistics.median(ratios), 1),
        "ratio_min_max": [round(ratios[0], 1), round(ratios[-1], 1)],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [compare(800, 1066, 100, options.repeats), compare(3000, 4000, 20, min(options.repeats, 3))]
    print(json.dumps(rows, indent=1))
