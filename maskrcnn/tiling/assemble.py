"""Assemble whole images from windows: the tables of a windowed run, from the tables of its shards.

In the tables of a shard, each window is an image. Here the windows of an image are combined: their detections are
stitched where windows overlap, and written as rows of `windows`, `pieces`, `images` and `instances`. Images are
processed one at a time; memory holds the tables of a group, never pixels.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import ItemError, UsageError, plural
from ..formats.geoparquet import crs_folder, geo_table
from ..imaging.geometry import ImageHeader
from ..io.parquet import GEO
from ..masks.rectangles import boxes_of, with_rectangles
from ..schema import (
    INSTANCES,
    INSTANCES_PER_RASTER,
    WINDOWS,
    ImageResult,
    detections_of,
    images_table,
    instances_table,
    pieces_schema,
)
from ..stats import Stats
from ..types import Category, Detections
from .grid import Grid
from .index import WindowIndex
from .stitching import WindowDetections, stitch


@dataclass(frozen=True, slots=True)
class Assembled:
    """The rows of whole images."""

    images: pa.Table
    instances: pa.Table
    windows: pa.Table
    pieces: pa.Table
    polygons: dict[str, pa.Table]
    """The rows of `geoparquet.GEO` of the georeferenced images, by CRS as WKT."""
    stats: Stats


def assemble(
    window_index: WindowIndex,
    rows: NDArray[np.int64],
    manifest_rows: pa.Table,
    windows: pa.Table,
    found: pa.Table,
    categories: Sequence[Category],
    *,
    masks: bool = True,
) -> Assembled:
    """Combine the windows of whole images.

    Args:
        window_index: the window index of the run.
        rows: (N,) int64, ascending: the images, as rows of the manifest.
        manifest_rows: these rows.
        windows: the rows of all windows of the images in the shards' tables `images`, in order of window number.
        found: the rows of their detections in the shards' tables `instances`, in order of id.
        categories: the categories of the model.
        masks: whether the model detects masks; else boxes are stitched.

    Raises:
        ValueError: as `stitching.stitch`.
    """
    numbers, owners = windows["image_id"].to_numpy(), found["image_id"].to_numpy()
    results: list[ImageResult] = []
    window_tables = [WINDOWS.empty_table()]
    piece_tables = [pieces_schema(masks=masks).empty_table()]
    entries = manifest_rows.select(["image_id", "name", "uri"]).to_pylist()
    for row, entry in zip(rows.tolist(), entries, strict=True):
        start, stop = window_index.range_of(row)
        of_image = windows.slice(*_slice(numbers, start, stop))
        of_found = found.slice(*_slice(owners, start, stop))
        tiling = window_index.tiling(row)
        grid = tiling.grid if tiling else None
        detections, pieces = _stitched(grid, of_image, of_found, entry["image_id"], masks=masks)
        window_tables.append(_windows(of_image, entry["image_id"]))
        piece_tables.append(pieces)
        results.append(_result(row, entry, of_image, detections, grid))
    instances = instances_table(results, categories, INSTANCES_PER_RASTER, masks=masks)
    headers = [window_index.sized(result.row) for result in results]
    polygons, faults = located([result.image_id for result in results], headers, instances)
    images = images_table([_with_fault(result, faults) for result in results], manifest_rows)
    return Assembled(
        images,
        instances,
        pa.concat_tables(window_tables),
        pa.concat_tables(piece_tables).unify_dictionaries(),
        polygons,
        Stats.of_tables(images, instances, categories),
    )


def located(
    image_ids: Sequence[int], images: Sequence[ImageHeader], instances: pa.Table
) -> tuple[dict[str, pa.Table], dict[int, ItemError]]:
    """Return the polygons of georeferenced images' instances by CRS, and the errors of images that have none.

    Args:
        image_ids: the ids of consecutive images.
        images: the headers of the same images.
        instances: all instances of these images, in order of image.

    Returns:
        Tables as from `geoparquet.geo_table`, by CRS as WKT; the errors `bad_georeference`, by image id.
    """
    ranges = ranges_of(instances["image_id"].to_numpy())
    tables: dict[str, list[pa.Table]] = {}
    faults: dict[int, ItemError] = {}
    for image_id, image in zip(image_ids, images, strict=True):
        if image.crs_wkt is not None and image.transform is not None:
            low, high = ranges.get(image_id, (0, 0))
            try:
                of_image = geo_table(instances.slice(low, high - low), image.crs_wkt, image.transform)
            except ItemError as error:
                faults[image_id] = error
            else:
                tables.setdefault(image.crs_wkt, []).append(of_image)
    return {crs_wkt: pa.concat_tables(of_crs) for crs_wkt, of_crs in tables.items()}, faults


def geo_folders(window_index: WindowIndex) -> dict[str, str]:
    """Return the folder of the polygons of each CRS, as WKT, of a run.

    `geo/` itself if the run has one CRS; else a folder for each, because a file or a query has geometries of one.
    """
    folders: dict[str, str] = {}
    for crs_wkt in window_index.reference_systems:
        with contextlib.suppress(UsageError):  # PROJ does not know it: its images have no polygons
            folders[crs_wkt] = f"{GEO}/{crs_folder(crs_wkt)}"
    return folders if len(set(folders.values())) > 1 else dict.fromkeys(folders, GEO)


def _with_fault(result: ImageResult, faults: Mapping[int, ItemError]) -> ImageResult:
    """Return the result of an image that keeps its masks, with the error of its polygons if they failed."""
    if (fault := faults.get(result.image_id)) is None or result.detections is None:
        return result
    message = fault.message if result.message is None else f"{fault.message}; {result.message}"
    return dataclasses.replace(result, error=fault.code, message=message)


def ranges_of(image_ids: NDArray[np.int64]) -> dict[int, tuple[int, int]]:
    """Return the start and end of the rows of each image in a table that is grouped by image."""
    starts = np.flatnonzero(np.diff(image_ids, prepend=image_ids[:1] - 1)).tolist()
    stops = [*starts[1:], len(image_ids)]
    return {int(image_ids[low]): (low, high) for low, high in zip(starts, stops, strict=False)}


def _slice(numbers: NDArray[np.int64], start: int, stop: int) -> tuple[int, int]:
    low, high = np.searchsorted(numbers, [start, stop]).tolist()
    return low, high - low


def _stitched(
    grid: Grid | None, windows: pa.Table, found: pa.Table, image_id: int, *, masks: bool
) -> tuple[Detections | None, pa.Table]:
    """Return the stitched detections of an image, and the rows of `pieces` with the window detections."""
    schema = pieces_schema(masks=masks)
    if grid is None or not pc.any(pc.not_equal(windows["status"], "failed")).as_py():
        return None, schema.empty_table()
    at = np.searchsorted(windows["image_id"].to_numpy(), found["image_id"].to_numpy())
    window_id = windows["window_id"].to_numpy()[at]
    order = np.lexsort((found["instance"].to_numpy(), window_id))
    found, window_id = found.take(pa.array(order)).combine_chunks(), window_id[order]
    size = {"height": min(grid.window, grid.height), "width": min(grid.window, grid.width), "capped": False}
    in_windows = with_rectangles(detections_of(size, found))
    detections = WindowDetections(
        window_id=window_id,
        labels=in_windows.labels,
        scores=in_windows.scores,
        boxes=in_windows.boxes,
        masks=in_windows.masks or (),
        mask_boxes=in_windows.mask_boxes,
    )
    stitched = stitch(grid, detections, capped=bool(pc.any(windows["capped"]).as_py()))
    columns: dict[str, Any] = {
        "image_id": pa.array(np.full(len(found), image_id)),
        "window_id": pa.array(window_id),
        "piece": found["instance"],
        "instance": pa.array(stitched.object_of.astype(np.int32)),
    }
    table = [
        columns.get(field.name, found[field.name] if field.name in INSTANCES.names else None)
        for field in schema
    ]
    whole = stitched if masks else boxes_of(stitched)
    return whole, pa.table(table, schema=schema)


def _windows(of_image: pa.Table, image_id: int) -> pa.Table:
    """Return the rows of `windows` of one image, in order of window id."""
    of_image = of_image.take(pc.sort_indices(of_image["window_id"]))
    named = {
        "image_id": pa.array(np.full(len(of_image), image_id)),
        "width": of_image["window_width"],
        "height": of_image["window_height"],
        "n_pieces": of_image["n_instances"],
    }
    return pa.table(
        [named[name] if name in named else of_image[name] for name in WINDOWS.names], schema=WINDOWS
    )


def _result(
    row: int, entry: dict[str, Any], windows: pa.Table, detections: Detections | None, grid: Grid | None
) -> ImageResult:
    """Return the result of an image."""
    error, message = _failure(windows, whole=detections is None)
    orientation = windows["exif_orientation"].drop_null()
    return ImageResult(
        row=row,
        image_id=entry["image_id"],
        name=entry["name"],
        uri=entry["uri"],
        bytes=windows["bytes"][0].as_py(),
        etag=windows["etag"][0].as_py(),
        detections=detections,
        error=error,
        message=message,
        width=None if grid is None else grid.width,
        height=None if grid is None else grid.height,
        exif_orientation=orientation[0].as_py() if len(orientation) else None,
    )


def _failure(windows: pa.Table, *, whole: bool) -> tuple[str | None, str | None]:
    """Return the error code and the message of an image from its windows; None if no window failed."""
    failed = windows.filter(pc.equal(windows["status"], "failed"))
    if not len(failed):
        return None, None
    code, message = failed["error"][0].as_py(), failed["message"][0].as_py()
    if len(windows) == 1:
        return code, message
    codes = ", ".join(
        f"{count} {name}" for name, count in sorted(Counter(failed["error"].to_pylist()).items())
    )
    return (
        code if whole else "partial",
        f"{len(failed)} of {plural(len(windows), 'window')} failed ({codes}): {message}",
    )
