"""Whatever a user points at becomes one table, the same in whatever order it was found."""

import csv
import gzip
import hashlib
import io
import json
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import packed
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.errors import UsageError
from maskrcnn.io.inputs import list_inputs
from maskrcnn.io.manifests.skipped import counts_of
from maskrcnn.io.manifests.sources import source_of
from maskrcnn.io.storage import Storage
from maskrcnn.io.url import Url
from maskrcnn.pipeline.list_inputs import Inputs, read_inputs
from maskrcnn.pipeline.manifest_file import ManifestReader, write_manifest
from maskrcnn.schema import IMAGES, MANIFEST, METADATA, SKIPPED, images_schema


def inputs_of(source: Path | str, images_root: str | None = None, limit: int | None = None) -> Inputs:
    inputs = read_inputs(str(source), images_root=images_root, limit=limit)
    # What holds of every manifest.
    table = inputs.table
    table.validate(full=True)
    assert table.schema.metadata == METADATA
    assert [table.schema.field(i) for i in range(5)] == list(MANIFEST)
    names = [name.encode() for name in table["name"].to_pylist()]
    assert names == sorted(set(names))
    assert table["uri"].null_count == table["image_id"].null_count == 0
    further = set(table.column_names[5:])
    assert further.isdisjoint(IMAGES.names)
    assert images_schema(table.schema).names == [*IMAGES.names, *table.column_names[5:]]
    return inputs


def rows_of(inputs: Inputs, *columns: str) -> list[tuple[Any, ...]]:
    return list(zip(*(inputs.table[column].to_pylist() for column in columns), strict=True))


