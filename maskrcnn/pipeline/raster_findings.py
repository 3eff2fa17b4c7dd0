"""What planning says about rasters that can be read, but whose results may surprise.

Each finding is one line of the log, with a count and examples. Nothing here changes a result.
"""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from ..errors import plural
from ..formats.geoparquet import crs_folder
from ..imaging.geometry import ImageHeader
from ..imaging.georeference import is_outside_area_of_use
from ..imaging.radiometry import Radiometry
from ..io.url import Url

log = logging.getLogger("maskrcnn")

_EXAMPLES = 3
_DARK = 32  # of 255: 8-bit rasters that reach no further are said to be dark
_NEAR = 16  # the maximum number of rasters in a cell that one is compared with
_WORLD_FILES = ("tfw", "tifw", "tiffw", "pgw", "pngw", "jgw", "jpgw", "jpegw", "wld")
_BESIDE = (".aux.xml", ".msk")

_JOIN = "gdalbuildvrt mosaic.vrt TILES && gdal_translate -of COG mosaic.vrt mosaic.tif"
_RESAMPLE = (
    "gdalwarp -r bilinear -of COG TILES mosaic.tif (gdalbuildvrt leaves out rasters that are not north-up)"
)

_Box = tuple[int, int, int, int]
_Grid = tuple[str, str, str, str, str, tuple[int, int]]
"""The CRS, the four numbers of the pixels' sides in its units, and where pixels begin in twentieths of a pixel."""


def log_findings(uris: Sequence[str], images: Sequence[ImageHeader], radiometry: Radiometry) -> None:
    """Log what a user should know before a run of windows.

    Args:
        uris: of the inputs.
        images: their headers.
        radiometry: with the range of the run's percentiles, if it has any.
    """
    _log_alpha(uris, images, radiometry)
    _log_types(uris, images, radiometry)
    _log_outside(uris, images)
    _log_tiles(uris, images)
    _log_sidecars(uris)
    folders = {crs_folder(wkt) for wkt in {image.crs_wkt for image in images} if wkt is not None}
    if len(folders) > 1:
        log.info(
            "the rasters have %s: geo/ will have a folder for each (%s)",
            plural(len(folders), "coordinate reference system"), ", ".join(sorted(folders)[:_EXAMPLES]),
        )  # fmt: skip


def _some(uris: Sequence[str]) -> str:
    # The query of a web address may contain a signature.
    plain = [uri.partition("?")[0] if uri.startswith("http") else uri for uri in uris[:_EXAMPLES]]
    names = [PurePosixPath(uri).name for uri in plain]
    return ", ".join(names) + (", …" if len(uris) > _EXAMPLES else "")


def _log_alpha(uris: Sequence[str], images: Sequence[ImageHeader], radiometry: Radiometry) -> None:
    doubtful = [
        (uri, image.doubtful_alpha) for uri, image in zip(uris, images, strict=True) if image.doubtful_alpha
    ]
    if not doubtful:
        return
    band, rasters = doubtful[0][1], plural(len(doubtful), "raster")
    listed = _some([uri for uri, _ in doubtful])
    what = "near infrared is often marked so"
    if radiometry.bands is None:
        log.warning(
            "%s (%s): band %s is marked as alpha, but does not have the values of a mask (%s): pixels where it is 0 "
            "are left out; --alpha none uses them, --alpha %s says that it is alpha",
            rasters, listed, band, what, band,
        )  # fmt: skip
    else:
        log.warning(
            "%s (%s): band %s is marked as alpha, but is one of --bands or does not have the values of a mask (%s), "
            "and is not used as alpha; --alpha %s uses it, --alpha none says that no band is alpha",
            rasters, listed, band, what, band,
        )  # fmt: skip


def _log_types(uris: Sequence[str], images: Sequence[ImageHeader], radiometry: Radiometry) -> None:
    """Warn if one range is applied to values of different kinds, or to 8-bit values that it makes black."""
    if radiometry.lows is None or radiometry.highs is None:
        return
    kinds: dict[str, list[str]] = defaultdict(list)
    for uri, image in zip(uris, images, strict=True):
        if image.dtype is not None:
            kind = np.dtype(image.dtype)
            number = "floating-point numbers" if kind.kind == "f" else f"{8 * kind.itemsize}-bit integers"
            kinds[number].append(uri)
    if len(kinds) > 1:
        listed = " and ".join(
            f"{len(of_kind):,} of {kind} ({_some(of_kind)})" for kind, of_kind in kinds.items()
        )
        log.warning(
            "one --scale is applied to rasters of different types: %s; those with the smaller values may come out "
            "black: convert them to one type, or segment them in runs of their own",
            listed,
        )
    brightest = max(
        (255 - low) / (high - low) * 255 for low, high in zip(radiometry.lows, radiometry.highs, strict=True)
    )
    dark = kinds.get("8-bit integers", [])
    if len(kinds) == 1 and dark and brightest < _DARK:
        log.warning(
            "%s of 8-bit integers (%s) will be almost black: --scale maps their largest value, 255, to %s of 255; "
            "leave --scale out for them",
            plural(len(dark), "raster"), _some(dark), max(math.floor(brightest), 0),
        )  # fmt: skip


