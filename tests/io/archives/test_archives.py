"""Laws of archives: what is packed is listed, once each, and read back byte for byte, from every store."""

import gzip
import io
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable

import pyarrow as pa
import pytest
from archives import KINDS, add, packed
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.errors import ItemError
from maskrcnn.io.archives.archive_index import read_index
from maskrcnn.io.archives.list_members import list_members
from maskrcnn.io.archives.member import member_uri, split_member
from maskrcnn.io.inputs import INPUTS, open_input, read_input, stat_input
from maskrcnn.io.storage import Storage
from maskrcnn.io.stores.s3_store import S3Store
from maskrcnn.pipeline.shard_inputs import ShardInputs

NO_LIMIT = 2**40
FILES = {
    "a.jpg": b"first",
    "folder/b.jpg": bytes(range(256)) * 40,
    "folder/empty.jpg": b"",
    "ä ö/" + "long" * 60 + ".jpg": b"a name of more than a hundred characters",
    "large.jpg": random.Random(0).randbytes(300_000),
}
names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/\\", exclude_categories=["Cs", "Cc"]),
    min_size=1,
    max_size=120,
).filter(lambda name: name not in (".", ".."))
files_packed = st.dictionaries(names, st.binary(max_size=3000), min_size=1, max_size=12)


def read_everything(table: pa.Table) -> list[bytes | str]:
    """Return the content of each row, as the worker reads it, or the code of its failure."""
    inputs = ShardInputs(table.to_pylist(), NO_LIMIT)
    return [content_or_code(lambda at=at: inputs.read(at)) for at in range(len(table))]


def content_or_code(read: Callable[[], bytes]) -> bytes | str:
    try:
        return read()
    except ItemError as error:
        return error.code


def listed(store: Storage, name: str, *, alone: bool = True) -> pa.Table:
    row = {"name": name, "uri": f"{store.url}/{name}", "bytes": None, "etag": None}
    return list_members(pa.Table.from_pylist([row], schema=INPUTS), alone=alone)


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_listed_and_read_in_every_store(kind, store_url):
    store = Storage(store_url)
    store.write(kind, packed(kind, FILES))
    table = listed(store, kind)
    assert table["name"].to_pylist() == list(FILES)
    expected = [data or "empty_file" for data in FILES.values()]
    assert read_everything(table) == expected
    # One that is read alone, as by `show`, is looked up in the archive.
    for row, data in zip(table.to_pylist(), expected, strict=True):
        assert content_or_code(lambda row=row: read_input(row["uri"], NO_LIMIT, row["etag"])) == data
        assert stat_input(row["uri"]).bytes == row["bytes"] == len(FILES[row["name"]])
        assert stat_input(row["uri"]).etag == row["etag"]
        with open_input(row["uri"], row["etag"]) as file:
            file.seek(3)
            assert file.read(5) == FILES[row["name"]][3:8]


@settings(max_examples=20)
@given(files_packed, st.sampled_from(KINDS))
def test_what_is_packed_is_read_back(tmp_path, files, kind):
    store = Storage(tmp_path)
    store.write(kind, packed(kind, files))
    table = listed(store, kind)
    assert table["name"].to_pylist() == list(files)
    assert read_everything(table) == [data or "empty_file" for data in files.values()]


@settings(max_examples=30)
@given(st.data(), st.lists(st.binary(min_size=1, max_size=2000), min_size=1, max_size=6))
def test_a_tar_that_is_cut_off_loses_nothing_unsaid(tmp_path, data, contents):
    files = {f"{number}.jpg": content for number, content in enumerate(contents)}
    whole = packed("photos.tar", files)
    length = data.draw(st.integers(0, len(whole) - 1))
    store = Storage(tmp_path)
    store.write("photos.tar", whole[:length])
    table = listed(store, "photos.tar")
    found = dict(zip(table["name"].to_pylist(), read_everything(table), strict=True))
    complete = length >= end_of(whole)
    for name, content in files.items():
        # It is read, or it has a row that says why not, or the archive has one that says that files may be missing.
        assert found.get(name, "missing") in (content, "truncated", "missing")
        if found.get(name) != content:
            assert found.get(name) == "truncated" or found["photos.tar"] in (
                "truncated",
                "corrupt",
                "empty_file",
            )
    assert ("photos.tar" in found) != complete


