"""Where bytes come from and go to: local folders, S3, and whatever else fsspec speaks.

Two faces with two kinds of failure. *Inputs* (`read_input`, `stat_input`, `list_inputs`) belong to the user:
one that cannot be read is an `ItemError` and becomes a row. The *output* (`Storage`) belongs to the run: a
store that fails stops it with a `RunError` of one clear line.

Nothing is ever streamed to its final name: s3fs and pyarrow publish truncated files when a writer raises. An
object is written whole, in one PUT; a local file under a temporary name that is then renamed. No listing is
cached, for another process may have written since.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import pyarrow as pa
from fsspec.utils import glob_translate

from .errors import ItemError, RunError
from .stores import (
    S3_SCHEMES,
    RangeReader,
    aws_code,
    bucket_and_key,
    check_url,
    client_of,
    input_faults,
    is_remote,
    join,
    output_faults,
    split_url,
    text_of,
)

__all__ = ["INPUTS", "InputStat", "Storage", "is_remote", "join", "list_inputs", "read_input", "stat_input"]

_ONE_PUT_BYTES: Final = 5 * 2**30  # S3's limit for a single PUT

INPUTS: Final = pa.schema(
    [("name", pa.string()), ("uri", pa.string()), ("bytes", pa.int64()), ("etag", pa.string())]
)
"""What `list_inputs` returns."""


@dataclass(frozen=True, slots=True)
class InputStat:
    """What a store says of an object without reading it."""

    bytes: int
    etag: str
    """The store's ETag without quotes; of local files `size-mtime_ns`."""


# Inputs


def read_input(uri: str, max_bytes: int) -> bytes:
    """Read an object whole, by one request.

    Args:
        uri: a local path or the url of an object.
        max_bytes: larger objects are refused before, or as soon as, they are known to be larger.

    Raises:
        ItemError: `not_found`, `access_denied`, `storage_error`, `too_many_bytes`, `empty_file`.
        RunError: no object could be read: no or expired credentials, an endpoint out of reach.
    """
    with input_faults(uri):
        data = _read_remote(uri, max_bytes + 1) if is_remote(uri) else _read_local(uri, max_bytes)
    if len(data) > max_bytes:
        raise ItemError("too_many_bytes", f"more than the limit of {max_bytes} bytes")
    if not data:
        raise ItemError("empty_file", "zero bytes")
    return data


def _read_local(uri: str, max_bytes: int) -> bytes:
    path = Path(split_url(uri)[1])
    if (size := _local_stat(path).bytes) > max_bytes:
        raise ItemError("too_many_bytes", f"{size} bytes, more than the limit of {max_bytes}")
    with path.open("rb") as file:
        # Not `max_bytes`: so much would be allocated. One more than there should be shows that the file grows.
        return file.read(size + 1)


def _read_remote(uri: str, end: int) -> bytes:
    try:
        return cast(bytes, client_of(uri).cat_file(split_url(uri)[1], start=0, end=end))
    except OSError as error:
        # A range of an empty object cannot be satisfied.
        if aws_code(error) in ("InvalidRange", "416"):
            return b""
        raise


def stat_input(uri: str) -> InputStat:
    """Ask for an object's size and etag.

    Raises:
        ItemError: `not_found`, `access_denied`, `storage_error`.
        RunError: as in `read_input`.
    """
    with input_faults(uri):
        return _stat(uri)


def _stat(uri: str) -> InputStat:
    if not is_remote(uri):
        return _local_stat(Path(split_url(uri)[1]))
    info = client_of(uri).info(split_url(uri)[1])
    if info["type"] != "file":
        raise FileNotFoundError(uri)
    return _remote_stat(info)


