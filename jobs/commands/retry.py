"""The job once more, for the inputs that failed: plan or continue a retry, sweep, reduce."""

import dataclasses
import logging
from collections.abc import Collection
from typing import Any

from maskrcnn.config import InferenceConfig, ResourceConfig
from maskrcnn.errors import UsageError
from maskrcnn.models.registry import describe_model
from maskrcnn.pipeline.plan import PLAN, check_run, read_plans, read_run
from maskrcnn.pipeline.plan_retry import check_codes, plan_retry
from maskrcnn.pipeline.success import finished

from .segment import Request, finish, output_of

log = logging.getLogger("maskrcnn")


def retry(
    output: str, only: Collection[str] | None, coco_mode: str, speed: ResourceConfig, address: str | None
) -> dict[str, Any] | None:
    """Run the failed inputs of a finished run again, or continue a retry that is not finished.

    Args:
        output: the run's directory.
        only: codes of the failures to retry; None: all. A retry that is continued keeps to its own list.

    Returns:
        The content of `_SUCCESS`; None where there is nothing to retry.

    Raises:
        UsageError: there is no finished run, `maskrcnn gc` removed what is needed, or the command is wrong.
        RunError: the retry stopped before its end; `maskrcnn retry` continues it.
    """
    from ..driver.cluster import check_device

    check_device(address, speed)
    check_codes(only)
    storage = output_of(output)
    plans = read_plans(storage)
    if not plans:
        raise UsageError(f"{output} holds no plan (no {PLAN})")
    plan, run = plans[-1], read_run(storage)
    check_run(storage, run, plan)
    request = _request_of(output, run, coco_mode)
    _check_weights(request, run)
    if plan.generation > 1 and finished(storage, plan) is None:
        log.info("continuing the retry of %s: %s images", plan.created, f"{plan.rows:,}")
        if only is not None:
            log.warning("it keeps to the images that it was planned with; --only counts for the next retry")
    else:
        planned = plan_retry(storage, plans, only)
        if planned is None:
            return None
        plan = planned
        log.info("planned %s images again, in %s shards", f"{plan.rows:,}", f"{len(plan):,}")
    return finish(request, plan, speed, address)


def _request_of(output: str, run: dict[str, Any], coco_mode: str) -> Request:
    """Return the request that the run was planned with."""
    settings = run["settings"]
    names = {field.name for field in dataclasses.fields(InferenceConfig)}
    values = {name: value for name, value in settings.items() if name in names}
    compute = InferenceConfig(**values | {"categories": tuple(values["categories"])})
    inputs = run["inputs"]
    return Request(
        inputs["source"], output, compute, settings["shard_images"], inputs["images_root"], coco_mode
    )


def _check_weights(request: Request, run: dict[str, Any]) -> None:
    card = describe_model(request.compute.model, request.compute.labels)
    if card.sha256 != run["model"]["sha256"]:
        raise UsageError(
            f"{request.compute.model} holds other weights than the run was planned with "
            f"(sha256 {run['model']['sha256']}, now {card.sha256})"
        )
    if card.notice:
        log.warning("%s", card.notice)
