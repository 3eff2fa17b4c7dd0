"""Laws of tables of pictures: each row is an input, is read back byte for byte, and each row group is read once."""

import logging
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_tables import (
    FILES,
    NO_LIMIT,
    PNG,
    STRUCT,
    content_or_code,
    contents,
    damaged_in,
    listed,
    parquet,
    picture,
    refusal,
    table_of,
    write,
)

from maskrcnn.errors import RunError, UsageError
from maskrcnn.io.inputs import open_input, read_input, stat_input
from maskrcnn.io.manifests.skipped import counts_of
from maskrcnn.io.manifests.sources import is_manifest
from maskrcnn.io.picture_tables import parquet_table
from maskrcnn.io.picture_tables.picture_uri import picture_uri, split_picture
from maskrcnn.io.schemes import TABLES
from maskrcnn.io.storage import Storage
from maskrcnn.io.stores.local_store import LocalStore
from maskrcnn.io.stores.s3_store import S3Store
from maskrcnn.pipeline.shard_inputs import ShardInputs

KINDS = [pa.binary(), pa.large_binary(), pa.binary_view(), STRUCT]


# Reading


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_each_row_is_an_input_with_the_bytes_of_its_picture(kind: pa.DataType, tmp_path: Path) -> None:
    source = write(tmp_path, parquet(table_of(FILES, kind, label=list(range(11)))))
    table = listed(source).table
    assert table["name"].to_pylist() == [f"{row:02}" for row in range(11)]
    assert table["uri"].to_pylist() == [f"{source}!/image/{row}" for row in range(11)]
    assert contents(table) == list(FILES.values())
    assert [read_input(uri, NO_LIMIT) for uri in table["uri"].to_pylist()] == list(FILES.values())
    assert set(table["etag"].to_pylist()) == {stat_input(source).etag}
    assert table["bytes"].null_count == 11
    assert table["label"].to_pylist() == list(range(11))
    assert table["file"].to_pylist() == list(FILES)
    assert ("path" in table.column_names) == (kind == STRUCT)
    if kind == STRUCT:
        assert table["path"].to_pylist() == [f"folder/{name}" for name in FILES]
    assert "image" not in table.column_names


def test_tables_are_listed_and_read_in_every_store(store_url: str) -> None:
    store = Storage(store_url)
    store.write("d/t.parquet", parquet(table_of(FILES, label=list(range(11)))))
    store.write("loose.png", PNG)
    table = listed(store.url).table
    assert table["name"][0].as_py() == "d/t.parquet!/00"
    assert contents(table) == [*FILES.values(), PNG]
    alone = listed(f"{store.url}/d/t.parquet").table
    assert alone["name"][0].as_py() == "00"
    uris = table["uri"].to_pylist()[:11]
    assert alone["uri"].to_pylist() == uris
    assert [read_input(uri, NO_LIMIT) for uri in reversed(uris)] == list(reversed(FILES.values()))
    if not store_url.startswith("memory"):  # it has no etag, and no times
        store.write("d/t.parquet", parquet(table_of(dict(reversed(FILES.items())))))
        assert set(contents(alone)) == {"changed"}


