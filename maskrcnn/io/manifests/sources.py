"""Read the input that a user names, as columns of text and numbers: the first step to a manifest.

It is a list of uris, a CSV, a Parquet file, a COCO JSON, or the images that a listing finds. Lists and CSVs are UTF-8,
CSVs separated by commas; blanks and tabs around their uris are removed.
"""

import contextlib
import hashlib
import os.path
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import RunError, UsageError
from ...schema import PLACE
from ..archives.list_members import list_members
from ..archives.member import SUFFIXES as ARCHIVE_SUFFIXES
from ..archives.member import split_member
from ..inputs import INPUTS, check_exists, list_inputs
from ..picture_tables.list_rows import HasPictures, list_rows
from ..picture_tables.picture_table import picture_columns
from ..picture_tables.picture_uri import SUFFIX as TABLE_SUFFIX
from ..picture_tables.picture_uri import is_table
from ..refusals import Refusal
from ..schemes import is_supported, unsupported
from ..storage import Storage
from ..url import USER_PATTERN, Url, is_folder, is_there, redact
from .csv_manifest import LARGEST_CSV_BYTES, check_utf8, parse_csv
from .manifest_columns import check_columns
from .parquet_manifest import read_parquet_manifest

_OF_A_RUN: Final = ("plan.json", "run.json")
"""The files by which the output of a run is known; see `pipeline.plan`."""
MANIFEST_SUFFIXES: Final = (".txt", ".csv", ".parquet", ".json")
_SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jxl"),
)
"""Suffixes of formats that are read, and of those that photos come in and that are refused by name, one row each."""
_IS_IMAGE: Final = rf"(?i)({'|'.join(map(re.escape, _SUFFIXES))})$"
_IS_ARCHIVE: Final = rf"(?i)({'|'.join(map(re.escape, ARCHIVE_SUFFIXES))})$"
_WILDCARD: Final = re.compile(r"[*?\[]")
_IS_TABLE: Final = rf"(?i){re.escape(TABLE_SUFFIX)}$"
_COMPANIONS: Final = (
    r"(?:^|/)(?P<place>\._|(?:__MACOSX|\.AppleDouble|\.ipynb_checkpoints|@eaDir|#recycle|\$RECYCLE\.BIN|\.Trashes"
    r"|\.Trash-[0-9]+|\.thumbnails|\.picasaoriginals)/)"
)
"""Files that systems and programs put beside pictures, with the suffixes of pictures: resource forks, thumbnails."""


def refuse_user(url: str, what: str) -> None:
    """Raise UsageError if a URL has a user or a password in it, without repeating it."""
    if not re.match(USER_PATTERN, url):
        return
    parsed = Url.parse(url)
    if not is_supported(parsed):  # Azure's have a container there
        raise UsageError(f"{what}: {unsupported(parsed.scheme)}")
    raise UsageError(f"{what}: a url takes no user and password; credentials come from the environment")


def refuse_query(url: str, what: str) -> None:
    """Raise UsageError if an address on the web has a query or a fragment, without repeating it: it may be a token."""
    if redact(url) != url:
        raise UsageError(
            f"{what}: leave out what follows the `?` or `#` of {redact(url)}, which may be a token and would be "
            "recorded: put complete uris into a manifest"
        )


def source_of(source: str, image_column: str | None = None) -> tuple[str, str | None]:
    """Return the identity of an input: its whole URL or path, and the sha256 of the file if it is a manifest.

    A local path becomes absolute and loses its `..`; links stay as they are.

    Args:
        source: as the user named it.
        image_column: see `is_manifest`.

    Raises:
        UsageError: it is empty, has a password, is on the web, or cannot be read.
    """
    whole = _whole(source)
    if not is_manifest(source, image_column):
        return whole, None
    digest = hashlib.sha256()
    with usage_errors(source), open_source(whole) as file:
        for piece in iter(lambda: file.read(2**23), b""):
            digest.update(piece)
    return whole, digest.hexdigest()


