"""One interface with the same behaviour in a folder, in memory, on moto and on SeaweedFS."""

import errno
import importlib.util
import io
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.s3.models import s3_backends

from maskrcnn.errors import ItemError, RunError, UsageError
from maskrcnn.io.inputs import list_inputs, read_input, stat_input
from maskrcnn.io.schemes import store_of
from maskrcnn.io.storage import Storage
from maskrcnn.io.url import Url

ODD_NAMES = [
    "plain.jpg",
    "with space.jpg",
    "hash#1.jpg",
    "question?mark.jpg",
    "pct%20lit.jpg",
    "plus+and&amp.jpg",
    "quote'\".jpg",
    "ünïcödé/日本.jpg",
    "emoji😀.jpg",
    "star*[1].jpg",
    "UPPER.JPG",
    ".hidden.jpg",
]


# Every store


def test_what_was_written_is_read(store_url: str) -> None:
    store = Storage(store_url)
    for name in ODD_NAMES:
        store.write(f"a/{name}", name.encode())
    assert store.list() == sorted(f"a/{name}" for name in ODD_NAMES)
    for name in ODD_NAMES:
        assert store.read(f"a/{name}") == name.encode()
        assert store.size(f"a/{name}") == len(name.encode())
        assert store.exists(f"a/{name}")


def test_the_last_write_wins(store_url: str) -> None:
    store = Storage(store_url)
    store.write("x", b"a longer first content")
    store.write("x", b"second")
    store.write("empty", b"")
    assert (store.read("x"), store.read("empty")) == (b"second", b"")
    assert (store.size("x"), store.size("empty")) == (6, 0)


def test_a_created_file_is_never_replaced(store_url: str) -> None:
    store = Storage(store_url)
    for content, other in ((b"first", b"other"), (b"", b"x"), (b"same length", b"SAME LENGTH")):
        path = f"folder/{len(content)}"
        assert store.create(path, content)
        assert store.create(path, content), "another writer's equal content counts as one's own"
        assert not store.create(path, other)
        assert store.read(path) == content
    assert store.list() == ["folder/0", "folder/11", "folder/5"]


def test_a_write_of_another_process_is_seen(store_url: str) -> None:
    store, other = Storage(store_url), Storage(store_url)
    assert store.list() == []
    assert not store.exists("x")
    other.write("x", b"1")
    assert store.list() == ["x"]
    assert store.exists("x")


def test_list_is_recursive_sorted_and_by_folder(store_url: str) -> None:
    store = Storage(store_url)
    for path in ("b/2", "b/10", "b/sub/x", "bb/1", "a"):
        store.write(path, b"x")
    assert store.list() == ["a", "b/10", "b/2", "b/sub/x", "bb/1"]
    assert store.list("b") == store.list("b/") == ["b/10", "b/2", "b/sub/x"]
    assert store.list("missing") == []
    assert not store.exists("b"), "a folder is not a file"


def test_a_missing_file_raises_file_not_found_error(store_url: str) -> None:
    store = Storage(store_url)
    store.write("there", b"x")
    for ask in (store.read, store.open, store.size):
        with pytest.raises(FileNotFoundError):
            ask("missing")
    store.remove("missing")
    store.remove_tree("missing")


def test_remove_removes_only_what_it_names(store_url: str) -> None:
    store = Storage(store_url)
    for path in ("a/1", "a/2", "a/b/3", "ab/4", "c"):
        store.write(path, b"x")
    store.remove("a/1")
    assert store.list() == ["a/2", "a/b/3", "ab/4", "c"]
    store.remove_tree("a")
    assert store.list() == ["ab/4", "c"]


