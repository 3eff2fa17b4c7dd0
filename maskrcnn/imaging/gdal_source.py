"""A file for GDAL, which ignores Python's exceptions."""

import contextlib
import errno
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

from ..errors import MaskrcnnError
from ..io.refusals import Refusal
from ..io.stores.seekable import SeekableReader
from .formats.tiff_blocks import DataBlocks, data_blocks
from .formats.tiff_directory import FullPicture, full_picture, pointing_to

_PAGE_BYTES: Final = 2**16
_PAGES: Final = 32


class Source:
    """A file for GDAL: reads never raise, because GDAL ignores exceptions; `check` raises the error afterwards.

    Small reads are served from cached pages, because GDAL reads a header a few bytes at a time, each of which would
    otherwise be a request.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pages: dict[int, bytes] = {}
        self._failure: Exception | None = None
        self._picture: FullPicture | None = None
        self._header = b""
        """The header that names the full picture as the first one; empty if it is."""
        self.short = False
        """Whether bytes beyond the end of the file were requested."""
        self.size = 0
        with self._record_failure():
            self.size = file.seek(0, 2)

    def open(self, _path: str, mode: str = "rb", **_: Any) -> "_Handle":
        """Return a file object with its own position, for GDAL."""
        if mode not in ("r", "rb"):
            raise FileNotFoundError(mode)
        return _Handle(self)

    def picture(self) -> FullPicture | None:
        """Return where the full picture of a TIFF is, which GDAL will find as the first one; None if it is damaged.

        Raises:
            ItemError: as `tiff_directory.full_picture`.
        """
        if self._picture is None:
            short = self.short
            self._picture = full_picture(self._stored)
            self.short = short
            if self._picture is not None and not self._picture.is_first:
                self._header = pointing_to(self._stored(0, 16), self._picture.start)
        return self._picture

    def data_blocks(self) -> DataBlocks | None:
        """Return the blocks of the full picture that hold data; None if all do, or if it does not say.

        Raises:
            ItemError, RunError: as `check`.
        """
        picture, short = self.picture(), self.short
        found = None if picture is None else data_blocks(self._stored, picture.start)
        self.short = short
        self.check()
        return found

    def read_at(self, start: int, count: int) -> bytes:
        """Return `count` bytes from `start`, fewer at the end of the file."""
        if start < len(self._header):
            header = self._header[start : start + count]
            rest = self._stored(len(self._header), count - len(header)) if count > len(header) else b""
            return header + rest
        return self._stored(start, count)

    def _stored(self, start: int, count: int) -> bytes:
        stop = min(start + count, self.size)
        if start and start + count > self.size:  # GDAL reads the beginning without knowing the size
            self.short = True
        if stop <= start or self._failure:
            return b""
        with self._record_failure():
            if stop - start >= _PAGE_BYTES:
                return self._fetch(start, stop)
            first, last = start // _PAGE_BYTES, (stop - 1) // _PAGE_BYTES
            data = b"".join(self._page(page) for page in range(first, last + 1))
            return data[start - first * _PAGE_BYTES : stop - first * _PAGE_BYTES]
        return b""

    def check(self) -> None:
        """Raise the error of an earlier read, after which all reads return no bytes.

        Raises:
            ItemError: raised by the file, or `storage_error`.
            RunError: raised by the file.
        """
        if isinstance(self._failure, MaskrcnnError):
            raise self._failure
        if self._failure:
            number = getattr(self._failure, "errno", None) or 0
            cause = errno.errorcode.get(number, type(self._failure).__name__)
            raise Refusal.READ_FAILED.error(cause=cause) from self._failure

    def forget(self) -> None:
        """Discard the cached pages and the error, to read again after a failure."""
        self._pages.clear()
        self._failure = None

    def _page(self, page: int) -> bytes:
        if (data := self._pages.get(page)) is None:
            if len(self._pages) >= _PAGES:
                del self._pages[next(iter(self._pages))]
            start = page * _PAGE_BYTES
            data = self._pages[page] = self._fetch(start, min(start + _PAGE_BYTES, self.size))
        return data

    def _fetch(self, start: int, stop: int) -> bytes:
        self._file.seek(start)
        parts = []
        while start < stop and (part := self._file.read(stop - start)):
            parts.append(part)
            start += len(part)
        if start < stop:
            self.short = True  # the file was shortened while it was read
        return b"".join(parts)

    @contextlib.contextmanager
    def _record_failure(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, MaskrcnnError) as error:
            self._failure = error


class _Handle(SeekableReader):
    """A file object on a source, with its own position."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.size)
        self._source = source

    def read_at(self, start: int, stop: int) -> bytes:
        """Return a range of the source."""
        return self._source.read_at(start, stop - start)

    def read(self, size: int | None = -1) -> bytes:
        """Return up to `size` bytes; the source notes that bytes beyond its end were requested."""
        count = self._size if size is None or size < 0 else size
        data = self.read_at(self._position, self._position + count)
        self._position += len(data)
        return data
