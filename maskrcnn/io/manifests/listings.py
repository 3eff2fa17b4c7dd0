"""The images of a folder, a glob, a prefix or an inventory, with those in archives and tables.

All other files are skipped, and counted by kind. Files that are together one manifest are found here too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import UsageError
from ...schema import PLACE, SKIPPED
from ..archives.list_members import list_members
from ..archives.member import SUFFIXES as ARCHIVE_SUFFIXES
from ..archives.member import split_member
from ..inputs import list_inputs
from ..picture_tables.list_rows import HasPictures, any_bytes, without_tables
from ..picture_tables.picture_uri import ARROW_SUFFIXES, PARQUET, split_picture, split_version
from ..refusals import Refusal
from ..url import Url
from .csv_manifest import typed
from .s3_inventory import read_inventory
from .skipped import counts_of, skipped_files
from .sources import (
    ALL_SUFFIXES,
    MANIFEST_SUFFIXES,
    is_glob,
    is_inventory,
    manifest_suffix,
    open_source,
    schema_of,
    usage_errors,
)

_OF_A_RUN: Final = ("plan.json", "run.json")
"""The files by which the output of a run is known; see `pipeline.plan`."""
_SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jxl"),
)
"""Suffixes of formats that are read, and of those that photos come in and that are refused by name, one row each."""
_IS_IMAGE: Final = rf"(?i)({'|'.join(map(re.escape, _SUFFIXES))})$"
_IS_REPEATED: Final = rf"(?is)!/.*({'|'.join(map(re.escape, _SUFFIXES))})#[0-9]+$"
_IS_ARCHIVE: Final = rf"(?i)({'|'.join(map(re.escape, ARCHIVE_SUFFIXES))})$"
_IS_PARQUET: Final = rf"(?i){re.escape(PARQUET)}$"
_IS_ARROW: Final = rf"(?i)({'|'.join(map(re.escape, ARROW_SUFFIXES))})$"
_COMPANIONS: Final = (
    r"(?:^|/)(?P<place>\._|(?:__MACOSX|\.AppleDouble|\.ipynb_checkpoints|@eaDir|#recycle|\$RECYCLE\.BIN|\.Trashes"
    r"|\.Trash-[0-9]+|\.thumbnails|\.picasaoriginals)/)"
)
"""Files that systems and programs put beside pictures, with the suffixes of pictures: resource forks, thumbnails."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a listing finds."""

    files: pa.Table
    """`name`, `uri`, `bytes` and `etag` of the images, and `schema.PLACE` if some are in archives; or of the files that
    are one manifest."""
    is_manifest: bool
    skipped: pa.Table
    """All other files, of `schema.SKIPPED`."""


def read_listing(
    source: str,
    images_root: str | None = None,
    *,
    has_pictures: HasPictures = any_bytes,
    image_column: str | None = None,
    sidecars: Sequence[str] = (),
) -> Listing:
    """List the images of a folder, a glob, a prefix or an inventory, or the files there that are one manifest.

    Args:
        source: as `source_of` returns it.
        images_root: base of the keys of an inventory; None: its bucket.
        has_pictures: whether some values of a column contain a picture; by default each that has bytes.
        image_column: the column with the pictures of Parquet files; None: each has one, or is a manifest.
        sidecars: suffixes of files in archives that become columns of the pictures beside them.

    Raises:
        UsageError: there are neither, or they cannot be listed.
    """
    with usage_errors(source):
        archive, within = split_member(source) or (source, None)
        picture = None if within is not None else split_picture(source)
        archive, image_column = picture[:2] if picture else (archive, image_column)
        if is_inventory(source):
            found, left_out = read_inventory(source, open_source, images_root)
        else:
            found, left_out = list_inputs(split_version(archive)[0]), SKIPPED.empty_table()
        found, of_runs = _without_runs(found)
        found, beside = _without_companions(found)
        skipped = [left_out, of_runs, beside]
        are_manifests = manifests_among(found, source) if within is None and image_column is None else None
        if are_manifests is not None:
            others = _by_suffix(found.filter(pc.invert(are_manifests)))
            files = found.filter(are_manifests)
            return Listing(files.sort_by("name"), is_manifest=True, skipped=_sorted(*skipped, others))
        found, rows = without_tables(found, archive, has_pictures, image_column)
        rows = rows if picture is None else _one_row(rows, picture[2], source)
        found = _with_members(found, archive, sidecars)
        if within:  # a member, or a folder of them
            names = found["name"]
            found = found.filter(
                pc.or_(pc.equal(names, within), pc.starts_with(names, f"{within.rstrip('/')}/"))
            )
            if not found.num_rows:
                raise UsageError(f"{source}: {Refusal.MEMBER_MISSING.text()}")
        found, beside = _without_companions(found)
    known = pc.match_substring_regex(found["name"], _IS_IMAGE)
    if PLACE.name in found.column_names:
        # An archive that cannot be read, and a member of a name that occurred before.
        known = pc.or_(known, pc.match_substring_regex(found["uri"], f"{_IS_ARCHIVE}|{_IS_REPEATED}"))
    images = _kept(found, known)
    if rows.num_rows:
        images = pa.concat_tables([images, rows], promote_options="permissive")
    rest = _sorted(*skipped, beside, _by_suffix(found.filter(pc.invert(known))))
    if not images.num_rows:
        what = (
            ", ".join(f"{n} {kind or 'without suffix'}" for kind, n in counts_of(rest).items()) or "no files"
        )
        ends = (
            f"images end in {' '.join(_SUFFIXES)}, archives of them in {' '.join(ARCHIVE_SUFFIXES)}, tables in "
            f"{' '.join((PARQUET, *ARROW_SUFFIXES, _LANCE))}, lists in {' '.join(MANIFEST_SUFFIXES)}"
        )
        if (suffix := manifest_suffix(source)) in ALL_SUFFIXES:
            ends += f"; for the lists in this folder, use {source.rstrip('/')}/*{suffix}"
        advice = dict.fromkeys(_ADVICE[kind] for kind in counts_of(rest) if kind in _ADVICE)
        raise UsageError(f"{source}: no images; found {'; '.join((what, *advice, ends))}")
    return Listing(images, is_manifest=False, skipped=rest)


