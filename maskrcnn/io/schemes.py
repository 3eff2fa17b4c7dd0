"""Which store a URL is in. A new store is a module like `fsspec_store.py` and a line in the table here."""

from typing import Final

from ..errors import StoreSetupError
from .archives.archive_store import ArchiveStore
from .archives.member import split_member
from .picture_tables.picture_uri import split_picture
from .picture_tables.table_store import TableStore
from .stores.azure_store import AzureStore
from .stores.fsspec_store import FsspecStore
from .stores.gcs_store import GcsStore
from .stores.hf_store import HfStore
from .stores.http_store import HttpStore
from .stores.local_store import LocalStore
from .stores.s3_store import S3Store
from .stores.store import InputStore, Store
from .url import Url, has_user

_LOCAL: Final = LocalStore()
_WEB: Final = HttpStore()
_S3: Final = S3Store()
_REMOTE: Final[dict[str, Store]] = {
    "s3": _S3,
    "s3a": _S3,
    "gs": GcsStore("gs"),
    "gcs": GcsStore("gcs"),
    "az": AzureStore("az"),
    "abfs": AzureStore("abfs"),
    "abfss": AzureStore("abfss"),
    "hf": HfStore(),
    "memory": FsspecStore("memory"),
}
REMOTE_SCHEMES: Final = tuple(_REMOTE)
STORES_IN_WORDS: Final = "s3://, gs:// or az://"
"""What messages advise; the other schemes are further spellings of these."""
_USE: Final = f"use a local path, {STORES_IN_WORDS}"
_ADVICE: Final = "mount it as a folder, or copy the files"
UNSUPPORTED: Final = {
    **dict.fromkeys(("wasb", "wasbs"), "Azure Blob Storage's former driver"),
    **dict.fromkeys(("adl",), "Azure Data Lake Storage"),
    **dict.fromkeys(("hdfs", "viewfs", "webhdfs"), "Hadoop's file system"),
    **dict.fromkeys(("ftp", "ftps", "sftp", "ssh"), "a file server"),
    **dict.fromkeys(("smb", "nfs"), "a network share"),
    **dict.fromkeys(("dbfs",), "Databricks' file system"),
    **dict.fromkeys(("oss",), "Alibaba Cloud's object storage"),
    **dict.fromkeys(("oci",), "Oracle Cloud's object storage"),
}
"""Schemes that users of fsspec know, and what they stand for."""


def store_of(url: Url) -> Store:
    """Return the store of a URL.

    Raises:
        StoreSetupError: it is on the web or of an unknown scheme, or has a user in it.
    """
    if url.is_local:
        return _LOCAL
    if url.scheme not in _REMOTE:
        raise StoreSetupError(unsupported(url.scheme))
    if has_user(url.text):
        raise StoreSetupError(
            f"{url.scheme}:// urls take no user and password; credentials come from the environment"
        )
    return _REMOTE[url.scheme]


def is_supported(url: Url) -> bool:
    """Return whether a URL is in a store, or on the web."""
    return url.is_local or url.is_web or url.scheme in _REMOTE


def unsupported(scheme: str) -> str:
    """Return the message that refuses a scheme which is no store's.

    >>> print(unsupported("x"))
    x:// is not a supported store: use a local path, s3://, gs:// or az://
    """
    if scheme in UNSUPPORTED:
        return f"{scheme}:// ({UNSUPPORTED[scheme]}) is not a supported store: {_USE}; {_ADVICE}"
    return f"{scheme}:// is not a supported store: {_USE}"


ARCHIVES: Final = ArchiveStore(store_of)
"""The members of archives in all stores."""
TABLES: Final = TableStore(store_of)
"""The pictures in tables in all stores."""


def input_store_of(url: Url) -> InputStore:
    """Return the store to read an input from, which may be an archive, a table of pictures or the web.

    Raises:
        StoreSetupError: as `store_of`.
    """
    if split_member(url.text) is not None:
        return ARCHIVES
    if split_picture(url.text) is not None:
        return TABLES
    return _WEB if url.is_web else store_of(url)
