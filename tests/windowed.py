"""Runs of windows without Ray: the commands' own code, but for the map stage, which is a loop here."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from maskrcnn_jobs.driver.planning import Request, prepare

from maskrcnn.config import InferenceConfig
from maskrcnn.errors import ItemError
from maskrcnn.imaging.decode import Limits
from maskrcnn.imaging.decode_pool import Decoders, RasterSource
from maskrcnn.imaging.geometry import Entry, RasterRegion, Rect
from maskrcnn.imaging.radiometry import Radiometry
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.plan import pending_of, read_plans, read_run
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.synthetic.planted import PLANTED_CATEGORIES, PlantedInstance
from maskrcnn.synthetic.planted_mosaic import MosaicSegmenter, ground, paint
from maskrcnn.types import Pixels, Segmenter
from maskrcnn.visualization.run_report import write_report

NORTH_UP = (0.5, 0.0, 450_000.0, 0.0, -0.5, 36_000.0)


def mosaic(height: int, width: int, count: int, seed: int = 0, largest: float = 90.0) -> Pixels:
    """Return an image of planted objects, of 16 pixels a side and more before they leave the image.

    Objects do not overlap: a partly hidden object could have parts that no window contains together.
    """
    rng = np.random.default_rng(seed)
    image = ground(height, width)
    objects = 0
    while objects < count:
        category = int(rng.integers(3))
        thing = PlantedInstance(
            "rectangle" if category == 0 else "ellipse",
            PLANTED_CATEGORIES[category].id,
            0.9,
            *rng.uniform([0, 0, 16, 16, 0], [width, height, largest, largest, 180]).tolist(),
        )
        crop, left, top = thing.crop(height, width)
        there = image[top : top + crop.shape[0], left : left + crop.shape[1], 0] >= 128
        if crop.any() and not (there & crop).any():
            paint(image, [thing], objects)
            objects += 1
    return image


def write_geotiff(
    path: Path,
    pixels: Pixels,
    *,
    crs: str | None = "EPSG:32636",
    transform: Sequence[float] | None = NORTH_UP,
    block: int = 64,
    **profile: Any,
) -> None:
    """Write RGB pixels as a tiled GeoTIFF."""
    import rasterio
    from affine import Affine

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, count = pixels.shape
    options = {"tiled": True, "blockxsize": block, "blockysize": block, "compress": "deflate"} | profile
    place = {} if transform is None else {"transform": Affine(*transform)}
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype, crs=crs,
        photometric="RGB" if count == 3 else "MINISBLACK", **place, **options,
    ) as file:  # fmt: skip
        file.write(np.moveaxis(pixels, 2, 0))


def compute_of(window: int = 128, overlap: int = 32, **options: Any) -> InferenceConfig:
    """Return the inference configuration of these tests."""
    return InferenceConfig(
        model="planted-mosaic", max_detections=10_000, window=window, overlap=overlap, **options
    )


def process_shards(
    output: str,
    compute: InferenceConfig,
    segmenter: Segmenter | None = None,
    order: int = 0,
    quarantined: Mapping[int, ItemError] | None = None,
) -> None:
    """Run all shards without a receipt, in an order determined by a seed; 0: the order of the plan."""
    storage = Storage(output)
    radiometry = Radiometry.from_json(read_run(storage)["radiometry"])
    shards = list(pending_of(read_plans(storage), storage.list("receipts")))
    if order:
        random.Random(order).shuffle(shards)
    with Decoders(2) as decoders:

        def read_region(entry: Entry, rect: Rect) -> RasterRegion:
            source = RasterSource(entry["uri"], entry["etag"], radiometry, compute.assume_crs)
            return decoders.read_region(source, rect)

        limits = Limits(compute.max_pixels, compute.max_bytes, 1333.0)
        finder = segmenter or MosaicSegmenter(max_detections=compute.max_detections)
        worker = ShardWorker(storage, finder, limits, {}, decode=decoders.decode, read_region=read_region)
        for shard in shards:
            worker.run_shard(shard, quarantined=quarantined or {})


def run_windows(
    source: Path | str,
    output: Path | str,
    compute: InferenceConfig | None = None,
    *,
    segmenter: Segmenter | None = None,
    order: int = 0,
    shard_images: int | None = None,
) -> dict[str, Any]:
    """Plan, process the shards and reduce; return the content of `_SUCCESS`."""
    compute = compute or compute_of()
    prepare(Request(str(source), str(output), compute, shard_images))
    process_shards(str(output), compute, segmenter, order)
    return reduce_run(str(output), write_report=write_report)
