"""Object stores: objects written by one request, and read back when the outcome of a write is unknown.

Nothing is ever streamed to its final name: s3fs and pyarrow publish truncated files when a writer raises. A failed PUT
may have been applied and its reply lost: then what the store holds decides.

Credentials and endpoints come from the environment or the node's role alone.
"""

import contextlib
import errno
import functools
import io
import os
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from ...errors import StoreSetupError
from ..refusals import Refusal
from ..url import Url
from .local_store import LocalStore
from .seekable import SeekableReader
from .store import ObjectStat, Store

READ_AHEAD_BYTES: Final = 64 * 2**10
_COMPARED_BYTES: Final = 2**26
_CREATE_TRIES: Final = 6


class RemoteStore(Store):
    """A store that is reached over a connection, shared by the process's threads.

    A subclass gives the requests; how objects are written and read safely with them is decided here.

    Args:
        scheme: of its URLs.
        environment: how the names of the environment variables begin that configure the client, besides `FSSPEC_`.
        extra: of this project, which installs the client's package; "": it is always installed.
    """

    def __init__(self, scheme: str, environment: tuple[str, ...], extra: str = "") -> None:
        self.scheme: Final = scheme
        self._extra: Final = extra
        self._environment: Final = ("FSSPEC_", *environment)

    # Requests

    @abstractmethod
    def connect(self, environment: Mapping[str, str]) -> Any:
        """Return a new client that caches no listing, for another process may have written since."""

    @abstractmethod
    def put(self, url: Url, data: bytes, *, only_new: bool = False) -> None:
        """Write an object by one request; with `only_new`, ask the store to refuse where there is one."""

    @abstractmethod
    def put_file(self, url: Url, local: Path) -> None:
        """Write a local file's content, atomically."""

    def is_conflict(self, error: BaseException) -> bool:
        """Return whether a `put` of `only_new` failed because there is an object, or one is being written."""
        return isinstance(error, FileExistsError)

    def is_unconditional(self, error: BaseException) -> bool:  # noqa: ARG002 (fsspec's stores are not)
        """Return whether a `put` of `only_new` failed because the store does not know conditions."""
        return False

    def client(self, **settings: str) -> Any:
        """Return the connected client; settings are added to the environment that it gets.

        Raises:
            StoreSetupError: its package is not installed.
        """
        # fsspec runs all threads' calls on one loop; another process or environment needs its own connection.
        environment = {k: v for k, v in os.environ.items() if k.startswith(self._environment)} | settings
        try:
            return _connected(self, os.getpid(), tuple(sorted(environment.items())))
        except ImportError as error:
            install = f"pip install 'maskrcnn-ray[{self._extra}]'" if self._extra else str(error)
            raise StoreSetupError(
                f"{self.scheme}:// needs a package that is not installed: {install}"
            ) from error

    # Reading

    def read(self, url: Url) -> bytes:
        """Return an object's content, by one request."""
        return self.read_range(url)

    def open(self, url: Url) -> BinaryIO:
        """Open an object without a buffer: each `read` is one range request, as pyarrow likes it."""

        def read_range(start: int, stop: int) -> bytes:
            with self.output_faults("read", url):
                return self.read_range(url, start, stop)

        return cast(BinaryIO, RangeReader(read_range, self.stat(url).bytes))

    def read_input(self, url: Url, max_bytes: int, etag: str | None) -> bytes:
        """Read an object, by one request."""
        return self.read_range(url, 0, max_bytes + 1, etag)

    def open_input(self, url: Url, etag: str | None) -> BinaryIO:
        """Open an object, buffered: GDAL reads headers a few bytes at a time. Raises ItemError: `empty_file`."""

        def read_range(start: int, stop: int) -> bytes:
            with self.input_faults(url):
                return self.read_range(url, start, stop, etag)

        if (size := self.stat(url).bytes) == 0:
            raise Refusal.EMPTY.error()
        return cast(BinaryIO, io.BufferedReader(RangeReader(read_range, size), READ_AHEAD_BYTES))

    def folders(self, url: Url) -> list[str]:
        """Return the names of the folders in a folder: none of them is empty."""
        names = (name for page, _ in self.scan(url) for name in page)
        return list({name.partition("/")[0] for name in names if "/" in name})

    # Writing

    def write(self, url: Url, data: bytes) -> None:
        """Write an object by one request."""
        with self._read_back(url, io.BytesIO(data)):
            self.put(url, data)

    def write_file(self, url: Url, local: Path) -> None:
        """Write a local file's content."""
        with local.open("rb") as source, self._read_back(url, source):
            self.put_file(url, local)

    @contextlib.contextmanager
    def building(self, url: Url) -> Iterator[Path]:
        """Yield a file in a temporary folder, and write it when the block ends without an error. Raises RunError."""
        with _temporary_folder(url) as folder:
            yield folder / "built"
            with self.output_faults("write", url):
                self.write_file(url, folder / "built")

    def create(self, url: Url, data: bytes) -> bool:
        """Look, write where there is nothing, and look again: what the store holds decides, not its replies."""
        only_new = True
        equal = self._is_equal(url, io.BytesIO(data))
        for attempt in range(_CREATE_TRIES):
            if equal is not None:
                return equal
            time.sleep(attempt / 10)
            failure: BaseException | None = None
            try:
                self.put(url, data, only_new=only_new)
            except self.failures() as error:
                failure = error
            equal = self._is_equal(url, io.BytesIO(data))
            if failure is not None and equal is None:
                if only_new and self.is_unconditional(failure):
                    only_new = False
                elif not self.is_conflict(failure):
                    raise failure
        if equal is None:
            raise OSError(errno.EAGAIN, "other processes keep writing and removing it")
        return equal

    def remove_tree(self, url: Url) -> None:
        """Remove all objects below a folder, one by one."""
        for names, _ in self.scan(url):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    self.remove(url.join(name))

    @contextlib.contextmanager
    def _read_back(self, url: Url, content: BinaryIO) -> Iterator[None]:
        """Ignore a failure to write where the store holds the content nevertheless.

        A refusal, too, says nothing of the attempts before it, of which the store may have accepted one.
        """
        try:
            yield
        except self.failures():
            with contextlib.suppress(*self.failures()):
                if self._is_equal(url, content):
                    return
            raise

    def _is_equal(self, url: Url, content: BinaryIO) -> bool | None:
        """Return whether an object has this content; None if there is no object."""
        try:
            size = self.stat(url).bytes
            if size != content.seek(0, io.SEEK_END):
                return False
            content.seek(0)
            for start in range(0, size, _COMPARED_BYTES):
                expected = content.read(_COMPARED_BYTES)
                if self.read_range(url, start, start + len(expected)) != expected:
                    return False
        except FileNotFoundError:
            return None
        return True


