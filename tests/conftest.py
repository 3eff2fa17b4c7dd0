"""Stores for tests: a folder, memory, moto, SeaweedFS, a real S3 server that runs from a wheel, and two emulators.

A test of a store runs on each by asking for `store_url`. A test that wants S3 asks for `moto_server` or
`weed_server`: for its duration the environment points there, and what it starts, like Ray workers, inherits
that. A fixture of a wider scope takes `moto_process` or `weed_process`, and enters `S3Server.environment()`.

A test that needs a Ray, but does not test how one starts, asks for `ray_cluster`, one for all tests.
"""

import ast
import atexit
import functools
import logging
import os
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos.chance import SEED, SIZE, chance, dice
from emulators import Azurite, FakeGcs, running_azurite, running_fake_gcs
from hypothesis import HealthCheck, settings
from local import LocalCluster
from ray_cluster import standing_cluster
from s3_servers import BUCKET, S3Server, free_port, new_weed

# How long an example takes says more about the machine than about the code.
settings.register_profile(
    "any-machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("any-machine")

ENDED = pytest.StashKey[int]()
NICENESS = 5
"""Of processes of pytest-xdist whose tests start no Ray, as of the command `nice`."""
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def command_log() -> None:
    """Reset the level of the commands' log, which a command that a test calls sets for all of the process."""
    logging.getLogger("maskrcnn").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def moto_process() -> Iterator[S3Server]:
    """S3 in memory, in this process: fast, accepts any key, checks no signature."""
    from moto.server import ThreadedMotoServer

    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    result = S3Server(f"http://127.0.0.1:{port}")
    result.client().create_bucket(Bucket=BUCKET)
    yield result
    server.stop()


@pytest.fixture(scope="session")
def weed_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS: on disk, in processes of its own; checks signatures."""
    process, server = new_weed(tmp_path_factory.mktemp("weed") / "data")
    yield server
    process.kill()  # its data are not kept, and it would take half a minute to stop in good order
    process.wait()


@pytest.fixture
def moto_server(moto_process: S3Server) -> Iterator[S3Server]:
    """The environment points at moto."""
    with moto_process.environment():
        yield moto_process


@pytest.fixture
def weed_server(weed_process: S3Server) -> Iterator[S3Server]:
    """The environment points at SeaweedFS."""
    with weed_process.environment():
        yield weed_process


@pytest.fixture(scope="session")
def azurite_process() -> Iterator[Azurite]:
    """Azurite: in memory, in a process of its own; checks signatures."""
    with running_azurite() as server:
        yield server


@pytest.fixture(scope="session")
def fake_gcs_process() -> Iterator[FakeGcs]:
    """An emulator of Google Cloud Storage: in memory, in a process of its own; accepts anyone."""
    with running_fake_gcs() as server:
        yield server


@pytest.fixture
def azurite_server(azurite_process: Azurite) -> Iterator[Azurite]:
    """The environment points at Azurite."""
    with azurite_process.environment():
        yield azurite_process


@pytest.fixture
def fake_gcs_server(fake_gcs_process: FakeGcs) -> Iterator[FakeGcs]:
    """The environment points at fake-gcs-server."""
    with fake_gcs_process.environment():
        yield fake_gcs_process


@pytest.fixture(scope="session")
def ray_cluster(weed_process: S3Server) -> Iterator[LocalCluster]:
    """One standing Ray of two CPUs, whose workers reach SeaweedFS as those of a cloud reach its buckets."""
    from chaos.cluster import kill_node

    with weed_process.environment(), standing_cluster(cpus=2) as cluster:
        yield cluster
        for node in cluster.nodes:
            if node.process.poll() is None:
                kill_node(node)  # it would take half a minute to stop in good order


STORES = (
    "local",
    "memory",
    pytest.param("moto", marks=pytest.mark.s3),
    pytest.param("weed", marks=pytest.mark.s3),
    pytest.param("azurite", marks=pytest.mark.emulator),
    pytest.param("fake_gcs", marks=pytest.mark.emulator),
)


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh folder or prefix in each kind of store."""
    if request.param == "local":
        return str(tmp_path / "store")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex[:12]}"
    server: S3Server | Azurite | FakeGcs = request.getfixturevalue(f"{request.param}_server")
    return server.prefix()


