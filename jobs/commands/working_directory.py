"""The directory that a command is called in, which may have been removed since the shell changed to it."""

import os

from maskrcnn.errors import UsageError


def check_working_directory() -> None:
    """Raise UsageError if the working directory was removed: relative paths, torch and Ray need it."""
    try:
        os.getcwd()  # noqa: PTH109 (the call is what is tried)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UsageError(
            f"the working directory cannot be used ({why}): change to one that exists"
        ) from error
