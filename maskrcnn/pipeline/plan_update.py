"""Plan an update: what was added to the inputs of a finished run, or changed there, as the next generation of the plan.

The inputs are listed again and compared by name with the rows of the manifest that count. What is new or changed is
appended to the manifest, so that the rows, and with them the ids, of all others stay; what changed or vanished is
listed as retired. Both files are written first, and the plan that names them is the commit point. Until the update is
reduced, the tables of the previous generation remain.
"""

import datetime
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..config import InferenceConfig, default_shard_images
from ..errors import ItemError, RunError, UsageError, plural
from ..imaging.radiometry import Radiometry
from ..io.inputs import stat_input
from ..io.manifests.skipped import counts_of
from ..io.parquet import read_table
from ..io.storage import Storage
from ..io.stores.local_store import LOCAL_ETAG
from ..io.stores.store import ObjectStat
from ..io.url import Url
from ..schema import MANIFEST, METADATA, PLACE, RETIRED
from .list_inputs import Inputs
from .manifest_file import (
    ManifestReader,
    current_rows,
    read_retired,
    write_manifest,
    write_retired,
    write_skipped,
)
from .plan import Plan, Update, create_plan, manifest_file, planned_rows
from .plan_retry import check_reducible
from .plan_windows import plan_more_windows
from .success import parts_of

log = logging.getLogger("maskrcnn")

_STATS_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """How a listing differs from the inputs of a run."""

    changed: NDArray[np.int64]
    """(N,) rows of the listing, ascending, of inputs that the run has and that are not as they were."""
    former: NDArray[np.int64]
    """(N,) for each of `changed`, its position among the run's inputs."""
    added: NDArray[np.int64]
    """Rows of the listing that the run does not have, ascending."""
    vanished: NDArray[np.int64]
    """Positions among the run's inputs of those that the listing does not have, ascending."""


def plan_update(
    storage: Storage, plans: Sequence[Plan], run: dict[str, Any], inputs: Inputs, inference: InferenceConfig
) -> Plan | None:
    """Plan what was added to the inputs of a finished run or changed there, and what vanished.

    Args:
        storage: the run's output.
        plans: of all generations.
        run: the content of `run.json`.
        inputs: as they are listed now.
        inference: of the run.

    Returns:
        The plan of the next generation, another command's if two update at once; None if nothing is new.

    Raises:
        UsageError: the latest generation is not finished, `maskrcnn gc` removed the shards, or the inputs have other
            columns than those of the run.
        RunError: the store failed.
    """
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    latest = plans[-1]
    success = check_reducible(storage, plans)
    retired = read_retired(storage, plans)
    with ManifestReader(storage, latest.manifest) as manifest:
        known = manifest.rows(0, manifest.num_rows)
    rows = current_rows(len(known), retired)
    _check_columns(run, known.schema, inputs)
    listed, gone = _with_stats(inputs.table)
    before = _as_processed(storage, success, known.take(pa.array(rows)))
    last_listed = max(plan.created for plan in plans if plan.first_row is not None)
    found = compare(before, listed, ids_given=inputs.ids_given, created=last_listed, gone=gone)
    counts = _counted(found, len(rows), inputs.source)
    if not any(counts.values()):
        return None
    appended = np.sort(np.concatenate([found.changed, found.added]))
    more = listed.take(pa.array(appended))
    if not inputs.ids_given:
        more = _numbered(more, len(known), np.searchsorted(appended, found.changed), before, found.former)
    generation = latest.generation + 1
    newly_retired = _retired(before, rows, found, generation)
    plan = Plan(
        generation,
        len(more),
        min(plans[0].shard_images, default_shard_images(max(len(more), 1))),
        manifest_sha256 := write_manifest(storage, _appended(known, more), generation),
        latest.digest,
        created,
        grid_sha256=latest.grid_sha256,
        manifest=manifest_file(generation, manifest_sha256),
        update=Update(
            planned_rows(plans),
            **counts,
            retired_sha256=write_retired(
                storage, generation, pa.concat_tables([retired, newly_retired]).sort_by("row")
            ),
            source_sha256=inputs.source_sha256,
            skipped=counts_of(inputs.skipped),
            skipped_sha256=write_skipped(storage, inputs.skipped, generation),
        ),
    )
    if latest.grid_sha256 is not None and len(more):
        radiometry = Radiometry.from_json(run["radiometry"])
        plan = plan_more_windows(storage, plans, plan, more["uri"].to_pylist(), inference, radiometry)
    effective = create_plan(storage, plan)
    if effective != plan:
        log.warning("another command has planned generation %s meanwhile, which is continued", generation)
    return effective


