"""What every store can do, and what its failures mean.

A store is stateless and knows one kind of place: a local file system, S3, another fsspec file system, the web.
`schemes.py` chooses it by the scheme of a URL. Its methods raise what its client raises, whatever that is. Each
failure is described once, by `explain`, and converted by whoever calls: an input's becomes an `ItemError`, the
output's a `RunError`. A failure that every object shares, like expired credentials, concerns the run even where an
input meets it.
"""

import contextlib
import errno
import logging
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final, Self

from ...errors import ItemError, RunError, StoreSetupError
from ..refusals import Refusal
from ..url import Url, redact


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What a store reports of an object without reading it."""

    bytes: int
    etag: str
    """The store's ETag without quotes; for local files `size-mtime_ns`."""


Page = tuple[list[str], Sequence[ObjectStat | None]]
"""Some of the files below a folder: their names relative to it, and what is known of each."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure, described."""

    code: str
    """The `ItemError` code, if an input's."""
    message: str
    affects_all: bool = False
    """Whether every object of the store is affected, so that the run fails and not one of its inputs."""
    lasting: bool = False
    """Whether it lasts until the user changes something, which the code does not say."""

    @classmethod
    def of(cls, refusal: Refusal, *, lasting: bool = False, **values: Any) -> Self:
        """Return what the table of refusals says of a failure."""
        return cls(refusal.code, refusal.text(**values), refusal.concerns_all, lasting)


class NotSetUpError(OSError):
    """A client cannot be made, or cannot get its credentials: no fault of an object.

    Attributes:
        fault: that describes it.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


_OS_ERRORS: Final = {
    errno.ENOENT: Refusal.MISSING.text(),
    errno.EISDIR: "it is a folder or a device, not a file; name a file",
    errno.EEXIST: "a file exists where a folder is needed; name another place",
    errno.ENOSPC: "the disk is full; free some space",
    errno.EFBIG: "the file is larger than the disk or `ulimit -f` allows",
    errno.EIO: "the device fails to read or write; check the disk",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; name another place, or mount it for writing",
    errno.EACCES: "permission denied; check the folder's owner and mode",
    errno.EPERM: "not permitted; check the folder's owner and mode",
    errno.ENOTDIR: "a part of the path is a file, not a folder; correct the path",
    errno.ENAMETOOLONG: "the name is too long; shorten it",
}
_LASTING: Final = (errno.EEXIST,)  # not EROFS: a disk that failed comes back
_REFUSED: Final = ("access_denied", "archived", "not_found")
"""What lasts until the user changes something, by error numbers and by codes."""
_ESCAPED: Final = re.compile(r"\\x[89a-f][0-9a-f]")


class InputStore(ABC):
    """A store that inputs can be read from."""

    client_errors: ClassVar[tuple[tuple[str, str], ...]] = ()
    """What the client raises besides OSError and ValueError: (module, name). Only loaded modules are looked up."""

    @abstractmethod
    def read_input(self, url: Url, max_bytes: int, etag: str | None) -> bytes:
        """Read an object by one request, up to one byte more than `max_bytes`.

        Args:
            url: of the object.
            max_bytes: the caller refuses an object that gives more.
            etag: as planned, or None. A store that can check it raises ItemError: `changed`.
        """

    @abstractmethod
    def open_input(self, url: Url, etag: str | None) -> BinaryIO:
        """Open an object for random access; its methods raise ItemError and RunError.

        Args:
            url: of the object.
            etag: as planned, or None; compared as in `read_input`, whenever the object is read.
        """

    @abstractmethod
    def read_range(self, url: Url, start: int = 0, stop: int | None = None, etag: str | None = None) -> bytes:
        """Return an object's bytes, all or a range, by one request; the object may end before `stop`.

        Args:
            url: of the object.
            start: in bytes.
            stop: in bytes; None: to the end.
            etag: as planned, or None; compared as in `open_input`.
        """

    def failures(self) -> tuple[type[BaseException], ...]:
        """Return what the store's methods raise when they fail. ValueError: a malformed bucket or path."""
        loaded = [
            getattr(sys.modules[module], name)
            for module, name in self.client_errors
            if sys.modules.get(module)
        ]
        return (OSError, ValueError, *loaded)

    def explain(self, error: BaseException, url: Url) -> Fault:
        """Describe one of `failures`."""
        if isinstance(error, NotSetUpError):
            return error.fault
        if isinstance(error, UnicodeEncodeError):
            return Fault("not_found", f"the name {error.object!a} is not UTF-8; rename it")
        code = "storage_error"
        invalid = isinstance(error, ValueError) or getattr(error, "errno", None) == errno.ENAMETOOLONG
        if invalid or isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
            code = "not_found"  # no file can have an invalid name
        elif isinstance(error, PermissionError):
            code = "access_denied"
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else getattr(error, "errno", None)
        if number == errno.ENOENT and _ESCAPED.search(url.text):
            return Fault(code, "it does not exist; its name, escaped here, is probably not UTF-8: rename it")
        return Fault(code, _OS_ERRORS.get(number or 0) or one_line(error))

    @contextlib.contextmanager
    def input_faults(self, url: Url) -> Iterator[None]:
        """Convert a failure to `ItemError`, or to `RunError` where it affects every object."""
        try:
            yield
        except self.failures() as error:
            fault = self.explain(error, url)
            if fault.affects_all:
                raise StoreSetupError(f"cannot read {redact(url.text)}: {fault.message}") from error
            raise ItemError(fault.code, fault.message) from error

    @contextlib.contextmanager
    def output_faults(self, action: str, url: Url, *, missing: bool = False) -> Iterator[None]:
        """Convert a failure of an action, like `read`, to `RunError`; with `missing`, keep FileNotFoundError.

        A refusal that lasts until the user changes something becomes a `StoreSetupError`.
        """
        try:
            yield
        except self.failures() as error:
            fault = self.explain(error, url)
            if missing and fault.code == "not_found":
                raise FileNotFoundError(errno.ENOENT, fault.message, url.text) from error
            lasting = fault.affects_all or fault.lasting or fault.code in _REFUSED
            kind = StoreSetupError if lasting or getattr(error, "errno", None) in _LASTING else RunError
            message = fault.message
            if isinstance(error, FileNotFoundError) and action == "write" and url.is_local:  # as in /proc
                message = "no folder can be made there; name another place"
            raise kind(f"cannot {action} {url}: {message}") from error


