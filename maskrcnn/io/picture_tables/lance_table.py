"""A Lance data set with pictures in a column: a folder, read by the package `lance` at the version of the plan.

`photos.lance@3` is version 3: later ones, with other rows, do not change what it contains. Lance reads stores itself,
with the credentials of the environment; it starts threads, so that no process that loaded it may be forked.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from ...errors import StoreSetupError
from ..manifests.manifest_columns import LARGE_VALUE_BYTES, holds_bytes
from ..manifests.parquet_manifest import carried_table, check_expanded, check_size
from ..refusals import Refusal
from ..stores.store import Store
from ..url import Url
from .picture_table import BESIDE, IN_STRUCT, PictureTable
from .picture_uri import split_version

GROUP_ROWS: Final = 16
"""So many rows are read at once: pictures may be of any size."""
_LOOKED_AT: Final = 100
_BLOB: Final = b"lance-encoding:blob"
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


class LanceTable(PictureTable):
    """A version of a Lance data set.

    Args:
        url: of the version.
        etag: that of the version.
        store: that the data set is in.
        dataset: a `lance.LanceDataset`.
    """

    def __init__(self, url: Url, etag: str, store: Store, dataset: Any) -> None:
        count = dataset.count_rows()
        starts = (*range(0, count, GROUP_ROWS), count)
        schema = pa.schema(map(_as_bytes, dataset.schema))
        super().__init__(url, etag, 0, store, schema, starts)
        self._dataset = dataset

    def pictures(self, column: str, group: int, rows: Sequence[int] | None = None) -> Iterator[bytes | None]:
        """Yield the pictures of a few rows, which are read at once; see `PictureTable.pictures`."""
        field = self.schema.field(self.check_column(column))
        start, stop = self.starts[group : group + 2]
        rows = [start + row for row in (range(stop - start) if rows is None else rows)]
        with _faults(self.url, Refusal.ROW_GROUP_DAMAGED):
            if _BLOB in (field.metadata or {}):
                blobs = self._dataset.take_blobs(column, indices=rows)
                found = [None if blob is None else blob.readall() for blob in blobs]
            else:
                of_structs = types.is_struct(field.type)
                name = f"{column}.{IN_STRUCT}" if of_structs else column
                values = self._dataset.take(rows, columns=[name])[column]
                found = (pc.struct_field(values, IN_STRUCT) if of_structs else values).to_pylist()
        if len(found) != len(rows):
            raise Refusal.ROW_GROUP_DAMAGED.error()
        yield from found

    def group_bytes(self, column: str, group: int) -> int:  # noqa: ARG002
        """Return 0: the size is not known."""
        return 0

    def is_null(self, column: str, group: int) -> bool:  # noqa: ARG002
        """Return False: it is not known."""
        return False

    def other_columns(self, column: str) -> tuple[pa.Table, list[str]]:
        """Return all columns but those of large values; see `PictureTable.other_columns`."""
        of_pictures = self.schema.field(self.check_column(column))
        others = [field for field in self.schema if field.name != column]
        with _faults(self.url, Refusal.TABLE_DAMAGED):
            large = [field.name for field in others if self._is_large(field)]
            names = [field.name for field in others if field.name not in large]
            if types.is_struct(of_pictures.type) and of_pictures.type.get_field_index(BESIDE) >= 0:
                names.append(f"{column}.{BESIDE}")
            table = self._read(names)
        names = [column if name == f"{column}.{BESIDE}" else name for name in table.column_names]
        table = table.rename_columns(names)
        if column in names and types.is_struct(table[column].type):
            at = table.column_names.index(column)
            table = table.set_column(at, column, pc.struct_field(table[column], BESIDE))
        check_expanded(self.url.text, table)
        return carried_table(self.url.text, table), large

    def _read(self, names: list[str]) -> pa.Table:
        if not names:
            return pa.table({})
        size, batches = 0, []
        scanner = self._dataset.scanner(columns=names)
        for batch in scanner.to_batches():
            batches.append(batch)
            size += batch.nbytes
            check_size(self.url.text, "", 0, size)
        return pa.Table.from_batches(batches, scanner.projected_schema)

    def _is_large(self, field: pa.Field) -> bool:
        if not holds_bytes(field.type):
            return False
        if _BLOB in (field.metadata or {}):
            return True
        some = self._dataset.to_table(columns=[field.name], limit=_LOOKED_AT)
        return bool(some.nbytes > LARGE_VALUE_BYTES * len(some))


def _as_bytes(field: pa.Field) -> pa.Field:
    """Return a field of blobs as one of bytes; others as they are."""
    if getattr(field.type, "extension_name", "").startswith("lance.blob"):
        return pa.field(field.name, pa.large_binary(), metadata={_BLOB: b"true"})
    return field


def open_version(store: Store, url: Url) -> LanceTable:
    """Open a version of a Lance data set.

    Args:
        store: that it is in.
        url: of the version, or of the data set: then its latest version.

    Raises:
        StoreSetupError: the package is not installed.
        ItemError: `not_found`, `changed` for a version that was removed, `corrupt`, `storage_error`.
    """
    dataset, version = split_version(url.text)
    place = Url.parse(dataset)
    missing = Refusal.CHANGED_ETAG_UNKNOWN if version else Refusal.MISSING
    with _faults(url, Refusal.TABLE_DAMAGED, missing.error(planned=f"version {version}")):
        lance = _package()
        found = lance.dataset(dataset, version=version, storage_options=_options(place, os.environ))
        pinned = Url.parse(f"{dataset}@{found.version}")
        return LanceTable(pinned, f"version {found.version}", store, found)


def _package() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import lance  # noqa: PLC0415 (it is large, and an extra)
    except ImportError as error:
        raise StoreSetupError(
            "Lance needs a package that is not installed: pip install 'maskrcnn-ray[lance]', or write the table to "
            "Parquet"
        ) from error
    return lance


def _options(place: Url, environment: Mapping[str, str]) -> dict[str, str] | None:
    """Return what Lance needs to reach a store as s3fs does."""
    endpoint = next((environment[name] for name in _ENDPOINTS if environment.get(name)), None)
    if place.scheme not in ("s3", "s3a") or endpoint is None:
        return None
    return {
        "aws_endpoint": endpoint,
        "allow_http": str(endpoint.startswith("http://")).lower(),
        "aws_region": environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1",
    }


@contextlib.contextmanager
def _faults(url: Url, damaged: Refusal, missing: Exception | None = None) -> Iterator[None]:
    """Convert what Lance raises to ItemError."""
    try:
        yield
    # Lance raises OSError, ValueError and RuntimeError for all that it meets, and panics on some damage.
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        if missing is not None and "not found" in str(error).lower():
            raise missing from error
        if url.is_local:
            raise damaged.error() from error
        raise Refusal.READ_FAILED.error(cause="Lance") from error
    except BaseException as error:  # a panic of Rust is no Exception, and its class is not importable
        if type(error).__name__ == "PanicException":
            raise damaged.error() from error
        raise
