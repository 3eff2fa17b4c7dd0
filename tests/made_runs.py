"""Finished runs made of detections, without a map stage: tables, `run.json` and `_SUCCESS`, as a reduce writes them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.io.parquet import write_table
from maskrcnn.io.storage import Storage
from maskrcnn.masks.rle import encode_changes
from maskrcnn.masks.spans import ranges
from maskrcnn.schema import MANIFEST, SCHEMA_VERSION, ImageResult, images_table, instances_table
from maskrcnn.synthetic.planted import PLANTED_CATEGORIES, png
from maskrcnn.types import Category, Detections

SETTINGS = {"max_pixels": 10**7, "max_bytes": 10**7, "min_score": 0.05, "categories": [], "window": None}


def rectangles(height: int, width: int, *objects: tuple[tuple[int, int, int, int], float, int]) -> Detections:
    """Return detections; objects are (left, top, right, bottom of a rectangular mask, score, label), in order."""
    corners = np.array([corners for corners, _, _ in objects], np.int64).reshape(-1, 4)
    left, top, right, bottom = corners.T
    of = np.repeat(np.arange(len(corners)), right - left)
    column = np.repeat(ranges(left, right - left), 2)
    rows = np.stack([top[of], bottom[of]], axis=1).ravel()
    masks = encode_changes(np.repeat(of, 2), column, rows, len(corners), height, width).counts
    sides = corners[:, 2:] - corners[:, :2]
    return Detections(
        height=height,
        width=width,
        boxes=corners.astype(np.float32),
        labels=np.array([label for *_, label in objects], np.int32),
        scores=np.array([score for _, score, _ in objects], np.float32),
        masks=masks,
        areas=np.prod(sides, axis=1),
        mask_boxes=corners.astype(np.int32),
        capped=False,
    )


def result(
    row: int, name: str, found: Detections | None, *, uri: str = "", image_id: int = -1
) -> ImageResult:
    """Return an image of a run; None: it failed as corrupt."""
    return ImageResult(
        row=row,
        image_id=row + 1 if image_id < 0 else image_id,
        name=name,
        uri=uri or f"file:///nowhere/{name}",
        bytes=None,
        etag=None,
        detections=found,
        error=None if found is not None else "corrupt",
        message=None if found is not None else "bytes that are no image",
        width=None if found is None else found.width,
        height=None if found is None else found.height,
    )


def write_run(
    url: str | Path,
    results: Sequence[ImageResult],
    *,
    categories: Sequence[Category] = PLANTED_CATEGORIES,
    per_part: int = 3,
    ids_given: bool = False,
    in_order: bool = True,
) -> str:
    """Write a finished run of images, in order of their names or as after an update, and return its url."""
    storage = Storage(str(url))
    ordered = sorted(results, key=lambda one: one.name.encode()) if in_order else results
    results = [replace(one, row=row) for row, one in enumerate(ordered)]
    parts: dict[str, list[dict[str, Any]]] = {"images": [], "instances": []}
    for number, start in enumerate(range(0, max(len(results), 1), per_part)):
        some = results[start : start + per_part]
        for table, rows in (
            ("images", images_table(some, MANIFEST.empty_table())),
            ("instances", instances_table(some, categories)),
        ):
            file = write_table(storage, f"{table}/part-1-{number:05d}.parquet", rows)
            parts[table].append(
                {"path": file.path, "rows": file.rows, "sha256": file.sha256, "bytes": file.bytes}
            )
    run = {
        "schema_version": SCHEMA_VERSION,
        "settings": SETTINGS,
        "model": {
            "name": "made",
            "sha256": "0" * 64,
            "categories": [{"id": c.id, "name": c.name} for c in categories],
        },
        "inputs": {"ids_given": ids_given},
    }
    storage.write("run.json", json.dumps(run).encode())
    storage.write("_SUCCESS", json.dumps({"generation": 1, "parts": parts, "counts": {}}).encode())
    return storage.url


def picture(path: Path, height: int, width: int, value: int = 128) -> str:
    """Write a grey image, and return its uri."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(np.full((height, width, 3), value, np.uint8)))
    return f"file://{path}"
