"""A folder for temporary files, in `TMPDIR` or where Python puts them, which may be full, removed or not writable."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..errors import RunError, StoreSetupError

_OF_THE_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
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
        place = tempfile.tempdir or os.environ.get("TMPDIR", "")
        where = f" in {place}" if place and place not in str(error.strerror) else ""
        raise StoreSetupError(
            f"cannot make a temporary folder{where} ({error.strerror}): {_ADVICE}"
        ) from error
    with folder:
        try:
            yield Path(folder.name)
        except OSError as error:
            if error.errno not in _OF_THE_DISK:
                raise
            why = os.strerror(error.errno)
            raise RunError(
                f"cannot write temporary files in {folder.name} ({why}): free some space, or {_ADVICE}"
            ) from error
