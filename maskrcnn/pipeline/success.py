"""The record of a finished run: `_SUCCESS`, its parts, its categories."""

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from ..errors import RunError
from ..io.json_files import read_object
from ..io.parquet import IMAGES, INSTANCES, Part
from ..io.storage import Storage
from ..types import Category
from .plan import Plan, plan_file

SUCCESS: Final = "_SUCCESS"
COCO: Final = "coco"


class RunAll(Protocol):
    """Applies a function to each argument, in any process, and returns the results in order."""

    def __call__(self, function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
        """Return `[function(argument) for argument in arguments]`."""
        ...


def run_here(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    """Apply a function to each argument in this process."""
    return [function(argument) for argument in arguments]


def categories_of(run: dict[str, Any]) -> tuple[Category, ...]:
    """Return the categories that `run.json` records."""
    return tuple(Category(entry["id"], entry["name"]) for entry in run["model"]["categories"])


def detects_masks(run: dict[str, Any]) -> bool:
    """Return whether the model that `run.json` records detects masks; else it detects boxes only."""
    return bool(run["model"].get("masks", True))


def refuse_outdated(storage: Storage, generation: int) -> None:
    """Raise RunError if a later generation was planned, whose tables count."""
    if storage.exists(plan_file(generation + 1)):
        raise RunError(
            f"{storage.url}: generation {generation + 1} was planned meanwhile by another command; "
            "`maskrcnn retry` continues it"
        )


def coco_info(run: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Return the field `info` of a run's COCO files; the date is that of the first plan, which never changes."""
    return {"description": f"maskrcnn-ray, model {run['model']['name']}", "date_created": plan.created}


def finished(storage: Storage, plan: Plan) -> dict[str, Any] | None:
    """Return the content of `_SUCCESS` if it is of this plan's generation, else None.

    Raises:
        RunError: it is broken.
    """
    success = read_success(storage)
    return success if success is not None and success["generation"] == plan.generation else None


def read_success(storage: Storage) -> dict[str, Any] | None:
    """Return the content of `_SUCCESS`, or None while the run is not finished.

    Raises:
        RunError: it is broken.
    """
    try:
        success = read_object(storage, SUCCESS, _REPAIR)
    except FileNotFoundError:
        return None
    parts = success.get("parts")
    if "generation" not in success or not isinstance(parts, dict) or not {IMAGES, INSTANCES} <= parts.keys():
        raise RunError(f"{storage.url}/{SUCCESS} lacks the generation or the parts: {_REPAIR}")
    return success


_REPAIR: Final = "remove it, and run `maskrcnn segment` again"


def parts_of(success: dict[str, Any]) -> list[Part]:
    """Return the parts that `_SUCCESS` lists."""
    both = zip(success["parts"][IMAGES], success["parts"][INSTANCES], strict=True)
    return [Part(i["path"], j["path"], i["rows"], j["rows"]) for i, j in both]
