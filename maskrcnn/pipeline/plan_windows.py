"""Headers, before a run of windows is planned: how large each image is, and where it lies.

They are read by the processes that decode, for a header is as hostile as the rest. What cannot be read is an image
that will fail with the reason.
"""

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ..config import InferenceConfig
from ..errors import STORAGE_CODES, ItemError, RunError
from ..imaging.decode import Limits
from ..imaging.decode_pool import Decoders
from ..imaging.geometry import ImageHeader
from ..imaging.geotiff import parse_crs
from ..imaging.radiometry import Radiometry, parse_radiometry, percentiles_of, resolved
from ..imaging.raster import sampling
from ..io.storage import Storage
from ..tiling.index import Cutting, number_windows
from .manifest import write_grid
from .plan import Plan

log = logging.getLogger("maskrcnn")

PROCESSES = 4
SMALL_OVERLAP_PX = 32
"""Some times what windows may differ by, see `strips.TOLERANCE_PX`."""
MAX_ASPECT = float("inf")
"""Windows are squares; of images smaller than one the segmenter judges."""


def plan_windows(
    storage: Storage, plan: Plan, uris: Sequence[str], compute: InferenceConfig
) -> tuple[Plan, Radiometry]:
    """Plan the windows of images, and write the list that the plan names.

    Args:
        storage: the run's output.
        plan: of the images.
        uris: theirs, in order.
        compute: with a `window`.

    Returns:
        The same plan, with windows as its rows, and the radiometry, with the range that was found.

    Raises:
        UsageError: the radiometry or the CRS is none, no raster has a valid pixel, or the extra `geo` is missing.
        RunError: the store failed.
    """
    radiometry = parse_radiometry(compute.bands, compute.scale)
    if compute.assume_crs is not None:
        parse_crs(compute.assume_crs)
    overlap = compute.overlap or 0
    if overlap < SMALL_OVERLAP_PX:
        what = "windows share %s pixels: below %s, what a border cuts may stay in pieces"
        log.warning(what, overlap, SMALL_OVERLAP_PX)
    images = survey(uris, compute, radiometry)
    _tell_broken(images)
    radiometry = find_range(uris, images, compute, radiometry)
    grid, cuts = number_windows(images, Cutting(compute.window or 0, overlap), plan.shard_images)
    grid_sha256 = write_grid(storage, grid)
    return dataclasses.replace(plan, rows=cuts[-1], cuts=cuts, grid_sha256=grid_sha256), radiometry


def _tell_broken(images: Sequence[ImageHeader]) -> None:
    errors = [image.error for image in images if image.error is not None]
    if errors:
        codes = Counter(error.code for error in errors).most_common()
        listed = ", ".join(f"{count:,} {code}" for code, count in codes)
        what = "%s images will fail, as their headers say: %s; %s"
        log.warning(what, f"{len(errors):,}", listed, errors[0].message)


def survey(uris: Sequence[str], compute: InferenceConfig, radiometry: Radiometry) -> list[ImageHeader]:
    """Read the headers of images and rasters.

    Raises:
        RunError: the store failed, or no process can be started.
        UsageError: the extra `geo` is missing.
    """
    limits = Limits(compute.max_pixels, compute.max_bytes, MAX_ASPECT)
    log.info("reading the headers of %s images", f"{len(uris):,}")
    with Decoders(min(PROCESSES, len(uris))) as decoders, ThreadPoolExecutor(PROCESSES) as pool:
        look = functools.partial(_look, decoders, limits, radiometry, compute.assume_crs)
        return list(pool.map(look, uris))


def find_range(
    uris: Sequence[str], images: Sequence[ImageHeader], compute: InferenceConfig, radiometry: Radiometry
) -> Radiometry:
    """Return the policy with the range that percentiles of the collection mean, if it asks for them.

    Args:
        uris: of all inputs.
        images: what `survey` said of them.

    Raises:
        UsageError: no raster has a valid pixel.
        RunError: the store failed.
    """
    rasters = [uri for uri, image in zip(uris, images, strict=True) if image.block_size is not None]
    if radiometry.percentiles is None or not rasters:
        return radiometry
    chosen, count = sampling(len(rasters))
    log.info("sampling %s of %s rasters", f"{len(chosen):,}", f"{len(rasters):,}")
    with Decoders(min(PROCESSES, len(chosen))) as decoders, ThreadPoolExecutor(PROCESSES) as pool:
        draw = functools.partial(_sample, decoders, radiometry, count, compute.assume_crs)
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
        if error.code in STORAGE_CODES:  # the range would depend on the weather
            raise RunError(f"cannot sample {uri}: {error}") from error
        return None  # it will fail in the run, with its code


def _look(
    decoders: Decoders, limits: Limits, radiometry: Radiometry, assume_crs: str | None, uri: str
) -> ImageHeader:
    try:
        return decoders.read_header(uri, limits, radiometry, assume_crs)
    except ItemError as error:
        return ImageHeader(error=error)
