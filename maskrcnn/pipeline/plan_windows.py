"""Read the headers of large images and rasters, and plan their windows.

Headers are read by the decoding processes, because a header is as untrusted as the rest of a file. An image whose
header cannot be read will fail with that error.
"""

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..config import MAX_WINDOWS, InferenceConfig
from ..errors import STORAGE_CODES, ItemError, RunError, UsageError, plural
from ..imaging.decode import Limits
from ..imaging.decode_pool import Decoders
from ..imaging.geometry import ImageHeader
from ..imaging.geotiff import parse_crs
from ..imaging.radiometry import Radiometry, parse_radiometry, percentiles_of, resolved
from ..imaging.raster import sampling
from ..io.refusals import Refusal
from ..io.storage import Storage
from ..tiling.grid import MAX_IMAGE_WINDOWS
from ..tiling.index import Cutting, number_windows
from .manifest_file import read_grid, write_grid
from .plan import Plan, planned_rows
from .raster_findings import log_findings

log = logging.getLogger("maskrcnn")

PROCESSES = 4
SMALL_OVERLAP_PX = 32
"""A multiple of the tolerance between windows, see `overlap_matching.TOLERANCE_PX`."""
MAX_ASPECT = float("inf")
"""No limit: windows are square, and for images smaller than a window the segmenter decides."""


def plan_windows(
    storage: Storage, plan: Plan, uris: Sequence[str], inference: InferenceConfig
) -> tuple[Plan, Radiometry]:
    """Plan the windows of images, and write the list that the plan names.

    Args:
        storage: the run's output.
        plan: of the images.
        uris: of the images, in order.
        inference: with a `window`.

    Returns:
        The same plan, with windows as its rows, and the radiometry, with the measured range.

    Raises:
        UsageError: the radiometry or the CRS is invalid, no raster has a valid pixel, there are more windows than
            `max_windows`, or the extra `geo` is missing.
        RunError: the store failed.
    """
    radiometry = check_options(inference)
    overlap = inference.overlap or 0
    if overlap < SMALL_OVERLAP_PX:
        what = "windows overlap by %s pixels: below %s, an object on their border may remain in several parts"
        log.warning(what, overlap, SMALL_OVERLAP_PX)
    cutting = Cutting(inference.window or 0, overlap)
    images = [_bounded(image, cutting) for image in read_headers(uris, inference, radiometry)]
    _check_total(images, cutting, inference.max_windows or MAX_WINDOWS)
    _log_broken(images)
    radiometry = find_range(uris, images, inference, radiometry)
    log_findings(uris, images, radiometry)
    grid, cuts = number_windows(images, cutting, plan.shard_images)
    grid_sha256 = write_grid(storage, grid)
    return dataclasses.replace(plan, rows=cuts[-1], cuts=cuts, grid_sha256=grid_sha256), radiometry


def plan_more_windows(
    storage: Storage,
    plans: Sequence[Plan],
    plan: Plan,
    uris: Sequence[str],
    inference: InferenceConfig,
    radiometry: Radiometry,
) -> Plan:
    """Plan the windows of the images that an update adds, and write the list of all windows.

    Args:
        storage: the run's output.
        plans: of the generations before.
        plan: of the update, of the images that it adds.
        uris: of these images, in order.
        inference: with a `window`.
        radiometry: of the run, whose range stays as it was measured.

    Returns:
        The same plan, with windows as its rows.

    Raises:
        UsageError, RunError: as `plan_windows`.
    """
    cutting = Cutting(inference.window or 0, inference.overlap or 0)
    images = [_bounded(image, cutting) for image in read_headers(uris, inference, radiometry)]
    _check_total(images, cutting, inference.max_windows or MAX_WINDOWS)
    _log_broken(images)
    log_findings(uris, images, radiometry)
    more, cuts = number_windows(images, cutting, plan.shard_images)
    first = pc.add(more["first"], planned_rows(plans))
    more = more.set_column(0, more.schema.field("first"), first)
    grid = pa.concat_tables([read_grid(storage, plans[-1]), more], promote_options="default")
    return dataclasses.replace(plan, rows=cuts[-1], cuts=cuts, grid_sha256=write_grid(storage, grid))


def check_options(inference: InferenceConfig) -> Radiometry:
    """Return the radiometry of a configuration with a window.

    Raises:
        UsageError: the radiometry or the CRS is invalid, or the extra `geo` is missing.
    """
    if inference.assume_crs is not None:
        parse_crs(inference.assume_crs)
    return parse_radiometry(inference.bands, inference.scale, inference.alpha)


