"""How a command ends that a signal stops; for the first seconds, while everything else is still being imported, too.

It imports almost nothing, so that it is there before a user can press Ctrl-C.
"""

import os
import signal
import sys
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = 3
"""The exit code of a run that stopped before its end."""
INTERRUPTED = "stopped: interrupted; to continue `segment` or `train`, repeat the same command"


def end_on_signals() -> None:
    """Let a signal end this process at once, in one line: nothing has begun that would have to be ended in order."""
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as a hang-up is under nohup
            signal.signal(number, _end)


def _end(_signal: int, _frame: FrameType | None) -> None:
    if sys.stderr is not None:
        os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(STOPPED)