def check_source(source: str) -> None:
    """Look whether an input exists, by a few requests, without listing or reading it.

    Raises:
        UsageError: it does not, or its name is wrong.
    """
    whole = _whole(source)
    with usage_errors(source):
        if _is_file_named_as_manifest(source):
            url = Url.parse(whole)
            Storage(url.folder.text).size(url.name)
        else:
            archive, _ = split_member(whole) or (whole, "")
            check_exists(archive)


def _whole(source: str) -> str:
    """Return the whole URL or path of an input; see `source_of`."""
    url = Url.parse(source)
    if not url.path.strip(" " if url.is_local else " /"):
        raise UsageError(
            f"{source!r} names no input (a variable that is not set?): name a folder or a manifest"
        )
    refuse_user(source, "the input")
    if url.is_web:
        raise UsageError(
            f"{redact(source)}: the web cannot be listed: list its uris in a manifest on a local path, s3:// or gs://, "
            "and add --allow-http"
        )
    if source.encode(errors="replace").decode() != source:
        raise UsageError(f"{source!a}: the name is not UTF-8: rename it")
    return os.path.normpath(url.local_path.absolute()) if url.is_local else source


def is_manifest(source: str, image_column: str | None = None) -> bool:
    """Return whether a source is a manifest, by its suffix; other sources, and folders with such a name, are listed.

    A Parquet file is one unless it has no column `uri`, and has one that may hold pictures.

    Args:
        source: as the user named it.
        image_column: the column with the pictures of Parquet files, none of which is a manifest then.

    Raises:
        UsageError: a Parquet file cannot be read.
    """
    if not _is_file_named_as_manifest(source):
        return False
    return not (is_table(source) and (image_column is not None or _holds_pictures(source)))


def _holds_pictures(source: str) -> bool:
    """Return whether a Parquet file has a column that may hold pictures, and no column `uri`."""
    with usage_errors(source), open_source(source) as file:
        try:
            schema = pq.ParquetFile(file, pre_buffer=False).schema_arrow
        except (pa.ArrowException, OSError):  # read as a manifest, it is refused with the reason
            return False
    return "uri" not in schema.names and bool(picture_columns(schema))


def _is_file_named_as_manifest(source: str) -> bool:
    url = Url.parse(source)
    folder = is_folder(url.local_path) if url.is_local else source.endswith("/")
    if folder or split_member(source) is not None or not _is_named_as_manifest(source):
        return False
    return not (is_table(source) and _is_glob(url))


def _is_glob(url: Url) -> bool:
    """Return whether a name with a wildcard is no file's."""
    if not _WILDCARD.search(url.key):
        return False
    if url.is_local:
        return not is_there(url.local_path)
    with usage_errors(url.text):
        return not Storage(url.folder.text).exists(url.name)


def _is_named_as_manifest(source: str) -> bool:
    return Path(source).suffix.lower() in MANIFEST_SUFFIXES


@contextlib.contextmanager
def usage_errors(source: str) -> Iterator[None]:
    """Convert failures to read a user's input to UsageErrors of one line."""
    try:
        yield
    except FileNotFoundError as error:
        why = error.strerror or Refusal.MISSING.text()
        url = Url.parse(source)
        if why == Refusal.MISSING.text():
            if url.is_local and not url.local_path.is_absolute():
                why = f"it does not exist in {Path.cwd()}; check its name"
            elif not url.is_local and _is_file_named_as_manifest(source):
                why += "; if it is a folder of images, end its name with /"
        raise UsageError(f"{redact(source)}: {why}") from error
    except UnicodeEncodeError as error:
        raise UsageError(f"{redact(source)}: {error.object!a} is not valid text: rename it") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{redact(source)}: it is not UTF-8 ({error.reason}): save it as UTF-8") from error
    # ValueError: invalid JSON, a number of thousands of digits.
    except (RunError, pa.ArrowException, ValueError, RecursionError, OSError) as error:
        why = " ".join(str(error).split())[:300]
        # A store's failure names its URL.
        named = isinstance(error, RunError) and redact(source) in why
        raise UsageError(why if named else f"{redact(source)}: {why}") from error


