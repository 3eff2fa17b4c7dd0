"""Write the parts of the tables: functions of plain values, which a process of Ray can apply to one group each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..formats.geoparquet import write_geoparquet
from ..io.parquet import (
    GEO,
    IMAGES,
    INSTANCES,
    PIECES,
    WINDOWS,
    File,
    read_checked,
    write_table,
    write_tables,
)
from ..io.storage import Storage
from ..schema import instances_schema
from ..stats import Stats
from ..tiling.assemble import assemble, geo_folders
from ..tiling.index import WindowIndex
from ..types import Category
from .manifest_file import (
    ManifestReader,
    current_rows,
    read_current_windows,
    read_retired,
    read_window_index,
)
from .merge_generations import Group, GroupReader
from .plan import Plan, read_plans
from .success import refuse_outdated

Files = tuple[tuple[str, File], ...]
"""(table, file); of a part, exactly one of `images`, and one of `instances`."""


def check_group(url: str, group: Group) -> None:
    """Read a group's files; raise RunError if one does not match its receipt."""
    storage = Storage(url)
    for shard in (*group.shards, *(again.shard for generation in group.redone for again in generation)):
        read_checked(storage, shard.images)
        read_checked(storage, shard.instances)


@dataclass(frozen=True, slots=True)
class Written:
    """The files of a group."""

    files: Files
    stats: Stats
    """Statistics of the rows that are in no receipt's statistics."""
    windows: Mapping[str, int] = field(default_factory=dict)
    """Number of windows by status."""


def write_part(
    url: str, generation: int, categories: Sequence[Category], group: Group, *, masks: bool = True
) -> Written:
    """Write one part of each table from the shards of a group.

    Args:
        url: the run's directory.
        generation: of the tables.
        categories: of the model.
        group: the shards.
        masks: whether the model detects masks.

    Raises:
        RunError: a file does not match its receipt, or a later generation was planned.
    """
    storage = Storage(url)
    reader = GroupReader(storage, group, categories)

    def still_current(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        # A delayed task must not write its rows next to those of a later generation.
        yield from tables
        refuse_outdated(storage, generation)

    plans = read_plans(storage)[:generation]
    window_index = read_window_index(storage, plans)
    if window_index is not None:
        return _write_whole(storage, plans, group, window_index, reader, masks=masks)
    schema = read_checked(storage, group.shards[0].images).schema
    images = write_tables(storage, f"{IMAGES}/{group.part_name}", schema, still_current(reader.images()))
    instances = write_tables(
        storage,
        f"{INSTANCES}/{group.part_name}",
        instances_schema(masks=masks),
        still_current(reader.instances()),
    )
    return Written(((IMAGES, images), (INSTANCES, instances)), reader.stats)


def _write_whole(
    storage: Storage,
    plans: Sequence[Plan],
    group: Group,
    window_index: WindowIndex,
    reader: GroupReader,
    *,
    masks: bool,
) -> Written:
    """Write one part of each table from the shards of a group of windows."""
    windows = pa.concat_tables(reader.images()).combine_chunks()
    detections = pa.concat_tables(reader.instances()).combine_chunks()
    counting = np.setdiff1d(np.arange(group.start, group.stop), group.retired, assume_unique=True)
    rows = np.unique(window_index.rows_of(counting))
    with ManifestReader(storage, plans[-1].manifest) as manifest:
        entries = manifest.take(rows)
    whole = assemble(window_index, rows, entries, windows, detections, reader.stats.categories, masks=masks)
    refuse_outdated(storage, plans[-1].generation)
    files = [
        (table, write_table(storage, f"{table}/{group.part_name}", content))
        for table, content in (
            (IMAGES, whole.images),
            (INSTANCES, whole.instances),
            (WINDOWS, whole.windows),
            (PIECES, whole.pieces),
        )
    ]
    current = current_rows(window_index.n_images, read_retired(storage, plans))
    folders = geo_folders(window_index.only(current))
    by_folder: dict[str, list[str]] = {}
    for crs_wkt in whole.polygons:
        by_folder.setdefault(folders[crs_wkt], []).append(crs_wkt)
    for folder, systems in by_folder.items():
        of_crs = pa.concat_tables([whole.polygons[crs_wkt] for crs_wkt in systems])
        files.append((GEO, write_geoparquet(storage, f"{folder}/{group.part_name}", of_crs, systems[0])))
    status = pc.value_counts(whole.windows["status"]).to_pylist()
    return Written(tuple(files), whole.stats, {row["values"]: row["counts"] for row in status})


def finish_part(
    url: str, generation: int, categories: Sequence[Category], masks: bool, part: tuple[Group, Files]
) -> Written:
    """Write a part, or keep the files that an earlier generation wrote.

    Args:
        url: the run's directory.
        generation: of the tables.
        categories: of the model.
        masks: whether the model detects masks.
        part: the shards, and the files to keep; if there are none, they are written.

    Raises:
        RunError: as `write_part`.
    """
    group, files = part
    if not files:
        return write_part(url, generation, categories, group, masks=masks)
    storage, of_table = Storage(url), dict(files)
    window_index = read_current_windows(storage)
    if window_index is None:
        return Written(files, GroupReader(storage, group, categories).count())
    folders = set(geo_folders(window_index).values())
    if not folders >= {file.path.rpartition("/")[0] for table, file in files if table == GEO}:
        # The run has, or had, several coordinate reference systems, each of which has a folder.
        return write_part(url, generation, categories, group, masks=masks)
    images, instances = (read_checked(storage, of_table[table]) for table in (IMAGES, INSTANCES))
    status = pc.value_counts(read_checked(storage, of_table[WINDOWS])["status"]).to_pylist()
    windows = {row["values"]: row["counts"] for row in status}
    return Written(files, Stats.of_tables(images, instances, categories), windows)
