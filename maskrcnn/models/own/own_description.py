"""Describe a user's own network in a process of its own: a driver imports neither torch nor the user's code.

`python -P -m maskrcnn.models.own.own_description` reads a question as JSON from standard input, builds the network on
the CPU, and answers in JSON: its categories and properties, or what is wrong. What that code prints goes elsewhere.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

from ...errors import MaskrcnnError, UsageError
from ...types import Category
from .own_code import OwnNetwork, files_of, find_code, import_factory, own_digest, parse_own
from .own_segmenter import SegmenterOptions, call_factory

__all__ = ["Description", "describe_own"]

log = logging.getLogger("maskrcnn")

PATIENCE_S: Final = 300.0
"""How long a factory may take, which may read large weights."""
_LAST_BYTES: Final = 10_000
"""How much is read of what the user's code printed."""


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


def describe_own(own: OwnNetwork, arguments: Mapping[str, Any]) -> Description:
    """Build a network in another process, and return its description.

    Args:
        own: the network.
        arguments: of its factory, as `own_arguments.checked_arguments` returns them.

    Raises:
        UsageError: there is no such code, or it does not build a segmenter; the message says why.
    """
    code = find_code(own)
    log.info("building %s in a process of its own, to see its categories", own.name)
    files = files_of(arguments)
    answer = _ask(own, arguments)
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


def _ask(own: OwnNetwork, arguments: Mapping[str, Any]) -> dict[str, Any]:
    question = json.dumps({"name": own.name, "folder": str(Path.cwd()), "arguments": dict(arguments)})
    # Files, not pipes: a process that the user's code leaves behind would hold a pipe open.
    with TemporaryFile() as asked, TemporaryFile() as answered, TemporaryFile() as printed:
        asked.write(question.encode())
        asked.seek(0)
        process = subprocess.Popen(
            # -P: the working directory may hold a module `torch` or `maskrcnn` of the user's.
            [sys.executable, "-P", "-m", "maskrcnn.models.own.own_description"],
            stdin=asked,
            stdout=answered,
            stderr=printed,
            start_new_session=True,  # with all that the user's code starts
        )
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            raise UsageError(
                f"--model {own.name}: its factory took more than {PATIENCE_S:.0f} s: what is it waiting for?"
            ) from error
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # all of its group have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        answered.seek(0)
        output = answered.read()
        printed.seek(max(printed.seek(0, os.SEEK_END) - _LAST_BYTES, 0))
        lines = printed.read().decode(errors="replace").strip().splitlines()
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError as error:
        last = f": {lines[-1].strip()[:300]}" if lines else ""
        raise UsageError(
            f"--model {own.name}: its factory ended its process {_end(process.returncode)}{last}"
        ) from error
    if "error" in answer:
        raise UsageError(answer["error"])
    return answer


def _end(code: int) -> str:
    return f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def main() -> None:
    """Answer one question."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the user's code prints is no answer
    question = json.load(sys.stdin)
    own = parse_own(question["name"])
    try:
        if own is None:
            raise UsageError(f"{question['name']} is not the name of a factory")
        factory = import_factory(own, find_code(own, question["folder"]))
        made = call_factory(own.name, factory, SegmenterOptions(), question["arguments"])
        answer: dict[str, Any] = {
            "categories": [[category.id, category.name] for category in made.categories],
            "has_masks": made.has_masks,
            "max_side": made.max_side,
        }
    except MaskrcnnError as error:
        answer = {"error": " ".join(str(error).split())}
    json.dump(answer, answers)
    answers.flush()
    os._exit(0)  # threads of the user's code may run on


if __name__ == "__main__":
    main()
