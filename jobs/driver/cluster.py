"""Where the job runs: an existing Ray cluster, or a Ray that is started on this machine for the job."""

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import MaskrcnnError, RunError, UsageError, plural
from maskrcnn.io.temporary import temporary_folder

from .local_ray import local_ray
from .nodes import CLUSTER, Demand, alive_nodes, await_demand, default_actors, default_threads, node_types
from .ray_errors import advise, condense
from .where_to_run import check_reachable, check_resources, cluster_of

log = logging.getLogger("maskrcnn")


@contextlib.contextmanager
def connected(address: str | None, resources: ResourceConfig) -> Iterator[ResourceConfig]:
    """Connect to Ray for the duration of a block; yield the resources with every default resolved.

    Args:
        address: of a cluster; None: `RAY_ADDRESS`, else a Ray that is started here and ends with the block.
        resources: as requested; `device="auto"`, `threads=None` and `actors=None` are resolved.

    Raises:
        UsageError: an existing cluster without `--device`; nothing can meet the demand of an actor.
        RunError: the cluster cannot be reached.
    """
    check_resources(address, resources)
    address = cluster_of(address)
    local = address is None
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            if address is None:
                log.info("starting Ray on this machine")
                address = stack.enter_context(local_ray())
            else:
                log.info("connecting to Ray at %s", address)
                check_reachable(address, "connect to Ray at")
                # One attempt: it waits 40 seconds, and a wrong token stays wrong.
                os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
            stack.callback(ray.shutdown)
            _init(address)
        # Ray reports workers that died on stdout, which is reserved for a command's result.
        with contextlib.redirect_stdout(sys.stderr):
            yield _resolved(resources, local=local)


def _init(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # If an actor dies with two tasks, only the result of the first is fetched.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # Silences a notice about GPUs' environment variables that does not apply here.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _empty_folder(), _discarding_native_lines():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many kinds, down to `Exception`; all are the environment's
        raise RunError(f"cannot connect to Ray at {address}: {advise(condense(error))}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            # Ray installs its own handlers, which end the process at once.
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _discarding_native_lines() -> Iterator[None]:
    """Discard what Ray's C++ code writes to standard error for the time of a block; Python's `sys.stderr` still works.

    Before it has a log file, it writes what the exception of `ray.init` says too.
    """
    with open(os.devnull, "wb") as nowhere, os.fdopen(os.dup(2), "w", encoding="utf-8") as stderr:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
        try:
            with contextlib.redirect_stderr(stderr):
                yield
        finally:
            os.dup2(stderr.fileno(), 2)


@contextlib.contextmanager
def _empty_folder() -> Iterator[None]:
    """Change the working directory to an empty folder for the time of a block.

    Ray adds the working directory of `ray.init` to `sys.path` of all workers, at its start: a package `maskrcnn`, `ray`
    or `torch` in the user's folder would be imported instead of the installed one.
    """
    before = os.open(".", os.O_RDONLY)  # not by its name: it may have been removed
    try:
        with temporary_folder() as folder:
            os.chdir(folder)
            try:
                yield
            finally:
                os.fchdir(before)
    finally:
        os.close(before)


def _resolved(resources: ResourceConfig, *, local: bool) -> ResourceConfig:
    """Return the resources with every default resolved, by what the nodes have, or the types of nodes that may come.

    `threads` remains None where no GPU node is known yet: then each actor takes its share of its own node.

    Raises:
        UsageError: no node can run an actor.
    """
    nodes = alive_nodes()
    device = resources.device
    if device == "auto":
        device = "cuda" if any(node.gpus for node in nodes) else "cpu"
    gpus = 1 if device == "cuda" else 0
    if local and gpus and not nodes[0].gpus:
        raise UsageError("this machine has no GPU that Ray sees; use --device cpu")
    if local and (resources.threads or 1) > nodes[0].cpus:
        raise UsageError(
            f"--threads {resources.threads}, but this machine has {plural(nodes[0].cpus, 'CPU')}: use fewer"
        )
    if not local:
        await_demand(Demand(resources.threads or 1, gpus))
        nodes = alive_nodes()
    known = nodes if any(node.gpus for node in nodes) else [*nodes, *node_types()]
    threads = resources.threads or default_threads(known, device)
    demand = Demand(threads or 1, gpus)
    fitting = default_actors(nodes, demand)
    actors = resources.actors or fitting
    if local and actors > fitting:  # no other node will join
        log.info("--actors %d: this machine has room for %d", actors, fitting)
        actors = fitting
    return dataclasses.replace(resources, device=device, threads=threads, actors=actors)


def node_answers(node_id: str, within_s: float = 60.0) -> bool:
    """Return whether a node of the cluster still runs tasks."""
    on_it = NodeAffinitySchedulingStrategy(node_id, soft=False)
    answer: Any = ray.remote(num_cpus=0, max_retries=0)(_nothing).options(scheduling_strategy=on_it).remote()
    try:
        ray.get(answer, timeout=within_s)
    except ray.exceptions.RayError:  # including a timeout
        return False
    return True


def _nothing() -> None:
    pass


def cause_of(error: ray.exceptions.RayTaskError) -> BaseException:
    """Return the exception of a task, without the remote traceback that Ray adds to its text."""
    return error.cause if isinstance(error.cause, BaseException) else error


def run_all(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    """Apply a function to each argument by Ray tasks, and return the results in order.

    Raises:
        MaskrcnnError: as a task raised it.
        RunError: a task died, or no node has what it needs.
    """
    try:
        return _run_tasks(function, arguments)
    except ray.exceptions.RayError as error:
        cause = cause_of(error) if isinstance(error, ray.exceptions.RayTaskError) else error
        if isinstance(cause, MaskrcnnError):
            raise cause from None
        if not isinstance(cause, ray.exceptions.RayError | ImportError):
            raise
        if CLUSTER.check():  # it was on a node without what it needs
            return run_all(function, arguments)
        raise RunError(f"a Ray task died: {condense(error)}; run the same command again") from error


def _run_tasks(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    task = ray.remote(num_cpus=1, max_retries=3, scheduling_strategy=CLUSTER.strategy)(_apply)
    shared = ray.put(function)
    results: list[Any] = ray.get([task.remote(shared, argument) for argument in arguments])
    return results


def _apply(function: Callable[[Any], Any], argument: Any) -> Any:
    return function(argument)
