"""Arrow's types as those that pandas, polars, DuckDB and pyarrow all read from Parquet, with the same values.

Views, run ends, dictionaries and extension types become what they stand for; types that Parquet does not have become
the next that holds their values exactly; what Parquet cannot hold at all becomes JSON text. So does a column some of
whose values its type allows and a reader refuses: maps that repeat a key become lists of pairs; days and moments
outside of the years 1 to 9999, and times with nanoseconds, become text.
"""

import json
import re
import zoneinfo
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

_OFFSET: Final = re.compile(r"[+-]\d\d:?\d\d")
"""A time zone that is only an offset, which not all readers accept."""


def portable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column with the same values, of a type that all readers of Parquet know.

    Raises:
        pyarrow.ArrowException: a value does not fit, or is invalid, such as text that is not UTF-8.
    """
    column.validate(full=True)
    if not is_storable(column.type):
        return pa.chunked_array([as_json(column.to_pylist())])
    if is_portable(column.type) and all(map(_is_readable, column.chunks)):
        return column
    # In one piece: some values decide on the type of all.
    return pa.chunked_array([_converted(pa.concat_arrays(column.chunks or [pa.array([], column.type)]))])


def as_json(values: Sequence[Any]) -> pa.Array:
    """Return values as JSON text, for those of several types, or of a type that a table cannot hold."""
    return pa.array([json.dumps(value, default=str) for value in values], pa.string())


def depth_of(kind: pa.DataType) -> int:
    """Return the levels of lists and structs in a type: 0 for a number."""
    depth, level = 0, [kind]
    while level := [child for each in level for child in children_of(each)]:
        depth += 1
    return depth


def children_of(kind: pa.DataType) -> list[pa.DataType]:
    """Return the types of a list's elements, of a map's entries, or of a struct's fields; none of a number's."""
    if isinstance(kind, pa.BaseExtensionType):
        return children_of(kind.storage_type)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return children_of(kind.value_type)
    return [kind.field(at).type for at in range(kind.num_fields)]


def is_storable(kind: pa.DataType) -> bool:
    """Return whether Parquet has a type for values of this one, and SQL a name for each of its fields."""
    if isinstance(kind, pa.BaseExtensionType):
        return is_storable(kind.storage_type)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return is_storable(kind.value_type)
    if types.is_union(kind) or types.is_interval(kind):
        return False
    if types.is_struct(kind):
        names = {kind.field(at).name.strip().lower() for at in range(kind.num_fields)}
        if not names or "" in names or len(names) < kind.num_fields:
            return False
    return all(map(is_storable, children_of(kind)))


def is_portable(kind: pa.DataType) -> bool:
    """Return whether all readers know a type, so that the column stays as it is."""
    if isinstance(kind, pa.BaseExtensionType) or any(is_kind(kind) for is_kind in _CONVERTED):
        return False
    if types.is_decimal(kind):
        return bool(types.is_decimal128(kind) and kind.scale >= 0)
    if types.is_time32(kind) or types.is_timestamp(kind):
        return kind.unit != "s" and _is_zone(getattr(kind, "tz", None))
    return all(map(is_portable, children_of(kind)))


def _is_zone(name: str | None) -> bool:
    """Return whether all readers know a time zone, or None."""
    if name is None:
        return True
    try:
        return not _OFFSET.fullmatch(name) and bool(zoneinfo.ZoneInfo(name))
    except (KeyError, ValueError, OSError):  # unknown, or no name of a zone, or of a folder of zones
        return False


def _is_readable(array: pa.Array) -> bool:
    """Return whether all readers take the values of a portable type as they are."""
    kind = array.type
    if types.is_map(kind):
        entries = _as_lists(array)
        return _are_distinct(entries) and _is_readable(entries)
    if types.is_struct(kind):
        return all(map(_is_readable, array.flatten()))
    if kind.num_fields:
        return _is_readable(array.flatten())
    if str(kind) == "time64[ns]":  # pandas has microseconds
        return not np.any(_ticks(array).drop_null().to_numpy() % 1000)
    if not (types.is_date(kind) or types.is_timestamp(kind)):
        return True
    extent = pc.min_max(_ticks(array)).as_py()
    per_second = Fraction(1, _DAY_SECONDS) if types.is_date(kind) else _PER_SECOND[kind.unit]
    # Of a moment in a zone, the local day may be the next.
    margin = 0 if getattr(kind, "tz", None) in (None, "UTC") else _DAY_SECONDS
    return extent["min"] is None or bool(
        (_YEARS[0] + margin) * per_second <= extent["min"]
        and extent["max"] < (_YEARS[1] - margin) * per_second
    )


def _as_lists(maps: pa.MapArray) -> pa.ListArray:
    """Return maps as lists of their entries. Not `cast`, which in Arrow 26 cuts values of the type null."""
    kind = _entries(maps.type)
    entries = pa.StructArray.from_arrays([maps.keys, maps.items], fields=list(kind.value_type))
    offsets = pa.array(maps.offsets.to_numpy())
    return pa.ListArray.from_arrays(offsets, entries, type=kind, mask=maps.is_null())


def _entries(of_map: pa.MapType) -> pa.DataType:
    """Return the type of a map's entries as a list of structs of key and value."""
    return pa.list_(of_map.field(0).with_name("element"))


