"""Plan a retry: the failed inputs of a finished run, as the next generation of the plan.

Its list of rows is written first, with the current size and etag of each input, so that an input that was replaced by
a valid file is processed; the plan that names the list is the commit point. Until the retry is reduced, the tables of
the previous generation remain.
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
from numpy.typing import NDArray

from ..config import default_shard_images
from ..errors import ERROR_CODES, ItemError, RunError, UsageError, plural
from ..io.inputs import stat_input
from ..io.parquet import WINDOWS, read_table
from ..io.picture_tables.picture_uri import split_picture
from ..io.storage import Storage
from ..io.stores.store import ObjectStat
from ..io.url import Url
from ..tiling.index import WindowIndex
from .manifest_file import (
    ROWS,
    ManifestReader,
    current_rows,
    read_retired,
    read_window_index,
    write_rows,
)
from .plan import Plan, create_plan, not_finished, planned_rows
from .receipts import choose
from .success import finished, parts_of


def check_codes(only: Collection[str] | None) -> None:
    """Raise UsageError if one is not an error code."""
    if unknown := sorted(set(only or ()) - ERROR_CODES.keys()):
        raise UsageError(
            f"--only names unknown codes ({', '.join(unknown)}); the codes are {', '.join(sorted(ERROR_CODES))}"
        )


log = logging.getLogger("maskrcnn")


def plan_retry(storage: Storage, plans: Sequence[Plan], only: Collection[str] | None = None) -> Plan | None:
    """Plan the failed inputs of a finished run again.

    Args:
        storage: the run's output.
        plans: of all generations.
        only: error codes of the inputs to retry; None: all.

    Returns:
        The plan of the next generation, another command's if two retry at once; None if there is nothing to retry.

    Raises:
        UsageError: the latest generation is not finished, `maskrcnn gc` removed the shards, or a code is unknown.
        RunError: the store failed.
    """
    check_codes(only)
    latest = plans[-1]
    success = check_reducible(storage, plans)
    window_index = read_window_index(storage, plans)
    n_rows = planned_rows(plans) if window_index is None else window_index.n_images
    current = current_rows(n_rows, read_retired(storage, plans))
    if window_index is None:
        rows, uris = failed_inputs(storage, success, current, only)
    else:
        rows, uris = failed_windows(storage, latest.manifest, success, window_index, current, only)
    if not len(rows):
        return None
    with ThreadPoolExecutor(32) as pool:
        tables = [parts[0] if (parts := split_picture(uri)) else None for uri in uris]
        files = [table or uri for table, uri in zip(tables, uris, strict=True)]
        distinct = list(dict.fromkeys(files))
        stat_of = dict(zip(distinct, pool.map(_stat, distinct), strict=True))
    stats = [stat_of[file] for file in files]
    sizes = [None if table else stat and stat.bytes for table, stat in zip(tables, stats, strict=True)]
    table = pa.table([rows, sizes, [stat and stat.etag for stat in stats]], schema=ROWS)
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
        manifest=latest.manifest,
    )
    effective = create_plan(storage, plan)
    if effective.rows_sha256 != plan.rows_sha256:
        log.warning(
            "another command has planned a retry meanwhile; its images are retried, not the ones of this command"
        )
    return effective


def check_reducible(storage: Storage, plans: Sequence[Plan]) -> dict[str, Any]:
    """Return the content of `_SUCCESS` of a finished run that has all files that a further generation needs.

    Raises:
        UsageError: the latest generation is not finished, or `maskrcnn gc` removed the shards.
        RunError: the store failed.
    """
    success = finished(storage, plans[-1])
    if success is None:
        raise not_finished(storage.url, plans[-1])
    gone = sum(map(len, plans)) - sum(map(len, choose(storage, plans)))
    if gone:
        raise UsageError(
            f"{storage.url}: the files of {plural(gone, 'shard')} are gone (`maskrcnn gc` removes all of them); "
            "without them the tables cannot be written again, so nothing can be retried or updated"
        )
    return success


def failed_inputs(
    storage: Storage, success: dict[str, Any], current: NDArray[np.int64], only: Collection[str] | None
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the rows of the manifest whose inputs failed, with one of these codes if given, and their uris.

    Args:
        storage: the run's output.
        success: the content of `_SUCCESS`.
        current: the rows of the manifest that count, (N,) int64: those of the table `images`.
        only: error codes.
    """
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
            f"{storage.url}: the tables have {plural(start, 'image')}, `_SUCCESS` {success['counts']['images']:,}; "
            "`maskrcnn reduce` writes them again"
        )
    return current[np.concatenate(rows)], uris


def failed_windows(
    storage: Storage,
    manifest_path: str,
    success: dict[str, Any],
    window_index: WindowIndex,
    current: NDArray[np.int64],
    only: Collection[str] | None,
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the numbers of the windows that failed, with one of these codes if given, and their images' uris.

    Windows of images whose headers could not be read when the run was planned are left out: they have no plan.

    Args:
        storage: the run's output.
        manifest_path: `Plan.manifest`.
        success: the content of `_SUCCESS`.
        window_index: of the run.
        current: the rows of the manifest that count, (N,) int64: those of the table `images`.
        only: error codes.
    """
    numbers: list[int] = []
    uris: list[str] = []
    position, n_windows = 0, 0
    planned = sum(stop - start for start, stop in map(window_index.range_of, current.tolist()))
    with ManifestReader(storage, manifest_path) as manifest:
        for part in success["parts"][WINDOWS]:
            windows = _columns(storage, part["path"], ["image_id", "window_id", "status", "error"])
            wanted, ids = _wanted(windows, only), windows["image_id"].to_numpy()
            positions = position + np.cumsum(np.diff(ids, prepend=ids[:1]) != 0)
            rows = current[np.minimum(positions, len(current) - 1)]
            for image_row in np.unique(rows[wanted]).tolist():
                if window_index.sized(image_row).error is not None:
                    log.warning(
                        "the header of image %s could not be read when the run was planned: start a new run for it",
                        image_row + 1,
                    )
                    continue
                failed = windows["window_id"].to_numpy()[wanted & (rows == image_row)]
                numbers += window_index.numbers_of(image_row, failed).tolist()
                uris += manifest.rows(image_row, image_row + 1)["uri"].to_pylist() * len(failed)
            position, n_windows = int(positions[-1]) + 1, n_windows + len(windows)
    if (position, n_windows) != (len(current), planned):
        raise RunError(
            f"{storage.url}: the tables have {plural(n_windows, 'window')} of {plural(position, 'image')}, "
            "other than planned; `maskrcnn reduce` writes them again"
        )
    order = np.argsort(numbers)
    return np.array(numbers, np.int64)[order], [uris[index] for index in order]


def _failed_of_part(
    storage: Storage, only: Collection[str] | None, path: str
) -> tuple[int, NDArray[np.int64], list[str]]:
    """Return the number of rows of a part, the positions of those that failed, and their uris."""
    images = _columns(storage, path, ["status", "error", "uri"])
    wanted = _wanted(images, only)
    return len(images), np.flatnonzero(wanted), images["uri"].filter(pa.array(wanted)).to_pylist()


def _columns(storage: Storage, path: str, columns: list[str]) -> pa.Table:
    try:
        return read_table(storage, path, columns)
    except (pa.ArrowException, OSError) as error:  # OSError: it is missing, or a compressed page is damaged
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
    except ItemError:  # it will fail again with this error
        return None