def test_open_reads_ranges_and_pyarrow_reads_through_it(store_url: str, tmp_path: Path) -> None:
    store = Storage(store_url)
    store.write("digits", b"0123456789")
    with store.open("digits") as file:
        assert file.read(3) == b"012"
        assert file.seek(-2, io.SEEK_END) == 8
        assert file.read(100) == b"89"
        assert file.read(1) == b""
        file.seek(4)
        assert file.read() == b"456789"

    table = pa.table({"x": range(1000)})
    local = tmp_path / "table.parquet"
    pq.write_table(table, local, row_group_size=100)
    store.put_file("table.parquet", local)
    with store.open("table.parquet") as file:
        assert pq.ParquetFile(file).read_row_group(7) == table.slice(700, 100)
    assert store.read("table.parquet") == local.read_bytes()


def test_a_built_file_appears_whole_or_not_at_all(store_url: str) -> None:
    store = Storage(store_url)
    store.write("folder/built", b"before")
    with store.building("folder/built") as local:
        local.write_bytes(b"after")
        assert store.read("folder/built") == b"before"
        assert store.list() == ["folder/built"]
    assert store.read("folder/built") == b"after"
    building = store.building("folder/built")
    half_built = building.__enter__()
    half_built.write_bytes(b"half")
    assert not building.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert store.read("folder/built") == b"after"
    assert not half_built.exists()


def test_a_disk_that_is_full_while_a_file_is_built_is_reported(tmp_path: Path) -> None:
    building = Storage(str(tmp_path / "run")).building("part")
    building.__enter__()
    with pytest.raises(RunError, match=r"cannot write .*/run/part"):
        building.__exit__(OSError, OSError(errno.ENOSPC, "No space left on device"), None)


def test_a_path_never_leaves_the_store(store_url: str) -> None:
    store = Storage(store_url)
    for path in ("../x", "a/../../x", "/etc/passwd", "", ".", "a//b", "a\0b"):
        with pytest.raises(RunError, match="is not a path below"):
            store.write(path, b"x")
        with pytest.raises(RunError, match="is not a path below"):
            store.read(path)


def test_a_store_is_shared_by_threads_and_can_be_pickled(store_url: str) -> None:
    store = pickle.loads(pickle.dumps(Storage(store_url)))

    def round_trip(i: int) -> bytes:
        store.write(f"t/{i}", str(i).encode())
        return store.read(f"t/{i}")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(round_trip, range(40))) == [str(i).encode() for i in range(40)]
    assert len(store.list("t")) == 40


def test_folders_lists_the_direct_folders(store_url: str) -> None:
    store = Storage(store_url)
    assert store.folders("a") == []
    for path in ("a/b/x", "a/b/c/y", "a/ü 1/z", "a/file", "ab/d/x", "x"):
        store.write(path, b"1")
    assert store.folders("a") == ["b", "ü 1"]
    assert store.folders("a/b/") == ["c"]
    assert store.folders("a/ü 1") == []


def test_inputs_are_listed_with_size_and_etag(store_url: str) -> None:
    store = Storage(store_url)
    for name in ODD_NAMES:
        store.write(f"in/{name}", name.encode())
    table = list_inputs(Url.parse(store_url).join("in").text)
    assert sorted(table["name"].to_pylist()) == sorted(ODD_NAMES)
    for row in table.to_pylist():
        assert row["uri"] == Url.parse(store_url).join("in/" + row["name"]).text
        assert read_input(row["uri"], 100) == row["name"].encode()
        stat = stat_input(row["uri"])
        assert (stat.bytes, stat.etag) == (row["bytes"], row["etag"])
        assert '"' not in row["etag"]


def test_globs_single_files_and_nothing(store_url: str) -> None:
    store = Storage(store_url)
    for path in ("in/a1.jpg", "in/a2.png", "in/sub/a3.jpg", "in/sub/deep/b4.jpg", "in/x[1].jpg"):
        store.write(path, b"x")

    def names(pattern: str) -> list[str]:
        return sorted(list_inputs(Url.parse(store_url).join(pattern).text)["name"].to_pylist())

    assert names("in/*.jpg") == ["a1.jpg", "x[1].jpg"]
    assert names("in/a?.*") == ["a1.jpg", "a2.png"]
    assert names("in/a*") == ["a1.jpg", "a2.png"]
    assert names("in/**/*.jpg") == ["a1.jpg", "sub/a3.jpg", "sub/deep/b4.jpg", "x[1].jpg"]
    assert names("in/*/*.jpg") == ["sub/a3.jpg"]
    assert names("in/a1.jpg") == ["a1.jpg"]
    assert names("in/x[1].jpg") == ["x[1].jpg"], "what exists as it is, is no glob"
    for nothing in ("missing", "in/*.gif", "missing/*"):
        with pytest.raises(FileNotFoundError):
            names(nothing)
    with pytest.raises(UsageError, match=r"in/su\* matches 1 folder and no file: .*, use .*in/su\*/\*$"):
        names("in/su*")


