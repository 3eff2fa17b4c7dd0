"""The request that a run was planned with, read back from its `run.json`."""

import dataclasses
import logging
from typing import Any

from maskrcnn.config import InferenceConfig
from maskrcnn.errors import UsageError
from maskrcnn.models.registry import describe_model

from .planning import Request, check_same_network

log = logging.getLogger("maskrcnn")


def planned_request(output: str, run: dict[str, Any], coco_mode: str = "auto") -> Request:
    """Return the request of a run.

    Args:
        output: its directory.
        run: its `run.json`.
        coco_mode: which `run.json` does not record.
    """
    settings = run["settings"]
    names = {field.name for field in dataclasses.fields(InferenceConfig)}
    values = {name: value for name, value in settings.items() if name in names}
    lists = {name: tuple(values.get(name, ())) for name in ("categories", "sidecars")}
    inference = InferenceConfig(**values | lists)
    inputs = run["inputs"]
    return Request(
        inputs["source"], output, inference, settings["shard_images"], inputs["images_root"], coco_mode
    )


def check_weights(request: Request, run: dict[str, Any]) -> None:
    """Compare weights, or the code of a network of the user's own, with those of the plan.

    Raises:
        UsageError: they are others.
    """
    inference = request.inference
    card = describe_model(inference.model, inference.labels, inference.model_args)
    check_same_network(run["model"], card)
    if card.sha256 != run["model"]["sha256"] and card.own is not None:
        raise UsageError(
            f"the code of {inference.model}, or a file that its arguments name, is not as it was when the run was "
            "planned; restore it"
        )
    if card.sha256 != run["model"]["sha256"]:
        raise UsageError(
            f"{inference.model} holds other weights than the run was planned with "
            f"(sha256 {run['model']['sha256']}, now {card.sha256}); restore that file"
        )
    if card.notice:
        log.warning("%s", card.notice)