def test_a_shard_makes_a_request_for_each_row_group(weed_server, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{seed}": picture(seed, 30_000) for seed in range(60)}
    store = Storage(weed_server.prefix())
    store.write("t.parquet", parquet(table_of(files), 10))
    table = listed(f"{store.url}/t.parquet").table
    requests: list[int] = []
    read_range = S3Store.read_range

    def counted(self, url, start=0, stop=None, etag=None):
        data = read_range(self, url, start, stop, etag)
        requests.append(len(data))
        return data

    monkeypatch.setattr(S3Store, "read_range", counted)
    assert contents(table.slice(5, 40)) == list(files.values())[5:45]
    assert len(requests) == 5
    assert sum(requests) <= 1.05 * sum(map(len, list(files.values())[:50]))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_damage_to_a_table_is_never_read_as_another_picture(tmp_path_factory, data: st.DataObject) -> None:
    """With checksums, as most writers can add them."""
    files = {f"{row}": picture(row, 400) for row in range(8)}
    whole = bytearray(parquet(table_of(files), 3, write_page_checksum=True))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    folder = tmp_path_factory.mktemp("t")
    write(folder, bytes(whole))
    write(folder, PNG, "loose.png")
    try:
        table = listed(folder).table
    except UsageError:  # the names or types of the columns are damaged
        return
    found = [content for content in contents(table) if isinstance(content, bytes)]
    assert set(found) <= {*files.values(), PNG}


@given(
    pictures=st.lists(st.one_of(st.none(), st.binary(max_size=300)), min_size=1, max_size=25),
    row_group_size=st.integers(1, 30),
    compression=st.sampled_from(["none", "snappy", "zstd"]),
    dictionary=st.booleans(),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_any_rows_are_read_in_any_order(
    pictures, row_group_size, compression, dictionary, data, tmp_path_factory
) -> None:
    """Whatever the row groups, for any selection of rows, asked for in any order, from a shard or alone."""
    table = table_of({f"{row}": value for row, value in enumerate(pictures)})
    content = parquet(table, row_group_size, compression=compression, use_dictionary=dictionary)
    source = write(tmp_path_factory.mktemp("t"), content)
    rows = data.draw(st.lists(st.integers(0, len(pictures) - 1), min_size=1, max_size=30))
    entries = [{"uri": picture_uri(source, "image", row), "bytes": None, "etag": None} for row in rows]
    expected = [{None: "not_found", b"": "empty_file"}.get(pictures[row], pictures[row]) for row in rows]
    inputs = ShardInputs(entries, NO_LIMIT)
    order = data.draw(st.permutations(range(len(rows))))
    assert {at: content_or_code(lambda at=at: inputs.read(at)) for at in order} == dict(enumerate(expected))
    assert [content_or_code(lambda e=e: read_input(e["uri"], NO_LIMIT)) for e in entries] == expected


@pytest.mark.parametrize("whole", [True, False], ids=["row groups read whole", "row groups read by blocks"])
def test_a_shard_reads_the_pictures_of_a_row_group_once(whole, tmp_path, reads, monkeypatch) -> None:
    files = {f"{seed}": picture(seed, 20_000) for seed in range(30)}
    table = table_of(files, text=["x" * 500] * 30)
    pages = {"use_dictionary": False, "data_page_size": 1, "write_batch_size": 1}
    source = write(tmp_path, parquet(table, 8, **pages))
    shard = listed(source).table.slice(5, 17)  # of three row groups
    if not whole:
        monkeypatch.setattr(parquet_table, "WHOLE_CHUNK_BYTES", 100_000)
        monkeypatch.setattr(parquet_table, "_BLOCK_BYTES", 50_000)
    reads.clear()
    assert contents(shard) == list(files.values())[5:22]
    metadata = TABLES.table(parquet_table.Url.parse(source), None).metadata
    chunks = [metadata.row_group(group).column(0) for group in range(3)]
    expected = sum(chunk.total_compressed_size for chunk in chunks)
    assert sum(stop - start for start, stop in reads) <= 1.05 * expected
    if whole:
        assert len(reads) == 3
    else:
        assert max(stop - start for start, stop in reads) <= 60_000  # a block and a page
    assert len({start for start, _ in reads}) == len(reads)


def test_planning_reads_no_pictures_but_the_first(tmp_path: Path, reads: list[tuple[int, int]]) -> None:
    files = {f"{seed}": picture(seed, 200_000) for seed in range(12)}
    for name in ("a", "b", "c"):
        write(tmp_path, parquet(table_of(files), 4, use_dictionary=False), f"{name}.parquet")
    assert len(listed(tmp_path).table) == 36
    of_pictures = [stop - start for start, stop in reads if stop - start > 2 * 2**16]
    assert len(of_pictures) <= 1


def test_the_other_columns_of_a_row_group_are_read_by_one_request(tmp_path: Path, reads) -> None:
    files = {f"{seed}": picture(seed, 100_000) for seed in range(40)}
    others = {f"column {at}": [f"{row} {at}" for row in range(40)] for at in range(9)}
    source = write(tmp_path, parquet(table_of(files, **others), 4, use_dictionary=False))
    table = listed(source).table
    assert {name: table[name].to_pylist() for name in others} == others
    assert len(reads) <= 10 + 8  # of the row groups; and of footers, and of the first picture


def test_a_picture_is_opened_for_random_access(tmp_path: Path) -> None:
    source = write(tmp_path, parquet(table_of(FILES)))
    with open_input(picture_uri(source, "image", 7)) as file:
        file.seek(10)
        assert file.read(20) == FILES["7.png"][10:30]


# Failures


def test_what_cannot_be_read_is_a_row_with_a_code(tmp_path: Path) -> None:
    files = {**FILES, "null.png": None, "empty.png": b""}
    source = write(tmp_path, damaged_in(parquet(table_of(files)), 1))
    table = listed(source).table
    values = list(FILES.values())
    expected = [*values[:4], *["corrupt"] * 4, *values[8:], "not_found", "empty_file"]
    assert contents(table) == expected
    assert [
        content_or_code(lambda uri=uri: read_input(uri, NO_LIMIT)) for uri in table["uri"].to_pylist()
    ] == expected
    limited = ShardInputs(table.to_pylist(), 50)
    assert content_or_code(lambda: limited.read(0)) == "too_many_bytes"


def test_a_row_or_a_column_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    source = write(tmp_path, parquet(table_of(FILES)))
    uris = [
        f"{source}!/image/11",
        f"{source}!/photo/0",
        f"{source}!/file/0",
        f"{tmp_path}/no.parquet!/image/0",
    ]
    for uri in uris:
        entry = {"uri": uri, "bytes": None, "etag": None}
        assert content_or_code(lambda: ShardInputs([entry], NO_LIMIT).read(0)) == "not_found"  # noqa: B023
        assert content_or_code(lambda: read_input(uri, NO_LIMIT)) == "not_found"  # noqa: B023


def test_a_file_that_changed_fails_its_rows(tmp_path: Path) -> None:
    source = write(tmp_path, parquet(table_of(FILES)))
    table = listed(source).table
    write(tmp_path, parquet(table_of(dict(reversed(FILES.items())))))
    assert set(contents(table)) == {"changed"}


def test_a_store_out_of_reach_stops_the_run_and_is_no_damage(tmp_path, monkeypatch) -> None:
    source = write(tmp_path, parquet(table_of(FILES)))
    table = listed(source).table

    def read_range(*_arguments, **_options):
        raise RunError("the credentials have expired")

    monkeypatch.setattr(LocalStore, "read_range", read_range)
    with pytest.raises(RunError, match="the credentials have expired"):
        contents(table)


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "empty_file"), (b"PAR1 and no more", "corrupt"), (parquet(table_of(FILES))[:-100], "corrupt")],
)
def test_a_file_in_a_folder_that_cannot_be_read_is_a_row(data: bytes, code: str, tmp_path: Path) -> None:
    write(tmp_path, parquet(table_of(FILES)), "good.parquet")
    bad = write(tmp_path, data, "folder/bad.parquet")
    table = listed(tmp_path).table
    assert table["name"][0].as_py() == "folder/bad.parquet"
    assert contents(table) == [code, *FILES.values()]
    assert refusal(bad).startswith(f"{bad}: ")


