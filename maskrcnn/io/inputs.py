"""Inputs of a run: read, looked at, listed.

They belong to the user: one that cannot be read is an `ItemError` and becomes a row. No listing is cached, for
another process may have written since.
"""

import errno
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, cast

import pyarrow as pa
from fsspec.utils import glob_translate

from ..errors import ItemError
from . import atomic, s3
from .atomic import InputStat, look, look_local, stat_of
from .http import is_web, read_web
from .stores import (
    RangeReader,
    bucket_and_key,
    client_of,
    input_faults,
    is_remote,
    is_s3,
    join,
    output_faults,
    split_url,
    text_of,
)

_READ_AHEAD_BYTES: Final = 64 * 2**10
LOCAL_ETAG: Final = re.compile(r"\d+-\d+")
"""`size-mtime_ns`; an etag of another form in a manifest is the user's own, and is carried along."""
_S3_ETAG: Final = re.compile(r"[0-9a-f]{32}(-[0-9]+)?")
INPUTS: Final = pa.schema(
    [("name", pa.string()), ("uri", pa.string()), ("bytes", pa.int64()), ("etag", pa.string())]
)
"""What `list_inputs` returns."""


def read_input(uri: str, max_bytes: int, etag: str | None = None) -> bytes:
    """Read an object whole, by one request.

    Args:
        uri: a local path, the url of an object, or an address on the web.
        max_bytes: larger objects are refused before, or as soon as, they are known to be larger.
        etag: as planned; an object in S3 must still carry it, if it has the form of S3's etags.

    Raises:
        ItemError: `not_found`, `access_denied`, `storage_error`, `changed`, `too_many_bytes`, `empty_file`.
        RunError: no object could be read: no or expired credentials, an endpoint out of reach.
    """
    if is_web(uri):  # planning refuses them, unless the run was told otherwise
        return read_web(uri, max_bytes)
    with input_faults(uri):
        if not is_remote(uri):
            data = _read_local(uri, max_bytes)
        elif is_s3(uri):
            planned = etag if etag and _S3_ETAG.fullmatch(etag) else None
            try:
                data = s3.get(uri, 0, max_bytes + 1, etag=planned)
            except s3.ChangedError as error:
                raise ItemError("changed", str(error.strerror)) from error
        else:
            data = atomic.fetch(uri, 0, max_bytes + 1)
    if len(data) > max_bytes:
        raise ItemError("too_many_bytes", f"more than the limit of {max_bytes} bytes")
    if not data:
        raise ItemError("empty_file", "zero bytes")
    return data


def _read_local(uri: str, max_bytes: int) -> bytes:
    path = Path(split_url(uri)[1])
    if (size := look_local(path).bytes) > max_bytes:
        raise ItemError("too_many_bytes", f"{size} bytes, more than the limit of {max_bytes}")
    with path.open("rb") as file:
        # Not `max_bytes`: so much would be allocated. One more than there should be shows that the file grows.
        return file.read(size + 1)


def open_input(uri: str, etag: str | None = None) -> BinaryIO:
    """Open an object for random access; what its methods raise are this function's errors.

    Args:
        uri: a local path or the url of an object.
        etag: as planned; an object in S3 must carry it each time it is read, a local file when it is opened.

    Raises:
        ItemError, RunError: as in `read_input`.
    """
    if is_web(uri):
        raise ItemError(
            "unsupported_format", "rasters on the web are not read in parts; copy them to a store"
        )
    with input_faults(uri):
        stat = look(uri)
        if stat.bytes == 0:
            raise ItemError("empty_file", "zero bytes")
        if not is_remote(uri):
            if etag and LOCAL_ETAG.fullmatch(etag) and stat.etag != etag:
                raise ItemError("changed", f"its etag is {stat.etag}, planned was {etag}")
            return Path(split_url(uri)[1]).open("rb")
    planned = etag if etag and is_s3(uri) and _S3_ETAG.fullmatch(etag) else None

    def read_range(start: int, stop: int) -> bytes:
        with input_faults(uri):
            if planned is None:
                return atomic.fetch(uri, start, stop)
            try:
                return s3.get(uri, start, stop, etag=planned)
            except s3.ChangedError as error:
                raise ItemError("changed", str(error.strerror)) from error

    # GDAL reads headers a few bytes at a time.
    return cast(BinaryIO, io.BufferedReader(RangeReader(read_range, stat.bytes), _READ_AHEAD_BYTES))


