"""Describe a user's own network in a process of its own: a driver imports neither torch nor the user's code.

`python -P -m maskrcnn.models.own.own_description` builds the network on the CPU, and answers with its categories and
properties, or with what is wrong; see `own_process`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...errors import UsageError
from ...types import Category
from .own_code import OwnNetwork, files_of, find_code, import_factory, own_digest, parse_own
from .own_process import Begin, Limit, ask, serve
from .own_segmenter import SegmenterOptions, call_factory

__all__ = ["Description", "describe_own"]

log = logging.getLogger("maskrcnn")

PATIENCE: Final = Limit(300.0, "a worker would wait as long: see what it waits for")
"""How long a factory may take, which may read large weights."""
_MODULE: Final = "maskrcnn.models.own.own_description"


@dataclass(frozen=True, slots=True)
class Description:
    """What a driver knows of a user's own network."""

    categories: tuple[Category, ...]
    has_masks: bool
    max_side: int
    sha256: str
    """Of code, arguments and the files that arguments name."""
    record: dict[str, Any]
    """For `run.json`: `factory`, `arguments`, `code_sha256` or `package`, and the sha256 of each of `files`."""


def describe_own(own: OwnNetwork, arguments: Mapping[str, Any], limit: Limit | None = None) -> Description:
    """Build a network in another process, and return its description.

    Args:
        own: the network.
        arguments: of its factory, as `own_arguments.checked_arguments` returns them.
        limit: how long its factory may take; None: `PATIENCE`.

    Raises:
        UsageError: there is no such code, or it does not build a segmenter; the message says why.
    """
    code = find_code(own)
    log.info("building %s in a process of its own, to see its categories", own.name)
    files = files_of(arguments)
    question = {"name": own.name, "folder": str(Path.cwd()), "arguments": dict(arguments)}
    answer = ask(_MODULE, question, f"--model {own.name}", "its factory", limit or PATIENCE)
    record: dict[str, Any] = {"factory": own.name, "arguments": dict(arguments)}
    record |= {"code_sha256": code.sha256} if code.version is None else {"package": code.version}
    if files:
        record["files"] = files
    return Description(
        tuple(Category(number, name) for number, name in answer["categories"]),
        answer["has_masks"],
        answer["max_side"],
        own_digest(own, code, arguments, files),
        record,
    )


# --- the other process --------------------------------------------------------------------------------------


def _answer(question: dict[str, Any], _begin: Begin) -> dict[str, Any]:
    own = parse_own(question["name"])
    if own is None:
        raise UsageError(f"{question['name']} is not the name of a factory")
    factory = import_factory(own, find_code(own, question["folder"]))
    made = call_factory(own.name, factory, SegmenterOptions(), question["arguments"])
    return {
        "categories": [[category.id, category.name] for category in made.categories],
        "has_masks": made.has_masks,
        "max_side": made.max_side,
    }


if __name__ == "__main__":
    serve(_answer)