def test_a_page_whose_checksum_is_wrong_is_corrupt(tmp_path: Path) -> None:
    data = parquet(table_of(FILES), 20, write_page_checksum=True, compression="none", use_dictionary=False)
    at = data.index(FILES["5.png"]) + len(PNG) + 3
    source = write(tmp_path, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert set(contents(listed(source).table)) == {"corrupt"}


# Which tables, which column


def test_a_table_with_uris_stays_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    table = table_of({"a.png": PNG}).append_column("uri", [["a.png"]])
    source = write(tmp_path, parquet(table))
    assert is_manifest(source)
    assert listed(source).table["uri"].to_pylist() == [str(tmp_path / "a.png")]
    assert listed(source, "image").table["uri"].to_pylist() == [f"{source}!/image/0"]


def test_bytes_that_are_no_pictures_are_carried(tmp_path: Path) -> None:
    others = {"digest": [bytes([row]) * 32 for row in range(11)], "words": [b"text " * 40] * 11}
    table = listed(write(tmp_path, parquet(table_of(FILES, **others)))).table
    assert table["digest"].to_pylist() == others["digest"]
    assert table["uri"][0].as_py().endswith("!/image/0")


def test_of_several_columns_of_pictures_one_is_named(tmp_path: Path, caplog) -> None:
    pictures = [picture(100 + row, 2000) for row in range(11)]
    source = write(tmp_path, parquet(table_of(FILES, mask=pictures)))
    said = f"{source} has pictures in 2 columns, 'image', 'mask': name one with --image-column"
    assert refusal(source) == said
    with caplog.at_level(logging.WARNING, "maskrcnn"):
        table = listed(source, "mask").table
    assert contents(table) == pictures
    assert not {"image", "mask"} & set(table.column_names)
    assert "'image'" in caplog.text
    for place in (source, tmp_path):
        assert refusal(place, "photo") == (
            f"{place}: --image-column photo: there is no such column of bytes; found 'image', 'mask'"
        )


def test_a_table_with_neither_says_what_it_could_have(tmp_path: Path) -> None:
    source = write(tmp_path, parquet(pa.table({"label": [1], "x": [b"no picture" * 20]})))
    assert refusal(source) == (
        f"{source}: no pictures to read: a table has them in a column of bytes or of struct<bytes, path>, or is a "
        "manifest with a column `uri`; found 'label', 'x'"
    )
    assert "no column `uri` and none of pictures" in refusal(write(tmp_path, parquet(pa.table({"x": [1]}))))
    empty = write(tmp_path, parquet(table_of({})), "empty.parquet")
    assert refusal(empty) == f"{empty} has no rows: list at least one input"


def test_a_table_that_only_names_files_says_how_to_list_them(tmp_path: Path) -> None:
    """As Hugging Face's `to_parquet` writes a data set made of files."""
    source = write(tmp_path, parquet(table_of(dict.fromkeys(FILES))))
    said = refusal(source)
    assert said == refusal(tmp_path)
    assert said.startswith(
        f"{source}: its column 'image' contains no pictures, only names of files at most: list the "
    )
    nulls = write(tmp_path / "b", parquet(table_of(dict.fromkeys(FILES), pa.binary())))
    assert "no pictures to read" in refusal(nulls)


def test_pictures_behind_nulls_are_found(tmp_path: Path) -> None:
    files = {**{f"null{row}": None for row in range(20)}, **FILES}
    table = listed(write(tmp_path, parquet(table_of(files, pa.binary())))).table
    assert contents(table) == ["not_found"] * 20 + list(FILES.values())


def test_a_column_is_not_named_where_there_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    assert (
        refusal(tmp_path, "image")
        == f"{tmp_path}: --image-column is for tables (Parquet, Arrow, Lance); there are none"
    )
    (tmp_path / "m.txt").write_text("a.png")
    assert "this is a manifest" in refusal(tmp_path / "m.txt", "image")


def test_other_tables_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, b"x", "data-00000-of-00001.lance")
    assert "to Parquet" in refusal(tmp_path)
    write(tmp_path, parquet(table_of(FILES)))
    assert counts_of(listed(tmp_path).skipped) == {".lance": 1}


