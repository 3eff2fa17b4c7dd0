"""Where a run is executed: in the process of the command, on a Ray started for it on this machine, or on a cluster.

This module decides, and imports no Ray: a command that runs in its own process does not pay for Ray's import.
"""

import ctypes
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import RunError, UsageError, plural
from maskrcnn.io.url import redact

from .driver_records import Driver

log = logging.getLogger("maskrcnn")

MAX_ROWS: Final = 100
"""Up to this many images or windows are finished before Ray and its actors have started, or shortly after."""
MAX_TABLE_ROWS: Final = 100_000
"""The tables of more images or windows are written on Ray, on all CPUs; one process would take a minute or more."""


def cluster_of(address: str | None) -> str | None:
    """Return the address of the cluster to use, or None for a Ray on this machine.

    Raises:
        UsageError: it has a password or a query in it, which is not repeated.
    """
    option = "--address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS")
    if address and (redact(address) != address or "@" in address):
        raise UsageError(
            f"{option}: the address of a cluster has no user, password or query: name it as HOST:PORT"
        )
    return None if address in (None, "", "local") else address


def check_resources(address: str | None, resources: ResourceConfig) -> None:
    """Check the options that decide where a run is executed, as far as that is possible before inputs are listed.

    Raises:
        UsageError: the device would have to be guessed, on an existing cluster; a cluster is named with `--no-ray`; the
            address cannot be a cluster's; or this machine lacks what is asked for.
    """
    if resources.ray is False and address is not None:
        raise UsageError(
            f"--no-ray and --address {redact(address)} exclude each other: leave out one of them"
        )
    cluster = None if resources.ray is False else cluster_of(address)
    if cluster is None:
        _check_this_machine(resources)
        return
    _check_address(cluster, "--address" if address else "RAY_ADDRESS")
    if resources.device == "auto":
        raise UsageError(
            f"on the cluster at {cluster} the device cannot be detected, since its GPUs may not be up yet: "
            "add --device cpu or --device cuda"
        )


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_this_machine(resources: ResourceConfig) -> None:
    cpus = usable_cpus()
    if resources.threads is not None and resources.threads > cpus:
        raise UsageError(
            f"--threads {resources.threads}, but this machine has {plural(cpus, 'CPU')}: use fewer"
        )
    if resources.device == "cuda" and not _may_have_gpu():
        raise UsageError("this machine has no GPU that can be used: add --device cpu")


def _may_have_gpu() -> bool:
    """Return False where no driver of a GPU is installed, or all GPUs are hidden; torch takes seconds to say so."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()  # AMD's, which torch calls cuda too
    return True


def _check_address(cluster: str, option: str) -> None:
    """Raise UsageError for what cannot be the address of a cluster's head: Ray itself would say so after a minute."""
    scheme, _, place = cluster.rpartition("://")
    host, _, port = place.partition("/")[0].rpartition(":")
    if scheme in ("http", "https"):
        raise UsageError(
            f"{option} {cluster} is the address of a dashboard, for `maskrcnn submit`: name the cluster's own, "
            "HOST:6379"
        )
    if scheme == "ray":
        raise UsageError(
            f"{option} {cluster} is an address of Ray Client, which is not supported: name the cluster's own, "
            "HOST:6379, on one of its machines, or use `maskrcnn submit`"
        )
    if scheme or cluster == "auto":
        return  # `auto`, or another form that only Ray interprets
    if not host or (host.count(":") and not host.startswith("[")):
        raise UsageError(f"{option} {cluster!r} names no port: HOST:PORT is needed, as in 10.0.0.1:6379")
    if not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65_536):
        raise UsageError(f"{option} {cluster!r} has no valid port: HOST:PORT is needed, as in 10.0.0.1:6379")


def check_reachable(address: str, action: str) -> None:
    """Raise RunError, with what was to be done, if nothing listens at an address; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not host or not port.isdecimal():
        return  # `auto`, or another form that only Ray interprets
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise RunError(f"cannot {action} {address}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of a run."""

    description: str
    rows: int
    """The number of images or windows to compute."""
    table_rows: int
    """The number of images or windows whose tables are written."""


def in_one_process(
    address: str | None, resources: ResourceConfig, left: Left, drivers: Sequence[Driver]
) -> bool:
    """Decide whether what is left of a run is done in this process; log the decision.

    Unless the user decided, it is if that is little, no cluster and no number of actors is named, and no earlier
    process was killed that computed images: the image that ended that one would end this one too, while Ray isolates
    it.

    Args:
        address: of the cluster, as requested.
        resources: as requested.
        left: what is to be done.
        drivers: of this run, besides this process.
    """
    for driver in drivers:
        if driver.state == "working":
            log.warning("process %d is working on this run too", driver.process)
    killed = [driver for driver in drivers if driver.computing and driver.state != "working"]
    if resources.ray is not None:
        if killed and not resources.ray:
            log.warning(
                "%s; if an image ends this process too, leave out --no-ray: on Ray such an image is isolated, "
                "and fails alone",
                _ending(killed[-1]),
            )
        return not resources.ray
    if cluster_of(address) is not None or address is not None or resources.actors is not None:
        return False
    if left.rows > MAX_ROWS or left.table_rows > MAX_TABLE_ROWS:
        return False
    if killed:
        log.info(
            "%s: running on Ray, which isolates an image that ends its process (--no-ray: without Ray)",
            _ending(killed[-1]),
        )
        return False
    log.info("%s: running in this process, without Ray (--ray: with Ray)", left.description)
    return True


def _ending(driver: Driver) -> str:
    if driver.state == "unknown":
        return f"a process on {driver.host} began to compute images at {driver.begun}, and has not reported its end"
    return "an earlier process was killed while it computed images"