def end_of(tar: bytes) -> int:
    """Return the length of a tar with the first of the blocks of zeros that end it."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        last = archive.getmembers()[-1]
    return last.offset_data + -(-last.size // 512) * 512 + 1


@settings(max_examples=30)
@given(st.data())
def test_damage_to_a_zip_is_never_read_as_something_else(tmp_path, data):
    files = {f"{number}.jpg": random.Random(number).randbytes(400) for number in range(4)}
    kind = data.draw(st.sampled_from(["photos.zip", "stored.zip"]))
    whole = bytearray(packed(kind, files))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    store = Storage(tmp_path)
    store.write(kind, bytes(whole))
    table = listed(store, kind)
    contents = [content for content in read_everything(table) if isinstance(content, bytes)]
    assert set(contents) <= set(files.values())
    assert len(table)


def test_files_that_are_one_behind_the_other_are_read_by_one_request(weed_server, monkeypatch):
    rng = random.Random(1)
    files = {f"{number:03}.jpg": rng.randbytes(rng.randint(20_000, 60_000)) for number in range(100)}
    store = Storage(weed_server.prefix())
    store.write("photos.tar", packed("photos.tar", files))
    table = listed(store, "photos.tar")
    requests: list[int] = []
    read_range = S3Store.read_range

    def counted(*arguments, **options):
        data = read_range(*arguments, **options)
        requests.append(len(data))
        return data

    monkeypatch.setattr(S3Store, "read_range", counted)
    assert read_everything(table) == list(files.values())
    assert sum(requests) <= 1.05 * sum(map(len, files.values()))
    assert len(requests) <= 5


def test_headers_of_a_tar_of_large_files_are_read_without_the_files():
    files = {f"{number}.tif": bytes(2_000_000) for number in range(12)}
    tar = packed("large.tar", files)
    read = []

    def read_range(start: int, stop: int) -> bytes:
        read.append(stop - start)
        return tar[start:stop]

    index = read_index(read_range, len(tar), "large.tar")
    assert [member.name for member in index.members] == list(files)
    assert sum(read) < len(tar) / 10
    assert len(read) <= 2 * len(files) + 2


def test_a_zip_is_listed_from_its_end():
    archive = packed("photos.zip", FILES | {f"{number}.jpg": b"x" for number in range(100)})
    read = []

    def read_range(start: int, stop: int) -> bytes:
        read.append(start)
        return archive[start:stop]

    assert len(read_index(read_range, len(archive), "photos.zip").members) == len(FILES) + 100
    assert len(read) == 1


def test_archives_in_a_folder_are_named_by_their_path(tmp_path):
    store = Storage(tmp_path)
    store.write("train/photos.tar", packed("photos.tar", FILES))
    table = listed(store, "train/photos.tar", alone=False)
    assert table["name"][0].as_py() == "train/photos.tar!/a.jpg"
    assert split_member(table["uri"][0].as_py()) == (f"{store.url}/train/photos.tar", "a.jpg")


@given(st.sampled_from(KINDS), st.text(min_size=1))
def test_the_uri_of_a_member_is_divided_as_it_was_joined(kind, name):
    assert split_member(member_uri(f"s3://bucket/{kind}", name)) == (f"s3://bucket/{kind}", name)


# What packers do


def tar_of(fill: Callable[[tarfile.TarFile], None], mode: str = "w:", **options: int) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode, **options) as tar:
        fill(tar)
    return sink.getvalue()


def rows_of(tmp_path, name: str, data: bytes) -> list[tuple[str, bytes | str]]:
    store = Storage(tmp_path)
    store.write(name, data)
    table = listed(store, name)
    assert len(set(table["uri"].to_pylist())) == len(table)
    again = [content_or_code(lambda uri=uri: read_input(uri, NO_LIMIT)) for uri in table["uri"].to_pylist()]
    contents = read_everything(table)
    for first, second, uri in zip(contents, again, table["uri"].to_pylist(), strict=True):
        assert first == second or not split_member(uri)
    return list(zip(table["name"].to_pylist(), contents, strict=True))


def test_names_that_occur_twice_are_two_inputs(tmp_path):
    def twice(tar):
        for data in (b"old", b"new", b"newest"):
            add(tar, "a.jpg", data)
        add(tar, "a.jpg#2", b"another")

    assert rows_of(tmp_path, "x.tar", tar_of(twice)) == [
        ("a.jpg", b"old"),
        ("a.jpg#3", b"new"),
        ("a.jpg#4", b"newest"),
        ("a.jpg#2", b"another"),
    ]


def test_names_that_would_leave_the_folder_are_only_names(tmp_path):
    files = {"/etc/passwd.jpg": b"absolute", "../../up.jpg": b"above", "c:\\x.jpg": b"of Windows"}
    assert rows_of(tmp_path, "x.tar", packed("x.tar", files)) == list(files.items())
    assert dict(rows_of(tmp_path, "x.zip", packed("x.zip", files))).keys() == {
        n.replace("\0", "") for n in files
    }


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_is_read(tmp_path, format_):
    names = ["plain.jpg", "/".join(["folder" * 8] * 3) + "/x.jpg"]
    data = tar_of(lambda tar: [add(tar, name, name.encode()) for name in names], format=format_)
    assert rows_of(tmp_path, "x.tar", data) == [(name, name.encode()) for name in names]


def test_links_lead_to_the_files_that_they_name(tmp_path):
    def links(tar):
        add(tar, "d", type=tarfile.DIRTYPE)
        add(tar, "d/a.jpg", b"content")
        add(tar, "hard.jpg", type=tarfile.LNKTYPE, linkname="d/a.jpg")
        add(tar, "d/soft.jpg", type=tarfile.SYMTYPE, linkname="a.jpg")
        add(tar, "e/soft.jpg", type=tarfile.SYMTYPE, linkname="../d/a.jpg")
        add(tar, "away.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "pipe.jpg", type=tarfile.FIFOTYPE)

    assert rows_of(tmp_path, "x.tar", tar_of(links)) == [
        ("d/a.jpg", b"content"),
        ("hard.jpg", b"content"),
        ("d/soft.jpg", b"content"),
        ("e/soft.jpg", b"content"),
        ("away.jpg", "not_found"),
        ("pipe.jpg", "unsupported_format"),
    ]


def test_tars_one_behind_the_other_are_all_read(tmp_path):
    data = packed("x.tar", {"a.jpg": b"a"}) + packed("x.tar", {"b.jpg": b"b"})
    assert rows_of(tmp_path, "x.tar", data) == [("a.jpg", b"a"), ("b.jpg", b"b")]
    assert rows_of(tmp_path, "x.tgz", gzip.compress(data)) == [("a.jpg", b"a"), ("b.jpg", b"b")]


def test_a_name_that_is_not_utf_8_is_escaped(tmp_path):
    data = tar_of(lambda tar: add(tar, "caf\udce9.jpg", b"x"), format=tarfile.GNU_FORMAT)
    assert rows_of(tmp_path, "x.tar", data) == [("caf\\xe9.jpg", b"x")]


# What is wrong with them


def test_an_archive_that_cannot_be_understood_is_one_row(tmp_path):
    assert rows_of(tmp_path, "empty.tar", b"") == [("empty.tar", "empty_file")]
    assert rows_of(tmp_path, "empty.zip", b"") == [("empty.zip", "empty_file")]
    assert rows_of(tmp_path, "text.tar", b"not a tar" * 200) == [("text.tar", "corrupt")]
    assert rows_of(tmp_path, "text.zip", b"not a zip" * 200) == [("text.zip", "truncated")]
    assert rows_of(tmp_path, "text.tgz", b"not gzip" * 200) == [("text.tgz", "corrupt")]
    assert rows_of(tmp_path, "none.zip", packed("none.zip", {})) == []


def test_damage_in_the_middle_of_a_tar_is_a_row(tmp_path):
    data = bytearray(packed("x.tar", {"a.jpg": b"a", "b.jpg": b"b"}))
    data[1024 + 150] ^= 1  # the checksum of the second header
    assert rows_of(tmp_path, "x.tar", bytes(data)) == [("a.jpg", b"a"), ("x.tar", "corrupt")]


def test_a_compressed_tar_that_is_cut_off_keeps_what_is_before(tmp_path):
    rng = random.Random(2)
    files = {f"{number}.jpg": rng.randbytes(50_000) for number in range(4)}
    data = packed("x.tgz", files)
    rows = rows_of(tmp_path, "x.tgz", data[: len(data) * 5 // 8])
    assert rows[:2] == list(files.items())[:2]
    assert rows[-1] == ("x.tgz", "truncated")


def test_a_compressed_tar_is_read_in_any_order(tmp_path):
    store = Storage(tmp_path)
    store.write("x.tgz", packed("x.tgz", FILES))
    table = listed(store, "x.tgz")
    backwards = table.take(pa.array(range(len(table) - 1, -1, -1)))
    assert read_everything(backwards) == [data or "empty_file" for data in reversed(FILES.values())]


def test_an_encrypted_member_is_refused_and_the_others_are_read(tmp_path):
    data = bytearray(packed("stored.zip", {"a.jpg": b"secret", "b.jpg": b"open"}))
    directory = data.index(b"PK\1\2")
    data[directory + 8] |= 1
    assert rows_of(tmp_path, "stored.zip", bytes(data)) == [
        ("a.jpg", "unsupported_format"),
        ("b.jpg", b"open"),
    ]


def test_a_compression_that_is_not_read_is_named(tmp_path):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.jpg", b"content")
    Storage(tmp_path).write("x.zip", sink.getvalue())
    with pytest.raises(ItemError, match="compressed in the archive with LZMA"):
        read_input(f"{tmp_path}/x.zip!/a.jpg", NO_LIMIT)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("honest.jpg", bytes(50_000_000))
        archive.writestr("lying.jpg", bytes(50_000_000))
    data = bytearray(sink.getvalue())
    second = data.rindex(b"PK\1\2")
    data[second + 24 : second + 28] = struct.pack("<I", 1000)  # the size that the directory states
    store = Storage(tmp_path)
    store.write("x.zip", bytes(data))
    inputs = ShardInputs(listed(store, "x.zip").to_pylist(), 10_000_000)
    assert [content_or_code(lambda at=at: inputs.read(at)) for at in (0, 1)] == ["too_many_bytes", "corrupt"]


def test_members_whose_bytes_overlap_are_refused(tmp_path):
    """As in David Fifield's zip bomb: the directory's entries lead to the same bytes."""
    data = bytearray(packed("stored.zip", {"a.jpg": b"a" * 100, "b.jpg": b"b" * 100}))
    second = data.rindex(b"PK\1\2")
    data[second + 42 : second + 46] = struct.pack("<I", 10)
    rows = rows_of(tmp_path, "stored.zip", bytes(data))
    assert rows == [("a.jpg", "corrupt"), ("b.jpg", "corrupt")]


def test_an_archive_that_changed_fails_its_members(store_url):
    store = Storage(store_url)
    store.write("x.tar", packed("x.tar", {"a.jpg": b"a" * 600, "b.jpg": b"b" * 600}))
    table = listed(store, "x.tar")
    store.write("x.tar", packed("x.tar", {"a.jpg": b"c" * 2000, "b.jpg": b"d" * 2000}))
    contents = read_everything(table)
    if store_url.startswith("memory"):  # it has no etag, and no times
        assert b"a" * 600 not in contents
    else:
        assert contents == ["changed", "changed"]


def test_a_member_that_is_not_there_is_not_found(tmp_path):
    Storage(tmp_path).write("x.tar", packed("x.tar", FILES))
    for uri in (f"{tmp_path}/x.tar!/b.jpg", f"{tmp_path}/none.tar!/a.jpg"):
        assert content_or_code(lambda uri=uri: read_input(uri, NO_LIMIT)) == "not_found"


@pytest.mark.parametrize("size", [2**62, 2**63, 2**64, 2**70])
def test_a_size_that_no_file_reaches_fails_its_member_alone(tmp_path, size):
    info = tarfile.TarInfo("huge.jpg")
    info.size = size
    header = info.tobuf(tarfile.PAX_FORMAT if size == 2**70 else tarfile.GNU_FORMAT)
    rows = rows_of(tmp_path, "x.tar", packed("x.tar", {"a.jpg": b"a"})[:1024] + header)
    assert rows[0] == ("a.jpg", b"a")
    assert rows[1][1] in ("truncated", "corrupt")


@pytest.mark.parametrize("suffix", [".tar", ".zip", ".tgz"])
@pytest.mark.parametrize("content", ["photos.tar", "photos.zip", "photos.tgz", "parquet"])
def test_an_archive_under_another_suffix_is_named_as_that(tmp_path, suffix, content):
    data = b"PAR1" + bytes(5000) if content == "parquet" else packed(content, {"a.jpg": b"a" * 600})
    (tmp_path / f"x{suffix}").write_bytes(data)
    [row] = listed(Storage(tmp_path), f"x{suffix}").to_pylist()
    refused = None if row["place_in_archive"] is None else row["place_in_archive"]["refusal"]
    assert refused == (None if content.endswith(suffix) else "ARCHIVE_OTHER")


def test_a_pipe_and_a_device_in_a_tar_are_rows_that_say_so(tmp_path):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:") as tar:
        add(tar, "pipe.png", type=tarfile.FIFOTYPE)
        add(tar, "disk.png", type=tarfile.BLKTYPE)
        add(tar, "folder.png", type=tarfile.DIRTYPE)
        add(tar, "a.jpg", b"a")
    rows = rows_of(tmp_path, "x.tar", sink.getvalue())
    assert rows == [("pipe.png", "unsupported_format"), ("disk.png", "unsupported_format"), ("a.jpg", b"a")]