def manifests_among(found: pa.Table, source: str) -> pa.ChunkedArray | None:
    """Return which files of a listing are together one manifest; None if it is a listing of pictures.

    The files of a glob that ends in a manifest's suffix are one. So are the Parquet files of a folder, a prefix or
    another glob that has neither pictures nor archives. But Parquet files are one only if the first of them that can
    be read has a column `uri`. As with Hive and Spark, files and folders whose names begin with `_` or `.` do not
    belong to them. The output of a run is no manifest.

    Raises:
        UsageError: the glob is one of JSON.
    """
    names = found["name"]
    suffix = manifest_suffix(source) if is_glob(Url.parse(source)) else ""
    visible = pc.invert(pc.match_substring_regex(names, r"(?:^|/)[._]"))
    if suffix == ".json":
        raise UsageError(f"{source}: several JSON files are not read as one: name one of them")
    if suffix in ALL_SUFFIXES and suffix != PARQUET:
        return visible
    of_run = pc.all(pc.is_in(pa.array(_OF_A_RUN), names.combine_chunks())).as_py()
    if of_run or pc.any(pc.match_substring_regex(names, f"{_IS_IMAGE}|{_IS_ARCHIVE}|{_IS_ARROW}")).as_py():
        return None
    tables = pc.and_(visible, pc.match_substring_regex(names, _IS_PARQUET))
    for uri in found.filter(tables).sort_by("name")["uri"].to_pylist():
        schema = schema_of(uri)
        if schema is not None:
            return tables if "uri" in schema.names else None
    return None


def _by_suffix(files: pa.Table) -> pa.Table:
    """Return files as skipped ones, by their suffix; "" for those without."""
    suffixes = pc.struct_field(pc.extract_regex(files["name"], r"(?P<suffix>\.[^./]*)$"), "suffix")
    return skipped_files(files, pc.utf8_lower(pc.fill_null(suffixes, "")))


def _sorted(*parts: pa.Table) -> pa.Table:
    """Return skipped files by kind, then name; the kinds of one part before those of the next."""
    return pa.concat_tables(
        part.sort_by([("kind", "ascending"), ("name", "ascending")]) for part in parts
    ).combine_chunks()


_LANCE: Final = ".lance"
_RAW: Final = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw")
_ADVICE: Final = {
    **dict.fromkeys(_RAW, "raw photographs are not read: export them as JPEG, PNG or TIFF"),
    _LANCE: "a Lance data set is a folder, and needs the extra `lance`: pip install 'maskrcnn-ray[lance]', or write "
    "the pictures and the other columns to Parquet",
}
"""What to do with pictures that are not read, by suffix."""


def _one_row(rows: pa.Table, row: int, source: str) -> pa.Table:
    """Return a row of a table of pictures. Raises UsageError: there is none of this number."""
    if row >= rows.num_rows:
        raise UsageError(f"{source}: {Refusal.ROW_MISSING.text()}")
    return rows.slice(row, 1)


def _with_members(found: pa.Table, source: str, sidecars: Sequence[str]) -> pa.Table:
    """Return a listing with the members of archives in their place, and with the columns of `list_members`, if any."""
    of_archives = pc.match_substring_regex(found["name"], _IS_ARCHIVE)
    archives = found.filter(of_archives)
    if not archives.num_rows:
        if sidecars:
            raise UsageError(f"{source}: --sidecars is for files in archives; there are none")
        return found
    alone = archives["uri"].to_pylist() == [source]
    members = list_members(archives, alone=alone, sidecars=sidecars)
    for suffix in sidecars:
        if not pc.any(pc.is_valid(members[suffix])).as_py():
            raise UsageError(
                f"{source}: no picture in an archive has a readable .{suffix} beside it: leave it out of --sidecars"
            )
        at = members.schema.get_field_index(suffix)
        members = members.set_column(at, suffix, typed(members[suffix]))
    files = found.filter(pc.invert(of_archives))
    return pa.concat_tables([files, members], promote_options="default")


def _without_runs(found: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Divide a listing: the files, and those below the outputs of runs, whose pictures are no inputs."""
    names = found["name"]
    plans, records = (
        {name.rpartition("/")[0] for name in names.filter(pc.ends_with(names, f"/{file}")).to_pylist()}
        for file in _OF_A_RUN
    )
    parts = [SKIPPED.empty_table()]
    for folder in sorted(plans & records):
        below = pc.starts_with(found["name"], f"{folder}/")
        of_run = found.filter(below)
        parts.append(skipped_files(of_run, [f"in {folder}/, the output of a run"] * len(of_run)))
        found = found.filter(pc.invert(below))
    return found, pa.concat_tables(parts)


def _without_companions(found: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Divide a listing: the files, and what systems put beside pictures, `._` files or by folder."""
    places = pc.struct_field(pc.extract_regex(found["name"], _COMPANIONS), "place")
    beside = pc.is_valid(places)
    return _kept(found, pc.invert(beside)), skipped_files(found.filter(beside), places.drop_null())


def _kept(files: pa.Table, keep: pa.ChunkedArray) -> pa.Table:
    """Return some rows of a table; itself, and no copy in memory, if they are all."""
    return files if pc.all(keep).as_py() else files.filter(keep)
