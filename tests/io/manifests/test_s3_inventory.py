"""An S3 Inventory: the same inputs as the listing of the bucket that it describes, without what was deleted."""

import csv
import gzip
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskrcnn.errors import UsageError
from maskrcnn.io.inputs import list_inputs
from maskrcnn.io.manifests.listings import read_listing
from maskrcnn.io.manifests.s3_inventory import DELETED, OLD_VERSION
from maskrcnn.io.manifests.skipped import counts_of
from maskrcnn.io.manifests.sources import source_of
from maskrcnn.io.storage import Storage
from maskrcnn.io.url import Url
from maskrcnn.pipeline.list_inputs import read_inputs

COLUMNS = ("Bucket", "Key", "VersionId", "IsLatest", "IsDeleteMarker", "Size", "LastModifiedDate", "ETag")
PARQUET = (
    "bucket",
    "key",
    "version_id",
    "is_latest",
    "is_delete_marker",
    "size",
    "last_modified_date",
    "e_tag",
)
KEYS = ("a b+c.jpg", "é/100%.png", 'a,b"c.jpg', "notes.txt", "LICENSE")
Row = tuple[Any, ...]


def row(
    key: str, size: int | None = 2, etag: str = "e", *, latest: bool = True, deleted: bool = False
) -> Row:
    return ("photos", key, "v", latest, deleted, size, "2026-11-29T12:00:00.000Z", etag)


