"""What a sample says of the use of the machines and of the requests to come, compared with what happens."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from fault_proxy import FaultProxy
from hypothesis import given, settings
from hypothesis import strategies as st
from maskrcnn_jobs.cli import main
from maskrcnn_jobs.driver.request_forecast import requests_to_come
from maskrcnn_jobs.driver.usage import Meter, Usage, cpu_use
from planted_images import write_planted
from s3_servers import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server

from maskrcnn.io.stores.request_count import count_request


@pytest.fixture
def proxy(moto_process: S3Server) -> Iterator[FaultProxy]:
    """Counts what reaches the server; the environment points at it."""
    proxy = FaultProxy(moto_process.endpoint, ACCESS_KEY, SECRET_KEY)
    with S3Server(proxy.endpoint).environment():
        yield proxy
    proxy.stop()


def arrived(proxy: FaultProxy) -> Counter[str]:
    """Return the requests that reached a server, by method; a GET of the bucket itself is a page of a listing."""
    return Counter(
        "LIST" if request.method == "GET" and request.path.rstrip("/") == f"/{BUCKET}" else request.method
        for request in proxy.requests
    )


@pytest.mark.s3
@pytest.mark.slow
def test_the_requests_of_a_run_are_forecast(
    proxy: FaultProxy, moto_process: S3Server, tmp_path: Path
) -> None:
    write_planted(tmp_path, 40, seed=3)
    source, out = moto_process.prefix(), moto_process.prefix()
    for path in tmp_path.glob("*.png"):
        moto_process.behind(source).put(path.name, path.read_bytes())
    options = [f"{source}/", out, "--model", "planted", "--shard-images", "2", "--no-ray"]
    planned = CliRunner().invoke(main, ["plan", *options, "--measure", "12", "--json"])
    assert planned.exit_code == 0, planned.output
    forecast = json.loads(planned.stdout)["forecast"]["requests"]
    proxy.clear()
    run = CliRunner().invoke(main, ["segment", *options])
    assert run.exit_code == 0, run.output
    made = arrived(proxy)
    assert set(forecast) == {"GET", "LIST", "PUT"}
    for method, count in forecast.items():
        assert count == pytest.approx(made[method], rel=0.1), (forecast, made)


def test_a_meter_counts_this_process_its_children_and_each_second_once() -> None:
    def computing(seconds: float) -> str:
        return f"import time\nwhile time.process_time() < {seconds}: pass"

    meter = Meter(cpus=4)
    before = time.process_time()
    thread = threading.Thread(target=exec, args=(computing(before + 0.1), {}))
    thread.start()
    thread.join()
    subprocess.run([sys.executable, "-S", "-c", computing(0.2)], check=True)
    count_request("GET")
    used = meter.take()
    assert used.cpus == 4
    assert used.worker.endswith(f":{os.getpid()}")
    assert used.requests == {"GET": 1}
    assert used.cpu_s >= 0.28, "clocks of children count in hundredths"
    again = meter.take()
    assert again.cpu_s < used.cpu_s
    assert again.requests == {}


use = st.builds(
    Usage,
    st.sampled_from(["a:1", "a:2", "b:1"]),
    st.just(2),
    st.floats(0, 10),
    st.fixed_dictionaries({"GET": st.integers(0, 50)}),
)


@settings(max_examples=30)
@given(st.lists(use), st.floats(0.1, 100))
def test_a_share_of_the_cpus_is_one_of_all_workers(usages: list[Usage], wall_s: float) -> None:
    share = cpu_use(usages, wall_s)
    if not usages:
        assert share is None
        return
    workers = len({usage.worker for usage in usages})
    assert share == pytest.approx(min(sum(usage.cpu_s for usage in usages) / (2 * workers * wall_s), 1.0))


@settings(max_examples=30)
@given(st.lists(use, min_size=1), st.integers(1, 10**6), st.integers(1, 10**5), st.booleans())
def test_requests_grow_with_the_run(usages: list[Usage], rows: int, shards: int, in_store: bool) -> None:
    """Those of the inputs by the images, those of the output by the shards, and a local output makes none."""

    def to_come(rows: int, shards: int) -> dict[str, int]:
        return requests_to_come(usages, 10, rows, shards, 0.0, 0, in_store=in_store)

    one, more_rows, more_shards = to_come(rows, shards), to_come(2 * rows, shards), to_come(rows, 2 * shards)
    sampled = sum(usage.requests["GET"] for usage in usages)
    pictures = 12  # of the report, at most
    assert -1 <= more_rows["GET"] - one["GET"] - sampled * rows / 10 <= pictures + 1
    assert {name: more_rows[name] for name in ("PUT", "LIST")} == {
        name: one[name] for name in ("PUT", "LIST")
    }
    if in_store:
        assert more_shards["PUT"] - one["PUT"] == 3 * shards
        assert more_shards["LIST"] >= one["LIST"]
    else:
        assert (one["PUT"], one["LIST"]) == (0, 0)
        assert more_shards == one
