"""One file or object, wherever it lies: looked at, read, replaced, created, removed; whole or not at all.

Nothing is ever streamed to its final name: s3fs and pyarrow publish truncated files when a writer raises. An
object is written whole, in one PUT; a local file under a temporary name that is then renamed. A failed PUT may
have been applied, its reply lost: then what stands there decides.

What the clients raise passes through; `storage` gives it its words.
"""

import contextlib
import errno
import io
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from . import s3
from .stores import aws_code, client_of, failures, is_remote, is_s3, split_url

TEMPORARY: Final = re.compile(r"(^|/)\.[0-9a-f]{32}\.tmp$")
_ONE_PUT_BYTES: Final = 5 * 2**30  # S3's limit for a single PUT
_COMPARED_BYTES: Final = 2**26
_CREATE_TRIES: Final = 6
_CONDITION_FAILED: Final = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
"""Something stands there, or is being written; after the latter S3 asks for another try."""
_CONDITION_REFUSED: Final = ("NotImplemented", "501")
_NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True, slots=True)
class InputStat:
    """What a store says of an object without reading it."""

    bytes: int
    etag: str
    """The store's ETag without quotes; of local files `size-mtime_ns`."""


# Reading


def look(url: str) -> InputStat:
    """Ask for size and etag. Raises FileNotFoundError or IsADirectoryError where there is no file."""
    if not is_remote(url):
        return look_local(Path(split_url(url)[1]))
    if is_s3(url):
        return InputStat(*s3.head(url))
    info = client_of(url).info(split_url(url)[1])
    if info["type"] != "file":
        raise FileNotFoundError(url)
    return stat_of(info)


def look_local(path: Path) -> InputStat:
    """Ask for a local file's size and etag. Raises OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "not a file", str(path))
    return InputStat(status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def stat_of(info: dict[str, Any]) -> InputStat:
    """Return what a listing says of a remote object."""
    etag = info.get("ETag") or info.get("etag") or info["size"]
    return InputStat(int(info["size"]), str(etag).strip('"'))


def fetch(url: str, start: int = 0, stop: int | None = None) -> bytes:
    """Return the bytes of a remote object, or a range of them, by one request."""
    if is_s3(url):
        return s3.get(url, start, stop)
    return cast(bytes, client_of(url).cat_file(split_url(url)[1], start=start or None, end=stop))


# Writing


def replace(url: str, data: bytes) -> None:
    """Write a file whole, replacing any other."""
    if not is_remote(url):
        _replace_local(Path(url), lambda file: file.write(data))
        return
    with _read_back(url, io.BytesIO(data)):
        if is_s3(url):
            s3.put(url, data)
        else:
            client_of(url).pipe_file(split_url(url)[1], data)


def replace_by_file(url: str, local: Path) -> None:
    """Write a local file's content as `replace` does; to S3 from 5 GiB as a multipart upload, as atomic."""
    with local.open("rb") as source:
        if not is_remote(url):
            _replace_local(Path(url), lambda file: shutil.copyfileobj(source, file, 2**20))
            return
        with _read_back(url, source):
            if not is_s3(url):
                client_of(url).put_file(str(local), split_url(url)[1])
            elif local.stat().st_size < _ONE_PUT_BYTES:
                s3.put(url, source.read())
            else:
                client_of(url).put_file(str(local), split_url(url)[1], chunksize=2**28, max_concurrency=2)


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Give a temporary name in a target's folder, and rename what was built there if the block ends well."""
    with _temporary(target) as temporary:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _settle(target.parent)


def create(url: str, data: bytes) -> bool:
    """Write a file where there is none; return whether this content stands there. See `Storage.create`."""
    return _create_remote(url, data) if is_remote(url) else _create_local(Path(url), data)


def remove(url: str) -> None:
    """Remove a file. Raises FileNotFoundError, or not, where there is none."""
    if is_s3(url):
        s3.remove(url)
    elif is_remote(url):
        client_of(url).rm_file(split_url(url)[1])
    else:
        Path(url).unlink()


# How it is done


@contextlib.contextmanager
def _read_back(url: str, content: BinaryIO) -> Iterator[None]:
    """Let a failure to write pass where the content stands there nevertheless.

    A refusal, too, says nothing of the attempts before it, of which the store may have taken one.
    """
    try:
        yield
    except failures():
        with contextlib.suppress(*failures()):
            if _stands(url, content):
                return
        raise


def _stands(url: str, content: BinaryIO) -> bool | None:
    """Return whether a remote file has this content; None if there is no file."""
    try:
        size = look(url).bytes
        if size != content.seek(0, io.SEEK_END):
            return False
        content.seek(0)
        for start in range(0, size, _COMPARED_BYTES):
            expected = content.read(_COMPARED_BYTES)
            if fetch(url, start, start + len(expected)) != expected:
                return False
    except FileNotFoundError:
        return None
    return True


def _create_remote(url: str, data: bytes) -> bool:
    """Look, write where nothing stands, and look again: what stands decides, whatever the replies were."""
    condition = {"IfNoneMatch": "*"}
    stands = _stands(url, io.BytesIO(data))
    for attempt in range(_CREATE_TRIES):
        if stands is not None:
            return stands
        time.sleep(attempt / 10)
        failure: BaseException | None = None
        try:
            if is_s3(url):
                s3.put(url, data, **condition)
            else:
                client_of(url).pipe_file(split_url(url)[1], data, mode="create")
        except failures() as error:
            failure = error
        stands = _stands(url, io.BytesIO(data))
        if failure is not None and stands is None:
            if aws_code(failure) in _CONDITION_REFUSED and condition:
                condition = {}
            elif not isinstance(failure, FileExistsError) and aws_code(failure) not in _CONDITION_FAILED:
                raise failure
    if stands is None:
        raise OSError(errno.EAGAIN, "others write and remove it all the time")
    return stands


def _create_local(target: Path, data: bytes) -> bool:
    with _temporary(target) as temporary:
        temporary.write_bytes(data)
        _sync(temporary)
        try:
            os.link(temporary, target)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Some network shares and memory cards: as on a store without conditions.
            if not target.exists():
                temporary.replace(target)
        _settle(target.parent)
    return target.read_bytes() == data


def _replace_local(target: Path, write: Callable[[BinaryIO], object]) -> None:
    with beside(target) as temporary, temporary.open("xb") as file:
        write(file)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # what failed before is the news
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _settle(folder: Path) -> None:
    """Make the names in a folder outlast a power cut."""
    with contextlib.suppress(OSError):  # of folders, not every file system can
        _sync(folder)
