"""Values of JSON as columns of a table, which keep every digit, or else as JSON text."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa

from .manifest_columns import MAX_DEPTH
from .portable import as_json, is_storable, portable

MAX_PATHS: Final = 1000
"""Different keys within one column: each is a column of Parquet, and objects whose keys are data have one per row."""
_EXACT_CHARACTERS: Final = 15
"""A decimal number of so many digits is the shortest text of the double that is nearest to it."""


def exact_number(text: str) -> float | Decimal:
    """Return a JSON number with a point or an exponent as a double, or as a decimal where a double would change it.

    >>> exact_number("1.50"), exact_number("12345678901234567890.5")
    (1.5, Decimal('12345678901234567890.5'))
    """
    number = float(text)
    if len(text) <= _EXACT_CHARACTERS and "e" not in text.lower():
        return number
    exact = Decimal(text)
    return number if Decimal(repr(number)) == exact else exact


def column_of(values: Sequence[Any]) -> pa.ChunkedArray:
    """Return values of JSON, null where a key is missing, as a column; JSON text if no type of a table holds them."""
    if not _is_regular(values):
        return pa.chunked_array([as_json(values)])
    try:
        array = pa.array(values)
        if is_storable(array.type):
            return portable(array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array]))
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        pass
    return pa.chunked_array([as_json(values)])


def _is_regular(values: Sequence[Any]) -> bool:
    """Return whether values are nested in few enough levels, and have few enough different keys, for a table."""
    if {dict, list}.isdisjoint(map(type, values)):
        return True
    paths: dict[tuple[int, str], int] = {}
    level = [(0, value) for value in values if isinstance(value, dict | list)]
    for _ in range(MAX_DEPTH):
        below: list[tuple[int, Any]] = []
        for path, value in level:
            if isinstance(value, dict):
                for key, each in value.items():
                    inner = paths.setdefault((path, key), len(paths) + 1)
                    if isinstance(each, dict | list):
                        below.append((inner, each))
                if len(paths) > MAX_PATHS:
                    return False
            else:
                inner = paths.setdefault((path, ""), len(paths) + 1)
                below += [(inner, each) for each in value if isinstance(each, dict | list)]
        if not below:
            return True
        level = below
    return False