def test_inputs_fail_with_a_code(store_url: str) -> None:
    store = Storage(store_url)
    store.write("ten", b"0123456789")
    store.write("empty", b"")
    for name, limit, code in (
        ("missing", 9, "not_found"),
        ("ten", 9, "too_many_bytes"),
        ("empty", 9, "empty_file"),
    ):
        with pytest.raises(ItemError) as caught:
            read_input(Url.parse(store_url).join(name).text, limit)
        assert caught.value.code == code
    assert read_input(Url.parse(store_url).join("ten").text, 10) == b"0123456789"
    with pytest.raises(ItemError) as caught:
        stat_input(Url.parse(store_url).join("missing").text)
    assert caught.value.code == "not_found"


# Local folders


def test_a_reader_sees_the_old_file_or_the_new(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    old, new = b"o" * 2_000_000, b"n" * 1_000_000
    store.write("x", old)
    writer = threading.Thread(target=lambda: [store.write("x", content) for content in (new, old) * 20])
    writer.start()
    while writer.is_alive():
        assert store.read("x") in (old, new)
        assert store.list() == ["x"], "a temporary file was listed"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_one_of_racing_writers_wins_and_no_partial_file_is_seen(tmp_path: Path) -> None:
    contents = [bytes([n]) * 500_000 for n in range(6)]
    barrier = threading.Barrier(len(contents))

    def create(path: str, content: bytes) -> bool:
        barrier.wait()
        answers = Storage(str(tmp_path)).create(path, content)
        assert Storage(str(tmp_path)).read(path) in contents
        return answers

    with ThreadPoolExecutor(len(contents)) as pool:
        for i in range(10):
            answers = list(pool.map(create, [str(i)] * len(contents), contents))
            assert [content for content, won in zip(contents, answers, strict=True) if won] == [
                (tmp_path / str(i)).read_bytes()
            ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(i) for i in range(10)]


def test_create_does_not_rename_which_would_replace_a_concurrent_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Path, "replace")
    assert Storage(str(tmp_path)).create("x", b"1")
    assert not Storage(str(tmp_path)).create("x", b"2")


def test_a_file_system_without_links_behaves_like_a_store_without_conditional_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    store = Storage(str(tmp_path))
    assert (store.create("x", b"1"), store.create("x", b"1"), store.create("x", b"2")) == (True, True, False)
    assert (store.read("x"), store.list()) == (b"1", ["x"])


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    store = Storage(str(tmp_path / "out"))
    store.write("x", b"old")
    with pytest.raises(TypeError):
        store.write("x", "no bytes")  # type: ignore[arg-type]
    assert store.read("x") == b"old"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]


def test_a_file_where_a_folder_is_needed_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match=r"a file exists where a folder|part of the path is a file"):
            Storage(str(root)).write("x", b"1")


def test_a_full_disk_is_one_clear_line() -> None:
    def fill() -> None:
        # Each write to it fails with ENOSPC, as on a file system that is full.
        with Path("/dev/full").open("wb") as full:
            full.write(b"1")

    with (
        pytest.raises(RunError, match=r"^cannot write /out: the disk is full; free some space$"),
        store_of(Url.parse("/out")).output_faults("write", Url.parse("/out")),
    ):
        fill()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_one_clear_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="permission denied"):
        Storage(str(tmp_path)).write("x", b"1")