def _log_outside(uris: Sequence[str], images: Sequence[ImageHeader]) -> None:
    outside = [
        uri
        for uri, image in zip(uris, images, strict=True)
        if image.crs_wkt is not None
        and image.transform is not None
        and image.height is not None
        and image.width is not None
        and is_outside_area_of_use(image.crs_wkt, image.transform, image.height, image.width)
    ]
    if outside:
        log.warning(
            "%s far from the area of use of the coordinate reference system: if a wrong one is assigned, or x and "
            "y are exchanged, correct that (gdal_edit), or the polygons lie in the wrong place",
            f"{plural(len(outside), 'raster')} ({_some(outside)}) {'lies' if len(outside) == 1 else 'lie'}",
        )


# Tiles of a mosaic


def _log_tiles(uris: Sequence[str], images: Sequence[ImageHeader]) -> None:
    """Say that objects across the borders of adjacent rasters are not joined."""
    grids: dict[_Grid, list[tuple[_Box, str]]] = defaultdict(list)
    for uri, image in zip(uris, images, strict=True):
        placed = _on_grid(image)
        if placed is not None:
            grids[placed[0]].append((placed[1], uri))
    count, example, commands = 0, "", set()
    for (_, a, b, d, e, _), members in grids.items():
        together = _beside_another(members)
        if together:
            count += len(together)
            example = example or f"{_some(together[:1])} and {_some(together[1:2])}"
            north_up = float(a) > 0 > float(e) and not (float(b) or float(d))
            commands.add(_JOIN if north_up else _RESAMPLE)
    if count:
        log.warning(
            "%s are tiles of one grid that touch or overlap (such as %s): each is segmented on its own, so that an "
            "object across their borders becomes one object per tile; to keep such objects whole, make one raster of "
            "them first: %s",
            plural(count, "raster"), example, _RESAMPLE if _RESAMPLE in commands else _JOIN,
        )  # fmt: skip


def _on_grid(image: ImageHeader) -> tuple[_Grid, _Box] | None:
    """Return the pixel grid that a georeferenced raster lies on, and its sides in pixels of that grid; else None."""
    if image.crs_wkt is None or image.transform is None or image.height is None or image.width is None:
        return None
    a, b, c, d, e, f = image.transform
    determinant = a * e - b * d
    if not determinant:
        return None
    column, row = (
        (c / a, f / e) if not (b or d) else ((c * e - b * f) / determinant, (a * f - c * d) / determinant)
    )
    if not (abs(column) < 2**53 and abs(row) < 2**53):
        return None
    left, top = round(column), round(row)
    # Tiles of one grid differ by whole pixels, up to the digits that a file keeps.
    phase = (round((column - left) * 20) % 20, round((row - top) * 20) % 20)
    key = (image.crs_wkt, f"{a:.9g}", f"{b:.9g}", f"{d:.9g}", f"{e:.9g}", phase)
    return key, (left, top, left + image.width, top + image.height)


def _beside_another(members: Sequence[tuple[_Box, str]]) -> list[str]:
    """Return the uris of rasters that touch or overlap another one, but are not in the same place."""
    boxes = {box for box, _ in members}  # images of one place at several times are not a mosaic
    if len(boxes) < 2:
        return []
    side = max(max(box[2] - box[0], box[3] - box[1]) for box in boxes)
    cells: dict[tuple[int, int], list[_Box]] = defaultdict(list)
    for box in sorted(boxes):
        for cell in _cells(box, side):
            cells[cell].append(box)
    # A comparison with a few of a cell keeps this linear; real mosaics have a few tiles in each.
    near = {
        box
        for box in boxes
        if any(
            other != box
            and box[0] <= other[2]
            and other[0] <= box[2]
            and box[1] <= other[3]
            and other[1] <= box[3]
            for cell in _cells(box, side)
            for other in cells[cell][:_NEAR]
        )
    }
    return [uri for box, uri in members if box in near]


def _cells(box: _Box, side: int) -> list[tuple[int, int]]:
    return [
        (column, row)
        for column in range(box[0] // side, box[2] // side + 1)
        for row in range(box[1] // side, box[3] // side + 1)
    ]


# Files beside a raster


def _log_sidecars(uris: Sequence[str]) -> None:
    """Say that files beside local rasters are not read; those of remote ones are counted by the listing."""
    counts: Counter[str] = Counter()
    folders: dict[str, set[str]] = {}
    for uri in uris:
        url = Url.parse(uri)
        if not url.is_local:
            continue
        path = url.local_path
        if str(path.parent) not in folders:
            try:
                folders[str(path.parent)] = {each.name.lower() for each in path.parent.iterdir()}
            except OSError:  # the image will fail, with its code
                folders[str(path.parent)] = set()
        names, stem, name = folders[str(path.parent)], path.stem.lower(), path.name.lower()
        counts.update(f".{suffix}" for suffix in _WORLD_FILES if f"{stem}.{suffix}" in names)
        counts.update(suffix for suffix in _BESIDE if name + suffix in names)
    if counts:
        listed = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(counts.items()))
        log.warning(
            "files beside the rasters are not read (%s): what counts is in the raster itself; "
            "gdal_translate -a_srs EPSG:… IN OUT.tif writes what they say into it",
            listed,
        )
