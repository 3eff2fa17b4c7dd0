"""Windows a second and average precision against SAHI's sliced prediction, the same weights and the same slices.

    pip install sahi; python -m tests.benchmarks.windows_sahi [--side 3] [--repeats 3]

A mosaic of generated scenes and the embedded model on the CPU, one thread, nothing rescaled on either side. Both are
timed from pixels in memory to whole objects, by turns; SAHI as it is by default (greedy merging), and with its
smaller matching metric. Prints medians, the ratio, and both mask APs.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn.imaging.geotiff import need_rasterio
from maskrcnn.models.model import load_model
from maskrcnn.models.segmenter import MaskRCNNSegmenter
from maskrcnn.synthetic.scenes import write_mosaic
from maskrcnn.tiling.grid import Grid
from maskrcnn.types import Pixels

from .windows_ap import SEED, in_windows, mask_ap

MIN_SCORE = 0.05


@dataclass
class Found:
    """What `mask_ap` asks for."""

    labels: list[int]
    scores: list[float]
    masks: list[bytes]


def sahi_of(window: int) -> Any:
    """Return SAHI's model around the same network, which then rescales nothing."""
    from sahi.models.torchvision import TorchVisionDetectionModel

    model = load_model("scenes")
    module: Any = model.module
    module.transform.min_size, module.transform.max_size = (window,), window
    module.roi_heads.score_thresh = MIN_SCORE
    names = {str(label): str(label) for label in range(len(model.card.category_ids))}
    return TorchVisionDetectionModel(
        model=module, confidence_threshold=MIN_SCORE, device="cpu", category_mapping=names, load_at_init=True
    )


def by_sahi(model: Any, pixels: Pixels, window: int, overlap: int, ids: Sequence[int]) -> Found:
    """Return what SAHI finds, as COCO masks of the whole image."""
    predictions = sliced(model, pixels, window, overlap)
    found = Found([], [], [])
    height, width = pixels.shape[:2]
    for prediction in predictions:
        polygons = [polygon for polygon in prediction.mask.segmentation if len(polygon) >= 6]
        if polygons:
            rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
            found.labels.append(ids[prediction.category.id])
            found.scores.append(float(prediction.score.value))
            found.masks.append(rle["counts"])
    return found


def sliced(model: Any, pixels: Pixels, window: int, overlap: int) -> list[Any]:
    """Return SAHI's predictions."""
    from sahi.predict import get_sliced_prediction

    result = get_sliced_prediction(
        pixels,
        model,
        slice_height=window,
        slice_width=window,
        overlap_height_ratio=overlap / window,
        overlap_width_ratio=overlap / window,
        perform_standard_pred=False,
        verbose=0,
    )
    predictions: list[Any] = result.object_prediction_list
    return predictions


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=3, help="scenes a side of the mosaic (3)")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    window, overlap = options.window, options.overlap
    with tempfile.TemporaryDirectory() as name:
        write_mosaic(name, options.side, options.side, SEED)
        with need_rasterio().open(Path(name, "mosaic.tif")) as file:
            pixels = np.ascontiguousarray(np.moveaxis(file.read(), 0, 2))
        ground_truth = COCO(str(Path(name, "instances.json")))
    model = load_model("scenes")
    ours = MaskRCNNSegmenter(model, min_score=MIN_SCORE, rescale=False)
    theirs = sahi_of(window)
    height, width = pixels.shape[:2]
    n = len(Grid(height, width, window, overlap))
    walls = [
        (
            seconds(lambda: in_windows(ours, pixels, window, overlap)),
            seconds(lambda: sliced(theirs, pixels, window, overlap)),
        )
        for _ in range(options.repeats + 1)
    ][1:]  # the first is for warming up
    ratios = [sahi / own for own, sahi in walls]
    own_s, sahi_s = (statistics.median(side) for side in zip(*walls, strict=True))
    print(f"{width} x {height}, {n} windows of {window} sharing {overlap}, one thread")
    print(f"ours {n / own_s:.2f} windows/s, SAHI {n / sahi_s:.2f}")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    aps = (
        mask_ap(ground_truth, height, width, in_windows(ours, pixels, window, overlap)),
        mask_ap(
            ground_truth, height, width, by_sahi(theirs, pixels, window, overlap, model.card.category_ids)
        ),
    )
    print(f"mask AP: ours {aps[0]:.4f}, SAHI {aps[1]:.4f}")


if __name__ == "__main__":
    main()
