"""Where a run is executed: in the process of the command, on a Ray started for it on this machine, or on a cluster.

This module decides, and imports no Ray: a command that runs in its own process does not pay for Ray's import.
"""

import logging
import os
import socket
from typing import Final

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import RunError, UsageError, plural
from maskrcnn.io.storage import Storage
from maskrcnn.io.url import redact
from maskrcnn.pipeline.plan import read_plans

from .planning import PROBES

log = logging.getLogger("maskrcnn")

MAX_ROWS: Final = 100
"""A run of up to this many images or windows is finished before Ray and its actors have started, or shortly after."""
MARKER: Final = f"{PROBES}/one-process"
"""A file of the run's directory that is there while a process without Ray works on the run, or where it died."""


def cluster_of(address: str | None) -> str | None:
    """Return the address of the cluster to use, or None for a Ray on this machine.

    Raises:
        UsageError: it has a password or a query in it, which is not repeated.
    """
    option = "--address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS")
    if address and redact(address) != address:
        raise UsageError(
            f"{option}: the address of a cluster has no user, password or query: name it as HOST:PORT or ray://HOST:PORT"
        )
    return None if address in (None, "", "local") else address


def check_resources(address: str | None, resources: ResourceConfig) -> None:
    """Check the options that decide where a run is executed.

    Raises:
        UsageError: the device would have to be guessed, on an existing cluster; or a cluster is named with `--no-ray`.
    """
    if resources.ray is False:
        if address is not None:
            raise UsageError(
                f"--no-ray and --address {redact(address)} exclude each other: leave out one of them"
            )
        return
    cluster = cluster_of(address)
    if cluster is not None and resources.device == "auto":
        raise UsageError(
            f"on the cluster at {cluster} the device cannot be detected, since its GPUs may not be up yet: "
            "add --device cpu or --device cuda"
        )


def check_reachable(address: str, action: str) -> None:
    """Raise RunError, with what was to be done, if nothing listens at an address; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not host or not port.isdecimal():
        return  # `auto`, or another form that only Ray interprets
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise RunError(f"cannot {action} {address}: {error.strerror or error}") from error


def in_one_process(storage: Storage, address: str | None, resources: ResourceConfig) -> bool:
    """Decide whether a planned run is executed in this process; log the decision.

    Unless the user decided, it is if the run is small, no cluster and no number of actors is named, and no earlier
    process died over the run: the image that ended that one would end this one too, while Ray isolates it.
    """
    died = storage.exists(MARKER)
    if resources.ray is not None:
        if died and not resources.ray:
            log.warning(
                "an earlier process ended in the middle of this run; if an image ends this one too, "
                "leave out --no-ray: on Ray such an image is isolated, and fails alone"
            )
        return not resources.ray
    if cluster_of(address) is not None or address is not None or resources.actors is not None:
        return False
    plan = read_plans(storage)[0]
    if plan.rows > MAX_ROWS:
        return False
    if died:
        log.info("an earlier process ended in the middle of this run: running on Ray, which isolates images")
        return False
    log.info("%s: running in this process, without Ray (--ray: with Ray)", plural(plan.rows, plan.unit))
    return True
