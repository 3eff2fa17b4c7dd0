"""Where bytes come from and go to: local folders, S3, and whatever else fsspec speaks.

Two faces with two kinds of failure. *Inputs* (`read_input`, `stat_input`, `list_inputs`) belong to the user:
one that cannot be read is an `ItemError` and becomes a row. The *output* (`Storage`) belongs to the run: a
store that fails stops it with a `RunError` of one clear line.

No listing is cached, for another process may have written since.
"""

import contextlib
import errno
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, cast

import pyarrow as pa
from fsspec.utils import glob_translate

from . import objects, s3
from .errors import ItemError, RunError
from .objects import TEMPORARY, InputStat, look, look_local, stat_of
from .stores import (
    RangeReader,
    bucket_and_key,
    check_url,
    client_of,
    input_faults,
    is_remote,
    is_s3,
    join,
    output_faults,
    split_url,
    text_of,
)
from .web import is_web, read_web

__all__ = [
    "INPUTS",
    "InputStat",
    "Storage",
    "is_remote",
    "join",
    "list_inputs",
    "open_input",
    "read_input",
    "stat_input",
]

LEFTOVER_S: Final = 3600.0
"""A temporary file in which nothing was written for so long belongs to no living process."""
_READ_AHEAD_BYTES: Final = 64 * 2**10
LOCAL_ETAG: Final = re.compile(r"\d+-\d+")
"""`size-mtime_ns`; an etag of another form in a manifest is the user's own, and is carried along."""
_S3_ETAG: Final = re.compile(r"[0-9a-f]{32}(-[0-9]+)?")

INPUTS: Final = pa.schema(
    [("name", pa.string()), ("uri", pa.string()), ("bytes", pa.int64()), ("etag", pa.string())]
)
"""What `list_inputs` returns."""


# Inputs


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
            data = objects.fetch(uri, 0, max_bytes + 1)
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
                return objects.fetch(uri, start, stop)
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
        found = _table(url, _scan(url))
        wildcard = re.search(r"[*?\[]", url)
        if wildcard and not found.num_rows:
            stem = url[: wildcard.start()]
            folder = stem[: stem.rfind("/") + 1]
            matches = re.compile(glob_translate(url[len(folder) :])).match
            found = _table(folder, _scan(folder, stem[len(folder) :]), lambda name: matches(name) is not None)
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


def _scan(url: str, stem: str = "") -> Iterator[_Page]:
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


# The output