def refusal(source: Path | str, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        inputs_of(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(source)), "a refusal begins with what was refused"
    return message.removeprefix(str(source))


def written(path: Path, content: str | bytes | pa.Table | object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# Listings


def test_a_folder_in_every_kind_of_store(store_url: str) -> None:
    store = Storage(store_url)
    for name in ("b.JPG", "a/é.png", "a/z z.tiff", "notes.txt", "a/b.json", "README", "c.jpg.bak", "d.TXT"):
        store.write(f"in/{name}", b"12")
    root = Url.parse(store_url).join("in").text
    inputs = inputs_of(root)
    names = ["a/z z.tiff", "a/é.png", "b.JPG"]
    assert rows_of(inputs, "image_id", "name", "uri", "bytes") == [
        (i, name, Url.parse(root).join(name).text, 2) for i, name in enumerate(names, 1)
    ]
    assert inputs.table["etag"].to_pylist() == [
        dict(zip(*list_inputs(root).select(["name", "etag"]).to_pydict().values(), strict=True))[name]
        for name in names
    ]
    assert counts_of(inputs.skipped) == {"": 1, ".bak": 1, ".json": 1, ".txt": 2}
    assert (inputs.kind, inputs.ids_given) == ("listing", False)
    assert inputs.source == root
    assert inputs.source_sha256 is None
    assert inputs_of(Url.parse(root).join("**/*.png").text).table["name"].to_pylist() == ["a/é.png"]


def test_photos_of_all_common_suffixes_are_inputs(tmp_path: Path) -> None:
    names = [
        f"a.{suffix}"
        for suffix in "jpg JPEG jpe jfif mpo png webp bmp gif tif TIFF avif heic HEIF hif jp2 j2k jxl".split()
    ]
    for name in (*names, "a.psd", "a.dng", "a.jpg.xmp"):
        written(tmp_path / name, b"x")
    inputs = inputs_of(tmp_path)
    assert sorted(inputs.table["name"].to_pylist()) == sorted(names)
    assert counts_of(inputs.skipped) == {".dng": 1, ".psd": 1, ".xmp": 1}


def test_what_systems_put_beside_pictures_is_left_out_and_counted(store_url: str) -> None:
    store = Storage(store_url)
    kept = ["a.jpg", "b._c.jpg", "eaDir/a.jpg", "sub/my@eaDir.d/a.jpg"]
    beside = {
        "._": ["._a.jpg", "sub/._a.JPG"],
        "__MACOSX/": ["__MACOSX/._a.jpg", "sub/__MACOSX/a.jpg"],
        ".ipynb_checkpoints/": ["sub/.ipynb_checkpoints/a-checkpoint.jpg"],
        "@eaDir/": ["@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg"],
        "#recycle/": ["#recycle/a.jpg"],
        ".ds_store": [".DS_Store"],
        ".db": ["Thumbs.db"],
    }
    for name in (*kept, *(name for names in beside.values() for name in names)):
        store.write(f"in/{name}", b"12")
    inputs = inputs_of(Url.parse(store_url).join("in").text)
    assert sorted(inputs.table["name"].to_pylist()) == kept
    assert counts_of(inputs.skipped) == {kind: len(names) for kind, names in beside.items()}


def test_a_single_image(tmp_path: Path) -> None:
    written(tmp_path / "a.jpg", b"x")
    assert rows_of(inputs_of(tmp_path / "a.jpg"), "image_id", "name", "uri") == [
        (1, "a.jpg", str(tmp_path / "a.jpg"))
    ]


def test_nothing_to_list_is_refused(tmp_path: Path) -> None:
    assert "it does not exist" in refusal(tmp_path / "missing")
    assert "it does not exist" in refusal(tmp_path / "*.jpg")
    assert "no images; found no files" in refusal(tmp_path)
    written(tmp_path / "in" / "a.nef", b"x")
    written(tmp_path / "in" / "b.nef", b"x")
    written(tmp_path / "in" / "LICENSE", b"x")
    assert "no images; found 1 without suffix, 2 .nef; raw photographs are not read" in refusal(
        tmp_path / "in"
    )
    lists = "lists in .txt .csv .tsv .jsonl .ndjson .parquet .json"
    assert lists in refusal(written(tmp_path / "list.xlsx", "{}"))


def test_a_relative_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Workers have a working directory of their own.
    written(tmp_path / "in" / "a.jpg", b"x")
    written(tmp_path / "list.txt", "in/a.jpg\n")
    monkeypatch.chdir(tmp_path)
    for source in ("in", "in/*.jpg", "./in/", "list.txt", "in/a.jpg", "in/../in", "file://in"):
        inputs = inputs_of(source)
        assert inputs.table["uri"].to_pylist() == [str(tmp_path / "in" / "a.jpg")]
        assert Path(inputs.source).is_absolute()
    assert source_of("in/../in") == source_of("in") == (str(tmp_path / "in"), None)


def test_a_folder_with_the_name_of_a_manifest_is_a_folder(tmp_path: Path) -> None:
    written(tmp_path / "in.csv" / "a.jpg", b"x")
    assert inputs_of(tmp_path / "in.csv").table["name"].to_pylist() == ["a.jpg"]
    written(tmp_path / "m.csv" / "part-0.csv", "uri\na.jpg\n")
    said = refusal(tmp_path / "m.csv")
    assert "no images; found 1 .csv" in said
    assert said.endswith(f"; for the lists in this folder, use {tmp_path}/m.csv/*.csv")
    assert inputs_of(tmp_path / "m.csv" / "*.csv").table["name"].to_pylist() == ["a.jpg"]


@pytest.mark.s3
def test_a_prefix_with_the_name_of_a_manifest_ends_in_a_slash(moto_server: Any) -> None:
    root = moto_server.prefix()
    Storage(root).write("in.csv/a.jpg", b"x")
    assert inputs_of(f"{root}/in.csv/").table["name"].to_pylist() == ["a.jpg"]
    assert "if it is a folder, end its name with /" in refusal(f"{root}/in.csv")


@pytest.mark.parametrize("source", ["", " ", "file://", "s3://", "s3:///"])
def test_an_input_has_a_name(source: str) -> None:
    for ask in (lambda: source_of(source), lambda: inputs_of(source)):
        with pytest.raises(UsageError, match="names no input"):
            ask()


def test_an_input_whose_own_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"in\\udce9': the name is not UTF-8: rename it"):
        inputs_of(os.fsdecode(os.fsencode(tmp_path) + b"/in\xe9"))


def test_a_root_is_for_manifests(tmp_path: Path) -> None:
    written(tmp_path / "in" / "a.jpg", b"x")
    for source in (tmp_path / "in", tmp_path / "in" / "*.jpg", tmp_path / "in" / "a.jpg"):
        said = refusal(source, images_root=str(tmp_path))
        assert "--images-root is for manifests and COCO JSON" in said


# Manifests

SAME: dict[str, Callable[[Path], Path]] = {
    "txt": lambda folder: written(folder / "m.txt", "b.jpg\na b.jpg\n"),
    "txt-no-last-newline": lambda folder: written(folder / "m.txt", "b.jpg\na b.jpg"),
    "txt-crlf-bom-blank": lambda folder: written(
        folder / "m.txt", b"\xef\xbb\xbfb.jpg\r\n\r\n  \r\na b.jpg\r\n\r\n"
    ),
    "txt-cr": lambda folder: written(folder / "m.txt", b"b.jpg\ra b.jpg\r"),
    "txt-cr-no-last": lambda folder: written(folder / "m.txt", b"b.jpg\ra b.jpg"),
    "txt-mixed-ends": lambda folder: written(folder / "m.txt", b"\rb.jpg\r\r\na b.jpg\n\r"),
    "csv": lambda folder: written(folder / "m.csv", "uri\nb.jpg\na b.jpg\n"),
    "csv-cr": lambda folder: written(folder / "m.csv", b"uri\rb.jpg\ra b.jpg\r"),
    "csv-crlf-bom-quotes": lambda folder: written(
        folder / "m.csv", b'\xef\xbb\xbf"uri"\r\n"b.jpg"\r\na b.jpg\r\n'
    ),
    "csv-upper": lambda folder: written(folder / "M.CSV", "uri\nb.jpg\na b.jpg\n"),
    "parquet": lambda folder: written(folder / "m.parquet", pa.table({"uri": ["b.jpg", "a b.jpg"]})),
    "parquet-dictionary": lambda folder: written(
        folder / "m.parquet", pa.table({"uri": pa.array(["b.jpg", "a b.jpg"]).dictionary_encode()})
    ),
    "parquet-large": lambda folder: written(
        folder / "m.parquet", pa.table({"uri": pa.array(["b.jpg", "a b.jpg"], pa.large_string())})
    ),
    "parquet-view": lambda folder: written(
        folder / "m.parquet", pa.table({"uri": pa.array(["b.jpg", "a b.jpg"], pa.string_view())})
    ),
    "coco": lambda folder: written(
        folder / "m.json", {"images": [{"file_name": "b.jpg"}, {"file_name": "a b.jpg"}]}
    ),
    "tsv": lambda folder: written(folder / "m.tsv", "uri\nb.jpg\na b.jpg\n"),
    "tsv-crlf-bom-quotes": lambda folder: written(
        folder / "m.tsv", b'\xef\xbb\xbf"uri"\r\n"b.jpg"\r\na b.jpg\r\n'
    ),
    "jsonl": lambda folder: written(folder / "m.jsonl", '{"uri": "b.jpg"}\n{"uri": "a b.jpg"}\n'),
    "ndjson-crlf-bom-blank": lambda folder: written(
        folder / "m.ndjson", b'\xef\xbb\xbf{"uri": "b.jpg"}\r\n\r\n  \n{"uri":"a b.jpg"}'
    ),
    "txt.gz": lambda folder: written(folder / "m.txt.gz", gzip.compress(b"b.jpg\na b.jpg\n")),
    "csv.gz": lambda folder: written(folder / "M.CSV.GZ", gzip.compress(b"uri\nb.jpg\na b.jpg\n")),
    "tsv.gz": lambda folder: written(folder / "m.tsv.gz", gzip.compress(b"uri\nb.jpg\na b.jpg\n")),
    "jsonl.gz-two-members": lambda folder: written(
        folder / "m.jsonl.gz", gzip.compress(b'{"uri": "b.jpg"}\n') + gzip.compress(b'{"uri": "a b.jpg"}\n')
    ),
    "megadetector": lambda folder: written(
        folder / "m.json", {"images": [{"file": "b.jpg"}, {"file": "a b.jpg"}], "detection_categories": {}}
    ),
}
ADDED_BY_MEGADETECTOR = ["n_detections", "max_detection_conf"]


@pytest.mark.parametrize("kind", SAME)
def test_each_kind_of_manifest_says_the_same(kind: str, tmp_path: Path) -> None:
    source = SAME[kind](tmp_path)
    inputs = inputs_of(source)
    assert rows_of(inputs, "image_id", "name", "uri", "bytes", "etag") == [
        (1, "a b.jpg", f"{tmp_path}/a b.jpg", None, None),
        (2, "b.jpg", f"{tmp_path}/b.jpg", None, None),
    ]
    added = ADDED_BY_MEGADETECTOR if kind == "megadetector" else []
    assert inputs.table.column_names == [*MANIFEST.names, *added]
    assert not inputs.ids_given
    assert inputs.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert source_of(str(source)) == (str(source), inputs.source_sha256)


def test_a_manifest_in_every_kind_of_store(store_url: str) -> None:
    store = Storage(store_url)
    store.write("lists/m.txt", b"sub/a.jpg\n/abs/b.jpg\ns3://bucket/c.jpg\n")
    inputs = inputs_of(Url.parse(store_url).join("lists/m.txt").text)
    assert inputs.table["uri"].to_pylist() == [
        "/abs/b.jpg",
        "s3://bucket/c.jpg",
        Url.parse(store_url).join("lists/sub/a.jpg").text,
    ]
    rooted = inputs_of(Url.parse(store_url).join("lists/m.txt").text, images_root="s3://pictures/all/")
    assert rooted.table["uri"].to_pylist()[2] == "s3://pictures/all/sub/a.jpg"


def test_odd_uris_stand_as_they_are(tmp_path: Path) -> None:
    odd = [
        "a#1.jpg",
        "a%20b.jpg",
        "a,b.jpg",
        "a'b\".jpg",
        "é.jpg",
        "x?y=1",
        "../up.jpg",
    ]
    inputs = inputs_of(written(tmp_path / "m.txt", "\n".join(odd)))
    assert set(rows_of(inputs, "name", "uri")) == {(uri, f"{tmp_path}/{uri}") for uri in odd}
    dotted = inputs_of(written(tmp_path / "n.txt", "./a.jpg\n././b.jpg\n"))
    assert rows_of(dotted, "name", "uri") == [
        ("././b.jpg", f"{tmp_path}/b.jpg"),
        ("./a.jpg", f"{tmp_path}/a.jpg"),
    ]


def test_blanks_around_uris_are_taken_off(tmp_path: Path) -> None:
    expected = [("a b.jpg", f"{tmp_path}/a b.jpg"), ("c.jpg", f"{tmp_path}/c.jpg")]
    assert (
        rows_of(inputs_of(written(tmp_path / "m.txt", " a b.jpg\t\nc.jpg \r\n")), "name", "uri") == expected
    )
    source = written(tmp_path / "m.csv", "n,uri\n1, a b.jpg \n2,c.jpg\t\n")
    assert rows_of(inputs_of(source), "name", "uri") == expected


def test_uris_of_files_are_read_as_java_pathlib_and_windows_write_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = written(tmp_path / "my pics" / "größe 100%.png", b"x")
    written(tmp_path / "b.png", b"x")
    uris = [
        picture.as_uri(),
        f"file:{picture}",
        f"file://localhost{picture}",
        "my pics\\größe 100%.png",
        ".\\b.png",
    ]
    inputs = inputs_of(written(tmp_path / "m.txt", "\n".join(uris)))
    assert set(inputs.table["name"].to_pylist()) == set(uris)
    found = dict(rows_of(inputs, "name", "uri"))
    assert [Url.parse(found[uri]).local_path for uri in uris] == [*[picture] * 4, tmp_path / "b.png"]
    assert caplog.record_tuples == []


def test_backslashes_that_lead_nowhere_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uris = ["C:\\a.png", "s3://bucket/a\\b.png", "c.png"]
    inputs = inputs_of(source := written(tmp_path / "m.txt", "\n".join(uris)))
    assert set(inputs.table["uri"].to_pylist()) == {f"{tmp_path}/C:\\a.png", uris[1], f"{tmp_path}/c.png"}
    assert [record.getMessage() for record in caplog.records] == [
        f"{source} has 2 uris with backslashes, which name no folders here, and no files with `/` instead: "
        f"{str(tmp_path) + '/C:' + chr(92) + 'a.png'!r}, {uris[1]!r}"
    ]


def test_a_coco_file_from_windows_finds_its_images(tmp_path: Path) -> None:
    written(tmp_path / "images" / "sub" / "b.png", b"x")
    source = written(tmp_path / "m.json", {"images": [{"id": 3, "file_name": "sub\\b.png"}]})
    expected = [(3, "sub\\b.png", f"{tmp_path}/images/sub/b.png")]
    assert rows_of(inputs_of(source), "image_id", "name", "uri") == expected


def test_names_and_one_uri_under_two_of_them(tmp_path: Path) -> None:
    source = written(tmp_path / "m.csv", "uri,name\nx.jpg,second\nx.jpg,first\ny.jpg,\n")
    assert rows_of(inputs_of(source), "name", "uri") == [
        ("first", f"{tmp_path}/x.jpg"),
        ("second", f"{tmp_path}/x.jpg"),
        ("y.jpg", f"{tmp_path}/y.jpg"),
    ]


def test_names_are_ordered_as_utf8_bytes(tmp_path: Path) -> None:
    names = ["z", "Z", "é", "￿", "\U0001f600", "10", "9", "a/b", "a b", "a"]
    inputs = inputs_of(written(tmp_path / "m.txt", "\n".join(names)))
    assert inputs.table["name"].to_pylist() == sorted(names, key=str.encode)


@pytest.mark.slow
@given(
    st.lists(
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs", "Cc", "Z"]), min_size=1),
        unique=True,
        min_size=1,
    ),
    st.randoms(),
)
@settings(max_examples=50)
def test_the_order_of_a_manifest_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], shuffle: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("order")
    uris = [f"s3://bucket/{name}" for name in names]
    first = inputs_of(written(folder / "m.txt", "\n".join(uris)))
    shuffle.shuffle(uris)
    second = inputs_of(written(folder / "m.txt", "\n".join(uris)))
    assert first.table == second.table


