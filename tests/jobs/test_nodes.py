"""What actors need against what nodes have, and which version each node has."""

import subprocess
import sys

import pytest
from commandline import environment_without
from hypothesis import given
from hypothesis import strategies as st
from local import LocalCluster
from maskrcnn_jobs.driver.nodes import (
    MAX_GPU_THREADS,
    Demand,
    Node,
    _largest,
    default_actors,
    default_threads,
    version_problem,
)

NODES = st.lists(st.builds(Node, st.just("node"), st.integers(0, 64), st.integers(0, 8)), max_size=6)


@given(nodes=NODES, device=st.sampled_from(["cpu", "cuda"]))
def test_an_actor_by_default_fits_on_each_node_that_has_a_cpu_for_each_gpu(
    nodes: list[Node], device: str
) -> None:
    threads = default_threads(nodes, device)
    if threads is None:
        assert device == "cuda"
        assert not any(node.gpus for node in nodes)
        return
    assert 1 <= threads <= MAX_GPU_THREADS
    demand = Demand(threads, 1 if device == "cuda" else 0)
    for node in nodes:
        if device == "cuda" and node.gpus and node.cpus >= node.gpus:
            assert node.has(demand)
            assert node.cpus >= threads * node.gpus


@given(nodes=NODES, cpus=st.integers(1, 8), gpus=st.integers(0, 1))
def test_as_many_actors_by_default_as_fit_at_once(nodes: list[Node], cpus: int, gpus: int) -> None:
    """By filling the nodes one actor at a time."""
    fitting = 0
    for node in nodes:
        left_cpus, left_gpus = node.cpus, node.gpus
        while left_cpus >= cpus and left_gpus >= gpus:
            left_cpus, left_gpus, fitting = left_cpus - cpus, left_gpus - gpus, fitting + 1
    assert default_actors(nodes, Demand(cpus, gpus)) == max(fitting, 1)


def test_the_cpus_of_nodes_without_a_gpu_do_not_count() -> None:
    """A head of one CPU, and a node of one CPU and one GPU: two threads would fit nowhere."""
    assert default_threads([Node("head", 1, 0), Node("gpu", 1, 1)], "cuda") == 1
    assert default_threads([Node("head", 64, 0), Node("gpu", 16, 4)], "cuda") == 4


def test_the_largest_node_is_named_by_what_is_asked_for() -> None:
    nodes = [Node("many", 64, 0), Node("gpu", 4, 1)]
    assert _largest(nodes, Demand(128, 0)) == "the largest node, many, has 64 CPUs"
    assert _largest(nodes, Demand(8, 2)) == "the largest node, gpu, has 4 CPUs and 1 GPU"
    assert _largest([], Demand(1, 0)) == "the cluster has no nodes"


def test_versions_are_compared_exactly() -> None:
    assert version_problem("0.3.0", "0.3.0") is None
    assert version_problem("0.2.0", "0.3.0") == (
        "it has maskrcnn-ray 0.2.0, and the command has 0.3.0: install the same version"
    )


WAITING = """
import sys

import ray
from maskrcnn.config import ResourceConfig
from maskrcnn_jobs.driver.cluster import connected
from maskrcnn_jobs.driver.nodes import Demand, missing_node, threads_on_this_node

with connected({address!r}, ResourceConfig("cpu")):
    print(missing_node(Demand(1, 1)), file=sys.__stdout__, flush=True)
    share = ray.remote(num_cpus=1, num_gpus=1)(threads_on_this_node).remote()
    print(ray.get(share), missing_node(Demand(3, 1)), missing_node(Demand(4, 1)), file=sys.__stdout__)
"""


@pytest.mark.ray
def test_an_actor_that_waited_for_its_node_takes_the_share_of_that_node(ray_cluster: LocalCluster) -> None:
    """The GPU is only announced to Ray, which then places on the node what needs one."""
    environment = environment_without("RAY_") | ray_cluster.environment
    command = [sys.executable, "-c", WAITING.format(address=ray_cluster.address)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        before = process.stdout.readline()
        node = ray_cluster.start(["--address", ray_cluster.address, "--num-gpus", "1"], cpus=3)
        try:
            after, _ = process.communicate(timeout=100)
        finally:
            process.kill()
            node.stop()
    assert before == "a node with 1 CPU and 1 GPU\n"
    assert after == "3 None a node with 4 CPUs and 1 GPU\n"


@pytest.mark.ray
@pytest.mark.parametrize(
    ("resources", "needs"),
    [("device='cpu', threads=64", "64 CPUs"), ("device='cuda', threads=1", "1 CPU and 1 GPU")],
)
def test_what_no_node_has_is_one_line(resources: str, needs: str, ray_cluster: LocalCluster) -> None:
    code = (
        "from maskrcnn_jobs.driver import cluster, nodes\n"
        "from maskrcnn.config import ResourceConfig\n"
        "from maskrcnn.errors import UsageError\n"
        "nodes.JOIN_S = 0\n"
        "try:\n"
        f"    with cluster.connected({ray_cluster.address!r}, ResourceConfig({resources})): pass\n"
        "except UsageError as error: print(error)"
    )
    environment = environment_without("RAY_") | ray_cluster.environment
    said = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment, timeout=100)
    assert said.startswith(f"an actor needs {needs}, and the largest node, ")
    assert said.endswith(" has 2 CPUs: use fewer --threads, another --device, or larger nodes\n")
