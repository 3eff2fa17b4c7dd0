"""A process of its own for the user's code, which is ended from outside: a call in C cannot be interrupted from inside.

`ask` starts it, `serve` answers in it. Each step that it announces may take so long; one that takes longer ends the
process with all that it started, and the error names the step and the line of the user's code that it was at.
"""

import contextlib
import faulthandler
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any, Final, NoReturn

from ...errors import MaskrcnnError, RunError, UsageError
from .own_code import place_of

__all__ = ["Begin", "Limit", "ask", "serve"]

_POLL_S: Final = 0.02
_START_S: Final = 60.0
"""How long Python and this program may take to start in the process, before the user's code."""
_STACK_S: Final = 0.5
"""How long a process may take to say what it is doing, before it is ended."""
_LAST_BYTES: Final = 10_000
"""How much is read of what the user's code printed."""
_FRAME: Final = re.compile(r'^\s*File "(.*)", line (\d+) in ', re.MULTILINE)

Begin = Callable[[str, int], None]
"""Announces the next step, as the subject of a sentence, and the number of images: `running a batch of 3 images`, 3."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a step may take."""

    seconds: float
    """For each image, if there are several."""
    advice: str
    """What to do where that is too short."""


# --- asking -------------------------------------------------------------------------------------------------


def ask(
    module: str, question: Mapping[str, Any], what: str, step: str, limit: Limit, *, show: bool = False
) -> dict[str, Any]:
    """Run `python -P -m module`, which calls `serve`, and return its answer.

    Args:
        module: its dotted name.
        question: JSON values.
        what: what messages begin with, such as `--model nets:build`.
        step: the first step.
        limit: how long each step may take.
        show: whether stderr is shown, to which stdout is redirected; else its last line is in the message where the
            process ends.

    Raises:
        UsageError: as the process raised it, or a step took too long, or ended the process.
        RunError: as the process raised it.
    """
    # Files, not pipes: a process that the user's code leaves behind would hold a pipe open.
    with TemporaryFile() as answers, TemporaryFile() as printed, TemporaryFile() as stack:
        process = subprocess.Popen(  # noqa: S603 (only this interpreter and a module of this program)
            # -P: the working directory may hold a module `torch` or `maskrcnn` of the user's.
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=answers,
            stderr=None if show else printed,
            pass_fds=(stack.fileno(),),
            start_new_session=True,  # with all that the user's code starts
        )
        try:
            _send(process, dict(question) | {"stack": stack.fileno()})
            answer, step, allowed = _await(process, answers, step, limit)
            if answer is None:
                if process.poll() is None:
                    where = _where(process, stack)
                    raise UsageError(f"{what}: {step} took more than {allowed:g} s{where}: {limit.advice}")
                raise UsageError(
                    f"{what}: {step} ended its process {_end(process.returncode)}{_last_line(printed)}"
                )
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # all of its group have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
    if "error" in answer:
        raise (RunError if answer["stopped"] else UsageError)(answer["error"])
    found: dict[str, Any] = answer["answer"]
    return found


def _send(process: subprocess.Popen[bytes], question: Mapping[str, Any]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # it has ended, as its exit code will show
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()


def _await(
    process: subprocess.Popen[bytes], answers: IO[bytes], step: str, limit: Limit
) -> tuple[dict[str, Any] | None, str, float]:
    """Return the answer, the step that was last begun, and how long it may take.

    The answer is None if the process ended, or the step took too long.
    """
    offset, since = 0, time.monotonic()
    allowed = max(_START_S, limit.seconds)
    while True:
        ended = process.poll() is not None
        data = os.pread(answers.fileno(), 2**24, offset)
        data = data[: data.rfind(b"\n") + 1]
        offset += len(data)
        for line in data.splitlines():
            message: dict[str, Any] = json.loads(line)
            if "step" not in message:
                return message, step, allowed
            step, since = message["step"] or step, time.monotonic()
            allowed = limit.seconds * message["images"]
        if data:
            continue
        if ended or time.monotonic() - since > allowed:
            return None, step, allowed
        time.sleep(_POLL_S)


def _where(process: subprocess.Popen[bytes], stack: IO[bytes]) -> str:
    """Return the line of the user's code that a process is at, for a message; "" if it does not say."""
    process.send_signal(signal.SIGUSR1)
    ends = time.monotonic() + _STACK_S
    text = ""
    while time.monotonic() < ends and not text.endswith("\n"):
        time.sleep(_POLL_S)
        text = os.pread(stack.fileno(), _LAST_BYTES, 0).decode(errors="replace")
    frames = [(file, int(line)) for file, line in _FRAME.findall(text)]
    place = place_of(frames[::-1])  # the last call comes first
    return f" (at {place})" if place else ""


def _end(code: int) -> str:
    return f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _last_line(printed: IO[bytes]) -> str:
    printed.seek(max(printed.seek(0, os.SEEK_END) - _LAST_BYTES, 0))
    lines = printed.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1].strip()[:300]}" if lines else ""


# --- answering ----------------------------------------------------------------------------------------------


def serve(answer: Callable[[dict[str, Any], Begin], dict[str, Any]]) -> NoReturn:
    """Read one question from standard input, answer it, and end this process.

    What the user's code prints goes to standard error. The process ends with the one that asked.

    Args:
        answer: returns JSON values from the question; announces its steps by its second argument.
    """
    answers, asked = os.dup(1), os.fdopen(os.dup(0), "rb", buffering=0)
    os.dup2(2, 1)  # what the user's code prints is no answer
    with open(os.devnull, "rb") as empty:  # noqa: PTH123 (a file descriptor for input)
        os.dup2(empty.fileno(), 0)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a text file
    question = json.loads(asked.readline())
    stack = question.pop("stack")
    faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
    # When the other process ends, SIGIO ends this one, also inside a call in C; the thread does so without SIGIO.
    fcntl.fcntl(asked, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(asked, fcntl.F_SETFL, fcntl.fcntl(asked, fcntl.F_GETFL) | os.O_ASYNC)
    threading.Thread(target=_end_with, args=(asked,), daemon=True).start()

    def write(message: Mapping[str, Any]) -> None:
        os.write(answers, json.dumps(message).encode() + b"\n")

    def begin(step: str | None, images: int) -> None:
        write({"step": step, "images": images})

    begin(None, 1)  # Python has started
    code = 0
    try:
        write({"answer": answer(question, begin)})
    except MaskrcnnError as error:
        write({"error": " ".join(str(error).split()), "stopped": isinstance(error, RunError)})
    except BaseException:  # noqa: BLE001 whatever the user's code raises, this process ends, and says so
        traceback.print_exc()
        code = 1
    with contextlib.suppress(ValueError, OSError):  # the user's code may have closed it
        sys.stdout.flush()
    os._exit(code)  # threads of the user's code may run on


def _end_with(asked: Any) -> None:
    """End this process when the one that asked has ended: nobody waits for the answer."""
    asked.read()
    os._exit(1)
