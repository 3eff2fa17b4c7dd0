"""A file object of which a subclass gives the bytes of a range: position, `seek` and `read`."""

import io
from abc import abstractmethod
from typing import Any


class SeekableReader(io.RawIOBase):
    """A file of known size, to be read.

    Args:
        size: in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0

    @abstractmethod
    def read_at(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`, which are positions within the file; there may be fewer."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, without reading, and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return up to `size` bytes, all that remain if it is negative, by one call of `read_at`."""
        stop = self._size if size is None or size < 0 else min(self._position + size, self._size)
        if stop <= self._position:
            return b""
        data = self.read_at(self._position, stop)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """Return the rest, by one call of `read_at`."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, by one call of `read_at`."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