def _windows_of(image: ImageHeader, cutting: Cutting) -> int:
    if image.height is None or image.width is None:
        return 1
    planned = cutting.planned(image)
    if planned is not None:
        return int(np.unpackbits(np.frombuffer(planned, np.uint8)).sum())
    return len(cutting.grid(image.height, image.width))


def _bounded(image: ImageHeader, cutting: Cutting) -> ImageHeader:
    """Return the header, or the error of an image that would be cut into too many windows."""
    if image.height is None or image.width is None:
        return image
    # Those without data count too: the grid itself is held in memory.
    count = len(cutting.grid(image.height, image.width))
    if count <= MAX_IMAGE_WINDOWS:
        return image
    error = Refusal.TOO_MANY_WINDOWS.error(
        width=image.width, height=image.height, count=count, limit=MAX_IMAGE_WINDOWS
    )
    return ImageHeader(error=error)


def _check_total(images: Sequence[ImageHeader], cutting: Cutting, limit: int) -> None:
    """Raise UsageError if the images are cut into too many windows in total."""
    total = sum(_windows_of(image, cutting) for image in images)
    if total > limit:
        raise UsageError(
            f"{plural(len(images), 'image')} would be cut into {plural(total, 'window')}, more than the limit of "
            f"{limit:,}: use a larger --window, a smaller --overlap or fewer images (--limit), or raise --max-windows"
        )


def _log_broken(images: Sequence[ImageHeader]) -> None:
    errors = [image.error for image in images if image.error is not None]
    if errors:
        codes = Counter(error.code for error in errors).most_common()
        listed = ", ".join(f"{count:,} {code}" for code, count in codes)
        log.warning(
            "%s will fail because of %s: %s; %s",
            plural(len(errors), "image"), "its header" if len(errors) == 1 else "their headers", listed,
            errors[0].message,
        )  # fmt: skip


def read_headers(
    uris: Sequence[str], inference: InferenceConfig, radiometry: Radiometry
) -> list[ImageHeader]:
    """Read the headers of images and rasters.

    Raises:
        RunError: the store failed, or no process can be started.
        UsageError: the extra `geo` is missing.
    """
    limits = Limits(inference.max_pixels, inference.max_bytes, MAX_ASPECT)
    log.info("reading the headers of %s", plural(len(uris), "image"))
    with Decoders(min(PROCESSES, len(uris))) as decoders, ThreadPoolExecutor(PROCESSES) as pool:
        read = functools.partial(_read_header, decoders, limits, radiometry, inference.assume_crs)
        return list(pool.map(read, uris))


def find_range(
    uris: Sequence[str], images: Sequence[ImageHeader], inference: InferenceConfig, radiometry: Radiometry
) -> Radiometry:
    """Return the radiometry with the range of the collection's percentiles, if it needs one.

    Args:
        uris: of all inputs.
        images: their headers, from `read_headers`.
        inference: of the run.
        radiometry: as requested.

    Raises:
        UsageError: no raster has a valid pixel.
        RunError: the store failed.
    """
    rasters = [uri for uri, image in zip(uris, images, strict=True) if image.block_size is not None]
    if radiometry.percentiles is None or not rasters:
        return radiometry
    chosen, count = sampling(len(rasters))
    log.info("sampling %s of %s", f"{len(chosen):,}", plural(len(rasters), "raster"))
    with Decoders(min(PROCESSES, len(chosen))) as decoders, ThreadPoolExecutor(PROCESSES) as pool:
        draw = functools.partial(_sample, decoders, radiometry, count, inference.assume_crs)
        samples = [
            drawn for drawn in pool.map(draw, (rasters[index] for index in chosen)) if drawn is not None
        ]
    return resolved(radiometry, *percentiles_of(samples, radiometry))


def _sample(
    decoders: Decoders, radiometry: Radiometry, count: int, assume_crs: str | None, uri: str
) -> tuple[NDArray[np.float64], float] | None:
    try:
        return decoders.sample(uri, radiometry, count, assume_crs)
    except ItemError as error:
        if error.code in STORAGE_CODES:  # the range would depend on temporary failures
            raise RunError(f"cannot sample {uri}: {error}") from error
        return None  # it will fail in the run with this error


def _read_header(
    decoders: Decoders, limits: Limits, radiometry: Radiometry, assume_crs: str | None, uri: str
) -> ImageHeader:
    try:
        return decoders.read_header(uri, limits, radiometry, assume_crs)
    except ItemError as error:
        return ImageHeader(error=error)
