"""The process that starts a Ray for one command, and ends it when that command ends, however it ends.

    python -P -m maskrcnn_jobs.driver.local_ray_node SETTINGS

Its standard input is a pipe that only the command holds: the end of the pipe is the end of the command. On its standard
output it reports one JSON object per line: what it is waiting for, then the address, or why there is none.

A process of its own, because an attempt that fails must leave nothing behind: a process that has lost the control store
of a Ray is ended by Ray after a minute, and the command would be such a process.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

CHECKED: Final = "2.60."
"""Versions of Ray with whose private parts this module was checked; others are started by `ray.init`."""
POLL_S: Final = 0.1


class Running(NamedTuple):
    """A Ray that runs."""

    address: str
    ended: Callable[[], str | None]
    """Returns the name of a process that has ended, or None."""
    stop: Callable[[], None]


def _one_machine(settings: dict[str, Any], report: Callable[[str], None]) -> type[Any]:
    """Return the class of a node that starts the control store and the raylet, and watches both."""
    from ray._private import services
    from ray._private.node import Node
    from ray._raylet import (  # type: ignore[attr-defined]
        DASHBOARD_AGENT_LISTEN_PORT_NAME,
        METRICS_AGENT_PORT_NAME,
        METRICS_EXPORT_PORT_NAME,
        persist_port,
    )

    class OneMachine(Node):
        def start_api_server(self, **_: Any) -> None:
            """Start none: it serves the dashboard, jobs and statistics of use."""

        def start_gcs_server(self) -> None:
            super().start_gcs_server()  # type: ignore[no-untyped-call]
            self.wait_until(self.listens)

        def start_ray_processes(self) -> None:
            for port in (METRICS_AGENT_PORT_NAME, METRICS_EXPORT_PORT_NAME, DASHBOARD_AGENT_LISTEN_PORT_NAME):
                persist_port(settings["session_dir"], self.node_id, port, -1)
            super().start_ray_processes()  # type: ignore[no-untyped-call]
            report("the raylet")
            self.wait_until(self.registered)

        def wait_until(self, ready: Callable[[], bool]) -> None:
            while not ready():
                for name, _ in self.dead_processes():  # type: ignore[no-untyped-call]
                    raise RuntimeError(f"its process {name} ended")
                time.sleep(POLL_S)

        def listens(self) -> bool:
            try:
                socket.create_connection(("127.0.0.1", settings["ports"][0])).close()
            except OSError:  # not yet
                return False
            return True

        def registered(self) -> bool:
            try:
                services.get_node(self.gcs_address, self.node_id)  # type: ignore[no-untyped-call]
            except RuntimeError:  # not yet
                return False
            return True

    return OneMachine


def start_processes(settings: dict[str, Any], report: Callable[[str], None]) -> Running:
    """Start the two processes that a Ray on one machine needs: the control store and the raylet.

    `ray.init` also starts the server of the dashboard, even without a dashboard, a monitor of the autoscaler and a
    monitor of the logs. Its raylet waits for two agents, Python processes with many imports, for 15 seconds at most,
    and ends if they are not there by then; `ray.init` goes on waiting for the raylet that has ended. Neither times nor
    processes can be set. A run on one machine uses no agent. So, with names that are private to Ray: the ports that
    the raylet would wait for are written before it starts, as -1, which an agent writes that offers no service; and the
    raylet is watched until it has registered.

    Raises:
        RuntimeError: a process ended.
    """
    from ray._private.parameter import RayParams

    # The agent of the dashboard, without which no raylet starts, then loads as little as in a minimal installation.
    sys.modules["ray.dashboard.optional_deps"] = None  # type: ignore[assignment]
    report("the control store")
    control_store_port, runtime_env_port = settings["ports"]
    parameters = RayParams(
        node_ip_address="127.0.0.1",
        gcs_server_port=control_store_port,
        runtime_env_agent_port=runtime_env_port,
        object_store_memory=settings["object_store_bytes"],
        temp_dir=settings["temp_dir"],
        session_name=Path(settings["session_dir"]).name,
        include_dashboard=False,
        include_log_monitor=False,  # type: ignore[arg-type]
        no_monitor=True,
    )
    node = _one_machine(settings, report)(
        parameters, head=True, shutdown_at_exit=False, spawn_reaper=True, ray_init_cluster=True
    )

    def ended() -> str | None:
        return next((str(name) for name, _ in node.dead_processes()), None)

    def stop() -> None:
        node.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)

    return Running(node.gcs_address, ended, stop)


def start_by_init(settings: dict[str, Any], report: Callable[[str], None]) -> Running:
    """Start a Ray by its public call."""
    import ray

    report("its processes")
    context: Any = ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=settings["object_store_bytes"],
        _node_ip_address="127.0.0.1",
        _temp_dir=settings["temp_dir"],
    )
    return Running(context.address_info["address"], lambda: None, ray.shutdown)


def main() -> None:
    """Start Ray, report its address, and stop it at the end of standard input."""
    settings = json.loads(sys.argv[1])
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray writes to standard output is no report

    def report(kind: str, text: str) -> None:
        reports.write(json.dumps({kind: text}) + "\n")
        reports.flush()

    started, finished = threading.Event(), threading.Event()
    threading.Thread(target=_watch, args=(started, finished), daemon=True).start()
    import ray

    checked = ray.__version__.startswith(CHECKED) and not settings["public"]
    try:
        running = (start_processes if checked else start_by_init)(
            settings, lambda part: report("waiting", part)
        )
    except Exception as error:  # whatever it is, it goes to the command, which tries again or ends with it
        report("failed", " ".join(str(error).split()) or type(error).__name__)
        raise
    started.set()
    report("address", running.address)
    while not finished.wait(1.0):
        part = running.ended()
        if part is not None:
            sys.stderr.write(f"{part} has ended\n")
            break
    running.stop()


def _watch(started: threading.Event, finished: threading.Event) -> None:
    """Wait for the end of the command; while Ray is still starting, end it at once with all its processes."""
    while os.read(0, 1):
        pass
    finished.set()
    if not started.is_set():
        os.killpg(os.getpgrp(), signal.SIGKILL)  # the group is this process's own: the command makes it so


if __name__ == "__main__":
    main()
