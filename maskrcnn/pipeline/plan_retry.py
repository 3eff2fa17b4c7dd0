"""A retry: the failed inputs of a finished run, planned once more as the next generation.

Its list of rows is written first, with what the store says of each input now, so that one which was replaced by a
sound file is processed; the plan that names the list is the commit point. Until the retry is reduced, the tables of
the generation before stand.
"""

import datetime
import functools
import logging
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..config import default_shard_images
from ..errors import ERROR_CODES, ItemError, RunError, UsageError
from ..io.inputs import stat_input
from ..io.parquet import WINDOWS
from ..io.storage import Storage
from ..io.store import ObjectStat
from ..io.url import Url
from ..tiling.index import WindowIndex
from .manifest import ROWS, ManifestReader, read_window_index, write_rows
from .plan import Plan, create_plan
from .receipts import choose
from .success import finished, parts_of


def check_codes(only: Collection[str] | None) -> None:
    """Raise UsageError where one is no code of a failure."""
    if unknown := sorted(set(only or ()) - ERROR_CODES.keys()):
        raise UsageError(
            f"--only: no code {', '.join(unknown)}; the codes are {', '.join(sorted(ERROR_CODES))}"
        )


log = logging.getLogger("maskrcnn")


def plan_retry(storage: Storage, plans: Sequence[Plan], only: Collection[str] | None = None) -> Plan | None:
    """Plan the failed inputs of a finished run once more.

    Args:
        plans: of all generations.
        only: codes of the failures to retry; None: all.

    Returns:
        The plan of the next generation, another's if two retry at once; None where nothing is to be retried.

    Raises:
        UsageError: the latest generation is not finished, `maskrcnn gc` removed what a retry needs, or a code is none.
        RunError: the store failed.
    """
    check_codes(only)
    latest = plans[-1]
    success = finished(storage, latest)
    if success is None:
        raise UsageError(f"{storage.url} is not finished; continue it with `maskrcnn segment`")
    gone = sum(map(len, plans)) - sum(map(len, choose(storage, plans)))
    if gone:
        raise UsageError(
            f"{storage.url}: the files of {gone} shards are gone (`maskrcnn gc` removes all of them); "
            "without them the tables cannot be made again, so nothing can be retried"
        )
    items = read_window_index(storage)
    if items is None:
        rows, uris = failed_inputs(storage, success, only)
    else:
        rows, uris = failed_windows(storage, success, items, only)
    if not len(rows):
        return None
    with ThreadPoolExecutor(32) as pool:
        distinct = list(dict.fromkeys(uris))
        stat_of = dict(zip(distinct, pool.map(_stat, distinct), strict=True))
    stats = [stat_of[uri] for uri in uris]
    table = pa.table(
        [rows, [stat and stat.bytes for stat in stats], [stat and stat.etag for stat in stats]], schema=ROWS
    )
    generation = latest.generation + 1
    plan = Plan(
        generation,
        len(rows),
        min(plans[0].shard_images, default_shard_images(len(rows))),
        latest.manifest_sha256,
        latest.digest,
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        write_rows(storage, generation, table),
        latest.grid_sha256,
    )
    standing = create_plan(storage, plan)
    if standing.rows_sha256 != plan.rows_sha256:
        log.warning(
            "another command has planned a retry meanwhile; its images are retried, and these are not"
        )
    return standing


def failed_inputs(
    storage: Storage, success: dict[str, Any], only: Collection[str] | None
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the rows of the manifest whose inputs failed, with these codes if any are named, and their uris."""
    rows, uris = [np.empty(0, np.int64)], []
    start = 0
    with ThreadPoolExecutor(8) as pool:
        search = functools.partial(_failed_of_part, storage, only)
        for n_rows, positions, of_part in pool.map(search, (part.images for part in parts_of(success))):
            rows.append(start + positions)
            uris += of_part
            start += n_rows
    if start != success["counts"]["images"]:
        raise RunError(
            f"{storage.url}: the tables have {start} images, `_SUCCESS` {success['counts']['images']}"
        )
    return np.concatenate(rows), uris


def failed_windows(
    storage: Storage, success: dict[str, Any], items: WindowIndex, only: Collection[str] | None
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the numbers of the windows that failed, with these codes if any are named, and their images' uris.

    Without those of images whose headers could not be read when the run was planned: nothing was planned of them.
    """
    numbers: list[int] = []
    uris: list[str] = []
    row, n_windows = 0, 0
    with ManifestReader(storage) as manifest:
        for part in success["parts"][WINDOWS]:
            windows = _columns(storage, part["path"], ["image_id", "window_id", "status", "error"])
            wanted, ids = _wanted(windows, only), windows["image_id"].to_numpy()
            rows = row + np.cumsum(np.diff(ids, prepend=ids[:1]) != 0)
            for image_row in np.unique(rows[wanted]).tolist():
                if items.sized(image_row).error is not None:
                    log.warning(
                        "the header of image %s could not be read: plan a new run for it", image_row + 1
                    )
                    continue
                failed = windows["window_id"].to_numpy()[wanted & (rows == image_row)]
                numbers += items.numbers_of(image_row, failed).tolist()
                uris += manifest.rows(image_row, image_row + 1)["uri"].to_pylist() * len(failed)
            row, n_windows = int(rows[-1]) + 1, n_windows + len(windows)
    if (row, n_windows) != (items.n_images, items.range_of(items.n_images - 1)[1]):
        raise RunError(
            f"{storage.url}: the tables have {n_windows} windows of {row} images, which is not the plan's"
        )
    order = np.argsort(numbers)
    return np.array(numbers, np.int64)[order], [uris[index] for index in order]


def _failed_of_part(
    storage: Storage, only: Collection[str] | None, path: str
) -> tuple[int, NDArray[np.int64], list[str]]:
    """Return how many rows a part has, which of them failed, and their uris."""
    images = _columns(storage, path, ["status", "error", "uri"])
    wanted = _wanted(images, only)
    return len(images), np.flatnonzero(wanted), images["uri"].filter(pa.array(wanted)).to_pylist()


def _columns(storage: Storage, path: str, columns: list[str]) -> pa.Table:
    try:
        with storage.open(path) as stored:
            return pq.read_table(stored, columns=columns)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise RunError(
            f"{storage.url}/{path} is missing or broken; `maskrcnn reduce` writes it again"
        ) from error


def _wanted(rows: pa.Table, only: Collection[str] | None) -> NDArray[np.bool_]:
    wanted = pc.equal(rows["status"], "failed")
    if only is not None:
        wanted = pc.and_(wanted, pc.is_in(rows["error"], pa.array(sorted(only), pa.string())))
    return np.asarray(wanted.to_numpy())


def _stat(uri: str) -> ObjectStat | None:
    if Url.parse(uri).is_web:
        return None
    try:
        return stat_input(uri)
    except ItemError:  # it will fail again, with its code
        return None
