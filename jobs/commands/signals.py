"""What ends a command from outside: Ctrl-C, SIGTERM, and the hang-up of a closed terminal."""

import atexit
import functools
import os
import select
import signal
import threading
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from ..interruption import STOPPED, STOPPING
from .json_log import end_json_log
from .terminal import write_error

_interrupted = threading.Event()
_PATIENCE_S: Final = 1.0
"""A shutdown that takes longer is announced."""


def stop_on_signals() -> None:
    """Let the first signal stop the command in order, by KeyboardInterrupt, and a second Ctrl-C end it at once.

    Under nohup, where a hang-up is ignored, it remains ignored.
    """
    _watch()
    _interrupted.clear()
    for number in STOPPING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def is_interrupted() -> bool:
    """Return whether a signal is stopping the command: an exception may be its consequence.

    Python code that is imported from C, for example, can turn a KeyboardInterrupt into an ImportError.
    """
    return _interrupted.is_set()


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Stop in order.

    A terminal that closes, a shell and a process manager may send further signals, which must not disturb the shutdown
    of the workers; only Ctrl-C ends it.
    """
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    _interrupted.set()
    raise KeyboardInterrupt


@functools.cache
def _watch() -> None:
    """Start the thread that sees each signal: Python's handlers wait for a main thread that may be waiting for Ray."""
    atexit.register(_ignore_signals)  # first, so that it is called last
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_interrupt, args=(read_end,), name="signals", daemon=True).start()


def _ignore_signals() -> None:
    """Ignore signals while Python removes its modules: it would leave their handlers to the system, which kills."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _end_at_interrupt(read_end: int) -> None:
    """End this process and those it started when SIGINT arrives while it is stopping, however long that takes."""
    stopping, patience = False, None
    while True:
        if not select.select([read_end], [], [], patience)[0]:
            write_error("stopping; Ctrl-C again ends it at once")
            patience = None
            continue
        number = os.read(read_end, 1)[0]
        if stopping and number == signal.SIGINT:
            break
        if number in STOPPING and not stopping:
            stopping, patience = True, _PATIENCE_S
    write_error("stopped at once; to continue `segment` or `train`, repeat the same command")
    end_json_log(STOPPED)
    for process in descendants(os.getpid()):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:  # it has ended
            continue
    os._exit(STOPPED)


def descendants(process: int) -> list[int]:
    """Return the ids of the processes that a process started, directly or not; none where there is no /proc."""
    children = defaultdict(list)
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            status = file.read_text(errors="replace")
        except OSError:  # it has ended
            continue
        children[int(status.rpartition(")")[2].split()[1])].append(int(file.parent.name))
    found = list(children[process])
    for child in found:
        found += children[child]
    return found