class Store(InputStore):
    """A store that also lists files, and may hold the output of a run."""

    is_writable: ClassVar[bool] = True

    def pinned(self, url: Url) -> Url:
        """Return the URL under which its content never changes; the URL itself where there is none."""
        return url

    @abstractmethod
    def stat(self, url: Url) -> ObjectStat:
        """Return size and etag. Raises FileNotFoundError or IsADirectoryError where there is no file."""

    @abstractmethod
    def read(self, url: Url) -> bytes:
        """Return a file's content."""

    @abstractmethod
    def open(self, url: Url) -> BinaryIO:
        """Open a file for random access."""

    @abstractmethod
    def scan(self, url: Url, stem: str = "") -> Iterator[Page]:
        """Yield the files below a folder, by pages; with a stem, at least those whose names start with it."""

    def display_name(self, root: Url, name: str) -> str:  # noqa: ARG002 (local files need the root)
        """Return a name that `scan` yielded as valid Unicode that no other file has."""
        return name

    @abstractmethod
    def folders(self, url: Url) -> list[str]:
        """Return the names of the folders in a folder, in any order. Raises FileNotFoundError, or returns []."""

    @abstractmethod
    def write(self, url: Url, data: bytes) -> None:
        """Write a file atomically, replacing any other."""

    @abstractmethod
    def write_file(self, url: Url, local: Path) -> None:
        """Write a local file's content as `write` does."""

    @abstractmethod
    def create(self, url: Url, data: bytes) -> bool:
        """Write a file unless it exists; return whether it has this content now. See `Storage.create`."""

    @abstractmethod
    def building(self, url: Url) -> contextlib.AbstractContextManager[Path]:
        """Yield a local file to build, and write it when the block ends without an error. Raises RunError."""

    @abstractmethod
    def remove(self, url: Url) -> None:
        """Remove a file. May raise FileNotFoundError if it is missing."""

    @abstractmethod
    def remove_tree(self, url: Url) -> None:
        """Remove all files below a folder. May raise FileNotFoundError if it is missing."""

    def abort_uploads(self, url: Url) -> int:  # noqa: ARG002 (not every store has uploads)
        """Abort the multipart uploads below a folder that were never completed; return their number."""
        return 0

    def remove_leftovers(self, url: Url) -> int:  # noqa: ARG002 (not every store has temporary files)
        """Remove the temporary files that killed processes left below a folder; return their number."""
        return 0


def one_line(error: BaseException) -> str:
    """Return an exception's message in one line of at most 300 characters."""
    message = getattr(error, "strerror", None) or error  # without [Errno 5]
    return " ".join(str(message).split())[:300] or type(error).__name__


def raised_and_not_logged(*loggers: str) -> None:
    """Silence loggers that repeat, with a traceback, what their library raises; not those that the user set."""
    for logger in map(logging.getLogger, loggers):
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)
