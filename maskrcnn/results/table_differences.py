"""Where two tables that should have the same rows differ."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that differs."""

    table: str
    image_id: int | None
    """Of the row; None where the tables differ as a whole."""
    column: str
    before: Any
    """A value of the first table; None where it has no such row or column."""
    now: Any
    """Of the second, likewise."""

    def line(self) -> str:
        """Return the difference as one line, long values shortened."""
        where = "" if self.image_id is None else f", image {self.image_id}"
        return f"{self.table}{where}: {self.column} was {_shown(self.before)}, and is {_shown(self.now)}"


def table_differences(table: str, before: pa.Table, now: pa.Table) -> Iterator[Difference]:
    """Yield the values in which two tables with a column `image_id` differ.

    Rows are compared per image, in their order; NaN equals NaN. If an image has more rows in one table, that is one
    difference, and its rows are not compared.

    Args:
        table: what they are called.
        before: one of the tables.
        now: the other.
    """
    if before.equals(now):
        return
    types = {name: before.schema.field(name).type for name in before.column_names}
    types_now = {name: now.schema.field(name).type for name in now.column_names}
    for name in dict.fromkeys((*types, *types_now)):
        if types.get(name) != types_now.get(name):
            yield Difference(table, None, f"the type of {name}", _text(types, name), _text(types_now, name))
    common = [name for name in types if types_now.get(name) == types[name]]
    rows, rows_now = _by_image(before, common), _by_image(now, common)
    for image_id in sorted(rows.keys() | rows_now.keys()):
        one, other = rows.get(image_id, []), rows_now.get(image_id, [])
        if len(one) != len(other):
            yield Difference(table, image_id, "the number of rows", len(one), len(other))
            continue
        for row, row_now in zip(one, other, strict=True):
            for name in common:
                if not _equal(row[name], row_now[name]):
                    yield Difference(table, image_id, name, row[name], row_now[name])


def _by_image(table: pa.Table, columns: list[str]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for row in table.select(columns).to_pylist():
        found.setdefault(row["image_id"], []).append(row)
    return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _text(types: dict[str, pa.DataType], name: str) -> str | None:
    return str(types[name]) if name in types else None


def _shown(value: Any) -> str:
    text = "missing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