def _local_stat(path: Path) -> InputStat:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "not a file", str(path))
    return InputStat(status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def _remote_stat(info: dict[str, Any]) -> InputStat:
    etag = info.get("ETag") or info.get("etag") or info["size"]
    return InputStat(int(info["size"]), str(etag).strip('"'))


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
            found = _table(url.rpartition("/")[0], iter([([url.rpartition("/")[2]], [_stat(url)])]))
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
    elif scheme in S3_SCHEMES:
        key = bucket_and_key(url)[1]
        prefix = key.rstrip("/") + "/" if key else ""
        for page in _s3_pages(url, prefix + stem):
            files = [o for o in page if not o["Key"].endswith("/")]
            yield (
                [o["Key"][len(prefix) :] for o in files],
                [_remote_stat({**o, "size": o["Size"]}) for o in files],
            )
    else:
        root = rest.strip("/") + "/"
        found = client_of(url).find(rest, detail=True)
        below = {path.lstrip("/"): info for path, info in found.items() if path.lstrip("/").startswith(root)}
        yield [path[len(root) :] for path in below], [_remote_stat(info) for info in below.values()]


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
                stats.append(_local_stat(Path(entry.path)))
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


def _s3_pages(url: str, prefix: str) -> Iterator[list[dict[str, Any]]]:
    # Page by page, not `find`: a million objects as dictionaries take more than a gigabyte.
    fs = client_of(url)
    request = {"Bucket": bucket_and_key(url)[0], "Prefix": prefix}
    while True:
        answer = fs.call_s3("list_objects_v2", **request)
        yield answer.get("Contents", [])
        if not answer.get("IsTruncated"):
            return
        request["ContinuationToken"] = answer["NextContinuationToken"]


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
            # Without a limit s3fs would ask for the size first, and read large objects in pieces.
            options = {"max_concurrency": 1} if split_url(url)[0] in S3_SCHEMES else {}
            return cast(bytes, client_of(url).cat_file(split_url(url)[1], **options))

    def open(self, path: str) -> BinaryIO:
        """Open a file for random access. Raises FileNotFoundError where there is none.

        Remote files are unbuffered: each `read` is one range request, as pyarrow likes it.
        """
        url = self._at(path)
        with output_faults("read", url, missing=True):
            if not is_remote(url):
                _local_stat(Path(url))
                return Path(url).open("rb")
            return cast(BinaryIO, RangeReader(url, _stat(url).bytes))

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole, replacing any other, by one PUT; locally by a temporary file and a rename."""
        url = self._at(path)
        with output_faults("write", url):
            if not is_remote(url):
                _replace(Path(url), lambda file: file.write(data))
            else:
                options = {"chunksize": _ONE_PUT_BYTES} if split_url(url)[0] in S3_SCHEMES else {}
                client_of(url).pipe_file(split_url(url)[1], data, **options)

    def put_file(self, path: str, local: Path) -> None:
        """Write a local file as `write` does; above 5 GiB as a multipart upload, which is as atomic."""
        url = self._at(path)
        large = local.stat().st_size >= _ONE_PUT_BYTES
        with output_faults("write", url):
            if not is_remote(url):
                with local.open("rb") as source:
                    _replace(Path(url), lambda file: shutil.copyfileobj(source, file, 2**20))
                return
            options: dict[str, int] = {}
            if split_url(url)[0] in S3_SCHEMES:
                options = {"chunksize": 2**28 if large else _ONE_PUT_BYTES, "max_concurrency": 2}
            client_of(url).put_file(str(local), split_url(url)[1], **options)

    @contextlib.contextmanager
    def building(self, path: str) -> Iterator[Path]:
        """Give a local file to build, and store it as `put_file` does when the block ends without an error.

        In a local output it is built beside its target, so that nothing is copied.
        """
        url = self._at(path)
        if is_remote(url):
            with tempfile.TemporaryDirectory(prefix="maskrcnn-") as folder:
                local = Path(folder) / "built"
                yield local
                self.put_file(path, local)
            return
        target = Path(url)
        with output_faults("write", url):
            target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
        try:
            with output_faults("write", url):
                yield temporary
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

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
            return _stat(url).bytes

    def list(self, prefix: str = "") -> list[str]:
        """Return the files below a folder (all, if empty), sorted, relative to the root; none if missing."""
        url = self._at(prefix).rstrip("/") if prefix else self.url
        folder = prefix.rstrip("/") + "/" if prefix else ""
        with output_faults("list", url):
            found = [folder + name for names, _ in _scan(url) for name in names]
        return sorted(path for path in found if not _TEMPORARY.search(path))

    def remove(self, path: str) -> None:
        """Remove a file; that it is missing is fine."""
        url = self._at(path)
        with output_faults("remove", url), contextlib.suppress(FileNotFoundError):
            if is_remote(url):
                client_of(url).rm_file(split_url(url)[1])
            else:
                Path(url).unlink()

    def remove_tree(self, prefix: str) -> None:
        """Remove all files below a folder; that it is missing is fine."""
        url = self._at(prefix).rstrip("/")
        with output_faults("remove", url), contextlib.suppress(FileNotFoundError):
            if not is_remote(url):
                shutil.rmtree(url)
            elif split_url(url)[0] in S3_SCHEMES:
                _remove_s3(url)
            else:
                for path in self.list(prefix):
                    self.remove(path)


_TEMPORARY: Final = re.compile(r"(^|/)\.[0-9a-f]{32}\.tmp$")


def _replace(target: Path, fill: Callable[[BinaryIO], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_s3(url: str) -> None:
    bucket, key = bucket_and_key(url)
    for page in _s3_pages(url, key + "/"):
        keys = [{"Key": o["Key"]} for o in page]
        # s3fs's own bulk deletion does not report what could not be deleted.
        if keys:
            answer = client_of(url).call_s3(
                "delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True}
            )
            if errors := answer.get("Errors"):
                raise PermissionError(errno.EACCES, f"{len(errors)} objects remain, {errors[0].get('Code')}")