# One manifest in several forms, and in several files

DRAWN = {
    "n": st.integers(-(2**63), 2**63 - 1),
    "score": st.floats(allow_nan=False, allow_infinity=False),
    "used": st.booleans(),
    "note": st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=5).map(
        lambda text: f"x{text}"
    ),
}
ROWS = st.lists(
    st.fixed_dictionaries({"uri": st.uuids().map("s3://b/{}.jpg".format)} | DRAWN), min_size=1, max_size=6
)


def as_csv(rows: list[dict[str, Any]], separator: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


@pytest.mark.slow
@given(ROWS, st.integers(0, 6))
@settings(max_examples=40)
def test_the_same_rows_are_the_same_inputs_in_every_form_and_however_divided(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], at: int
) -> None:
    folder = tmp_path_factory.mktemp("law")
    expected = inputs_of(written(folder / "m.parquet", pa.Table.from_pylist(rows))).table
    first, rest = (rows[:at], rows[at:]) if 0 < at < len(rows) else (rows, rows)
    forms: dict[str, Callable[[list[dict[str, Any]]], bytes | pa.Table]] = {
        "csv": lambda some: as_csv(some, ","),
        "tsv": lambda some: as_csv(some, "\t"),
        "jsonl": as_json_lines,
        "csv.gz": lambda some: gzip.compress(as_csv(some, ","), 1),
        "parquet": pa.Table.from_pylist,
    }
    for suffix, form in forms.items():
        found = [inputs_of(written(folder / f"m.{suffix}", form(rows))).table]
        if rest is not rows:
            written(folder / suffix / f"0.{suffix}", form(first))
            written(folder / suffix / f"1.{suffix}", form(rest))
            found.append(inputs_of(folder / suffix / f"*.{suffix}").table)
        for table in found:
            assert table.to_pylist() == expected.to_pylist(), suffix
            assert table.column_names == expected.column_names


