"""The checks of a model in a process of its own, which is ended where the model hangs, or ends with it.

`python -P -m maskrcnn.models.checks.check_process` builds and checks one model; see `models.own.own_process`.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from ...types import Category
from ..own.own_description import PATIENCE
from ..own.own_process import Begin, Limit, ask, serve
from ..own.own_segmenter import Planned
from ..registry import describe_model
from .model_checks import Subject, run_checks
from .report import ModelReport

__all__ = ["check_model"]

log = logging.getLogger("maskrcnn")

_MODULE: Final = "maskrcnn.models.checks.check_process"
_ADVICE: Final = "if it is not waiting for something, give more --seconds"


def check_model(
    name: str,
    labels: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    dtype: str | None = None,
    seconds: float = 60.0,
) -> ModelReport:
    """Check a model of any kind on generated images, in another process.

    Args:
        name: as of `registry.resolve`.
        labels: as of `registry.describe_model`.
        arguments: of the factory of a network of the user's own.
        device: `cpu`, `cuda` or `auto`.
        threads: of torch on the CPU.
        dtype: of the convolutions.
        seconds: how long building the model may take, and computing a batch for each of its images; no larger batch is
            measured once this time has passed.

    Raises:
        UsageError: there is no such model, it cannot be built, it took too long, or it ended its process.
        RunError: the store of its file cannot be read.
    """
    limit = Limit(min(seconds, PATIENCE.seconds), _ADVICE if seconds < PATIENCE.seconds else PATIENCE.advice)
    card = describe_model(name, labels, arguments, limit)
    planned = Planned(card.categories, card.has_masks)
    subject = Subject(name, card.sha256, planned, labels, arguments, device, threads, dtype)
    question = {"subject": asdict(subject), "seconds": seconds, "level": log.getEffectiveLevel()}
    what = f"--model {name}"
    return ModelReport.from_json(
        ask(_MODULE, question, what, "building it", Limit(seconds, _ADVICE), show=True)
    )


def _answer(question: dict[str, Any], begin: Begin) -> dict[str, Any]:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(question["level"])
    given = question["subject"]
    planned = given["planned"]
    categories = tuple(Category(**category) for category in planned["categories"])
    subject = Subject(**given | {"planned": Planned(categories, planned["has_masks"])})
    return run_checks(subject, begin, question["seconds"]).to_json()


if __name__ == "__main__":
    serve(_answer)
