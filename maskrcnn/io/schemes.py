"""Which store a URL is in. A new store is a module like `fsspec_store.py` and a line in the table here."""

from typing import Final

from ..errors import RunError
from .fsspec_store import FsspecStore
from .http_store import HttpStore
from .local_store import LocalStore
from .s3_store import S3Store
from .store import InputStore, Store
from .url import Url

_LOCAL: Final = LocalStore()
_WEB: Final = HttpStore()
_S3: Final = S3Store()
_REMOTE: Final[dict[str, Store]] = {
    "s3": _S3,
    "s3a": _S3,
    "gs": FsspecStore("gs", ("GOOGLE_",)),
    "gcs": FsspecStore("gcs", ("GOOGLE_",)),
    "memory": FsspecStore("memory"),
}
REMOTE_SCHEMES: Final = tuple(_REMOTE)


def store_of(url: Url) -> Store:
    """Return the store of a URL.

    Raises:
        RunError: it is on the web or of an unknown scheme, or has a user in it.
    """
    if url.is_local:
        return _LOCAL
    if url.scheme not in _REMOTE:
        raise RunError(f"{url.scheme}:// is not a supported store: use a local path, s3:// or gs://")
    if "@" in url.bucket:
        raise RunError(
            f"{url.scheme}:// urls take no user and password; credentials come from the environment"
        )
    return _REMOTE[url.scheme]


def input_store_of(url: Url) -> InputStore:
    """Return the store to read an input from, which may be the web. Raises RunError as `store_of`."""
    return _WEB if url.is_web else store_of(url)
