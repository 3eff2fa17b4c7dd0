"""What the workers of a run need to start, from its plan and its request."""

from typing import Any

from maskrcnn.config import ResourceConfig
from maskrcnn.imaging.radiometry import Radiometry
from maskrcnn.io.storage import Storage
from maskrcnn.models.own.own_segmenter import Planned

from .node_worker import WorkerSpec
from .planning import Request


def worker_spec(
    storage: Storage,
    request: Request,
    run: dict[str, Any],
    resources: ResourceConfig,
    probes: str,
    lanes: int | None,
) -> WorkerSpec:
    """Return the specification of a run's workers.

    Args:
        storage: the run's directory.
        request: the run.
        run: its `run.json`.
        resources: with `threads` resolved, and on Ray `device` and `actors`.
        probes: as of `WorkerSpec`.
        lanes: as of `WorkerSpec`.
    """
    radiometry = Radiometry.from_json(run["radiometry"]) if "radiometry" in run else Radiometry()
    return WorkerSpec(
        storage.url,
        run["model"]["sha256"],
        request.inference,
        resources,
        probes,
        radiometry,
        lanes,
        planned=Planned.of_run(run["model"]),
    )
