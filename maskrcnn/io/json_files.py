"""Read the JSON files that this program writes beside its tables, which a person may have edited or cut off."""

import json
from typing import Any

from ..errors import RunError
from .storage import Storage


def read_object(storage: Storage, path: str, repair: str) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Args:
        storage: the directory.
        path: of the file, below it.
        repair: what to do about a broken file, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        RunError: it is not JSON, or not an object; or the store failed.
    """
    try:
        content = json.loads(storage.read(path))
    except (ValueError, RecursionError) as error:  # RecursionError: nested in thousands of levels
        raise RunError(f"{storage.url}/{path} is not valid JSON: {repair}") from error
    if not isinstance(content, dict):
        raise RunError(f"{storage.url}/{path} is not a JSON object: {repair}")
    return content