def test_a_folder_of_parquet_files_is_one_manifest_in_every_kind_of_store(store_url: str) -> None:
    store = Storage(store_url)
    parts = {
        "year=2024/site=A%20B/0.parquet": pa.table({"uri": ["pics/b.jpg"], "n": [1]}),
        "year=2025/site=C/0.parquet": pa.table({"uri": ["s3://other/a.jpg"], "m": ["x"]}),
    }
    for name, table in parts.items():
        sink = io.BytesIO()
        pq.write_table(table, sink)
        store.write(f"lists/{name}", sink.getvalue())
    for beside in ("_SUCCESS", "_metadata/old.parquet", "year=2024/notes.md"):
        store.write(f"lists/{beside}", b"")
    root = Url.parse(store_url).join("lists").text
    for source in (root, f"{root}/", f"{root}/**/*.parquet", f"{root}/year=*/*/*.parquet"):
        inputs = inputs_of(source)
        assert rows_of(inputs, "name", "uri", "n", "m", "year", "site") == [
            ("pics/b.jpg", f"{root}/pics/b.jpg", 1, None, 2024, "A B"),
            ("s3://other/a.jpg", "s3://other/a.jpg", None, "x", 2025, "C"),
        ]
        assert (inputs.kind, inputs.source_sha256, source_of(source)[1]) == ("manifest", None, None)
    assert counts_of(inputs_of(root).skipped) == {"": 1, ".md": 1, ".parquet": 1}
    rooted = inputs_of(root, images_root="s3://pictures")
    assert rooted.table["uri"].to_pylist()[0] == "s3://pictures/pics/b.jpg"