def _are_distinct(entries: pa.ListArray) -> bool:
    """Return whether no map, given as a list of its entries, has a key twice or a key that is a list or a struct."""
    keys = pc.struct_field(entries.flatten(), 0)
    if keys.type.num_fields:
        return not len(keys)
    if types.is_floating(keys.type):  # -0.0 equals 0.0
        keys = pc.add(keys, pa.scalar(0, keys.type))
    both = pa.table({"map": pc.list_parent_indices(entries), "key": keys})
    return bool(both.group_by(["map", "key"]).aggregate([]).num_rows == len(keys))


_DAY_SECONDS: Final = 24 * 60 * 60
_YEARS: Final = (-62_135_596_800, 253_402_300_800)
"""Seconds since 1970 of the beginning of the year 1, and of the end of 9999: Python's dates have no others."""
_PER_SECOND: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def _ticks(array: pa.Array) -> pa.Array:
    """Return days, moments or times as int64, in the unit of their type."""
    return array.view(pa.int64()) if array.type.bit_width == 64 else array.view(pa.int32()).cast(pa.int64())


_CONVERTED: Final = (
    types.is_null,
    types.is_dictionary,
    types.is_run_end_encoded,
    types.is_string_view,
    types.is_binary_view,
    types.is_list_view,
    types.is_large_list_view,
    types.is_float16,
    types.is_date64,
)


def _converted(array: pa.Array) -> pa.Array:  # noqa: PLR0911 (one case per kind of type)
    kind = array.type
    if is_portable(kind) and _is_readable(array):
        return array
    if isinstance(kind, pa.BaseExtensionType):
        return _of_extension(array)
    if types.is_dictionary(kind):
        return _converted(array.dictionary_decode())
    if types.is_run_end_encoded(kind):
        # Not `run_end_decode`, which does not know views.
        rows = np.arange(array.offset, array.offset + len(array))
        runs = np.searchsorted(array.run_ends.to_numpy(), rows, side="right")
        return _converted(array.values).take(pa.array(runs))
    if types.is_decimal(kind):
        return _of_decimals(array)
    if types.is_map(kind):  # its entries are structs of key and value
        return _converted(_as_lists(array))
    if types.is_struct(kind):
        children = [_converted(child) for child in array.flatten()]
        fields = [kind.field(at).with_type(child.type) for at, child in enumerate(children)]
        return pa.StructArray.from_arrays(children, fields=fields, mask=array.is_null())
    if kind.num_fields:
        # Not `cast`, which in Arrow 26 empties lists after a null in a view.
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        values = _converted(array.flatten())
        large = types.is_large_list(kind) or types.is_large_list_view(kind)
        of_lists = pa.LargeListArray if large else pa.ListArray
        offsets = pa.array(np.cumsum([0, *lengths]), pa.int64() if large else pa.int32())
        return of_lists.from_arrays(offsets, values, mask=array.is_null())
    simple = array.cast(_simple(kind))
    return simple if _is_readable(simple) else _as_text(simple)


def _as_text(array: pa.Array) -> pa.Array:
    """Return days, moments or times as text; moments of a time zone in UTC."""
    kind = array.type
    if types.is_time(kind):
        return array.cast(pa.string())
    # Not `cast`, which ends at the year 32767.
    unit = "D" if types.is_date(kind) else kind.unit
    moments = pc.fill_null(_ticks(array), 0).to_numpy().view(f"datetime64[{unit}]")
    texts = np.datetime_as_string(moments, timezone="UTC" if getattr(kind, "tz", None) else "naive")
    return pc.if_else(array.is_null(), None, pa.array(texts.tolist(), pa.string()))


def _simple(kind: pa.DataType) -> pa.DataType:
    """Return the type with the values of one that has no children."""
    if types.is_timestamp(kind):
        zone = kind.tz if _is_zone(kind.tz) else "UTC"
        return pa.timestamp("ms" if kind.unit == "s" else kind.unit, zone)
    return {
        "halffloat": pa.float32(),
        "date64[ms]": pa.date32(),
        "time32[s]": pa.time32("ms"),
        "binary_view": pa.binary(),
    }.get(str(kind), kind if types.is_temporal(kind) else pa.string())


def _of_extension(array: pa.ExtensionArray) -> pa.Array:
    name, storage = array.type.extension_name, array.storage
    if name == "arrow.uuid":
        digits = [None if value is None else value.hex() for value in storage.to_pylist()]
        texts = [d and f"{d[:8]}-{d[8:12]}-{d[12:16]}-{d[16:20]}-{d[20:]}" for d in digits]
        return pa.array(texts, pa.string())
    if name == "arrow.bool8":
        return storage.cast(pa.bool_())
    return _converted(storage)


def _of_decimals(array: pa.Array) -> pa.Array:
    """Return decimals of up to 38 digits with a scale from 0, which all readers know; as text if they have more."""
    precision, scale = array.type.precision, array.type.scale
    if scale < 0:
        precision, scale = precision - scale, 0
    try:
        return array.cast(pa.decimal128(min(precision, 38), min(scale, 38)))
    except pa.ArrowInvalid:  # more digits
        return pa.array([_digits(value) for value in array.to_pylist()], pa.string())


def _digits(value: Decimal | None) -> str | None:
    return None if value is None else f"{value:f}"