def test_links_are_followed_but_not_endlessly(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    rows = {row["name"]: row for row in list_inputs(str(tmp_path / "in")).to_pylist()}
    assert sorted(rows) == ["dangling.jpg", "link/a.jpg"]
    assert rows["dangling.jpg"]["bytes"] is None, "it is not left out: it will fail as not_found"


def test_a_folder_or_a_device_is_not_an_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "pipe" / "below", Path("/dev/zero")):
        with pytest.raises(ItemError, match="not_found"):
            read_input(str(path), 100)


def test_a_name_that_is_not_utf8_is_an_input_that_fails(tmp_path: Path) -> None:
    names = [b"caf\xe9.jpg", b"caf\xe8.jpg", b"a\\xe8\xe9.jpg", b"a\xe8\\xe9.jpg", b"sub\xff/b.jpg"]
    (tmp_path / os.fsdecode(b"sub\xff")).mkdir()
    for name in (*names, rb"caf\xe9.jpg", "größe.jpg".encode()):
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    rows = {row["name"]: row for row in list_inputs(str(tmp_path)).to_pylist()}
    readable = {r"caf\xe9.jpg", "größe.jpg"}
    escaped = {r"caf\\xe9.jpg", r"caf\xe8.jpg", r"a\x5cxe8\xe9.jpg", r"a\xe8\x5cxe9.jpg", r"sub\xff/b.jpg"}
    assert set(rows) == readable | escaped
    for name, row in rows.items():
        assert (row["uri"], row["bytes"]) == (f"{tmp_path}/{name}", 1)
        if name in escaped:
            with pytest.raises(ItemError, match=r"not_found: .* probably not UTF-8: rename it"):
                read_input(row["uri"], 9)
        else:
            assert read_input(row["uri"], 9) == b"x"


def test_links_to_anything_but_a_file_are_inputs_that_fail(tmp_path: Path) -> None:
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "a.jpg").write_bytes(b"x")
    rows = {row["name"]: row for row in list_inputs(str(tmp_path)).to_pylist()}
    assert {name: row["bytes"] for name, row in rows.items()} == {
        "a.jpg": 1,
        "circle.jpg": None,
        "device.jpg": None,
    }
    for name in ("circle.jpg", "device.jpg"):
        with pytest.raises(ItemError):
            read_input(rows[name]["uri"], 9)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anywhere")
@pytest.mark.parametrize("mode", [0o000, 0o300])
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, mode: int) -> None:
    (tmp_path / "in" / "closed").mkdir(parents=True)
    (tmp_path / "in" / "closed").chmod(mode)
    with pytest.raises(RunError, match=r"cannot list .*/in/closed: permission denied"):
        list_inputs(str(tmp_path / "in"))


def test_an_empty_folder_is_an_empty_table(tmp_path: Path) -> None:
    assert list_inputs(str(tmp_path)).num_rows == 0


def test_etags_of_files_change_with_them(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"1")
    os.utime(file, ns=(1, 1_000_000_007))
    assert stat_input(str(file)).etag == "1-1000000007"
    assert stat_input(f"file://{file}").etag == "1-1000000007"


# URLs


def test_local_or_not() -> None:
    assert [Url.parse(url).is_local for url in ("s3://b/k", "S3://b", "gs://b", "memory://x")] == [False] * 4
    assert [Url.parse(url).is_local for url in ("a", "/a", "./a", "a:b", "file:///a", "c:\\a")] == [True] * 6


@pytest.mark.parametrize(
    "url", ["http://host/x", "https://169.254.169.254/x", "ftp://host/x", "gopher://host/x"]
)
def test_the_web_is_not_a_store(url: str) -> None:
    for ask in (Storage, list_inputs, stat_input):
        with pytest.raises(RunError, match="is not a supported store"):
            ask(url)


