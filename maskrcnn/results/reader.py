"""Look up images of a finished run and their detections without reading whole tables.

A row group is read once for images that are requested in order. The position of an image is found by the statistics of
row groups, so that other row groups are not read.
"""

import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import RunError, UsageError
from ..io.parquet import Part, RowsInOrder, read_table
from ..io.storage import Storage
from ..pipeline.carried_columns import carried_names
from ..pipeline.success import parts_of
from ..schema import IMAGES, INSTANCES, detections_of
from ..types import Detections
from .part_checks import checked_counts, reading
from .part_reader import OpenPart, RowGroups, open_part
from .run import Run

WORST: Final = "evaluation/images.parquet"
"""Written by `maskrcnn evaluate`: one row per image, with its panoptic quality."""
_HEAVY: Final = ("segmentation", "frame")
"""Columns of `instances` that conditions cannot use."""
BLOCK_ROWS: Final = 2**17
"""Images and instances in which conditions are evaluated at once, plus those of one more image."""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image of a run."""

    row: int
    """Row of the manifest, from 0."""
    part: Part
    start: int
    """Row of the part's `instances` where its own begin."""
    image_id: int
    name: str
    uri: str
    status: str
    error: str | None
    message: str | None
    width: int | None
    height: int | None
    n_instances: int
    capped: bool
    bytes: int | None
    etag: str | None


@dataclass(frozen=True, slots=True)
class Match:
    """An image that matches a condition."""

    row: int
    instances: tuple[int, ...]
    """Numbers of the matching instances; empty for a matching image without detections."""


class RunReader:
    """Reads a finished run image by image, a few row groups at a time.

    Raises:
        RunError: every method, where a part cannot be read.
    """

    def __init__(self, run: Run) -> None:
        self.run: Final = run
        self.storage: Final = Storage(run.url)
        self.parts: Final = parts_of(run.success)
        self._firsts = np.cumsum([0, *(part.n_images for part in self.parts)])
        self._open: OpenPart | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        if self._open is not None:
            self._open.close()
        self._open = None

    @property
    def n_images(self) -> int:
        """Number of images, including failed ones."""
        return int(self._firsts[-1])

    def image(self, row: int) -> ImageRow:
        """Return an image by its row of the manifest."""
        number = int(np.searchsorted(self._firsts, row, side="right")) - 1
        within = row - int(self._firsts[number])
        opened = self._part(self.parts[number])
        with reading(self.storage, opened.part.images):
            return ImageRow(row, opened.part, int(opened.starts[within]), **opened.images.row(within))

    def images(self) -> Iterator[ImageRow]:
        """Yield all images, in order of their names."""
        return map(self.image, range(self.n_images))

    def instances(self, image: ImageRow) -> pa.Table:
        """Return an image's rows of `instances`, without the columns that are the same for all of them."""
        with reading(self.storage, image.part.instances):
            return self._part(image.part).instances.slice(image.start, image.start + image.n_instances)

    def detections(self, image: ImageRow) -> Detections:
        """Return the detections of an image that did not fail."""
        size = {"height": image.height, "width": image.width, "capped": image.capped}
        stop = image.start + image.n_instances
        with reading(self.storage, image.part.instances):
            found = self._part(image.part).instances.columns(image.start, stop)
        if found is None:
            return detections_of(size, self.instances(image))
        columns, first = found
        return columns.detections(size, image.start - first, stop - first)

    def boxes(self, image: ImageRow) -> pa.Table:
        """Return `category_id`, `score` and `box` of an image's instances; masks are not read."""
        columns = ["category_id", "score", "box"]
        path = image.part.instances
        with (
            reading(self.storage, path),
            self.storage.open(path) as file,
            pq.ParquetFile(file) as parquet,
        ):
            groups = RowGroups(parquet, columns)
            return groups.slice(image.start, image.start + image.n_instances)

    def rows_of(self, column: str, values: Iterable[Any]) -> dict[Any, int]:
        """Return the rows of the images with given values in a column.

        Args:
            column: `image_id` or `name`, whose values are unique.
            values: of the column's type.

        Returns:
            Rows of the manifest by value; values that no image has are missing.
        """
        wanted = sorted(set(values))
        found: dict[Any, int] = {}
        for part, first in zip(self.parts, self._firsts.tolist(), strict=False):
            if len(found) == len(wanted):
                break
            with (
                reading(self.storage, part.images),
                self.storage.open(part.images) as file,
                pq.ParquetFile(file) as parquet,
            ):
                groups = RowGroups(parquet, [column])
                for group in range(parquet.num_row_groups):
                    some = [value for value in wanted if groups.may_hold(group, value)]
                    if some:
                        values_here = groups.table(group)[column]
                        hits = pc.index_in(values_here, pa.array(some, values_here.type)).to_pylist()
                        begin = first + int(groups.firsts[group])
                        found |= {some[hit]: begin + row for row, hit in enumerate(hits) if hit is not None}
        return found

    def column(self, name: str) -> Iterator[pa.ChunkedArray]:
        """Yield a column of `images`, one part at a time."""
        for part in self.parts:
            with reading(self.storage, part.images):
                values = read_table(self.storage, part.images, [name])[name]
            yield values

    def tables(self) -> Iterator[tuple[int, pa.Table, pa.Table]]:
        """Yield consecutive images, about `BLOCK_ROWS` of them and their instances at a time.

        Each with the first of their rows, all columns of `images`, and those of `instances` without masks.
        """
        columns = [name for name in INSTANCES.names if name not in _HEAVY]
        for part, first in zip(self.parts, self._firsts.tolist(), strict=False):
            with reading(self.storage, part.images, part.instances), ExitStack() as stack:
                files = open_part(stack, self.storage, part)
                counts = checked_counts(self.storage.url, part, *files)
                images, instances = (
                    RowsInOrder(file, names) for file, names in zip(files, (None, columns), strict=True)
                )
                for start, stop in pairwise(_cuts(counts + 1)):
                    of_block = int(counts[start:stop].sum())
                    yield first + start, images.take(stop - start), instances.take(of_block)

    def _part(self, part: Part) -> "OpenPart":
        if self._open is None or (self._open.part is not part and self._open.part != part):
            self.close()
            self._open = OpenPart(self.storage, part)
        return self._open