@functools.lru_cache(maxsize=8)
def _connected(store: RemoteStore, _pid: int, environment: tuple[tuple[str, str], ...]) -> Any:
    return store.connect(dict(environment))


def prefix_of(url: Url) -> str:
    """Return how the names of the objects below a folder begin."""
    return url.key.rstrip("/") + "/" if url.key else ""


def stat_of(info: Mapping[str, Any]) -> ObjectStat:
    """Return what a listing reports of an object; Google's generation is what an etag is elsewhere."""
    etag = info.get("generation") or info.get("ETag") or info.get("etag") or info["size"]
    return ObjectStat(int(info["size"]), str(etag).strip('"'))


@contextlib.contextmanager
def _temporary_folder(url: Url) -> Iterator[Path]:
    """Yield a temporary folder to build a file in; messages about its failures contain its path."""
    action, local = f"build {url} in TMPDIR", LocalStore()
    with local.output_faults(action, Url.parse(tempfile.tempdir or os.environ.get("TMPDIR", "(not set)"))):
        folder = tempfile.TemporaryDirectory(prefix="maskrcnn-", ignore_cleanup_errors=True)
    with folder, local.output_faults(action, Url.parse(folder.name)):
        yield Path(folder.name)


class RangeReader(SeekableReader):
    """A remote file of known size, read by range requests.

    Args:
        read_range: returns the bytes from a start to a stop.
        size: in bytes.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        super().__init__(size)
        self._read_range = read_range

    def read_at(self, start: int, stop: int) -> bytes:
        """Return a range of bytes, by one request."""
        return self._read_range(start, stop)