def pytest_configure() -> None:
    """Let the processes of pytest-xdist, and what tests start, draw the samples that this process draws.

    And let workers of Ray have their share of the CPUs: by default they give way to all else.
    """
    os.environ["CHAOS_SEED"] = str(SEED)
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 Ray reads it in this spelling


@functools.cache
def _give_way() -> None:
    os.nice(NICENESS)


def pytest_runtest_logstart(nodeid: str) -> None:
    """Let processes of pytest-xdist that compute give way to the one whose tests start Ray: it takes longest."""
    if "PYTEST_XDIST_WORKER" in os.environ and group_of(nodeid) != "ray":
        _give_way()


def pytest_report_header() -> str:
    """Say what repeats this run's samples."""
    return f"samples: {dice()} draws them again"


def draw_samples(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the items that are left out: parameters of tests marked `sampled` beyond today's sample.

    `make chaos` runs all of them. Where parameters are selected by name, no more are left out than the mark says.
    """
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: list[pytest.Item] = []
    for name, parameters in tests.items() if SIZE == 1 else ():
        [count] = parameters[0].get_closest_marker("sampled").args
        left_out += chance("sampled", name).sample(parameters, max(len(parameters) - count, 0))
    return left_out


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Draw the samples, and put what takes longest first, so that no process is left with it at the end.

    The tests of Ray, the notebooks, those of `chaos`, then files by the number of their slow tests.
    """
    left_out = set(draw_samples(items))
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    kept = [item for item in items if item not in left_out]
    slow = Counter(group_of(item.nodeid) for item in kept if item.get_closest_marker("slow"))

    def order(item: pytest.Item) -> tuple[bool, bool, bool, int]:
        notebook = item.get_closest_marker("notebook") is not None
        group = group_of(item.nodeid)
        return group != "ray", not notebook, "chaos" not in item.path.parts, -slow[group]

    items[:] = sorted(kept, key=order)


@functools.cache
def ray_tests(file: str) -> frozenset[str] | None:
    """Return the names of the tests of a file that are marked `ray`; None: all are, by `pytestmark`.

    The process that divides the tests knows their names only, so that their marks are read from the file.
    """
    content = (ROOT / file).read_text("utf-8")
    if "mark.ray" not in content:
        return frozenset()
    names = set()
    for statement in ast.parse(content).body:
        if isinstance(statement, ast.Assign) and "mark.ray" in ast.unparse(statement):
            return None
        if isinstance(statement, ast.FunctionDef) and "mark.ray" in " ".join(
            map(ast.unparse, statement.decorator_list)
        ):
            names.add(statement.name)
    return frozenset(names)


@functools.cache
def group_of(nodeid: str) -> str:
    """Return the group of a test, which one process of pytest-xdist runs: its file, or `ray`.

    Ray misses deadlines of its own where several start at once on few CPUs; and most of its tests wait. So all such
    tests are one group.
    """
    file, _, test = nodeid.partition("::")
    marked = ray_tests(file)
    return "ray" if marked is None or test.partition("[")[0] in marked else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Divide the tests among the processes by `group_of`.

    Not by marks, `--dist loadgroup`: with pytest 9.2, pytest-xdist 3.8 does not pass on the groups.
    """
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return GroupScheduling(config, log)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let each process of pytest-xdist compute on one thread: they share the CPUs, and OpenMP's threads spin."""
    if hasattr(session.config, "workerinput") and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remember how it ended, for the end of the process."""
    session.config.stash[ENDED] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End the process once Python's own exit handlers have run, before its native libraries are taken down.

    This one process has loaded torch, Arrow, DuckDB, gRPC and two GDALs (rasterio's and pyogrio's), as no process of a
    user does. Taken down in whatever order, with their threads, they once ended a run that had passed with a
    segmentation fault.
    """
    if ENDED in config.stash and not hasattr(config, "workerinput"):  # those of pytest-xdist are ended for it
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[ENDED])