def stat_input(uri: str) -> InputStat:
    """Ask for an object's size and etag.

    Raises:
        ItemError: `not_found`, `access_denied`, `storage_error`.
        RunError: as in `read_input`.
    """
    with input_faults(uri):
        return look(uri)


def list_inputs(url: str) -> pa.Table:
    r"""List a folder, a prefix, a glob or a single file.

    A url with `*`, `?` or `[` is a glob unless it exists as it is; `**` spans folders. Folders that are links
    are followed. Markers of folders (keys that end in `/`) are no inputs. A local name that is not UTF-8 stands
    escaped, as `caf\xe9.jpg`, and names no file: it is an input that will fail as `not_found`.

    Returns:
        Of schema `INPUTS`, in no particular order; `name` is the path below the folder, the prefix, or the
        last folder of a glob before its first wildcard. Local uris are absolute.

    Raises:
        FileNotFoundError: nothing is there.
        RunError: the store failed, or a folder cannot be read; the message names it.
    """
    url = url if is_remote(url) else str(Path(split_url(url)[1]).absolute())
    with output_faults("list", url, missing=True):
        found = _table(url, scan(url))
        wildcard = re.search(r"[*?\[]", url)
        if wildcard and not found.num_rows:
            stem = url[: wildcard.start()]
            folder = stem[: stem.rfind("/") + 1]
            matches = re.compile(glob_translate(url[len(folder) :])).match
            found = _table(folder, scan(folder, stem[len(folder) :]), lambda name: matches(name) is not None)
        if not found.num_rows and not (not is_remote(url) and Path(url).is_dir()):
            found = _table(url.rpartition("/")[0], iter([([url.rpartition("/")[2]], [look(url)])]))
    return found


_Page = tuple[list[str], Sequence[InputStat | None]]


def _table(root: str, pages: Iterator[_Page], keep: Callable[[str], bool] = lambda _: True) -> pa.Table:
    """Return pages of names below `root` as a table of the schema `INPUTS`."""
    tables = [INPUTS.empty_table()]
    for page in pages:
        rows = [
            (text := text_of(root, name), join(root, text), s.bytes if s else None, s.etag if s else None)
            for name, s in zip(*page, strict=True)
            if keep(name)
        ]
        if rows:
            tables.append(pa.table([pa.array(c) for c in zip(*rows, strict=True)], schema=INPUTS))
    return pa.concat_tables(tables)


def scan(url: str, stem: str = "") -> Iterator[_Page]:
    """Yield the files below a folder or prefix, by pages; with a stem, at least those that begin with it."""
    scheme, rest = split_url(url)
    if not scheme:
        yield from _scan_local(rest.rstrip("/") + "/", "", ())
    elif is_s3(url):
        key = bucket_and_key(url)[1]
        prefix = key.rstrip("/") + "/" if key else ""
        for page in s3.pages(url, prefix + stem):
            files = [o for o in page if not o["Key"].endswith("/")]
            yield (
                [o["Key"][len(prefix) :] for o in files],
                [stat_of({**o, "size": o["Size"]}) for o in files],
            )
    else:
        root = rest.strip("/") + "/"
        found = client_of(url).find(rest, detail=True)
        below = {path.lstrip("/"): info for path, info in found.items() if path.lstrip("/").startswith(root)}
        yield [path[len(root) :] for path in below], [stat_of(info) for info in below.values()]


def _scan_local(root: str, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[_Page]:
    try:
        with output_faults("list", str(Path(root, below)), missing=True):
            here = Path(root, below).stat()
            entries = list(os.scandir(Path(root, below)))
    except FileNotFoundError:
        return
    # A link to a folder that contains it would be followed for ever.
    if (identity := (here.st_dev, here.st_ino)) in above:
        return
    names: list[str] = []
    stats: list[InputStat | None] = []
    for entry in entries:
        if _is_folder(entry):
            yield from _scan_local(root, f"{below}{entry.name}/", (*above, identity))
        elif entry.is_symlink() or entry.is_file():
            names.append(below + entry.name)
            # A link to nothing is an input too, one that will fail; and a file may vanish meanwhile.
            try:
                stats.append(look_local(Path(entry.path)))
            except OSError:
                stats.append(None)
    yield names, stats


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # A link in circles is an input that will fail; what lies where nobody may look could be a whole folder.
    with output_faults("list", entry.path):
        try:
            return entry.is_dir()
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            return False