def _counted(found: Comparison, n_before: int, source: str) -> dict[str, int]:
    """Return and log the numbers of inputs that were added, changed, and vanished."""
    counts = {name: len(getattr(found, name)) for name in ("added", "changed", "vanished")}
    as_before = n_before - counts["changed"] - counts["vanished"]
    log.info("%s, %s as before", ", ".join(f"{n:,} {what}" for what, n in counts.items()), f"{as_before:,}")
    if as_before < n_before / 2:
        log.warning("more than half of the run's inputs changed or vanished: is %s complete?", source)
    return counts


def compare(
    before: pa.Table,
    listed: pa.Table,
    *,
    ids_given: bool,
    created: str,
    gone: NDArray[np.bool_] | None = None,
) -> Comparison:
    """Compare the inputs of a run, as they were processed, with a listing, by name.

    An input is as it was if its etag and its size are; in a zip, its CRC-32 in place of the etag. Where an etag is not
    known, its uri and its size must be the same, and a local file must be older than the listing before; one that
    could not be read then has no size. In any case the further columns of the manifest must be the same, and the ids,
    if they are the user's.

    Args:
        before: rows of a manifest, with unique names.
        listed: likewise; with the same further columns.
        ids_given: whether the ids are the user's.
        created: when the inputs were listed before, ISO 8601.
        gone: (N,) rows of `listed` whose objects do not exist; they are as before only if they were not read then.
    """
    positions = pc.index_in(listed["name"], value_set=before["name"].combine_chunks())
    is_known = positions.is_valid().to_numpy()
    former = positions.drop_null().to_numpy().astype(np.int64)
    mine, theirs = listed.filter(pa.array(is_known)), before.take(pa.array(former))
    others = [name for name in listed.column_names if name not in (*MANIFEST.names, PLACE.name)]
    if ids_given:
        others.append("image_id")
    same = _same_content(theirs, mine, created)
    for name in others:
        same &= _equal(mine[name], theirs[name])
    if gone is not None:
        same &= ~(gone[is_known] & theirs["bytes"].is_valid().to_numpy())
    known = np.flatnonzero(is_known)
    return Comparison(
        known[~same],
        former[~same],
        np.flatnonzero(~is_known),
        np.setdiff1d(np.arange(len(before)), former, assume_unique=True),
    )


def _same_content(theirs: pa.Table, mine: pa.Table, created: str) -> NDArray[np.bool_]:
    was_read = theirs["bytes"].is_valid().to_numpy()
    size_is_known = mine["bytes"].is_valid().to_numpy() & was_read
    same_size = ~size_is_known | _equal(mine["bytes"], theirs["bytes"])
    etags_are_known = mine["etag"].is_valid().to_numpy() & theirs["etag"].is_valid().to_numpy()
    same_etag = etags_are_known & _equal(mine["etag"], theirs["etag"])
    unknown = ~etags_are_known & _equal(mine["uri"], theirs["uri"])
    unknown &= was_read | mine["bytes"].is_null().to_numpy()
    for row in np.flatnonzero(unknown & mine["etag"].is_valid().to_numpy()).tolist():
        unknown[row] = _is_older(mine["etag"][row].as_py(), created)
    unread = int((unknown & mine["etag"].is_null().to_numpy()).sum())
    if unread:
        log.warning("%s without an etag: only a change of the size is noticed", plural(unread, "input"))
    return np.asarray(same_size & (same_etag | unknown | _same_checksum(theirs, mine)))


def _is_older(etag: str, created: str) -> bool:
    """Return whether a local file was last modified before a time; True if its etag does not say when it was."""
    found = re.fullmatch(r"\d+-(\d+)", etag) if LOCAL_ETAG.fullmatch(etag) else None
    return found is None or int(found[1]) / 1e9 < datetime.datetime.fromisoformat(created).timestamp()


def _same_checksum(theirs: pa.Table, mine: pa.Table) -> NDArray[np.bool_]:
    """Return whether inputs are members of archives that record the same CRC-32 for them, (N,) bool."""
    if not all(PLACE.name in table.column_names for table in (theirs, mine)):
        return np.zeros(len(mine), np.bool_)
    ours, others = (pc.struct_field(table[PLACE.name], "crc32") for table in (mine, theirs))
    return np.asarray(pc.fill_null(pc.equal(ours, others), fill_value=False).to_numpy())