def _cuts(sizes: NDArray[np.int64]) -> list[int]:
    """Return where to cut consecutive images of given sizes into blocks of about `BLOCK_ROWS`, from 0 to their end."""
    block = (np.cumsum(sizes) - sizes) // BLOCK_ROWS
    return [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(sizes)]


# Selection


def find_images(reader: RunReader, asked: Sequence[str]) -> list[ImageRow]:
    """Return images by name, by id, or by the last part of their name.

    Raises:
        UsageError: no image matches, or several do.
    """
    by_name = reader.rows_of("name", asked)
    # 007 is no id: it may be the last part of a name.
    ids = {text: int(text) for text in asked if re.fullmatch("0|[1-9][0-9]{0,17}", text)}
    by_id = reader.rows_of("image_id", ids.values()) if ids else {}
    rows = {text: by_name.get(text, by_id.get(ids.get(text))) for text in asked}
    missing = [text for text, row in rows.items() if row is None]
    if missing:
        rows |= _by_last_part(reader, missing)
    return [reader.image(row) for row in rows.values() if row is not None]


def _by_last_part(reader: RunReader, asked: Sequence[str]) -> dict[str, int]:
    found: dict[str, list[tuple[int, str]]] = {text: [] for text in asked}
    first = 0
    for names in reader.column("name"):
        for text, hits in found.items():
            ends = pc.or_(pc.ends_with(names, f"/{text}"), pc.match_substring(names, f"/{text}."))
            ends = pc.or_(ends, pc.starts_with(names, f"{text}."))
            at = np.flatnonzero(ends.to_numpy(zero_copy_only=False))[:4].tolist()
            hits.extend((first + row, names[row].as_py()) for row in at)
        first += len(names)
    for text, hits in found.items():
        if not hits:
            raise UsageError(
                f"{reader.run.url} has no image {text!r}: see names and ids in its table `images`"
            )
        if len(hits) > 1:
            names_of = ", ".join(repr(name) for _, name in hits[:4])
            raise UsageError(f"several images are called {text!r}: {names_of}; pass a full name")
    return {text: hits[0][0] for text, hits in found.items()}


