"""The nodes of a cluster: what they have, whether one can run an actor, and those that are left out of a run."""

import importlib.metadata
import json
import logging
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray import cloudpickle
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy, NotIn

from maskrcnn.errors import UsageError, plural

log = logging.getLogger("maskrcnn")

MAX_GPU_THREADS: Final = 8
"""CPUs of a GPU actor by default: at about 2 ms per photo, they decode faster than one GPU segments."""
JOIN_S: Final = 30.0
"""How long a run waits for a node that can run its actors to join, where none can."""
CHECK_S: Final = 60.0
"""How long a node may take to answer which version it has."""
ASK_HEAD_S: Final = 2.0
"""How long Ray's head may take to answer which nodes are draining."""


@dataclass(frozen=True, slots=True)
class Node:
    """What a node offers to actors, or the nodes of a type that an autoscaler may start."""

    name: str
    cpus: int
    gpus: int
    node_id: str = ""

    def has(self, demand: "Demand") -> bool:
        """Return whether an actor fits on the node while nothing else runs there."""
        return self.cpus >= demand.cpus and self.gpus >= demand.gpus


@dataclass(frozen=True, slots=True)
class Demand:
    """What an actor needs."""

    cpus: int
    gpus: int

    def __str__(self) -> str:
        return _amount(self.cpus, self.gpus)


def _amount(cpus: int, gpus: int) -> str:
    return f"{plural(cpus, 'CPU')} and {plural(gpus, 'GPU')}" if gpus else plural(cpus, "CPU")


def alive_nodes() -> list[Node]:
    """Return the nodes that are connected and not draining: on which actors may be placed."""
    draining = draining_nodes()
    return [node for node in _connected_nodes() if node.node_id not in draining]


def draining_nodes() -> dict[str, float]:
    """Return the ids of nodes that will be taken away, each with the seconds that are left; infinite: it is not known.

    Ray has no public call for them; its library Serve uses this one (Ray 2.60). If the head does not answer: {}.
    """
    try:
        client: Any = internal_kv.internal_kv_get_gcs_client()  # type: ignore[no-untyped-call]
        deadlines = client.get_draining_nodes(timeout=ASK_HEAD_S)
    except ray.exceptions.RayError:  # Ray itself ends this process if its head is gone for long
        return {}
    now = time.time()
    return {
        node_id: deadline_ms / 1000 - now if deadline_ms else math.inf
        for node_id, deadline_ms in deadlines.items()
    }


