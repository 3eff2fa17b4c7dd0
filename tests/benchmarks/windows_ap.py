"""Average precision of seeing a mosaic in windows, against seeing it whole: python -m tests.benchmarks.windows_ap

A mosaic of generated scenes, the embedded model, no rescaling on either side, and 5,000 for what limits proposals,
detections and COCO's counting. Prints both mask APs and their difference.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn.imaging.geotiff import need_rasterio
from maskrcnn.masks.rle import rle_boxes_xywh
from maskrcnn.models.model import load_model
from maskrcnn.models.segmenter import MaskRCNNSegmenter
from maskrcnn.synthetic.scenes import write_mosaic
from maskrcnn.tiling.grid import Grid
from maskrcnn.tiling.stitching import WindowDetections, stitch
from maskrcnn.types import Detections, Pixels

LIMIT = 5000
SEED = 20_000_000
"""Far from the seeds that the embedded model was trained on."""


def unlimited() -> MaskRCNNSegmenter:
    """Return the embedded model with nothing rescaled, and limits that are not reached."""
    model = load_model("scenes")
    proposals: Any = model.module.rpn
    proposals._pre_nms_top_n = proposals._post_nms_top_n = {"training": LIMIT, "testing": LIMIT}
    return MaskRCNNSegmenter(model, max_detections=LIMIT, rescale=False)


def in_windows(segmenter: MaskRCNNSegmenter, pixels: Pixels, window: int, overlap: int) -> Any:
    """Return the whole objects of an image that is seen in windows."""
    grid = Grid(*pixels.shape[:2], window, overlap)
    found: list[Detections] = []
    for rect in grid:
        part = np.ascontiguousarray(pixels[rect.row_off : rect.bottom, rect.col_off : rect.right])
        found += segmenter.segment([part])
    counts = [len(each) for each in found]
    pieces = WindowDetections(
        window_id=np.repeat(np.arange(len(grid), dtype=np.int32), counts),
        labels=np.concatenate([each.labels for each in found]),
        scores=np.concatenate([each.scores for each in found]),
        boxes=np.concatenate([each.boxes for each in found]),
        masks=[mask for each in found for mask in each.masks],
        mask_boxes=np.concatenate([each.mask_boxes for each in found]),
    )
    return stitch(grid, pieces, capped=False)


def mask_ap(ground_truth: COCO, height: int, width: int, found: Any) -> float:
    """Return COCO's mask AP, all of the detections counted."""
    rles = [{"size": [height, width], "counts": mask} for mask in found.masks]
    boxes = rle_boxes_xywh(rles)
    results = [
        {"image_id": 1, "category_id": int(label), "segmentation": rle, "score": float(score), "bbox": box}
        for label, rle, score, box in zip(found.labels, rles, found.scores, boxes.tolist(), strict=True)
    ]
    for result in results:
        del result["bbox"]  # loadRes would take the area from it
    evaluation = COCOeval(ground_truth, ground_truth.loadRes(results), "segm")
    evaluation.params.maxDets = [1, 100, LIMIT]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return float(precision[precision > -1].mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a line for each number of scenes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=4, help="scenes a side of the mosaic (4)")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    segmenter = unlimited()
    with tempfile.TemporaryDirectory() as name:
        write_mosaic(name, options.side, options.side, options.seed)
        with need_rasterio().open(Path(name, "mosaic.tif")) as file:
            pixels = np.ascontiguousarray(np.moveaxis(file.read(), 0, 2))
        ground_truth = COCO(str(Path(name, "instances.json")))
    height, width = pixels.shape[:2]
    with torch.inference_mode():
        started = time.perf_counter()
        [whole] = segmenter.segment([pixels])
        whole_s = time.perf_counter() - started
        started = time.perf_counter()
        windowed = in_windows(segmenter, pixels, options.window, options.overlap)
        windowed_s = time.perf_counter() - started
    aps = [mask_ap(ground_truth, height, width, found) for found in (whole, windowed)]
    sure = [int((found.scores >= 0.5).sum()) for found in (whole, windowed)]
    print(
        f"of a score of 0.5 and more: {sure[0]} seen whole, {sure[1]} in windows, {len(ground_truth.anns)} are there"
    )
    print(
        f"{width} x {height}: whole AP {aps[0]:.4f} ({len(whole.masks)} found, {whole_s:.0f} s), "
        f"windows of {options.window} sharing {options.overlap} AP {aps[1]:.4f} "
        f"({len(windowed.masks)} found, {windowed_s:.0f} s), difference {aps[1] - aps[0]:+.4f}"
    )


if __name__ == "__main__":
    main()
