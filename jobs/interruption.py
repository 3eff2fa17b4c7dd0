"""How a command ends that a signal stops; for the first seconds, while everything else is still being imported, too.

It imports almost nothing, so that it is there before a user can press Ctrl-C.
"""

import os
import signal
import sys
import time
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


def logs_json(arguments: list[str]) -> bool:
    """Return whether the options before the name of the command ask for a log in JSON.

    >>> logs_json(["-q", "--log-format", "json", "status", "out"]), logs_json(["status", "--log-format=json"])
    (True, False)
    """
    wanted = ""
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            break
        option, sign, value = word.partition("=")
        if option == "--log-format":
            wanted = value if sign else next(words, "")
    return wanted == "json"


def _end(_signal: int, _frame: FrameType | None) -> None:
    if sys.stderr is not None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        start = f'{{"time": "{now}", "level": "ERROR", "message": "{INTERRUPTED}"'
        ended = f'{start}}}\n{start}, "event": "end", "exit_code": {STOPPED}}}\n'
        os.write(2, (ended if logs_json(sys.argv[1:]) else f"{INTERRUPTED}\n").encode())
    os._exit(STOPPED)
