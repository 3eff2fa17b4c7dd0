"""Headers, before a run of windows is planned: how large each image is, and where it lies.

They are read by the processes that decode, for a header is as hostile as the rest. What cannot be read is an image
that will fail with the reason.
"""

import functools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from .config import Compute
from .decode import Limits
from .errors import ItemError
from .items import Sized
from .raster import Radiometry
from .sandbox import Decoders

log = logging.getLogger("maskrcnn")

PROCESSES = 4
MAX_ASPECT = float("inf")
"""Windows are squares; of images smaller than one the segmenter judges."""


def survey(uris: Sequence[str], compute: Compute, radiometry: Radiometry) -> list[Sized]:
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


def _look(
    decoders: Decoders, limits: Limits, radiometry: Radiometry, assume_crs: str | None, uri: str
) -> Sized:
    try:
        return decoders.survey(uri, limits, radiometry, assume_crs)
    except ItemError as error:
        return Sized(error=error)
