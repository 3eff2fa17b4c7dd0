"""Faults of the store: each is survived, or becomes a row or one clear line, after a known number of
requests. A real server behind a proxy that fails by a schedule."""

import asyncio
import dataclasses
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import gcsfs.retry
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiobotocore.endpoint import AioEndpoint
from azure.storage.blob.aio import ExponentialRetry, _download_async
from fault_proxy import (
    Fault,
    FaultProxy,
    answer,
    cut_off,
    drip,
    ignoring,
    lose_reply,
    refuse,
    reset,
    stall,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.errors import ItemError, RunError
from maskrcnn.io.inputs import list_inputs, read_input, stat_input
from maskrcnn.io.schemes import store_of
from maskrcnn.io.storage import Storage
from maskrcnn.io.stores import deadlines, local_store, s3_store
from maskrcnn.io.stores.request_count import count_retry, take_requests, take_retries
from maskrcnn.io.stores.s3_store import S3Store
from maskrcnn.io.url import Url

BODY = os.urandom(20_000)
LIMIT = 100_000
BUSY = refuse(503, "SlowDown")
ALWAYS = None


def on_stores_that_keep_or_ignore(header: str) -> Any:
    """Run a test, with `kind` and `fault`, on each store, and on one that ignores a condition."""
    cases = [
        pytest.param("weed", None, id="conditions kept"),
        pytest.param("weed", ignoring(header), id="ignored"),
        *(pytest.param(kind, None, id=kind, marks=pytest.mark.emulator) for kind in ("azurite", "fake_gcs")),
    ]
    return pytest.mark.parametrize(("kind", "fault"), cases, indirect=["kind"])


@pytest.fixture(scope="module")
def proxies() -> Iterator[dict[str, FaultProxy]]:
    """One before each server that was asked for."""
    found: dict[str, FaultProxy] = {}
    yield found
    for proxy in found.values():
        proxy.stop()


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """The server behind the proxy: SeaweedFS, where a test does not say that it holds of other stores too."""
    return str(getattr(request, "param", "weed"))


AZURITE = pytest.param("azurite", marks=pytest.mark.emulator)
EVERYWHERE = pytest.mark.parametrize(
    "kind", ["weed", AZURITE, pytest.param("fake_gcs", marks=pytest.mark.emulator)], indirect=True
)
S3_AND_AZURE = pytest.mark.parametrize("kind", ["weed", AZURITE], indirect=True)
"""What gcsfs does otherwise: it makes six attempts, and its refusals have no code."""
PUTS = {"weed": "PUT", "azurite": "PUT", "fake_gcs": "POST"}
"""The method by which each is written to."""


@pytest.fixture
def server(kind: str, request: pytest.FixtureRequest) -> Any:
    """The server."""
    return request.getfixturevalue(f"{kind}_process")


async def no_waiting(*_: object) -> None:
    """Let the event loop run other tasks."""
    await asyncio.sleep(0)


@pytest.fixture
def proxy(proxies: dict[str, FaultProxy], kind: str, server: Any) -> Iterator[FaultProxy]:
    """The environment points at the proxy, which has no rules yet."""
    if kind not in proxies:
        proxies[kind] = FaultProxy(server.endpoint, "testkey", "testsecret")
    running_proxy = proxies[kind]
    with (
        dataclasses.replace(server, endpoint=running_proxy.endpoint).environment(),
        pytest.MonkeyPatch.context() as patch,
    ):
        # The back-off is the clients' to test.
        patch.setattr(AioEndpoint, "_sleep", no_waiting)
        patch.setattr(ExponentialRetry, "sleep", no_waiting)
        for module in (_download_async, gcsfs.retry):
            patch.setattr(module, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": no_waiting}))
        running_proxy.clear()
        take_retries()
        take_requests()
        yield running_proxy
        running_proxy.clear()


@pytest.fixture
def store(proxy: FaultProxy, server: Any) -> Storage:
    """An output below the proxy."""
    return Storage(server.prefix())


@pytest.fixture
def behind(store: Storage, server: Any) -> Any:
    """The objects of that output, read and written past the proxy."""
    return server.behind(store.url)


pytestmark = pytest.mark.s3


# Requests are counted


@EVERYWHERE
def test_the_requests_of_a_store_are_counted_by_what_they_cost(
    proxy: FaultProxy, store: Storage, behind: Any, kind: str
) -> None:
    """Stores charge pages of listings otherwise than other requests by GET."""
    behind.put("folder/in", BODY)
    assert read_input(f"{store.url}/folder/in", LIMIT) == BODY
    assert take_requests() == {"GET": 1}
    assert store.list("folder") == ["folder/in"]
    assert take_requests() == {"LIST": 1}
    stat_input(f"{store.url}/folder/in")
    assert take_requests() == {"GET" if kind == "fake_gcs" else "HEAD": 1}
    store.write("out", BODY)
    assert take_requests() == {PUTS[kind]: proxy.seen(PUTS[kind])} == {PUTS[kind]: 1}
    assert take_requests() == {}, "requests that were taken are not counted again"


@EVERYWHERE
def test_repetitions_are_requests(proxy: FaultProxy, store: Storage, behind: Any) -> None:
    behind.put("in", BODY)
    proxy.on("GET", BUSY, times=2)
    assert read_input(f"{store.url}/in", LIMIT) == BODY
    assert take_requests() == {"GET": proxy.seen("GET")} == {"GET": 3}


# Faults that are survived


@EVERYWHERE
@pytest.mark.parametrize("fault", [BUSY, refuse(500, "InternalError"), reset], ids=["503", "500", "reset"])
def test_a_short_burst_is_survived_and_counted(
    proxy: FaultProxy, store: Storage, behind: Any, fault: Fault, kind: str
) -> None:
    behind.put("in", BODY)
    proxy.on("GET", fault, times=2)
    assert read_input(f"{store.url}/in", LIMIT) == BODY
    retries = take_retries()
    proxy.on(PUTS[kind], fault)
    store.write("out", BODY)
    assert behind.get("out") == BODY
    assert (proxy.seen("GET"), proxy.seen(PUTS[kind])) == (3, 2)
    # After a reset, aiohttp repeats some requests before the client does.
    expected = (2, 1) if kind == "weed" or fault is not reset else (retries, ANY)
    assert (retries, take_retries()) == expected
    assert take_retries() == 0, "retries that were taken are not counted again"


def test_refusals_of_many_requests_leave_other_requests_their_retries(
    proxy: FaultProxy, store: Storage, behind: Any
) -> None:
    behind.put("in", BODY)
    for _ in range(60):
        proxy.on("GET", BUSY, times=5)
        assert read_input(f"{store.url}/in", LIMIT) == BODY
    assert take_retries() == 60 * 5


@EVERYWHERE
def test_a_truncated_answer_is_requested_again_and_counted(
    proxy: FaultProxy, store: Storage, behind: Any
) -> None:
    behind.put("in", BODY)
    proxy.on("GET", cut_off, times=2)
    assert read_input(f"{store.url}/in", LIMIT) == BODY
    assert (proxy.seen("GET"), take_retries()) == (3, 2)
    for ask in (lambda: store.read("in"), lambda: store.open("in").read(), lambda: len(store.list()) * BODY):
        proxy.on("GET", cut_off)
        assert ask() == BODY
        assert take_retries() == 1


@EVERYWHERE
def test_one_input_costs_one_request(proxy: FaultProxy, store: Storage, behind: Any) -> None:
    etag = behind.put("in", BODY)
    assert read_input(f"{store.url}/in", LIMIT, etag) == BODY
    assert [request.method for request in proxy.requests] == ["GET"]


@settings(max_examples=30)
@given(schedule=st.lists(st.sampled_from([answer, BUSY, reset, cut_off]), max_size=6))
def test_a_read_returns_the_whole_content_or_fails(
    proxy: FaultProxy, store: Storage, behind: Any, schedule: list[Fault]
) -> None:
    """Three bodies may be cut off, and each of their requests may be refused five times."""
    proxy.clear()
    behind.put("in", BODY)
    for fault in schedule:
        proxy.on("GET", fault)
    cut_short = schedule.index(answer) if answer in schedule else len(schedule)
    if schedule[:cut_short].count(cut_off) < 3 and longest_run(schedule[:cut_short]) < 6:
        assert read_input(f"{store.url}/in", LIMIT) == BODY
        assert proxy.seen("GET") == cut_short + 1
    else:
        with pytest.raises(ItemError, match="storage_error"):
            read_input(f"{store.url}/in", LIMIT)
    assert take_retries() == proxy.seen("GET") - 1


def longest_run(schedule: list[Fault]) -> int:
    """Return the longest run of requests that were not answered at all."""
    runs = [0]
    for fault in schedule:
        runs.append(0 if fault is cut_off else runs[-1] + 1)
    return max(runs)


@EVERYWHERE
@settings(max_examples=40)
@given(
    schedule=st.lists(st.sampled_from([answer, BUSY, reset, lose_reply]), max_size=12),
    create=st.booleans(),
)
def test_an_object_is_whole_after_a_write_and_as_reported(
    proxy: FaultProxy,
    store: Storage,
    behind: Any,
    monkeypatch: pytest.MonkeyPatch,
    schedule: list[Fault],
    create: bool,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    store.remove("x")
    if not create:
        behind.put("x", b"before")
    for fault in schedule:
        for method in ("PUT", "POST", "HEAD", "GET"):
            proxy.on(method, fault)
    succeeded = True
    try:
        if create:
            assert store.create("x", BODY)
        else:
            store.write("x", BODY)
    except RunError:
        succeeded = False
    proxy.clear()
    standing = behind.get("x") if behind.paths() else b"before"
    assert standing in ([BODY] if succeeded else [BODY, b"before"])


def test_retries_are_counted_on_every_connection(proxy: FaultProxy, store: Storage, behind: Any) -> None:
    behind.put("in", BODY)
    s3 = store_of(Url.parse(store.url))
    assert isinstance(s3, S3Store)
    s3.client().connect(refresh=True)
    proxy.on("GET", BUSY)
    assert read_input(f"{store.url}/in", LIMIT) == BODY
    assert take_retries() == 1


def test_no_retry_is_lost_between_threads() -> None:
    take_retries()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(lambda: [count_retry() for _ in range(5_000)])
        taken = sum(take_retries() for _ in range(100))
    assert taken + take_retries() == 20_000


def test_a_request_with_an_expired_signature_is_signed_again(
    proxy: FaultProxy, store: Storage, behind: Any
) -> None:
    skewed = refuse(403, "RequestTimeTooSkewed")
    behind.put("in", BODY)
    proxy.on("GET", skewed)
    assert read_input(f"{store.url}/in", LIMIT) == BODY
    proxy.on("PUT", skewed)
    store.write("out", BODY)
    assert behind.get("out") == BODY
    assert take_retries() == 2


# Slowness


@EVERYWHERE
def test_a_slow_body_is_requested_once_more_on_another_connection(
    proxy: FaultProxy, store: Storage, behind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "DEADLINE_S", 2.0)
    behind.put("in", BODY)
    proxy.on("GET", drip)
    assert read_input(f"{store.url}/in", LIMIT) == BODY
    assert take_retries() == 1
    first, second = proxy.requests
    assert first.port != second.port


def test_a_body_that_is_always_slow_is_requested_twice_and_no_more(
    proxy: FaultProxy,
    store: Storage,
    behind: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deadlines, "DEADLINE_S", 0.5)
    behind.put("in", BODY)
    proxy.on("GET", drip, times=ALWAYS)
    with pytest.raises(ItemError, match="storage_error: the store was too slow"):
        read_input(f"{store.url}/in", LIMIT)
    with pytest.raises(RunError, match=r"cannot read .*/in: the store was too slow"):
        store.read("in")
    assert proxy.seen("GET") == 2 + 2


@S3_AND_AZURE
def test_a_stalled_body_is_requested_again(
    proxy: FaultProxy, store: Storage, behind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "READ_TIMEOUT_S", 1.0)
    for name in ("AWS_MAX_ATTEMPTS", "AZURE_PORT"):  # make other connections
        monkeypatch.setenv(name, "4")
    behind.put("in", BODY)
    proxy.on("GET", stall)
    assert read_input(f"{store.url}/in", LIMIT) == BODY
    assert (proxy.seen("GET"), take_retries()) == (2, 1)


def test_the_deadline_grows_with_the_object(
    proxy: FaultProxy, store: Storage, behind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "DEADLINE_S", 2.0)
    monkeypatch.setattr(deadlines, "BYTES_PER_S", 1)
    behind.put("in", b"four")
    proxy.on("GET", drip)
    assert read_input(f"{store.url}/in", LIMIT) == b"four"
    assert take_retries() == 0


# Faults that are reported


@S3_AND_AZURE
@pytest.mark.parametrize(
    ("fault", "requests"),
    [(BUSY, 2), (refuse(500, "InternalError"), 2), (reset, 2), (cut_off, 3)],
    ids=["503", "500", "reset", "cut"],
)
def test_a_store_that_always_fails_gets_a_known_number_of_requests(
    proxy: FaultProxy,
    store: Storage,
    behind: Any,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    requests: int,
    kind: str,
) -> None:
    """It is `AWS_MAX_ATTEMPTS`, and with Azure 5: no second layer multiplies it."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    behind.put("x", BODY)
    proxy.on("GET", fault, times=ALWAYS)
    with pytest.raises(ItemError) as caught:
        read_input(f"{store.url}/x", LIMIT)
    assert caught.value.code == "storage_error"
    if kind == "azurite":
        requests = 3 if fault is cut_off else 5
        assert proxy.seen("GET") == requests or fault is reset
    else:
        assert proxy.seen("GET") == requests
    with pytest.raises(RunError, match=rf"^cannot read {store.url}/x: "):
        store.read("x")
    assert take_retries() == 2 * (requests - 1)


@EVERYWHERE
def test_an_output_that_always_fails_stops_the_run_and_keeps_the_old_file(
    proxy: FaultProxy,
    store: Storage,
    behind: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    behind.put("x", b"before")
    (tmp_path / "local").write_bytes(b"longer than before")
    for fault in (BUSY, reset):
        proxy.on(PUTS[kind], fault, times=ALWAYS)
        for write in (
            lambda: store.write("x", b"after!"),
            lambda: store.put_file("x", tmp_path / "local"),
            lambda: store.create("new", b"1"),
        ):
            with pytest.raises(RunError, match=rf"^cannot write {store.url}/"):
                write()
        proxy.clear()
    assert (behind.paths(), behind.get("x")) == (["x"], b"before")


@S3_AND_AZURE
def test_refusals_have_their_codes(proxy: FaultProxy, store: Storage, behind: Any) -> None:
    behind.put("in", BODY)
    proxy.on("GET", refuse(403, "AccessDenied"))
    with pytest.raises(ItemError) as caught:
        read_input(f"{store.url}/in", LIMIT)
    assert caught.value.code == "access_denied"
    for method in ("HEAD", "GET"):
        proxy.on(method, refuse(403, "AccessDenied"))
    with pytest.raises(ItemError, match=r"access_denied: access denied \(AccessDenied\)"):
        stat_input(f"{store.url}/in")
    proxy.on("PUT", refuse(403, "AccessDenied"))
    with pytest.raises(RunError, match=r"access denied \(AccessDenied\)"):
        store.write("out", b"1")
    proxy.on("PUT", refuse(403, "AccessDenied"))
    with pytest.raises(RunError, match=r"access denied \(AccessDenied\)"):
        store.create("out", b"1")
    assert behind.paths() == ["in"]
    assert (proxy.seen("PUT"), take_retries()) == (2, 0), "a refused request is not repeated"


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("ExpiredToken", "the credentials have expired; renew them"),
        ("RequestTimeTooSkewed", "the clock of this machine differs from the store's; set it"),
    ],
)
def test_a_failure_of_every_object_stops_the_run(
    proxy: FaultProxy, store: Storage, behind: Any, code: str, advice: str
) -> None:
    behind.put("in", BODY)
    for method in ("GET", "PUT", "HEAD"):
        proxy.on(method, refuse(403, code), times=ALWAYS)
    for act in (
        lambda: read_input(f"{store.url}/in", LIMIT),
        lambda: stat_input(f"{store.url}/in"),
        lambda: store.exists("in"),
        lambda: list_inputs(store.url),
        lambda: store.write("out", b"1"),
        lambda: store.create("out", b"1"),
    ):
        with pytest.raises(RunError, match=advice):
            act()


@EVERYWHERE
def test_a_key_that_vanished_is_not_found(proxy: FaultProxy, store: Storage, behind: Any) -> None:
    etag = behind.put("in", BODY)
    uri = list_inputs(store.url)["uri"][0].as_py()
    store.remove("in")
    proxy.clear()
    with pytest.raises(ItemError) as caught:
        read_input(uri, LIMIT, etag)
    assert caught.value.code == "not_found"
    assert len(proxy.requests) <= 2  # Azurite's first answer is that the etag is another


# Objects that changed


@on_stores_that_keep_or_ignore("If-Match")
def test_an_object_that_changed_since_planning_is_refused_by_one_request(
    proxy: FaultProxy, store: Storage, behind: Any, fault: Fault | None, kind: str
) -> None:
    planned = behind.put("in", BODY)
    if fault is not None:
        proxy.on("GET", fault, times=ALWAYS)
    assert read_input(f"{store.url}/in", LIMIT, planned) == BODY
    behind.put("in", BODY[::-1])  # of the same size
    with pytest.raises(ItemError) as caught:
        read_input(f"{store.url}/in", LIMIT, planned)
    assert caught.value.code == "changed"
    if kind == "weed":
        assert [request.headers["if-match"] for request in proxy.requests] == [f'"{planned}"'] * 2
    assert read_input(f"{store.url}/in", LIMIT) == BODY[::-1], "without an etag nothing was planned"
    assert read_input(f"{store.url}/in", LIMIT, "the user's own") == BODY[::-1]


def test_the_listed_etag_of_a_multipart_upload_is_kept(
    proxy: FaultProxy, store: Storage, behind: Any, tmp_path: Path
) -> None:
    client, where = behind.client, {"Bucket": behind.bucket, "Key": f"{behind.prefix}/in"}
    upload = {**where, "UploadId": client.create_multipart_upload(**where)["UploadId"]}
    part = client.upload_part(**upload, PartNumber=1, Body=BODY)
    client.complete_multipart_upload(
        **upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    )
    row = list_inputs(store.url).to_pylist()[0]
    assert row["etag"].endswith("-1")
    assert read_input(row["uri"], LIMIT, row["etag"]) == BODY
    behind.put("in", BODY)
    with pytest.raises(ItemError, match="changed"):
        read_input(row["uri"], LIMIT, row["etag"])


# Replies that were lost


@EVERYWHERE
def test_a_write_that_was_applied_succeeds_even_if_its_reply_was_lost(
    proxy: FaultProxy,
    store: Storage,
    behind: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    (tmp_path / "local").write_bytes(BODY)
    proxy.on(PUTS[kind], lose_reply, times=ALWAYS)
    store.write("written", BODY)
    store.put_file("put", tmp_path / "local")
    assert store.create("created", BODY)
    with store.building("built") as local:
        local.write_bytes(BODY)
    store.write("empty", b"")
    for path in ("written", "put", "created", "built"):
        assert behind.get(path) == BODY
    assert behind.get("empty") == b""
    assert proxy.seen("PUT") == 5 or kind != "weed"


@EVERYWHERE
def test_a_repeated_create_is_not_refused_because_of_its_own_first_attempt(
    proxy: FaultProxy, store: Storage, behind: Any, kind: str
) -> None:
    proxy.on(PUTS[kind], lose_reply)
    assert store.create("x", BODY)
    assert (proxy.seen(PUTS[kind]), behind.get("x")) == (2, BODY)


@EVERYWHERE
def test_a_lost_reply_is_a_failure_if_the_object_has_other_content(
    proxy: FaultProxy, store: Storage, behind: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    def overtaken(exchange: Any) -> None:
        lose_reply(exchange)
        behind.put("x", b"other")

    proxy.on(PUTS[kind], overtaken, times=ALWAYS)
    with pytest.raises(RunError, match="cannot write"):
        store.write("x", b"mine!")
    assert behind.get("x") == b"other"
    store.remove("x")
    assert not store.create("x", b"mine!")


def test_large_files_are_compared_piece_by_piece(
    proxy: FaultProxy, store: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("maskrcnn.io.stores.remote_store._COMPARED_BYTES", 7_000)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    (tmp_path / "local").write_bytes(BODY)
    proxy.on("PUT", lose_reply)
    store.put_file("x", tmp_path / "local")
    assert proxy.seen("GET") == 3
    proxy.on("PUT", reset)
    (tmp_path / "local").write_bytes(BODY[:-1] + bytes([BODY[-1] ^ 1]))
    with pytest.raises(RunError, match="cannot write"):
        store.put_file("x", tmp_path / "local")


def test_an_object_larger_than_one_put_is_written_by_s3fs_and_compared_too(
    proxy: FaultProxy, store: Storage, behind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("maskrcnn.io.stores.s3_store._ONE_PUT_BYTES", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    (tmp_path / "local").write_bytes(BODY)
    store.put_file("x", tmp_path / "local")
    proxy.on("PUT", lose_reply)
    store.put_file("y", tmp_path / "local")
    assert (behind.get("x"), behind.get("y")) == (BODY, BODY)
    proxy.on("PUT", reset)
    with pytest.raises(RunError, match="cannot write"):
        store.put_file("z", tmp_path / "local")


# Exclusive creation


def test_a_conflict_with_another_writer_is_retried(proxy: FaultProxy, store: Storage, behind: Any) -> None:
    conflict = refuse(409, "ConditionalRequestConflict")
    proxy.on("PUT", conflict, times=2)
    assert store.create("x", BODY)
    assert behind.get("x") == BODY
    proxy.on("PUT", conflict, times=5)
    assert store.create("z", BODY), "the last try counts too"
    store.remove("z")
    proxy.on("PUT", conflict, times=ALWAYS)
    with pytest.raises(RunError, match="cannot write"):
        store.create("y", BODY)
    assert behind.paths() == ["x"]


@pytest.mark.parametrize("status", [400, 501])
def test_a_store_without_conditional_writes_gets_none(
    proxy: FaultProxy, store: Storage, behind: Any, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unconditional(exchange: Any) -> None:
        refused = "if-none-match" in exchange.request.headers
        (refuse(status, "NotImplemented") if refused else ignoring("Date"))(exchange)

    proxy.on("PUT", unconditional, times=ALWAYS)
    assert store.create("x", BODY)
    assert store.create("x", BODY)
    assert not store.create("x", b"other")
    assert behind.get("x") == BODY


def test_a_writer_that_was_overwritten_meanwhile_does_not_get_true(
    proxy: FaultProxy, store: Storage, behind: Any
) -> None:
    def overtaken(exchange: Any) -> None:
        reply = exchange.ask()
        behind.put("x", b"other")
        exchange.begin(reply)
        exchange.send(reply.body)

    proxy.on("PUT", overtaken)
    assert not store.create("x", b"mine!")
    assert behind.get("x") == b"other"


@on_stores_that_keep_or_ignore("If-None-Match")
def test_one_of_racing_writers_contents_remains(
    proxy: FaultProxy, store: Storage, behind: Any, fault: Fault | None
) -> None:
    if fault is not None:
        proxy.on("PUT", fault, times=ALWAYS)
    barrier = threading.Barrier(4)

    def create(path: str, data: bytes) -> bool:
        barrier.wait()
        return store.create(path, data)

    with ThreadPoolExecutor(4) as pool:
        for i in range(2):
            contents = [f"writer {n}".encode() for n in range(4)]
            answers = list(pool.map(create, [f"differ-{i}"] * 4, contents))
            standing = behind.get(f"differ-{i}")
            assert answers[contents.index(standing)], "whose content stands is answered so"
            if fault is None:
                assert sum(answers) == 1
            assert all(pool.map(create, [f"equal-{i}"] * 4, [BODY] * 4)), "equal bytes are everyone's"
            assert behind.get(f"equal-{i}") == BODY
    assert not store.create("differ-0", b"a late one")


# What killed processes leave behind


def test_open_uploads_below_the_output_are_aborted_and_no_others(
    proxy: FaultProxy, store: Storage, behind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_store, "_PAGE", 2)
    keys = [f"{behind.prefix}/shards/{i}/images.parquet" for i in range(3)]
    for key in (*keys, keys[0], behind.prefix + "-other/x"):
        begun = behind.client.create_multipart_upload(Bucket=behind.bucket, Key=key)
        behind.client.upload_part(
            Bucket=behind.bucket, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=BODY
        )
    behind.put("kept", BODY)
    assert store.abort_uploads() == 4
    assert store.abort_uploads() == 0
    left = behind.client.list_multipart_uploads(Bucket=behind.bucket, Prefix=behind.prefix)["Uploads"]
    assert [upload["Key"] for upload in left] == [behind.prefix + "-other/x"]
    assert behind.paths() == ["kept"]
    proxy.on("GET", refuse(501, "NotImplemented"), key="/test-bkt")
    assert store.abort_uploads() == 0, "what knows no uploads has none"


def test_old_temporary_files_are_removed_and_no_others(tmp_path: Path) -> None:
    store = Storage(str(tmp_path / "out"))
    store.write("shards/a/part", b"1")
    old = time.time() - local_store.LEFTOVER_S - 60
    leftover, young, users = f".{'0a' * 16}.tmp", f".{'1b' * 16}.tmp", ".mine.tmp"
    for name in (leftover, young, users):
        (tmp_path / "out" / "shards" / "a" / name).write_bytes(b"half")
        if name != young:
            os.utime(tmp_path / "out" / "shards" / "a" / name, (old, old))
    assert store.remove_leftovers() == 1
    assert {path.name for path in (tmp_path / "out" / "shards" / "a").iterdir()} == {"part", young, users}
    assert (Storage(str(tmp_path / "none")).remove_leftovers(), store.abort_uploads()) == (0, 0)


# The local disk


@pytest.mark.parametrize("remote", [False, True], ids=["local output", "remote output"])
def test_a_disk_that_is_full_is_one_clear_line(store: Storage, tmp_path: Path, remote: bool) -> None:
    output = store if remote else Storage(str(tmp_path / "out"))
    line = (
        r"cannot build s3://.*/shards/x in TMPDIR .*: the disk is full"
        if remote
        else r"/out/shards/x: the disk is full"
    )

    def build(write: Callable[[Path], object]) -> None:
        with output.building("shards/x") as local:
            local.symlink_to("/dev/full")  # each write to it fails with ENOSPC
            write(local)

    for write in (
        lambda local: pq.write_table(pa.table({"x": range(100_000)}), local),
        lambda local: local.write_bytes(BODY),
    ):
        with pytest.raises(RunError, match=line):
            build(write)
    assert output.list() == []


def test_a_temporary_folder_that_cannot_be_used_is_named(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"cannot build .*/x in TMPDIR .*/file: a part of the path is a file"):
        store.building("x").__enter__()
    monkeypatch.setattr(tempfile, "tempdir", "/proc")  # a file system in which nobody makes a folder
    with pytest.raises(RunError, match=r"cannot build .*/x in TMPDIR /proc: "):
        store.building("x").__enter__()


def test_an_error_of_the_caller_in_a_block_is_not_converted(store: Storage, tmp_path: Path) -> None:
    for output in (store, Storage(str(tmp_path))):
        with pytest.raises(KeyError), output.building("x"):
            raise KeyError("x")
