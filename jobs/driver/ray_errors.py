"""Ray's errors in one line: the cause first and whole, without stack frames, colors and process ids."""

import itertools
import re
from typing import Final

_COLORS: Final = re.compile(r"\x1b\[[0-9;]*m")
_FRAME: Final = re.compile(r'^\s+File ".*", line \d+|^Traceback \(most recent call last\):')
_RAISED: Final = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Exit|Interrupt)\w*)(?:: (.*))?$"
)
_HINTS: Final = (
    (r"Version mismatch", "install the cluster's versions of Ray and Python here"),
    (
        r"AuthToken|authentication token|Unauthenticated",
        "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token",
    ),
    (r"No space left", "free some space there"),
)


_ADVICE_OF_RAY: Final = re.compile(
    r" (Note: RAY_AUTH_MODE is|Ensure that the token for the cluster is) .*", re.DOTALL
)
"""Names several ways to give a token, for the cluster too; the hint names the one for a command."""


def condense(error: BaseException | str) -> str:
    r"""Return what an error of Ray says, in one line.

    Ray puts tracebacks of other processes into its messages, and the reason for a failed connection into the exception
    that caused another. What was raised last in a traceback is the cause; the text before it names processes and files.

    >>> condense('The actor died.\n  File "a.py", line 3, in f\nModuleNotFoundError: No module named \'maskrcnn\'')
    "No module named 'maskrcnn'"
    """
    text = error if isinstance(error, str) else _whole(error)
    lines = _COLORS.sub("", text).splitlines()
    frames = [number for number, line in enumerate(lines) if _FRAME.match(line)]
    if frames:
        # The last frame's source and marks are indented, and what was raised is not.
        after = lines[frames[-1] + 1 :]
        lines = list(itertools.dropwhile(lambda line: line.startswith(" "), after)) or after
    line = " ".join(" ".join(lines).split())
    match = _RAISED.match(line)
    if match is None:
        return line
    name, message = match.groups()
    return message if message and name in _PLAIN else f"{name}: {message}" if message else name


def advise(text: str) -> str:
    """Return a condensed error with what to do about it, where that is known."""
    text = _ADVICE_OF_RAY.sub("", text)
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, text, re.IGNORECASE)), None)
    return text if hint is None else f"{text.rstrip('.')}. What to do: {hint}"


_PLAIN: Final = {
    "AuthenticationError", "ConnectionError", "ImportError", "ModuleNotFoundError", "RaySystemError", "RuntimeError",
}  # fmt: skip
"""Exceptions whose messages say all that their names do."""


def _whole(error: BaseException) -> str:
    """Return the message of an exception and, where it was raised because of another one, of that one."""
    text = str(error) or type(error).__name__
    cause = error.__cause__
    if cause is None or str(cause) in text:
        return text
    return condense(cause) if text.startswith("Failed to connect") else f"{text}: {condense(cause)}"