def _connected_nodes() -> list[Node]:
    return [
        Node(
            node["NodeManagerHostname"],
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
            node["NodeID"],
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def node_types() -> list[Node]:
    """Return the types of nodes that the cluster's autoscaler has reported; [] if it reports none.

    Ray has no public call for them; its own libraries use this one (Ray 2.60).
    """
    from ray._private.state import state

    config: Any = state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    return [
        Node(f"type {group.name}", int(group.resources.get("CPU", 0)), int(group.resources.get("GPU", 0)))
        for group in groups
        if group.max_count != 0
    ]


def may_grow() -> bool:
    """Return whether an autoscaler manages the cluster that may add nodes of a kind that is not connected.

    A cluster that was started node by node reports each node as a type of its own, `node_` and its id.
    """
    # What `ray status` reads; there is no public call.
    status = internal_kv._internal_kv_get("__autoscaling_status")  # noqa: SLF001
    report = (json.loads(status).get("autoscaler_report") or {}) if status else {}
    types = {*(report.get("active_nodes") or {}), *(report.get("pending_launches") or {})}
    return any(not name.startswith("node_") for name in types)


def default_threads(nodes: Iterable[Node], device: str) -> int | None:
    """Return the CPUs of an actor where the user gives no number: on GPU nodes, what each has for each GPU.

    None: no node has a GPU yet, so that each actor is to take the share of its own node.
    """
    if device != "cuda":
        return 1
    shares = [node.cpus // node.gpus for node in nodes if node.gpus]
    return min(max(min(shares), 1), MAX_GPU_THREADS) if shares else None


def threads_on_this_node() -> int:
    """Return the CPUs of an actor on the node of this process, where the user gives no number."""
    node_id = ray.get_runtime_context().get_node_id()
    return default_threads([node for node in _connected_nodes() if node.node_id == node_id], "cuda") or 1


def default_actors(nodes: Iterable[Node], demand: Demand) -> int:
    """Return the number of actors that fit on the nodes, at least 1."""
    counts = (
        min(node.cpus // demand.cpus, node.gpus // demand.gpus if demand.gpus else node.cpus)
        for node in nodes
    )
    return max(sum(counts), 1)


def await_demand(demand: Demand) -> None:
    """Return once a node can run an actor, or an autoscaler may add one.

    Raises:
        UsageError: no node, and no type of node, has what an actor needs, nor did one join in time.
    """
    deadline = time.monotonic() + JOIN_S
    said = False
    while True:
        candidates = [*alive_nodes(), *node_types()]
        if any(node.has(demand) for node in candidates):
            return
        lacking = f"an actor needs {demand}, and {_largest(candidates, demand)}"
        if may_grow() and not node_types():
            log.info("%s: waiting for the cluster to add a node", lacking)
            return
        if time.monotonic() > deadline:
            raise UsageError(f"{lacking}: use fewer --threads, another --device, or larger nodes")
        if not said:
            said = True
            log.info("%s: waiting %.0f s for another to join", lacking, JOIN_S)
        time.sleep(1.0)


def _largest(nodes: list[Node], demand: Demand) -> str:
    if not nodes:
        return "the cluster has no nodes"
    largest = max(nodes, key=lambda node: (node.gpus, node.cpus) if demand.gpus else (node.cpus, node.gpus))
    return f"the largest node, {largest.name}, has {_amount(largest.cpus, largest.gpus)}"


def missing_node(demand: Demand) -> str | None:
    """Return which node a run waits for, or None if one is connected that can run an actor."""
    return None if any(node.has(demand) for node in alive_nodes()) else f"a node with {demand}"


# --- nodes that are left out --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeProblem:
    """Why a node cannot run actors, as an actor reports it that was started there."""

    node_id: str
    host: str
    error: Exception


class Nodes:
    """The nodes that this process uses: all of the cluster, but for those on which nothing of it runs."""

    def __init__(self) -> None:
        self._checked: set[str] = set()
        self.left_out: dict[str, str] = {}
        """Reasons, by the id of the node."""

    @property
    def strategy(self) -> Any:
        """How Ray is to place further actors and tasks."""
        if not self.left_out:
            return "DEFAULT"
        return NodeLabelSchedulingStrategy(hard={"ray.io/node-id": NotIn(*self.left_out)})  # type: ignore[no-untyped-call]

    def others(self, demand: Demand) -> list[Node]:
        """Return the connected nodes that can run an actor and are not left out."""
        return [node for node in alive_nodes() if node.node_id not in self.left_out and node.has(demand)]

    def leave_out(self, node_id: str, host: str, reason: str) -> None:
        """Place no further actor on a node, and say why."""
        if node_id not in self.left_out:
            reason = reason if reason.startswith("node ") else f"node {host}: {reason}"
            self.left_out[node_id] = reason
            log.warning("%s; this node is left out", reason)

    def reasons(self) -> str:
        """Return why nodes are left out."""
        return "; ".join(dict.fromkeys(self.left_out.values()))

    def check(self) -> bool:
        """Ask the nodes which version they have, each once; return whether one was left out.

        For nodes on which an actor cannot even be imported, so that it cannot say where it was.
        """
        before = len(self.left_out)
        nodes = [node for node in self.others(Demand(1, 0)) if node.node_id not in self._checked]
        answers = [_ask_version(node.node_id) for node in nodes]
        if answers:
            ray.wait(answers, num_returns=len(answers), timeout=CHECK_S)
        for node, answer in zip(nodes, answers, strict=True):
            try:
                version, error = ray.get(answer, timeout=0)
            except ray.exceptions.RayError:  # it is busy, or about to be lost
                continue
            self._checked.add(node.node_id)
            problem = error or version_problem(version, package_version())
            if problem:
                self.leave_out(node.node_id, node.name, problem)
        return len(self.left_out) > before


CLUSTER: Final = Nodes()
"""Of the Ray that this process is connected to; there is one at a time."""


def package_version() -> str:
    """Return the version of maskrcnn-ray that is installed here."""
    return importlib.metadata.version("maskrcnn-ray")


def version_problem(node: str, command: str) -> str | None:
    """Return what is wrong if a node and the command have different versions of maskrcnn-ray."""
    if node == command:
        return None
    return f"it has maskrcnn-ray {node}, and the command has {command}: install the same version"


def _ask_version(node_id: str) -> Any:
    """Ask a node for the result of `_installed`, by a task that is sent as code: the package may not be there."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
    try:
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        task: Any = ray.remote(num_cpus=0, max_retries=0)(_installed).options(scheduling_strategy=strategy)
        return task.remote()
    finally:
        cloudpickle.unregister_pickle_by_value(module)  # type: ignore[no-untyped-call]


def _installed() -> tuple[str, str]:
    """Return the version of maskrcnn-ray in this process, and why its actor cannot be imported, or ""."""
    import importlib
    import importlib.metadata

    try:
        version = importlib.metadata.version("maskrcnn-ray")
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    try:
        importlib.import_module("maskrcnn_jobs.driver.actor")
    except Exception as error:  # noqa: BLE001 (whatever importing raises, an actor would end with it)
        return version, f"{error}" if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
    return version, ""