def _equal(mine: pa.ChunkedArray, theirs: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Return whether values are equal, (N,) bool; null equals null, and NaN equals NaN."""
    try:
        equal = pc.fill_null(pc.equal(mine, theirs), fill_value=False)
    except pa.ArrowNotImplementedError:  # of lists and structs
        pairs = zip(mine.to_pylist(), theirs.to_pylist(), strict=True)
        return np.array([repr(one) == repr(other) for one, other in pairs], np.bool_)
    both = pc.and_(mine.is_null(nan_is_null=True), theirs.is_null(nan_is_null=True))
    return np.asarray(pc.or_(equal, both).to_numpy())


def _check_columns(run: dict[str, Any], known: pa.Schema, inputs: Inputs) -> None:
    """Raise UsageError if the inputs have other columns than those of the run."""
    further = [
        {field.name: field.type for field in schema if field.name not in (*MANIFEST.names, PLACE.name)}
        for schema in (known, inputs.table.schema)
    ]
    if run["inputs"]["ids_given"] != inputs.ids_given:
        further = [fields | {"image_id": given} for fields, given in zip(further, (1, 2), strict=True)]
    if further[0] != further[1]:
        names = [
            name for name in {**further[0], **further[1]} if further[0].get(name) != further[1].get(name)
        ]
        raise UsageError(
            f"{inputs.source} has other columns than when the run was planned ({', '.join(sorted(names))}): restore "
            "them, or name another output"
        )


def _as_processed(storage: Storage, success: dict[str, Any], known: pa.Table) -> pa.Table:
    """Return rows of the manifest with the sizes and etags with which the inputs were processed last."""
    names = ["bytes", "etag"]
    images = pa.concat_tables([read_table(storage, part.images, names) for part in parts_of(success)])
    if len(images) != len(known):
        raise RunError(
            f"{storage.url}: the tables have {plural(len(images), 'image')}, the manifest {len(known):,} that count; "
            "`maskrcnn reduce` writes them again"
        )
    for name in names:
        known = known.set_column(known.schema.get_field_index(name), MANIFEST.field(name), images[name])
    return known


def _with_stats(listed: pa.Table) -> tuple[pa.Table, NDArray[np.bool_]]:
    """Look up the sizes and etags that a listing does not know.

    Returns:
        The listing with them; and whether the object of each row does not exist, (N,) bool, False if its etag is known.
    """
    gone = np.zeros(len(listed), np.bool_)
    lacking = np.flatnonzero(listed["etag"].is_null().to_numpy())
    if not len(lacking):
        return listed, gone
    uris = listed["uri"].take(pa.array(lacking)).to_pylist()
    with ThreadPoolExecutor(_STATS_AT_ONCE) as pool:
        found = list(pool.map(_stat, uris))
    gone[lacking] = [stat == "not_found" for stat in found]
    for name in ("bytes", "etag"):
        values = listed[name].to_pylist()
        for row, stat in zip(lacking.tolist(), found, strict=True):
            if isinstance(stat, ObjectStat):
                values[row] = getattr(stat, name)
        column = pa.array(values, MANIFEST.field(name).type)
        listed = listed.set_column(listed.schema.get_field_index(name), MANIFEST.field(name), column)
    return listed, gone


def _stat(uri: str) -> ObjectStat | str:
    """Return an object's size and etag; or an error code, or an empty text for the web, which is not asked."""
    if Url.parse(uri).is_web:
        return ""
    try:
        return stat_input(uri)
    except ItemError as error:  # processed, it becomes a row with this error
        return error.code


def _numbered(
    more: pa.Table, n_known: int, changed: NDArray[np.int64], before: pa.Table, former: NDArray[np.int64]
) -> pa.Table:
    """Return rows that are appended to a manifest, with ids: of changed inputs those that they had."""
    ids = n_known + 1 + np.arange(len(more))
    ids[changed] = before["image_id"].to_numpy()[former]
    return more.set_column(0, MANIFEST.field("image_id"), pa.array(ids))


def _retired(before: pa.Table, rows: NDArray[np.int64], found: Comparison, generation: int) -> pa.Table:
    tables = []
    for reason, positions in (("changed", found.former), ("vanished", found.vanished)):
        gone = before.take(pa.array(positions))
        columns = {
            "row": rows[positions],
            **{name: gone[name].combine_chunks() for name in ("image_id", "name", "uri")},
            "reason": [reason] * len(positions),
            "generation": [generation] * len(positions),
        }
        tables.append(
            pa.table([pa.array(columns[field.name], field.type) for field in RETIRED], schema=RETIRED)
        )
    return pa.concat_tables(tables)


def _appended(known: pa.Table, more: pa.Table) -> pa.Table:
    """Return a manifest with further rows; with the column `PLACE` if one of them has it."""
    names = [*MANIFEST.names]
    if any(PLACE.name in table.column_names for table in (known, more)):
        names.append(PLACE.name)
    names += [name for name in known.column_names if name not in (*MANIFEST.names, PLACE.name)]
    fields = [PLACE if name == PLACE.name else known.schema.field(name) for name in names]
    schema = pa.schema(fields, metadata=METADATA)

    def whole(table: pa.Table) -> pa.Table:
        columns = [
            table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type)
            for field in schema
        ]
        return pa.table(columns, schema=schema)

    return pa.concat_tables(map(whole, (known, more)))
