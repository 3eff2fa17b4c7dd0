"""Run a Ray cluster of several nodes on this machine, for experiments and for tests of what happens between nodes.

    python cluster/local.py --nodes 3

prints the address and the environment variables that a client needs; Ctrl-C stops the cluster. Tests use
`local_cluster`, and kill single nodes. The nodes are ordinary nodes of `ray start`, each with its own processes, ports
and name. Ray listens on all interfaces, so each cluster has its own token, which clients need.
"""

import argparse
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))
START_S = 120
"""Maximum number of seconds for the start of a node; it takes about 5, more if several start on few CPUs."""
OBJECT_STORE_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Node:
    """One running node."""

    process: subprocess.Popen[bytes]
    """`ray start --block`; the node's other processes end with it."""
    log: Path
    metrics: str
    """Address of its metrics, as Prometheus reads them."""

    def kill(self) -> None:
        """End the node as a lost machine ends: at once, without notifying the others."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Stop the node regularly, or kill it after 30 seconds."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.kill()


@dataclass
class LocalCluster:
    """A running cluster."""

    address: str
    """Address for `--address` and `ray.init`."""
    dashboard: str
    """Address for `maskrcnn submit --address` and Ray Jobs; "" without a dashboard."""
    environment: dict[str, str]
    """Environment variables of a client, which needs the token."""
    folder: Path
    nodes: list[Node] = field(default_factory=list)
    """All nodes, the head first."""

    def add_node(self, cpus: int = 1) -> Node:
        """Start another node; return when it has joined."""
        return self.start(["--address", self.address], cpus)

    def stop(self) -> None:
        """End all nodes, the head last."""
        for node in reversed(self.nodes):
            node.stop()

    def start(self, arguments: Sequence[str], cpus: int) -> Node:
        """Start a node by `ray start`; return when it has joined.

        Raises:
            RuntimeError: it did not start; the message contains its log.
        """
        log = self.folder / f"node-{len(self.nodes)}.log"
        # By default the agents of all nodes use one port, and Jobs fail on a node whose agent did not get it.
        agent_port, metrics_port = _free_ports(2)
        common = [
            *("--block", "--disable-usage-stats", "--node-ip-address", "127.0.0.1"),
            *("--dashboard-agent-listen-port", str(agent_port), "--metrics-export-port", str(metrics_port)),
            *("--num-cpus", str(cpus)),
            *("--object-store-memory", str(OBJECT_STORE_BYTES), "--temp-dir", str(self.folder)),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 (fixed arguments)
                [RAY, "start", *common, *arguments],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that all processes of a node can be killed, and Ctrl-C does not reach them
            )
        node = Node(process, log, f"http://127.0.0.1:{metrics_port}/metrics")
        self.nodes.append(node)
        _await(node)
        return node


@contextlib.contextmanager
def local_cluster(
    nodes: int = 3, cpus: int = 1, head_cpus: int | None = None, *, dashboard: bool = True
) -> Iterator[LocalCluster]:
    """Run a cluster for the duration of a block.

    Args:
        nodes: number of nodes, including the head.
        cpus: CPUs that each node offers, independent of the machine.
        head_cpus: CPUs of the head; None: the same as the other nodes.
        dashboard: whether the head serves the dashboard and Ray Jobs, in ten additional processes.

    Raises:
        RuntimeError: a node did not start; the message contains its log.
    """
    port, dashboard_port, client_port = _free_ports(3)
    # A short path: the path of a socket is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        token = folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        pages = f"http://127.0.0.1:{dashboard_port}" if dashboard else ""
        cluster = LocalCluster(f"127.0.0.1:{port}", pages, environment, folder)
        with contextlib.ExitStack() as started:
            started.callback(cluster.stop)
            head = ["--head", "--port", str(port), "--dashboard-port", str(dashboard_port)]
            head += ["--ray-client-server-port", str(client_port), f"--include-dashboard={dashboard}"]
            cluster.start(head, cpus if head_cpus is None else head_cpus)
            # One after the other: if they start at once on few CPUs, they miss Ray's own deadlines.
            for _ in range(nodes - 1):
                cluster.add_node(cpus)
            yield cluster


def _await(node: Node) -> None:
    deadline = time.monotonic() + START_S
    # `ray start` prints this when the node has joined.
    while b"This command will now block" not in node.log.read_bytes():
        if node.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"a node did not start:\n{node.log.read_text(errors='replace')}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def main() -> None:
    """Start a cluster, print how to use it, and wait for Ctrl-C."""
    parser = argparse.ArgumentParser(description="Run a Ray cluster of several nodes on this machine.")
    parser.add_argument("--nodes", type=int, default=3, help="number of nodes, including the head (3)")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs per node (1)")
    arguments = parser.parse_args()
    if arguments.nodes < 1 or arguments.cpus < 0:
        parser.error("--nodes must be at least 1, and --cpus at least 0")

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with local_cluster(arguments.nodes, arguments.cpus) as cluster:
        for variable, value in {"RAY_ADDRESS": cluster.address, **cluster.environment}.items():
            print(f"export {variable}={value}")  # noqa: T201
        print(f"# dashboard: {cluster.dashboard}\n# Ctrl-C stops {arguments.nodes} nodes", flush=True)  # noqa: T201
        stopped.wait()


if __name__ == "__main__":
    main()