def first_images(reader: RunReader, count: int) -> list[ImageRow]:
    """Return the first images with detections."""
    found = []
    for image in reader.images():
        if image.status == "ok":
            found.append(image)
        if len(found) == count:
            break
    return found


def worst_images(reader: RunReader, count: int) -> list[tuple[ImageRow, float]]:
    """Return the images with the lowest panoptic quality by `maskrcnn evaluate`, and the quality of each.

    Raises:
        UsageError: the run was not evaluated.
        RunError: the stored evaluation is of other images than the run's.
    """
    try:
        table = read_table(reader.storage, WORST)
    except FileNotFoundError as error:
        url = reader.run.url
        raise UsageError(
            f"{url} was not evaluated: run `maskrcnn evaluate {url} --truth COCO.json` first"
        ) from error
    except pa.ArrowException as error:
        raise RunError(f"{reader.run.url}/{WORST} is damaged: evaluate the run again") from error
    order = pc.sort_indices(table, sort_keys=[("pq", "ascending"), ("image_id", "ascending")])
    worst = table.select(["image_id", "pq"]).take(order.slice(0, count)).to_pylist()
    rows = reader.rows_of("image_id", [entry["image_id"] for entry in worst])
    if len(rows) < len(worst):
        raise RunError(f"{reader.run.url}/{WORST} is of other images than the run's: evaluate the run again")
    return [(reader.image(rows[entry["image_id"]]), float(entry["pq"])) for entry in worst]


def where(reader: RunReader, condition: str, count: int) -> list[Match]:
    """Return the first images that match a condition in SQL, with the matching instances.

    The condition may use the columns of `images` and `instances` except masks; an image without detections has null in
    those of `instances`. It is evaluated block by block, in an in-memory database that can access nothing else.

    Args:
        reader: of the run.
        condition: the expression after WHERE.
        count: maximum number of images.

    Raises:
        UsageError: DuckDB is not installed, or the condition is not valid.
    """
    try:
        duckdb = importlib.import_module("duckdb")
    except ModuleNotFoundError as error:
        raise UsageError("--where needs DuckDB: pip install 'maskrcnn-ray[notebooks]'") from error
    query = (
        "SELECT image_row, instance FROM images LEFT JOIN instances USING (image_id)\n"  # noqa: S608 (the user's own)
        f"WHERE (\n{condition}\n) ORDER BY image_row, instance"
    )
    found: dict[int, list[int]] = {}
    try:
        statements = duckdb.extract_statements(query)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise UsageError(f"--where takes one condition, an expression as after WHERE, not {condition!r}")
        with duckdb.connect(":memory:", config=_CLOSED) as connection:
            connection.execute("SET lock_configuration = true")
            for first, images, instances in reader.tables():
                rows = pa.array(np.arange(first, first + len(images)))
                numbered = _distinct(images).append_column("image_row", rows)
                connection.register("images", numbered)
                connection.register("instances", instances)
                answer = connection.execute(query)
                while some := answer.fetchmany(10_000):
                    for row, instance in some:
                        if row not in found and len(found) == count:
                            return _matches(found)
                        if not isinstance(row, int) or not first <= row < first + len(images):
                            raise UsageError(f"--where takes one condition, not {condition!r}")
                        found.setdefault(row, []).extend([] if instance is None else [instance])
    except duckdb.Error as error:
        raise UsageError(f"--where: {' '.join(str(error).split())}") from error
    return _matches(found)


def _distinct(images: pa.Table) -> pa.Table:
    """Return `images` with other names for those of its further columns that `instances` has too, as in runs of 0.2."""
    own = set(IMAGES.names)
    carried = carried_names([name for name in images.column_names if name not in own])
    return images.rename_columns([carried.get(name, name) for name in images.column_names])


_CLOSED: Final = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
}
"""No files, no network, no extensions, no access to Python variables."""


def _matches(found: dict[int, list[int]]) -> list[Match]:
    return [Match(row, tuple(instances)) for row, instances in found.items()]