def as_csv(rows: list[Row]) -> bytes:
    """Return rows as S3 writes them: all in quotes, keys URL-encoded, no header."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for bucket, key, version, latest, deleted, size, date, etag in rows:
        words = [str(flag).lower() for flag in (latest, deleted)]
        encoded = quote_plus(key, safe="/")
        writer.writerow([bucket, encoded, version, *words, "" if size is None else size, date, etag])
    return gzip.compress(text.getvalue().encode())


def as_parquet(rows: list[Row]) -> bytes:
    sink = io.BytesIO()
    columns = list(zip(*rows, strict=True)) or [()] * len(PARQUET)
    pq.write_table(pa.table(dict(zip(PARQUET, map(list, columns), strict=True))), sink)
    return sink.getvalue()


FORMS: dict[str, tuple[str, Callable[[list[Row]], bytes], str]] = {
    "csv": ("CSV", as_csv, ", ".join(COLUMNS)),
    "parquet": ("Parquet", as_parquet, "message s3.inventory { required binary bucket (UTF8); }"),
}


def write_inventory(
    root: str, form: str, parts: list[list[Row]], bucket: str = "photos", **changes: Any
) -> str:
    """Write an inventory below a folder as S3 lays it out, and return the URL of its `manifest.json`."""
    kind, pack, schema = FORMS[form]
    url, files = Url.parse(root), []
    for number, rows in enumerate(parts):
        data, name = pack(rows), f"photos/all/data/{number}.{'csv.gz' if kind == 'CSV' else 'parquet'}"
        Storage(root).write(name, data)
        key = url.join(name).key if url.scheme else f"lists/{name}"
        files.append({"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()})
    manifest = {
        "sourceBucket": bucket,
        "destinationBucket": f"arn:aws:s3:::{url.bucket or 'lists'}",
        "version": "2016-11-30",
        "fileFormat": kind,
        "fileSchema": schema,
        "files": files,
    }
    Storage(root).write("photos/all/2026-11-30T01-00Z/manifest.json", json.dumps(manifest | changes).encode())
    return url.join("photos/all/2026-11-30T01-00Z/manifest.json").text


@pytest.mark.s3
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("server", ["weed_server", "moto_server"])
def test_an_inventory_in_s3_is_the_listing_of_its_bucket(
    server: str, form: str, request: pytest.FixtureRequest
) -> None:
    root = Url.parse(request.getfixturevalue(server).prefix())
    for key in KEYS:
        Storage(root.text).write(f"in/{key}", key.encode())
    listed = list_inputs(root.join("in").text)
    etags = dict(zip(listed["name"].to_pylist(), listed["etag"].to_pylist(), strict=True))
    rows = [row(f"{root.key}/in/{key}", len(key.encode()), etags[key]) for key in KEYS]
    source = write_inventory(root.join("lists").text, form, [rows[:2], rows[2:]], root.bucket)
    expected = read_inputs(root.join("in").text, images_root=None, limit=None)
    found = read_inputs(source, images_root=None, limit=None)
    columns = ["image_id", "uri", "bytes", "etag"]
    assert found.table.select(columns).to_pylist() == expected.table.select(columns).to_pylist()
    assert counts_of(found.skipped) == counts_of(expected.skipped) == {"": 1, ".txt": 1}
    assert (found.kind, found.source_sha256) == ("listing", source_of(source)[1])
    assert (
        found.source_sha256
        == hashlib.sha256(Storage(Url.parse(source).folder.text).read("manifest.json")).hexdigest()
    )


@pytest.mark.parametrize("form", FORMS)
def test_old_versions_and_deleted_objects_are_left_out_and_counted(form: str, tmp_path: Path) -> None:
    rows = [
        row("a.jpg", 1, latest=False),
        row("a.jpg", 2),
        row("b.jpg", None, "", deleted=True),
        row("b.jpg", 1, latest=False),
        row("b.jpg", None, "", latest=False, deleted=True),
        row("folder/", 0),
        row("__MACOSX/._a.jpg"),
        row("c.jpg"),
    ]
    listing = read_listing(write_inventory(str(tmp_path), form, [rows, []]))
    assert listing.files.sort_by("name").to_pylist() == [
        {"name": name, "uri": f"s3://photos/{name}", "bytes": 2, "etag": "e"} for name in ("a.jpg", "c.jpg")
    ]
    assert counts_of(listing.skipped) == {DELETED: 1, OLD_VERSION: 3, "__MACOSX/": 1}


@pytest.mark.parametrize("form", FORMS)
def test_an_inventory_that_was_copied_is_read_where_it_lies(form: str, tmp_path: Path) -> None:
    source = write_inventory(str(tmp_path / "whole"), form, [[row(key) for key in KEYS]])
    beside = tmp_path / "flat"
    beside.mkdir()
    for file in (Path(source), *(tmp_path / "whole/photos/all/data").iterdir()):
        shutil.copy(file, beside)
    for place in (source, str(beside / "manifest.json")):
        names = read_inputs(place, images_root=None, limit=None).table["name"].to_pylist()
        assert sorted(names) == sorted(key for key in KEYS if key.endswith(("jpg", "png")))
    mirrored = read_inputs(source, images_root="/data/mirror/", limit=1).table["uri"].to_pylist()
    assert mirrored == ["/data/mirror/a b+c.jpg"]


def test_an_inventory_need_not_have_all_columns(tmp_path: Path) -> None:
    text = gzip.compress(b'"photos","a.jpg"\n"photos","b%2B.jpg"\n')
    source = write_inventory(str(tmp_path), "csv", [[]], fileSchema="Bucket, Key")
    (tmp_path / "photos/all/data/0.csv.gz").write_bytes(text)
    without_digests(source)
    assert read_listing(source).files.to_pylist() == [
        {"name": name, "uri": f"s3://photos/{name}", "bytes": None, "etag": None}
        for name in ("a.jpg", "b+.jpg")
    ]


def without_digests(source: str) -> None:
    manifest = json.loads(Path(source).read_text())
    for file in manifest["files"]:
        del file["MD5checksum"]
    Path(source).write_text(json.dumps(manifest))


def refused(source: str) -> str:
    with pytest.raises(UsageError) as caught:
        read_inputs(source, images_root=None, limit=None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_wrong_with_an_inventory_is_one_line(tmp_path: Path) -> None:
    rows = [[row("a.jpg")]]

    def said(name: str, form: str = "csv", **changes: Any) -> str:
        return refused(write_inventory(str(tmp_path / name), form, rows, **changes))

    assert said("orc", fileFormat="ORC").endswith(
        "an inventory of the format ORC is not read: let S3 write it as Apache Parquet or CSV"
    )
    assert "it is not a complete manifest of an S3 Inventory" in said("files", files=None)
    assert "its `fileSchema` has no column `Key`" in said("schema", fileSchema="Bucket, Size")
    assert "it names no files" in said("empty", files=[])
    assert "its file x.csv is at none of " in said("gone", files=[{"key": "lists/x.csv"}])
    assert "it has other columns than" in said("columns", fileSchema="Bucket, Key")
    assert "not the file of an inventory" in said(
        "order", fileSchema=", ".join(reversed(COLUMNS)).replace("IsLatest", "X")
    )

    source = write_inventory(str(tmp_path / "torn"), "csv", rows)
    data = tmp_path / "torn/photos/all/data/0.csv.gz"
    data.write_bytes(data.read_bytes()[:-5])
    assert "its MD5 differs: copy it again" in refused(source)
    without_digests(source)
    assert "0.csv.gz: it is damaged or cut off" in refused(source)
    Path(source).write_text(Path(source).read_text()[:-2])
    assert "manifest.json: " in refused(source)
