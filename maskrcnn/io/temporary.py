"""A folder for temporary files, in `TMPDIR` or where Python puts them, which may be full, removed or not writable.

Also values that are too many for memory.
"""

import contextlib
import errno
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Generic, TypeVar

from ..errors import RunError, StoreSetupError

_OF_THE_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
T = TypeVar("T")
SPILL_BYTES: Final = 2**23
"""Up to this size, values are kept in memory."""
_ADVICE: Final = "set TMPDIR to a folder that you may write to"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder, which is removed when the block ends.

    Raises:
        StoreSetupError: none can be made.
        RunError: the block failed because the disk is full or broken.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="maskrcnn-", ignore_cleanup_errors=True)
    except OSError as error:
        raise _not_made("folder", error) from error
    with folder, _disk_faults(folder.name):
        yield Path(folder.name)


def _not_made(what: str, error: OSError) -> StoreSetupError:
    place = tempfile.tempdir or os.environ.get("TMPDIR", "")
    where = f" in {place}" if place and place not in str(error.strerror) else ""
    return StoreSetupError(f"cannot make a temporary {what}{where} ({error.strerror}): {_ADVICE}")


@contextlib.contextmanager
def _disk_faults(place: str) -> Iterator[None]:
    """Turn the errors of a full or broken disk into RunError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        why = os.strerror(error.errno)
        raise RunError(
            f"cannot write temporary files in {place} ({why}): free some space, or {_ADVICE}"
        ) from error


class Spilled(Generic[T]):
    """Values that are kept in order, in memory while they are small, else in a temporary file; one is read at a time.

    Raises:
        StoreSetupError: there is no folder for a temporary file.
        RunError: the disk is full or broken.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(SPILL_BYTES)  # noqa: SIM115 - it lives as long as the values
        self._places: list[int] = []

    def __len__(self) -> int:
        return len(self._places)

    def append(self, value: T) -> int:
        """Add a value, which must be picklable; return its number."""
        self._places.append(self._file.seek(0, os.SEEK_END))
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            with _disk_faults(str(tempfile.tempdir)):
                self._file.write(data)
                self._file.flush()
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise _not_made("file", error) from error
        return len(self._places) - 1

    def __getitem__(self, number: int) -> T:
        self._file.seek(self._places[number])
        value: T = pickle.load(self._file)  # noqa: S301 - this process wrote it, and the file has no name
        return value

    def __iter__(self) -> Iterator[T]:
        return map(self.__getitem__, range(len(self)))