class Storage:
    """An output directory or prefix: a local path, `s3://…`, `gs://…` or `memory://…`.

    It holds nothing but its url: it may be pickled, and used by any number of threads. Paths are relative to
    it, with `/`, and never leave it.

    Raises:
        RunError: every method, where the store fails: what was done, with which url, and what to do.
    """

    def __init__(self, url: str) -> None:
        scheme, rest = split_url(url)
        if scheme:
            check_url(url)
        if not rest.strip("/") and (scheme or not rest):
            raise RunError(f"{url!r} names no folder or bucket")
        self.url: Final = url.rstrip("/") if scheme else str(Path(rest).absolute())

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def _at(self, path: str) -> str:
        parts = path.rstrip("/").split("/")
        if "\0" in path or any(part in ("", ".", "..") for part in parts):
            raise RunError(f"{path!r} is no path below {self.url}")
        return join(self.url, path)

    def read(self, path: str) -> bytes:
        """Return a file's content. Raises FileNotFoundError where there is none."""
        url = self._at(path)
        with output_faults("read", url, missing=True):
            if not is_remote(url):
                return Path(url).read_bytes()
            return objects.fetch(url)

    def open(self, path: str) -> BinaryIO:
        """Open a file for random access. Raises FileNotFoundError where there is none.

        Remote files are unbuffered: each `read` is one range request, as pyarrow likes it.
        """
        url = self._at(path)
        with output_faults("read", url, missing=True):
            if not is_remote(url):
                look_local(Path(url))
                return Path(url).open("rb")
            return cast(BinaryIO, RangeReader(_range_reader(url), look(url).bytes))

    def create(self, path: str, data: bytes) -> bool:
        """Write a file only where there is none; return whether this content, byte for byte, stands there now.

        So it is after a reply that was lost, and for the second of two writers of equal bytes. Of writers of
        different bytes one wins, on local files, S3, and what keeps its conditions (`If-None-Match`). On a store
        that ignores or refuses them the file is looked for, written, and read back: one content stands in the end,
        but a writer who was told True may find another's later, if both wrote at once. No order of plain reads
        and writes can do better; who depends on it reads again what stands.
        """
        url = self._at(path)
        with output_faults("write", url):
            return objects.create(url, data)

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole, replacing any other, by one PUT; locally by a temporary file and a rename.

        Where it is not known what became of a PUT, the file is read back: if it is this, it was written.
        """
        url = self._at(path)
        with output_faults("write", url):
            objects.replace(url, data)

    def put_file(self, path: str, local: Path) -> None:
        """Write a local file as `write` does; above 5 GiB as a multipart upload, which is as atomic."""
        url = self._at(path)
        with output_faults("write", url):
            objects.replace_by_file(url, local)

    @contextlib.contextmanager
    def building(self, path: str) -> Iterator[Path]:
        """Give a local file to build, and store it as `put_file` does when the block ends without an error.

        In a local output it is built beside its target, so that nothing is copied; else in `TMPDIR`. What a disk
        that is full or broken raises within the block becomes a `RunError` that names the place.
        """
        url = self._at(path)
        if is_remote(url):
            with _scratch(path) as folder:
                yield folder / "built"
                self.put_file(path, folder / "built")
        else:
            with output_faults("write", url), objects.beside(Path(url)) as temporary:
                yield temporary

    def exists(self, path: str) -> bool:
        """Return whether a file, not a folder, is there."""
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        """Return a file's size in bytes. Raises FileNotFoundError where there is none."""
        url = self._at(path)
        with output_faults("read", url, missing=True):
            return look(url).bytes

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders in a folder, sorted; none if it is missing. Local ones may be empty."""
        url = self._at(prefix).rstrip("/")
        with output_faults("list", url):
            if is_s3(url):
                return sorted(s3.folders(url))
            if is_remote(url):
                below = (path.removeprefix(prefix.rstrip("/") + "/") for path in self.list(prefix))
                return sorted({path.partition("/")[0] for path in below if "/" in path})
            with contextlib.suppress(FileNotFoundError):
                return sorted(entry.name for entry in os.scandir(url) if entry.is_dir())
        return []

    def list(self, prefix: str = "") -> list[str]:
        """Return the files below a folder (all, if empty), sorted, relative to the root; none if missing."""
        url = self._at(prefix).rstrip("/") if prefix else self.url
        folder = prefix.rstrip("/") + "/" if prefix else ""
        with output_faults("list", url):
            found = [folder + name for names, _ in _scan(url) for name in names]
        return sorted(path for path in found if not TEMPORARY.search(path))

    def remove(self, path: str) -> None:
        """Remove a file; that it is missing is fine."""
        url = self._at(path)
        with output_faults("remove", url), contextlib.suppress(FileNotFoundError):
            objects.remove(url)

    def remove_tree(self, prefix: str) -> None:
        """Remove all files below a folder; that it is missing is fine."""
        url = self._at(prefix).rstrip("/")
        with output_faults("remove", url), contextlib.suppress(FileNotFoundError):
            if not is_remote(url):
                shutil.rmtree(url)
            elif is_s3(url):
                s3.remove_below(url)
            else:
                for path in self.list(prefix):
                    self.remove(path)

    def abort_uploads(self) -> int:
        """Abort the multipart uploads that are open: killed processes', and those under way; return how many."""
        with output_faults("list the uploads below", self.url):
            return s3.abort_uploads(self.url) if is_s3(self.url) else 0

    def remove_leftovers(self) -> int:
        """Remove the temporary files that killed processes left in a local output; return how many."""
        if is_remote(self.url):
            return 0
        removed = 0
        latest = time.time() - LEFTOVER_S
        with output_faults("clean up", self.url):
            for file in Path(self.url).rglob(".*.tmp"):
                with contextlib.suppress(FileNotFoundError):  # its writer lives, and is done
                    if TEMPORARY.search(str(file)) and file.lstat().st_mtime < latest:
                        file.unlink()
                        removed += 1
        return removed


def _range_reader(url: str) -> Callable[[int, int], bytes]:
    def read_range(start: int, stop: int) -> bytes:
        with output_faults("read", url):
            return objects.fetch(url, start, stop)

    return read_range


@contextlib.contextmanager
def _scratch(path: str) -> Iterator[Path]:
    """Give a temporary folder to build a file in; its faults name it."""
    doing = f"build {path} in TMPDIR"
    with output_faults(doing, tempfile.tempdir or os.environ.get("TMPDIR", "(not set)")):
        folder = tempfile.TemporaryDirectory(prefix="maskrcnn-", ignore_cleanup_errors=True)
    with folder, output_faults(doing, folder.name):
        yield Path(folder.name)