def test_a_folder_with_pictures_is_one_of_pictures_whatever_tables_it_has(tmp_path: Path) -> None:
    written(tmp_path / "m.parquet", pa.table({"uri": ["x.jpg"]}))
    written(tmp_path / "a.jpg", b"x")
    inputs = inputs_of(tmp_path)
    assert inputs.table["name"].to_pylist() == ["a.jpg"]
    assert counts_of(inputs.skipped) == {".parquet": 1}
    assert inputs_of(tmp_path / "*.parquet").table["name"].to_pylist() == ["x.jpg"]


def test_the_output_of_a_run_is_no_manifest_and_its_table_of_images_is(tmp_path: Path) -> None:
    for name in ("run.json", "plan.json"):
        written(tmp_path / "out" / name, "{}")
    written(tmp_path / "out" / "images" / "part-0.parquet", pa.table({"uri": ["x.jpg"]}))
    assert "no images; found 2 .json, 1 .parquet" in refusal(tmp_path / "out")
    assert inputs_of(tmp_path / "out" / "images").table["name"].to_pylist() == ["x.jpg"]


def test_a_file_whose_name_has_a_wildcard_is_that_file(store_url: str) -> None:
    store = Storage(store_url)
    store.write("m[1].txt", b"s3://b/a.jpg")
    store.write("m1.txt", b"s3://b/b.jpg")
    assert inputs_of(Url.parse(store_url).join("m[1].txt").text).table["name"].to_pylist() == ["s3://b/a.jpg"]


def test_all_that_is_skipped_is_listed_with_what_it_is(tmp_path: Path) -> None:
    for name in ("a.jpg", "notes.TXT", "LICENSE", "sub/._a.jpg", "__MACOSX/a.jpg"):
        written(tmp_path / name, b"12")
    for name in ("run.json", "plan.json", "images/part-0.jpg"):
        written(tmp_path / "out" / name, b"12")
    written(tmp_path / "x.tar", packed("x.tar", {"b.jpg": b"1", "b.txt": b"123", "__MACOSX/b.jpg": b"1"}))
    inputs = read_inputs(str(tmp_path), images_root=None, limit=None)
    assert inputs.table["name"].to_pylist() == ["a.jpg", "x.tar!/b.jpg"]
    inputs.skipped.validate(full=True)
    assert inputs.skipped.schema.equals(SKIPPED, check_metadata=True)
    assert inputs.skipped.to_pylist() == [
        {"name": name, "uri": f"{tmp_path}/{name}", "bytes": size, "kind": kind}
        for name, size, kind in (
            ("out/images/part-0.jpg", 2, "in out/, the output of a run"),
            ("out/plan.json", 2, "in out/, the output of a run"),
            ("out/run.json", 2, "in out/, the output of a run"),
            ("sub/._a.jpg", 2, "._"),
            ("__MACOSX/a.jpg", 2, "__MACOSX/"),
            ("x.tar!/__MACOSX/b.jpg", 1, "__MACOSX/"),
            ("LICENSE", 2, ""),
            ("notes.TXT", 2, ".txt"),
            ("x.tar!/b.txt", 3, ".txt"),
        )
    ]
    assert list(counts_of(inputs.skipped)) == ["in out/, the output of a run", "._", "__MACOSX/", "", ".txt"]


# Ids and further columns


DECIMALS = [
    pa.array([7, 3], kind) for kind in (pa.decimal128(38, 0), pa.decimal128(10, 2), pa.decimal256(76, 0))
]


@pytest.mark.parametrize("ids", [[7, 3], [0, 2**40], [7.0, 3.0], *DECIMALS], ids=str)
def test_ids_that_are_integers_are_kept(tmp_path: Path, ids: list[float]) -> None:
    inputs = inputs_of(written(tmp_path / "m.parquet", pa.table({"uri": ["b", "a"], "image_id": ids})))
    ids = ids.to_pylist() if isinstance(ids, pa.Array) else ids
    assert rows_of(inputs, "name", "image_id") == [("a", ids[1]), ("b", ids[0])]
    assert inputs.ids_given
    assert inputs.table.column_names == MANIFEST.names


