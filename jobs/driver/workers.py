"""The workers of a run, in this process or on Ray, and what they do: map shards, and apply functions for the reduce."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from maskrcnn.config import ResourceConfig
from maskrcnn.pipeline.success import RunAll, run_here

from . import one_process
from .driver_records import Driver
from .node_worker import WorkerSpec
from .progress import Progress
from .where_to_run import Left, in_one_process
from .work import Work

MapShards = Callable[[WorkerSpec, str, Progress, Work], None]
"""Runs shards. Takes the workers' specification, an input that they must be able to read, progress, and the shards."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Where a run is processed."""

    resources: ResourceConfig
    """With `threads` resolved, and on Ray `device` and `actors`."""
    map_shards: MapShards
    run_all: RunAll
    lanes: int | None = None
    """As of `WorkerSpec`; None: on Ray."""


@contextlib.contextmanager
def workers_for(
    address: str | None, resources: ResourceConfig, left: Left, drivers: Sequence[Driver]
) -> Iterator[Workers]:
    """Connect to what processes a run, for the duration of a block.

    Args:
        address: of a Ray cluster, as requested.
        resources: as requested.
        left: what is to be done.
        drivers: of the run, besides this process.

    Raises:
        RunError, UsageError: as `cluster.connected` and `one_process.resolved`.
    """
    if in_one_process(address, resources, left, drivers):
        resolved, lanes = one_process.resolved(resources)
        yield Workers(resolved, one_process.map_shards, run_here, lanes)
        return
    # Ray is imported only where it is used: it takes a second.
    from .cluster import connected, run_all
    from .scheduler import map_shards

    with connected(address, resources) as resolved:
        yield Workers(resolved, map_shards, run_all)


@contextlib.contextmanager
def tasks_at(address: str | None) -> Iterator[RunAll]:
    """Yield what applies functions, for the duration of a block: Ray tasks of a cluster, or this process.

    Args:
        address: of the cluster; None: this process.

    Raises:
        RunError, UsageError: as `cluster.connected`.
    """
    if address is None:
        yield run_here
        return
    from .cluster import connected, run_all

    with connected(address, ResourceConfig(device="cpu")):
        yield run_all
