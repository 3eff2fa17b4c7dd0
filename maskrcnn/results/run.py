"""Open a finished run for reading in Python."""

import os
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import plural
from ..io.json_files import read_object
from ..io.parquet import IMAGES, INSTANCES, read_table
from ..io.storage import Storage
from ..pipeline.plan import PLAN, no_run, not_finished, read_plans, read_run
from ..pipeline.success import categories_of, read_success
from ..types import Category
from .part_checks import disagreement, reading


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run. Tables are read on request; for large runs query the files with DuckDB instead."""

    url: str
    info: dict[str, Any]
    """The content of `run.json`: settings, model, versions, inputs."""
    success: dict[str, Any]
    """The content of `_SUCCESS`: counts and the list of parts."""

    def __repr__(self) -> str:
        """Return where the run is, what it holds, and when it was finished."""
        counts = self.success.get("counts", {})
        by_status = ", ".join(f"{counts.get(status, 0):,} {status}" for status in ("ok", "empty", "failed"))
        images, instances = (plural(counts.get(f"{noun}s", 0), noun) for noun in ("image", "instance"))
        return (
            f"<Run {self.url!r}: {images} ({by_status}), {instances}; finished {self.success.get('created')}>"
        )

    @property
    def categories(self) -> tuple[Category, ...]:
        """The categories of the model."""
        return categories_of(self.info)

    @property
    def stats(self) -> dict[str, Any]:
        """The content of `stats.json`.

        Raises:
            UsageError: it is missing.
            RunError: it is not valid JSON.
        """
        try:
            return read_object(Storage(self.url), "stats.json", "`maskrcnn reduce` writes it again")
        except FileNotFoundError as error:
            raise disagreement(self.url, "stats.json is missing") from error

    def images(self) -> pa.Table:
        """Return the table `images`, one row per input. Raises UsageError if a part is missing or damaged."""
        return self._table(IMAGES)

    def instances(self) -> pa.Table:
        """Return the table `instances`, one row per detection. Raises UsageError if a part is missing or damaged."""
        return self._table(INSTANCES)

    def _table(self, name: str) -> pa.Table:
        storage = Storage(self.url)
        paths = [part["path"] for part in self.success["parts"][name]]
        with reading(storage, *paths):
            return pa.concat_tables([read_table(storage, path) for path in paths])


def open_run(url: str | os.PathLike[str]) -> Run:
    """Open a finished run.

    Args:
        url: its directory, local or remote.

    Raises:
        UsageError: there is no run, or it is not finished.
    """
    storage = Storage(url)
    info = read_run(storage)
    success = read_success(storage)
    if success is None:
        plans = read_plans(storage)
        if not plans:
            raise no_run(os.fspath(url), PLAN)
        raise not_finished(os.fspath(url), plans[-1])
    return Run(os.fspath(url), info, success)