@pytest.mark.parametrize("ids", [[7, -3], [7, None], [7.5, 3.0], ["x", "y"], [True, False], [2**63, 1]])
def test_other_ids_are_counted_and_carried(
    tmp_path: Path, ids: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    table = pa.table({"uri": ["b", "a"], "image_id": pa.array(ids, pa.uint64() if 2**63 in ids else None)})
    inputs = inputs_of(written(tmp_path / "m.parquet", table))
    assert rows_of(inputs, "image_id", "input_image_id") == [(1, ids[1]), (2, ids[0])]
    assert not inputs.ids_given
    assert caplog.record_tuples == [
        (
            "maskrcnn",
            logging.WARNING,
            "the ids are not all integers >= 0; images are numbered in order of name, and "
            "the given ids are in the column input_image_id",
        )
    ]


def test_further_columns_are_carried(tmp_path: Path) -> None:
    table = pa.table(
        {
            "width": [1, 2],
            "plot": pa.array(["p", "p"]).dictionary_encode(),
            "uri": ["b", "a"],
            "bytes": pa.array([10, None], pa.int32()),
            "etag": ["e1", "e2"],
            "where": [{"lon": 1.5}, {"lon": 2.5}],
            "nothing": pa.nulls(2),
            "input_width": [3, 4],
            "status": ["x", "y"],
        }
    )
    inputs = inputs_of(written(tmp_path / "m.parquet", table))
    assert inputs.table.column_names[5:] == [
        *("input_input_width", "plot", "where", "nothing", "input_width", "input_status"),
    ]
    assert rows_of(inputs, "bytes", "etag", "plot", "where", "input_width", "input_input_width") == [
        (None, "e2", "p", {"lon": 2.5}, 4, 2),
        (10, "e1", "p", {"lon": 1.5}, 3, 1),
    ]
    assert inputs.table.schema.field("nothing").type == pa.string()
    assert inputs.table.schema.field("plot").type == pa.string()


def test_sizes_that_are_decimals_are_sizes(tmp_path: Path) -> None:
    table = pa.table({"uri": ["a", "b"], "bytes": pa.array([247, None], pa.decimal128(38, 0))})
    assert rows_of(inputs_of(written(tmp_path / "m.parquet", table)), "bytes") == [(247,), (None,)]


def test_columns_of_a_csv_are_carried_as_they_were_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["uri,image_id,site,big,ver,n,Status,,NAME", "a,07,007,12345678901234567890,1.10,7,train,0,x"]
    inputs = inputs_of(written(tmp_path / "m.csv", "\n".join([*lines, "b,08,NA,1,2.0,,val,1,y"])))
    assert not inputs.ids_given
    carried = inputs.table.select(inputs.table.column_names[5:])
    assert carried.to_pylist() == [
        {
            "input_image_id": "07",
            "site": "007",
            "big": "12345678901234567890",
            "ver": "1.10",
            "n": 7,
            "input_Status": "train",
            "column_8": 0,
            "input_NAME": "x",
        },
        {
            "input_image_id": "08",
            "site": "NA",
            "big": "1",
            "ver": "2.0",
            "n": None,
            "input_Status": "val",
            "column_8": 1,
            "input_NAME": "y",
        },
    ]
    assert "the given ids are in the column input_image_id" in caplog.text


def test_a_column_of_any_type_is_carried(tmp_path: Path) -> None:
    tensor = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int32(), [2, 2]), pa.array([[1, 2, 3, 4]] * 2, pa.list_(pa.int32(), 4))
    )
    table = pa.table({"uri": ["b", "a"], "view": pa.array(["x", "y"], pa.string_view()), "tensor": tensor})
    inputs = inputs_of(written(tmp_path / "m.parquet", table))
    assert rows_of(inputs, "name", "view", "tensor") == [("a", "y", [1, 2, 3, 4]), ("b", "x", [1, 2, 3, 4])]


def test_bytes_and_etags_of_another_type_are_carried(tmp_path: Path) -> None:
    table = pa.table({"uri": ["a"], "bytes": ["many"], "etag": [1]})
    inputs = inputs_of(written(tmp_path / "m.parquet", table))
    assert rows_of(inputs, "bytes", "etag", "input_bytes", "input_etag") == [(None, None, "many", 1)]


@pytest.mark.slow
def test_a_csvs_types_are_decided_by_all_of_its_rows(tmp_path: Path) -> None:
    lines = [f"{i}.jpg,{i},{i}" for i in range(200_000)] + ["last.jpg,200000,many"]
    inputs = inputs_of(written(tmp_path / "m.csv", "\n".join(["uri,image_id,plot", *lines])))
    assert inputs.ids_given
    assert inputs.table.schema.field("plot").type == pa.string()
    assert inputs.table["plot"].to_pylist()[-1] == "many"


def test_a_csv_may_quote_commas_and_line_ends(tmp_path: Path) -> None:
    source = written(tmp_path / "m.csv", 'uri,note\n"a,1.jpg","two\nlines"\n"say ""hi"".jpg",x\n')
    assert rows_of(inputs_of(source), "name", "note") == [("a,1.jpg", "two\nlines"), ('say "hi".jpg', "x")]


def test_coco_ids_and_columns_are_kept(tmp_path: Path) -> None:
    images = [
        {"id": 9, "file_name": "val/b.jpg", "width": 640, "height": 480, "license": 1},
        {"id": 4, "file_name": "val/a.jpg", "width": 640, "height": 480, "mixed": 1, "name": "other"},
        {"id": 5, "file_name": "s3://bucket/c.jpg", "mixed": "text"},
    ]
    source = written(tmp_path / "ann" / "instances.json", {"images": images, "annotations": []})
    inputs = inputs_of(source, images_root=str(tmp_path / "images"))
    assert inputs.kind == "coco"
    assert rows_of(inputs, "image_id", "name", "uri", "input_width", "license", "mixed", "input_name") == [
        (5, "s3://bucket/c.jpg", "s3://bucket/c.jpg", None, None, '"text"', None),
        (4, "val/a.jpg", f"{tmp_path}/images/val/a.jpg", 640, None, "1", "other"),
        (9, "val/b.jpg", f"{tmp_path}/images/val/b.jpg", 640, 1, "null", None),
    ]
    assert inputs_of(source).table["uri"].to_pylist()[1] == f"{tmp_path}/ann/val/a.jpg"


def test_keys_of_coco_that_we_name_ourselves_are_all_kept(tmp_path: Path) -> None:
    image = {"file_name": "a", "id": 7, "image_id": 8, "input_image_id": 9, "uri": 1, "input_uri": 2}
    inputs = inputs_of(written(tmp_path / "m.json", {"images": [image]}))
    columns = ("image_id", "input_input_image_id", "input_image_id", "input_input_uri", "input_uri")
    assert rows_of(inputs, *columns) == [(7, 8, 9, 1, 2)]
    assert len(inputs.table.column_names) == 5 + 4

    other = inputs_of(written(tmp_path / "n.json", {"images": [image | {"id": "seven"}]}))
    carried = {name: other.table[name].to_pylist() for name in other.table.column_names[5:]}
    assert sorted(map(str, (value for [value] in carried.values()))) == ["1", "2", "8", "9", "seven"]
    assert "seven" in carried["input_image_id"] or "seven" in carried["input_input_input_image_id"]