# Several tables


def test_tables_are_joined_by_the_names_of_their_columns(tmp_path: Path) -> None:
    write(tmp_path, parquet(table_of({"a": PNG}, pa.binary(), label=[1], uri_of=["x"])), "a.parquet")
    write(tmp_path, parquet(table_of({"b": PNG}, STRUCT, label=[2**40], name=["given"])), "d/b.parquet")
    write(tmp_path, parquet(pa.table({"x": [1]})), "c.parquet")
    write(tmp_path, parquet(pa.table({"uri": ["x"]})), "m.parquet")
    (tmp_path / "loose.png").write_bytes(PNG)
    inputs = listed(tmp_path)
    table = inputs.table.select(["name", "label", "uri_of", "input_name", "path"])
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("a.parquet!/0", 1, "x", None, None),
        ("d/b.parquet!/0", 2**40, None, "given", "folder/b"),
        ("loose.png", None, None, None, None),
    ]
    assert counts_of(inputs.skipped) == {".parquet": 2}
    assert contents(inputs.table) == [PNG] * 3


def test_the_first_sound_table_of_a_folder_decides_whether_it_is_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    write(tmp_path / "lists", b"damaged", "0.parquet")
    manifest = parquet(table_of({"a.png": PNG}).append_column("uri", [["../a.png"]]))
    write(tmp_path / "lists", manifest, "1.parquet")
    assert "0.parquet: it is no Parquet file" in refusal(tmp_path / "lists")
    assert listed(tmp_path / "lists", "image").table["name"].to_pylist() == ["0.parquet", "1.parquet!/0"]
    assert listed(tmp_path / "lists" / "[1-9].parquet").table["uri"].to_pylist() == [
        f"{tmp_path}/lists/../a.png"
    ]
    assert listed(tmp_path).table["name"].to_pylist() == ["a.png", "lists/0.parquet"]


