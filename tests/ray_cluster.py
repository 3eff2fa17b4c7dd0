"""A Ray that stands for many tests: started as a user starts a cluster, and started again where it did not come up."""

import contextlib
from collections.abc import Iterator

from local import LocalCluster, local_cluster

START_TRIES = 4
"""On a busy machine a node may miss a deadline of Ray's own (15 s for its agent), and end."""


@contextlib.contextmanager
def standing_cluster(
    nodes: int = 1, cpus: int = 2, head_cpus: int | None = None, *, dashboard: bool = False
) -> Iterator[LocalCluster]:
    """Run a cluster for the time of a block, as `local_cluster` does; try again where a node does not start.

    Raises:
        RuntimeError: a node did not start in `START_TRIES` attempts; with what it logged.
    """
    with contextlib.ExitStack() as stack:
        for tries_left in reversed(range(START_TRIES)):
            try:
                cluster = stack.enter_context(local_cluster(nodes, cpus, head_cpus, dashboard=dashboard))
            except RuntimeError:
                if not tries_left:
                    raise
            else:
                break
        yield cluster