NESTED: list[Any] = []
for _ in range(300):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    "value",
    [{}, [{}], {"x": {}}, 2**63, -(2**70), {"x": [2**64]}, "a\ud800", {"a\ud800": 1}, NESTED, [1, "a"]],
    ids=lambda value: json.dumps(value)[:20],
)
@pytest.mark.parametrize("others", [[], [None], [{"x": 1}]])
def test_what_no_table_holds_is_carried_as_json(tmp_path: Path, value: Any, others: list[Any]) -> None:
    values = [value, *others]
    images = [{"file_name": f"{i}", "id": i, "meta": value} for i, value in enumerate(values)]
    inputs = inputs_of(written(tmp_path / "m.json", {"images": images}))
    carried = inputs.table["meta"].to_pylist()
    if inputs.table.schema.field("meta").type == pa.string():
        carried = [json.loads(text) for text in carried]
    if others != [{"x": 1}]:  # else a struct of all keys
        assert carried == values
    write_manifest(Storage(str(tmp_path)), inputs.table)
    assert ManifestReader(Storage(str(tmp_path))).rows(0, len(values)) == inputs.table


def test_an_id_of_more_than_64_bits_is_carried(tmp_path: Path) -> None:
    inputs = inputs_of(written(tmp_path / "m.json", {"images": [{"file_name": "a", "id": 2**70}]}))
    assert rows_of(inputs, "image_id", "input_image_id") == [(1, str(2**70))]


def test_a_limit_keeps_the_first_by_name(tmp_path: Path) -> None:
    source = written(tmp_path / "m.txt", "c\na\nb\n")
    assert rows_of(inputs_of(source, limit=2), "image_id", "name") == [(1, "a"), (2, "b")]
    assert inputs_of(source, limit=9).table.num_rows == 3