# Listings


def read_listing(
    source: str, has_pictures: HasPictures, image_column: str | None = None
) -> tuple[pa.Table, dict[str, int]]:
    """Return the files whose suffix is an image's, the members of archives and the rows of tables that are pictures.

    Args:
        source: a folder, a prefix, a glob or a file.
        has_pictures: whether some values of a column contain a picture.
        image_column: the column with the pictures of tables; None: each has one.

    Returns:
        The inputs; and the number of other files by suffix.

    Raises:
        UsageError: there are no images, or a table cannot be read as one.
    """
    with usage_errors(source):
        archive, within = split_member(source) or (source, None)
        found, skipped = _without_runs(list_inputs(archive))
        found, rows = _without_tables(found, source, has_pictures, image_column)
        found = _with_members(found, archive)
        if within:  # a member, or a folder of them
            names = found["name"]
            found = found.filter(
                pc.or_(pc.equal(names, within), pc.starts_with(names, f"{within.rstrip('/')}/"))
            )
            if not found.num_rows:
                raise UsageError(f"{source}: {Refusal.MEMBER_MISSING.text()}")
    found, companions = _without_companions(found)
    skipped |= companions
    known = pc.match_substring_regex(found["name"], _IS_IMAGE)
    if PLACE.name in found.column_names:
        known = pc.or_(known, pc.match_substring_regex(found["uri"], _IS_ARCHIVE))  # one that cannot be read
    others = found["name"].filter(pc.invert(known))
    suffixes = pc.fill_null(pc.struct_field(pc.extract_regex(others, r"(?P<suffix>\.[^./]*)$"), "suffix"), "")
    counts = pc.value_counts(pc.utf8_lower(suffixes)).to_pylist()
    for row in sorted(counts, key=lambda row: row["values"]):
        skipped[row["values"]] = row["counts"]
    images = found.filter(known)
    if rows.num_rows:
        images = pa.concat_tables([images, rows], promote_options="permissive")
    if not images.num_rows:
        what = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in skipped.items()) or "no files"
        ends = f"images end in {' '.join(_SUFFIXES)}, lists of them in {' '.join(MANIFEST_SUFFIXES)}"
        if _is_named_as_manifest(source):
            ends += "; this is a folder, but a manifest is one file"
        for suffix, advice in _WRITTEN_ANEW.items():
            ends = f"{advice}; {ends}" if suffix in skipped else ends
        raise UsageError(f"{source}: no images; found {what}; {ends}")
    return images, skipped


_WRITTEN_ANEW: Final = {
    ".arrow": "Arrow files, as `save_to_disk` of Hugging Face writes them, are not read: write the data set with "
    "`to_parquet`",
    ".lance": "Lance is not read: write the pictures and the other columns to Parquet",
}
"""What to do with tables of pictures that are not read, by suffix."""


def _without_tables(
    found: pa.Table, source: str, has_pictures: HasPictures, image_column: str | None
) -> tuple[pa.Table, pa.Table]:
    """Return a listing without tables of pictures; and their rows."""
    names = found["name"]
    of_tables = pc.and_(
        pc.match_substring_regex(names, _IS_TABLE), pc.invert(pc.match_substring_regex(names, _COMPANIONS))
    )
    tables = found.filter(of_tables)
    if not tables.num_rows:
        if image_column is not None:
            raise UsageError(f"{source}: --image-column is for Parquet files; there are none")
        return found, INPUTS.empty_table()
    rows, others = list_rows(tables, source, image_column, has_pictures)
    return pa.concat_tables([found.filter(pc.invert(of_tables)), others]), rows


def _with_members(found: pa.Table, source: str) -> pa.Table:
    """Return a listing with the members of archives in their place, and with the column `schema.PLACE` if there are."""
    of_archives = pc.match_substring_regex(found["name"], _IS_ARCHIVE)
    archives = found.filter(of_archives)
    if not archives.num_rows:
        return found
    files = found.filter(pc.invert(of_archives)).append_column(
        PLACE, pa.nulls(len(found) - len(archives), PLACE.type)
    )
    alone = archives["uri"].to_pylist() == [source]
    return pa.concat_tables([files, list_members(archives, alone=alone)])