@pytest.mark.parametrize("url", ["ftp://host/x", "gopher://host/x"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(RunError, match="is not a supported store"):
        read_input(url, 9)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(RunError) as caught:
        Storage("s3://user:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "s3://", "memory://"])
def test_a_store_has_a_name(url: str) -> None:
    with pytest.raises(UsageError, match="names no folder or bucket"):
        Storage(url)


def test_a_store_whose_name_is_not_utf8_is_refused() -> None:
    with pytest.raises(UsageError, match="is not UTF-8"):
        Storage("/data/caf\udce9")


# What S3 does when it fails


@pytest.mark.s3
def test_a_missing_bucket_is_named(moto_server: Any) -> None:
    store = Storage("s3://no-such-bucket/out")
    for act in (lambda: store.write("x", b"1"), store.list):
        with pytest.raises(RunError, match="there is no bucket 'no-such-bucket'"):
            act()
    assert not store.exists("x")
    with pytest.raises(FileNotFoundError):
        list_inputs("s3://no-such-bucket/in")
    with pytest.raises(ItemError, match="not_found: there is no bucket"):
        read_input("s3://no-such-bucket/in/a.jpg", 9)


@pytest.mark.s3
def test_wrong_keys_fail_the_run_and_not_an_item(weed_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "s3://test-bkt/denied"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(RunError, match="check AWS_SECRET_ACCESS_KEY") as caught:
        Storage(url).write("x", b"1")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(RunError, match="check AWS_SECRET_ACCESS_KEY"):
        read_input(url + "/x", 9)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(RunError, match="check AWS_ACCESS_KEY_ID"):
        Storage(url).write("x", b"1")


@pytest.mark.s3
def test_missing_credentials_report_what_to_set(
    moto_server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(RunError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        Storage("s3://test-bkt/x").write("x", b"1")


@pytest.mark.slow
@pytest.mark.s3
def test_public_buckets_need_no_credentials(moto_server: Any) -> None:
    moto_server.client().put_object(Bucket="test-bkt", Key="public/x", Body=b"1", ACL="public-read")
    keep = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment = keep | {
        "AWS_ENDPOINT_URL": moto_server.endpoint,
        "FSSPEC_S3_ANON": "true",
        "PYTHONPATH": ".",
    }
    program = "from maskrcnn.io.storage import Storage; print(Storage('s3://test-bkt/public').read('x'))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert done.stdout == b"b'1'\n"


@pytest.mark.s3
def test_an_unreachable_endpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with pytest.raises(RunError, match=r"cannot reach the S3 endpoint \(http://127.0.0.1:9\)"):
        Storage("s3://bucket/out").write("x", b"1")
    with pytest.raises(RunError, match="cannot reach the S3 endpoint"):
        read_input("s3://bucket/in", 9)


@pytest.mark.s3
def test_more_folders_than_a_page_has(moto_server: Any) -> None:
    store = Storage(moto_server.prefix())
    for number in range(1003):
        store.write(f"shards/{number:04d}/x", b"")
    assert store.folders("shards") == [f"{number:04d}" for number in range(1003)]


@pytest.mark.s3
def test_listings_longer_than_a_page(moto_server: Any) -> None:
    # S3 lists, and deletes in bulk, a thousand objects at once.
    store = Storage(moto_server.prefix())
    backend = s3_backends["123456789012"]["aws"]
    for i in range(1001):
        backend.put_object("test-bkt", f"{store.url.removeprefix('s3://test-bkt/')}/many/{i:04}", b"")
    store.write("one", b"")
    assert store.list("many") == [f"many/{i:04}" for i in range(1001)]
    assert list_inputs(store.url)["bytes"].null_count == 0
    store.remove_tree("many")
    assert store.list() == ["one"]


def test_a_missing_package_fails_the_run() -> None:
    if importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    with pytest.raises(RunError, match="gs:// needs a package that is not installed"):
        Storage("gs://bucket/x").write("x", b"1")


def test_os_errors_have_messages() -> None:
    for number, code in (
        (errno.EIO, "storage_error"),
        (errno.EACCES, "access_denied"),
        (errno.ENOENT, "not_found"),
    ):
        with pytest.raises(ItemError) as caught, store_of(Url.parse("/x")).input_faults(Url.parse("/x")):
            raise OSError(number, os.strerror(number))
        assert caught.value.code == code
        assert caught.value.message