# Refusals


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.txt", "", "no rows"),
        ("m.txt", "\n \n\r\n", "no rows"),
        ("m.txt", b"a\n\xff\n", "line 2 is not UTF-8: save it as UTF-8"),
        ("m.txt", "a\n".encode("utf-16"), "it is UTF-16 or not text: save it as UTF-8"),
        ("m.txt", "a\n".encode("utf-16-be"), "save it as UTF-8"),
        ("m.csv", "uri\na\n".encode("utf-16"), "save it as UTF-8"),
        ("m.csv", "uri,größe\na,1\n".encode("latin-1"), "line 1 is not UTF-8: save it as UTF-8"),
        ("m.txt", "a\nb\na\nb\nc\n", "2 rows with the same uri as another row: 'a', 'b'"),
        ("m.csv", "uri,name\na,x\nb,x\n", "1 row with the same name as another row: 'x'"),
        (
            "m.txt",
            "http://host/a.jpg\nb\n",
            "on the web, without --allow-http: 'http://host/a.jpg'",
        ),
        (
            "m.txt",
            "gopher://host/a.jpg\n",
            "of an unsupported scheme, not s3://, gs:// or az://: 'gopher://host/a.jpg'",
        ),
        ("m.txt", "FILE://localhostile/a.jpg\n", "1 uri of files without an absolute path, as in file:///…"),
        ("m.csv", "", ": it is empty: write a header with a column `uri`"),
        ("m.csv", "\n \n", "it is empty"),
        ("m.csv", "uri\n", "no rows"),
        (
            "m.csv",
            "path,size\na,1\n",
            "no column `uri`; found 'path', 'size'; rename 'path' if that is meant",
        ),
        ("m.csv", "URI\na\n", "rename 'URI' if that is meant"),
        ("m.csv", "x,y\n1,2\n", "no column `uri`; found 'x', 'y'"),
        (
            "m.csv",
            "uri;name\na;b\n",
            "no column `uri`, its columns are separated by semicolons: separate them by commas",
        ),
        ("m.csv", "uri\tname\na\tb\n", "separated by tabs: separate them by commas"),
        ("m.csv", "uri,uri\na,b\n", "several columns have the name 'uri'"),
        (
            "m.csv",
            "uri,n\na,1\nb\n",
            "line 3 has 1 value, and the header 2: give each line one value per column",
        ),
        ("m.csv", 'uri,n\na,"x\ny"\n\nb,1,2\n', "line 5 has 3 values, and the header 2"),
        ("m.csv", "uri,n\r\na,1\r\nb\r\n", "line 3 has 1 value"),
        ("m.csv", f"uri,n\na,{'x' * 200_000}\nb,1,2\n", "line 3 has 3 values"),
        ("m.csv", "uri,n\na,1\n,2\n  ,3\n", "2 rows without a uri"),
        ("m.csv", f"uri\n{'a' * 8193}\n", "the column `uri` has a text of more than 8,192 bytes"),
        ("m.csv", f"uri,name\na,{'a' * 8193}\n", "the column `name` has a text of more than 8,192 bytes"),
        (
            "m.csv",
            ",".join(["uri", *map(str, range(10_000))]) + "\n",
            "10,001 columns, and at most 10,000 can be carried",
        ),
        (
            "m.json",
            {"images": [{"file_name": "a"} | {str(key): 1 for key in range(10_001)}]},
            "its images have 10,001 different keys, and at most 10,000 can be carried",
        ),
        ("m.json", '{"images": []}'.encode("utf-16"), "it is not UTF-8"),
        ("m.csv", "uri,image_id\na,1\nb,2\nc,1\n", "1 row with the same image_id as another row: 1"),
        ("m.parquet", b"no parquet", ": it is no Parquet file: write or copy it again"),
        ("m.parquet", b"", "it is no Parquet file"),
        ("m.parquet", b"PAR1" + bytes(100), "it is damaged or cut off: write or copy it again"),
        ("m.parquet", pa.table({"uri": [1, 2]}), "the column `uri` contains int64; it must be text"),
        (
            "m.parquet",
            pa.table({"uri": ["a"], "name": [1]}),
            "the column `name` contains int64; it must be text",
        ),
        ("m.parquet", pa.table({"uri": ["a", None]}), "1 row without a uri"),
        ("m.parquet", pa.table({"uri": pa.array([], pa.string())}), "no rows"),
        ("m.tsv", "uri,n\na,1\n", "its columns are separated by commas: separate them by tabs"),
        ("m.tsv", "uri\tn\na\t1\nb\n", "line 3 has 1 value, and the header 2"),
        ("m.tsv", 'uri\tn\na\t"1\n', "line 2 or after it does not end: close its quotes"),
        ("m.tsv", "", ": it is empty: write a header"),
        ("m.jsonl", "", "no rows"),
        ("m.jsonl", "[1]\n", "line 1 holds [1] instead of an object: write one object per line"),
        ("m.jsonl", '{\n"uri": "a"}', "line 1 is not one JSON value"),
        (
            "m.jsonl",
            '{"uri": "a"} {"uri": "b"}',
            "line 1 is not one JSON value (Extra data): write one object",
        ),
        ("m.jsonl", '{"uri": "a"}\n{"uri": 7}', "line 2 has 7 as `uri`, which must be text"),
        ("m.jsonl", '{"uri": "a", "name": ["b"]}', 'line 1 has ["b"] as `name`, which must be text'),
        ("m.jsonl", '{"uri": "a", "uri": "b"}', "line 1 has the key 'uri' twice: rename or remove one"),
        ("m.jsonl", '{"uri": "a"}\n{"n": 1}', "1 row without a uri"),
        ("m.jsonl", '{"path": "a"}', "no column `uri`; found 'path'; rename 'path' if that is meant"),
        ("m.jsonl", '{"uri": "a\\ud800"}', r"'a\ud800' is not valid text"),
        ("m.jsonl", '{"a":' * 99_999, "line 1 is nested too deeply to be read: leave it out"),
        ("m.jsonl", '{"uri": "a", "n": ' + "9" * 9999 + "}", "line 1 holds a number of too many digits"),
        (
            "m.jsonl",
            json.dumps({"uri": "a"} | {str(key): 1 for key in range(10_000)}),
            "its objects have more than 10,000 different keys",
        ),
        ("m.jsonl", '{"uri": "größe"}'.encode("latin-1"), "line 1 is not UTF-8: save it as UTF-8"),
        ("m.csv.gz", b"uri\na\n", ": it is no gzip file: compress it, or take .gz off its name"),
        (
            "m.csv.gz",
            gzip.compress(b"uri\na\n", mtime=0)[:-9],
            ": it is damaged or cut off: write or copy it again",
        ),
        (
            "m.csv.gz",
            gzip.compress(b"uri\na\n", mtime=0)[:-8] + bytes(8),
            ": it is damaged: write or copy it again",
        ),
        (
            "m.csv.gz",
            gzip.compress(b"uri\na\n", mtime=0) + b"more",
            ": it is damaged: write or copy it again",
        ),
        ("m.csv.gz", b"", ": it is empty: write a header"),
        ("m.txt.gz", gzip.compress(b"a\n\xff\n", mtime=0), "line 2 is not UTF-8"),
        ("m.json", "", ": it is empty, and not JSON: write or copy it again"),
        ("m.json", "[1]", "not a COCO dataset but a list"),
        ("m.json", {"images": [1]}, "not a COCO dataset: `images` holds 1"),
        ("m.json", {"images": []}, "no rows"),
        ("m.json", {"images": [{"id": 1}]}, "without `file_name`"),
        ("m.json", {"images": [{"file_name": "a\ud800"}]}, r"'a\ud800' is not valid text"),
        ("m.json", {"images": [{"file_name": "a", "b\ud800": 1}]}, r"'b\ud800' is not valid text"),
        ("m.json", {"images": [{"file_name": "a"}] * 2}, "1 row with the same file_name as another row: 'a'"),
        (
            "m.json",
            '{\n"images": ' + "[" * 99_999,
            "the value in line 2 is nested too deeply to be read: leave it out",
        ),
        ("m.json", '{\n"info": ' + '{"a":' * 99_999, "the value in line 2 is nested too deeply"),
        (
            "m.json",
            '{"images": [\n' + "9" * 9999 + "]}",
            "the value in line 2 holds a number of too many digits",
        ),
        (
            "m.json",
            {"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]},
            "same image_id as another",
        ),
    ],
)
def test_a_manifest_that_cannot_stand_is_refused_in_one_line(
    tmp_path: Path, name: str, content: Any, said: str
) -> None:
    assert said in refusal(written(tmp_path / name, content))


def test_a_manifest_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.parquet").mkdir()
    assert "no images; found no files" in refusal(tmp_path / "folder.parquet")
    assert "it does not exist" in refusal(tmp_path / "missing.csv")


def test_the_web_is_no_input() -> None:
    assert "the web cannot be listed" in refusal("https://host/images/")
    assert "and add --allow-http" in refusal("HTTP://host/m.csv")


@pytest.mark.s3
def test_a_missing_bucket_is_the_users_fault(moto_server: object) -> None:
    assert "there is no bucket 'no-such-bucket'" in refusal("s3://no-such-bucket/in/")
    assert "there is no bucket 'no-such-bucket'" in refusal("s3://no-such-bucket/m.csv")