def test_a_glob_of_tables_is_taken_row_by_row(tmp_path: Path) -> None:
    write(tmp_path, parquet(table_of({"a": PNG})), "data/train-0.parquet")
    write(tmp_path, parquet(table_of({"b": PNG})), "data/test-0.parquet")
    assert listed(tmp_path / "data" / "t*-0.parquet").table["file"].to_pylist() == ["b", "a"]
    assert listed(tmp_path / "*" / "train-*.parquet").table["file"].to_pylist() == ["a"]


def test_planning_warns_of_large_row_groups(tmp_path: Path, caplog, monkeypatch) -> None:
    source = write(tmp_path, parquet(table_of(FILES)))
    listed(source)
    assert caplog.text == ""
    monkeypatch.setattr(parquet_table, "WHOLE_CHUNK_BYTES", 100)
    listed(source)
    assert f"1 table, such as {source}, with row groups of more than" in caplog.text


def test_columns_whose_types_contradict_each_other_are_one_line(tmp_path: Path) -> None:
    first = write(tmp_path, parquet(table_of({"a": PNG}, label=[1])), "a.parquet")
    second = write(tmp_path, parquet(table_of({"b": PNG}, label=["cat"])), "b.parquet")
    assert refusal(tmp_path) == (
        f"{second}: the column 'label' has values of type string, and in {first} of type int64: write both with one "
        "type"
    )


def test_ids_are_the_users_if_they_are_unique(tmp_path: Path, caplog) -> None:
    one = write(tmp_path, parquet(table_of({"a": PNG, "b": PNG}, image_id=[7, 5])), "a.parquet")
    assert listed(one).table["image_id"].to_pylist() == [7, 5]
    write(tmp_path, parquet(table_of({"c": PNG}, image_id=[5])), "b.parquet")
    table = listed(tmp_path).table
    assert table["image_id"].to_pylist() == [1, 2, 3]
    assert table["input_image_id"].to_pylist() == [7, 5, 5]
    assert "the ids repeat" in caplog.text


@given(st.text(min_size=1, max_size=20), st.integers(0, 10**12))
def test_a_uri_is_divided_into_what_it_was_made_of(column: str, row: int) -> None:
    uri = picture_uri("s3://bucket/train.parquet", column, row)
    assert split_picture(uri) == ("s3://bucket/train.parquet", column, row)


def test_a_list_names_pictures_in_tables(tmp_path: Path) -> None:
    write(tmp_path, parquet(table_of(FILES)))
    (tmp_path / "list.txt").write_text("t.parquet!/image/3\nt.parquet!/image/0")
    table = listed(tmp_path / "list.txt").table
    assert contents(table) == [FILES["0.png"], FILES["3.png"]]
