"""The invariants of the windows, pieces and polygons of a finished run of windows; see `invariants`."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import ERROR_CODES, plural
from ..formats.geoparquet import geo_metadata
from ..imaging.geometry import ImageHeader
from ..masks.rle_decode import read_masks
from ..tiling.assemble import located
from ..tiling.index import WindowIndex
from ..types import areas_of_boxes
from .invariants import Fault

_RECT: Final = ("col_off", "row_off", "width", "height")


def window_faults(
    items: WindowIndex, image_row: int, image: dict[str, Any], windows: pa.Table
) -> Iterator[Fault]:
    """Yield the violations of the windows of one image.

    Args:
        image: its row of `images`.
        windows: the rows of `windows` with its id.
    """
    where = f"image {image['image_id']}"
    tiling = items.tiling(image_row)
    ids = [0] if tiling is None else np.sort(tiling.order).tolist()
    rects = np.array([(0, 0, 0, 0)] if tiling is None else [tiling.grid[i] for i in ids], np.int32)
    found = np.stack([windows[name].to_numpy() for name in _RECT], axis=1)
    if windows["window_id"].to_pylist() != ids:
        yield Fault(
            where,
            f"has {plural(len(windows), 'window')}, expected {len(rects):,}, each once and in order",
        )
        return
    if not np.array_equal(found, rects):
        first = int(np.flatnonzero((found != rects).any(axis=1))[0])
        yield Fault(
            where, f"window {ids[first]} is {found[first].tolist()}, expected {rects[first].tolist()}"
        )
    status, error = windows["status"].to_pylist(), windows["error"].to_pylist()
    n_pieces = windows["n_pieces"].to_pylist()
    for window, state, code, count in zip(ids, status, error, n_pieces, strict=True):
        sound = {
            "ok": count > 0 and code is None,
            "empty": count == 0 and code is None,
            "skipped": count == 0 and code is None,
            "failed": count == 0 and code in ERROR_CODES,
        }
        if not sound.get(state, False):
            yield Fault(
                where,
                f"window {window} is {state!r:.40} with the error {code!r:.40} and {plural(count, 'piece')}",
            )
    failed = status.count("failed")
    if (image["status"] == "failed") != (failed == len(status)):
        yield Fault(where, f"is {image['status']}, but {failed} of {plural(len(status), 'window')} failed")
    if image["error"] != "bad_georeference" and (image["error"] == "partial") != (0 < failed < len(status)):
        yield Fault(
            where, f"has the error {image['error']}, but {failed} of {plural(len(status), 'window')} failed"
        )
    if image["capped"] != bool(pc.any(windows["capped"]).as_py()):
        yield Fault(where, f"capped is {image['capped']}, which contradicts its windows")


def piece_faults(windows: pa.Table, pieces: pa.Table, instances: pa.Table) -> Iterator[Fault]:
    """Yield the violations of pieces.

    Args:
        windows: of some complete images.
        pieces: of these images.
        instances: of these images: `image_id`, `instance` and `category_id`.
    """
    named = [
        f"piece {p} of window {w} of image {i}" for i, w, p in _keys(pieces, "image_id", "window_id", "piece")
    ]
    per_window = np.array(windows["n_pieces"].to_numpy(), np.int64)
    expected = np.stack(
        [
            np.repeat(windows["image_id"].to_numpy(), per_window),
            np.repeat(windows["window_id"].to_numpy(), per_window),
            np.arange(per_window.sum()) - np.repeat(np.cumsum(per_window) - per_window, per_window),
        ],
        axis=1,
    )
    if _keys(pieces, "image_id", "window_id", "piece") != [tuple(key) for key in expected.tolist()]:
        yield Fault("pieces", "do not agree with n_pieces, window by window")
        return
    categories = {key[:2]: key[2] for key in _keys(instances, "image_id", "instance", "category_id")}
    seen = set()
    for index, key in enumerate(_keys(pieces, "image_id", "instance", "category_id")):
        seen.add(key[:2])
        if categories.get(key[:2]) != key[2]:
            yield Fault(
                named[index], f"belongs to instance {key[1]}, which is missing or of another category"
            )
    for image_id, instance in sorted(categories.keys() - seen):
        yield Fault(f"instance {instance} of image {image_id}", "has no piece")
    yield from _mask_faults(windows, pieces, per_window, lambda index: named[index])


def _keys(table: pa.Table, *names: str) -> list[tuple[int, ...]]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def _mask_faults(
    windows: pa.Table, pieces: pa.Table, per_window: NDArray[np.int64], where: Callable[[int], str]
) -> Iterator[Fault]:
    height, width = (np.repeat(windows[name].to_numpy(), per_window) for name in ("height", "width"))
    if len(pieces) and pieces["segmentation"].null_count:
        boxes = np.stack([side.to_numpy() for side in pieces["box"].combine_chunks().flatten()], axis=1)
        sound = (areas_of_boxes(boxes) == pieces["area"].to_numpy()) & pc.is_null(
            pieces["mask_box"]
        ).to_numpy()
        for index in np.flatnonzero(~sound).tolist():
            yield Fault(where(index), "its area does not fit its box, or it has a mask_box without a mask")
        return
    texts = [text.encode() for text in pieces["segmentation"].combine_chunks().field("counts").to_pylist()]
    offsets = np.cumsum([0, *map(len, texts)])
    masks = read_masks(np.frombuffer(b"".join(texts), np.uint8), offsets, height, width)
    box = np.stack([side.to_numpy() for side in pieces["mask_box"].combine_chunks().flatten()], axis=1)
    sizes = [tuple(size) for size in pieces["segmentation"].combine_chunks().field("size").to_pylist()]
    right = np.array(sizes, np.int64).reshape(-1, 2) == np.stack([height, width], axis=1)
    sound = masks.intact & right.all(axis=1)
    sound &= (masks.areas == pieces["area"].to_numpy()) & (masks.boxes == box).all(axis=1)
    for index in np.flatnonzero(~sound).tolist():
        yield Fault(
            where(index), "its mask does not fit its window, or its area or mask_box does not fit the mask"
        )


def geo_faults(
    headers: Sequence[ImageHeader], images: Sequence[dict[str, Any]], instances: pa.Table, geo: pa.Table
) -> Iterator[Fault]:
    """Yield the violations of the polygons of some complete images: they are made again and compared.

    Args:
        headers: of these images, in the plan.
        images: their rows of `images`: `image_id`, `status` and `error`.
        instances: of these images.
        geo: the rows of `geo` of these images, in any order.
    """
    expected, faults = located([image["image_id"] for image in images], headers, instances)
    for image in images:
        coded = image["error"] == "bad_georeference" and image["status"] != "failed"
        if coded != (image["image_id"] in faults and image["status"] != "failed"):
            yield Fault(
                f"image {image['image_id']}",
                f"has the error {image['error']}, but its polygons {'can' if coded else 'cannot'} be computed",
            )
    made = pa.concat_tables(expected.values()) if expected else geo.slice(0, 0)
    keys = [("image_id", "ascending"), ("instance", "ascending")]
    made, geo = made.sort_by(keys), geo.sort_by(keys)
    if _keys(made, "image_id", "instance") != _keys(geo, "image_id", "instance"):
        yield Fault(
            "geo",
            f"has {plural(len(geo), 'polygon')} for {plural(len(made), 'georeferenced instance')}, or for others",
        )
        return
    for name in made.schema.names:
        ours, theirs = made[name].combine_chunks(), geo[name].combine_chunks()
        if not ours.cast(theirs.type).equals(theirs):
            for index, (a, b) in enumerate(zip(ours.to_pylist(), theirs.to_pylist(), strict=True)):
                if a != b:
                    key = f"instance {geo['instance'][index]} of image {geo['image_id'][index]}"
                    yield Fault(key, f"its {name} in geo does not follow from its mask")


def geo_file_faults(
    path: str, geo: pa.Table, systems: Mapping[int, str], folders: Mapping[str, str]
) -> Iterator[Fault]:
    """Yield the violations of a file of `geo`: its reference system is that of its images, and of its folder.

    Args:
        path: of the file.
        geo: its rows, with the metadata of its schema.
        systems: the CRS of each georeferenced image of the part, as WKT, by image id.
        folders: the folder of each CRS.
    """
    for crs_wkt in {systems.get(image_id, "") for image_id in geo["image_id"].unique().to_pylist()}:
        folder = folders.get(crs_wkt)
        if folder is None or path.rpartition("/")[0] != folder:
            yield Fault(path, "has polygons of an image whose coordinate reference system has another folder")
        elif json.loads(geo.schema.metadata[b"geo"]) != geo_metadata(geo, crs_wkt):
            yield Fault(path, "its metadata `geo` do not describe its polygons")
