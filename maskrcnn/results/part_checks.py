"""What must hold before the tables of a finished run are read: its parts exist, are whole, and agree with each other.

`verify` proves far more, and reads everything; this costs a few columns.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import RunError, UsageError, plural
from ..io.parquet import GEO, Part
from ..io.storage import Storage
from ..pipeline.success import categories_of, parts_of, read_success
from ..schema import IMAGES, INSTANCES


def disagreement(url: str, what: str) -> UsageError:
    """Return the error for a run whose tables contradict each other or its records."""
    return UsageError(
        f"the tables of {url} disagree: {what}; `maskrcnn verify` lists all, `maskrcnn reduce` writes them again"
    )


@contextlib.contextmanager
def reading(storage: Storage, *paths: str) -> Iterator[None]:
    """Convert what a missing or damaged Parquet file of a run raises to UsageError, which names the file.

    Args:
        storage: the run's directory.
        paths: of the files that are read, below it.
    """
    try:
        yield
    except (*_UNREADABLE, RunError) as error:
        # What fails while another file is built is said of that file.
        if isinstance(error, _UNREADABLE) or isinstance(error.__cause__, _UNREADABLE):
            for path in paths:
                if fault := _fault(storage, path):
                    if fault == "missing" and not _is_listed(storage, path):
                        raise UsageError(
                            f"{storage.url} was retried or updated while it was read: {path} was replaced; "
                            "read it again"
                        ) from error
                    raise disagreement(storage.url, f"{path} is {fault}") from error
        raise


_UNREADABLE: Final = (pa.ArrowException, OSError)
"""What is raised for a Parquet file that is damaged, or missing; OSError also for a damaged compressed page."""


def _fault(storage: Storage, path: str) -> str | None:
    """Return what is wrong with a Parquet file; None if all of it can be read."""
    try:
        with storage.open(path) as file, pq.ParquetFile(file) as parquet:
            for _ in parquet.iter_batches():
                pass
    except FileNotFoundError:
        return "missing"
    except _UNREADABLE:
        return "damaged"
    return None


def _is_listed(storage: Storage, path: str) -> bool:
    """Return whether `_SUCCESS` lists a part now; True if there is none."""
    success = read_success(storage)
    if success is None:
        return True
    return any(entry["path"] == path for entries in success["parts"].values() for entry in entries)


def checked_counts(
    url: str, part: Part, images: pq.ParquetFile, instances: pq.ParquetFile
) -> NDArray[np.int64]:
    """Return the number of instances of each image of a part.

    Raises:
        UsageError: the instances are not those of the images, in their order.
    """
    table = images.read(columns=["image_id", "n_instances"])
    counts: NDArray[np.int64] = table["n_instances"].to_numpy().astype(np.int64)
    found = instances.read(columns=["image_id"])["image_id"].to_numpy()
    sizes = {part.images: (len(table), part.n_images), part.instances: (len(found), part.n_instances)}
    for path, (rows, recorded) in sizes.items():
        if rows != recorded:
            raise _other_rows(url, path, rows, recorded)
    if counts.sum() != len(found) or not np.array_equal(
        np.repeat(table["image_id"].to_numpy(), counts), found
    ):
        raise disagreement(url, f"the instances in {part.instances} are not those that {part.images} counts")
    return counts


def _other_rows(url: str, path: str, rows: int, recorded: int) -> UsageError:
    return disagreement(url, f"{path} has {plural(rows, 'row')}, and _SUCCESS records {recorded:,}")


def check_tables(url: str, info: dict[str, Any], success: dict[str, Any]) -> None:
    """Check the parts of a finished run, before something is made of them.

    Args:
        url: its directory.
        info: the content of `run.json`.
        success: the content of `_SUCCESS`.

    Raises:
        UsageError: a part is missing or damaged, lacks a column, has other rows than were recorded, or its instances
            are not those of its images or of the run's categories.
        RunError: the store failed.
    """
    storage = Storage(url)
    known = pa.array([category.id for category in categories_of(info)], INSTANCES.field("category_id").type)
    for part in parts_of(success):
        with contextlib.ExitStack() as stack:
            opened = []
            for path, schema in ((part.images, IMAGES), (part.instances, INSTANCES)):
                with reading(storage, path):
                    file = pq.ParquetFile(stack.enter_context(storage.open(path)))
                opened.append(stack.enter_context(file))
                _check_columns(url, path, file.schema_arrow, schema)
            images, instances = opened
            with reading(storage, part.images, part.instances):
                checked_counts(url, part, images, instances)
                ids = instances.read(columns=["category_id"])["category_id"]
            unknown = pc.unique(ids.filter(pc.invert(pc.is_in(ids, known)))).to_pylist()
            if unknown:
                raise unknown_category(url, unknown[0])
    for file in success["parts"].get(GEO, []):
        with (
            reading(storage, file["path"]),
            storage.open(file["path"]) as stored,
            pq.ParquetFile(stored) as parquet,
        ):
            if (rows := parquet.metadata.num_rows) != file["rows"]:
                raise _other_rows(url, file["path"], rows, file["rows"])


def unknown_category(url: str, category_id: int) -> UsageError:
    """Return the error for a run whose instances have a category that it lacks."""
    return disagreement(url, f"an instance has the category {category_id}, which the run lacks")


def _check_columns(url: str, path: str, found: pa.Schema, expected: pa.Schema) -> None:
    if missing := [name for name in expected.names if name not in found.names]:
        raise disagreement(url, f"{path} lacks the column {missing[0]!r}")