def _without_runs(found: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Leave out the files below the outputs of runs, whose pictures are no inputs; count them by folder."""
    names = found["name"]
    plans, records = (
        {name.rpartition("/")[0] for name in names.filter(pc.ends_with(names, f"/{file}")).to_pylist()}
        for file in _OF_A_RUN
    )
    counts: dict[str, int] = {}
    for folder in sorted(plans & records):
        below = pc.starts_with(found["name"], f"{folder}/")
        if count := pc.sum(below).as_py():
            counts[f"in {folder}/, the output of a run"] = count
            found = found.filter(pc.invert(below))
    return found, counts


def _without_companions(found: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Return a listing without what systems put beside pictures, and the number of such files: `._`, or by folder."""
    places = pc.struct_field(pc.extract_regex(found["name"], _COMPANIONS), "place")
    counts = pc.value_counts(places.drop_null()).to_pylist()
    return found.filter(pc.is_null(places)), {
        row["values"]: row["counts"] for row in sorted(counts, key=lambda row: row["values"])
    }


# Manifests


def open_source(source: str) -> BinaryIO:
    """Open a user's file for random access. Raises FileNotFoundError, RunError."""
    url = Url.parse(source)
    return Storage(url.folder.text).open(url.name)


def _read_txt(source: str) -> pa.Table:
    with open_source(source) as file:
        data = check_utf8(source, file.read())
    # Lines are the spans up to line ends, which `rtrim` then removes: no loop, one copy.
    codes = np.frombuffer(data, np.uint8)
    is_end = codes == ord("\n")
    is_end |= (codes == ord("\r")) & ~np.append(is_end[1:], False)  # CR alone, as old editors end lines
    ends = np.flatnonzero(is_end) + 1
    rest = [len(data)] if len(data) and not is_end[-1] else []
    offsets = np.concatenate([[0], ends, rest]).astype(np.int64)
    spans = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    lines = pc.ascii_rtrim(spans.cast(pa.large_string()), characters="\r\n").cast(pa.string())
    return pa.table({"uri": _trimmed(lines.filter(pc.not_equal(pc.utf8_trim_whitespace(lines), "")))})


def _trimmed(uris: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.utf8_trim(uris, characters=" \t")


def _read_csv(source: str) -> pa.Table:
    with open_source(source) as file:
        data = file.read(LARGEST_CSV_BYTES + 1)
    if len(data) > LARGEST_CSV_BYTES:
        raise UsageError(f"{source}: a CSV of more than 1 GiB: convert it to Parquet")
    table = parse_csv(source, check_utf8(source, data))
    check_columns(source, table.schema)
    if table.column_names.count("uri") != 1:
        return table
    return table.set_column(table.column_names.index("uri"), "uri", _trimmed(table["uri"]))


def read_manifest(source: str) -> pa.Table:
    """Return the rows of a `.txt`, `.csv` or `.parquet` manifest with the columns that it has.

    Of a Parquet file, columns of large values of bytes are left out, with a warning.

    Raises:
        UsageError: it cannot be read, has no column `uri`, or is larger than a manifest may be.
    """
    with usage_errors(source):
        return _READERS[Path(source).suffix.lower()](source)


def _read_parquet(source: str) -> pa.Table:
    with open_source(source) as file:
        try:
            return read_parquet_manifest(source, file)
        except pa.ArrowNotImplementedError as error:
            why = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{source}: a column is of a type that cannot be read ({why}): remove it, or write it as text"
            ) from error
        except (pa.ArrowException, OSError) as error:  # OSError: a compressed page is damaged
            file.seek(0)
            what = "damaged or cut off" if file.read(4) == b"PAR1" else "no Parquet file"
            raise UsageError(f"{source}: it is {what}: write or copy it again") from error


_READERS: Final = {".txt": _read_txt, ".csv": _read_csv, ".parquet": _read_parquet}
