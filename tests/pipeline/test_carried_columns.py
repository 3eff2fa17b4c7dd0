"""The user's columns beside ours: SQL distinguishes them, and none of them is a picture."""

import base64

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.formats.geoparquet import GEO
from maskrcnn.pipeline.carried_columns import carried_columns, carried_names, named
from maskrcnn.schema import IMAGES, INSTANCES, MANIFEST, PIECES, WINDOWS

OURS = {name for schema in (MANIFEST, IMAGES, INSTANCES, WINDOWS, PIECES, GEO) for name in schema.names}
NAMES = st.lists(
    st.sampled_from(sorted(OURS))
    | st.sampled_from(
        ["Status", "STATUS", "plot", "Plot", "input_status", "INPUT_Status", "image_row", "a b", "é", "É"]
    )
    | st.text("aA", min_size=1, max_size=2),
    unique=True,
)


@given(NAMES)
def test_no_two_columns_have_one_name_in_sql(names: list[str]) -> None:
    carried = carried_names(names)
    assert list(carried) == names
    assert all(new.endswith(name) for name, new in carried.items())
    lowered = [new.lower() for new in carried.values()]
    assert len({*lowered} | {name.lower() for name in OURS}) == len(lowered) + len(OURS)


@given(NAMES)
def test_names_once_carried_stay(names: list[str]) -> None:
    carried = list(carried_names(names).values())
    assert list(carried_names(carried).values()) == carried


def test_a_name_is_kept_where_it_can_be() -> None:
    names = ["plot", "Status", "status", "input_Status", "category", "Box", "PLOT", "image_row"]
    assert list(carried_names(names).values()) == [
        "plot", "input_input_Status", "input_input_input_status", "input_Status", "input_category", "input_Box",
        "input_PLOT", "input_image_row",
    ]  # fmt: skip


def test_duckdb_joins_the_tables_without_ambiguity() -> None:
    names = [*INSTANCES.names, "Category", "plot"]
    images = pa.table({"image_id": [1]} | {name: [7] for name in carried_names(names).values()})
    instances = INSTANCES.empty_table()
    for name in sorted({*INSTANCES.names, *images.column_names}):
        duckdb.sql(f'SELECT "{name}" FROM images LEFT JOIN instances USING (image_id)').fetchall()
    assert images.num_rows
    assert instances.num_rows == 0


def test_new_names_are_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = pa.table({"uri": ["a"], "Status": ["x"], "plot": ["y"]})
    with caplog.at_level("INFO", "maskrcnn"):
        assert carried_columns(rows, {"uri"}, "m.csv") == {"Status": "input_Status", "plot": "plot"}
    assert caplog.messages == ["m.csv: names that the tables have already: carried as input_Status"]


# Pictures

PNG, JPEG, BMP = b"\x89PNG\r\n\x1a\n" + bytes(60), b"\xff\xd8\xff" + bytes(100), b"BM\x3a" + bytes(100)
TEXT = base64.b64encode(JPEG).decode()


@pytest.mark.parametrize(
    "column",
    [
        [PNG],
        [None, b"", PNG],
        [{"bytes": PNG, "path": None}],
        [[b"", PNG]],
        [JPEG],
        [list(PNG)],
        [[], list(BMP)],
        pa.array([list(PNG)], pa.list_(pa.uint8())),
        pa.array([[byte - 256 if byte > 127 else byte for byte in PNG]], pa.list_(pa.int8())),
        [{"data": list(JPEG), "width": 8}],
        [[list(PNG)]],
        ["", TEXT],
        [f"data:image/jpeg;base64,{TEXT}"],
        [base64.encodebytes(JPEG * 20).decode()],
        [{"imageData": TEXT}],
    ],
    ids=[
        *(
            "png",
            "after others",
            "struct",
            "list",
            "jpeg",
            "integers",
            "bitmap in integers",
            "small integers",
        ),
        *(
            "signed integers",
            "struct of integers",
            "list of lists",
            "base64",
            "data uri",
            "lines",
            "struct of base64",
        ),
    ],
)
def test_small_pictures_are_left_out_too(column: list[object], caplog: pytest.LogCaptureFixture) -> None:
    rows = pa.table({"uri": ["a"] * len(column), "thumb": pa.array(column), "n": [1] * len(column)})
    assert carried_columns(rows, {"uri"}, "m.parquet") == {"n": "n"}
    assert [record.getMessage() for record in caplog.records] == [
        "m.parquet: left out of the tables: 1 column of pictures or other large bytes, 'thumb'"
    ]


def test_bytes_that_are_no_pictures_are_carried(caplog: pytest.LogCaptureFixture) -> None:
    rows = pa.table(
        {
            "digest": [b"BM" + bytes(30), b"\xff\xd8\xff" + bytes(61), bytes(500)],
            "box": [[137, 80, 78, 71], [], None],
            "labels": [[1, 218] * 100, [0, 1] * 500, [66, 77] * 100],  # as SGI and bitmaps begin
            "large": [[10**6] * 100, [256] * 100, [-129] * 100],
            "text": ["note " * 100, "abcd" * 100, "0f" * 64],
        }
    )
    with caplog.at_level("WARNING", "maskrcnn"):
        assert list(carried_columns(rows, (), "m.parquet")) == rows.column_names
    assert caplog.records == []


@given(st.lists(st.binary(min_size=65, max_size=100), min_size=1, max_size=3))
def test_lists_of_few_classes_and_flags_are_no_pictures(drawn: list[bytes]) -> None:
    classes = [[(0, 1, 66, 77, 218, 255)[byte % 6] for byte in each] for each in drawn]
    words = ["".join("abcd"[byte % 4] for byte in each) for each in drawn]
    rows = pa.table({"classes": classes, "words": words})
    assert list(carried_columns(rows, (), "m.parquet")) == ["classes", "words"]


# Columns without a name


def test_a_column_without_a_name_gets_its_position() -> None:
    rows = pa.table([[1], ["a"], [2], [3]], names=["", "uri", " ", "column_3"])
    assert named(rows, "m.csv").column_names == ["column_1", "uri", "input_column_3", "column_3"]
    whole = pa.table({"uri": ["a"]})
    assert named(whole, "m.csv") is whole
