"""Text for a terminal, without control characters that a terminal would obey."""

import logging
import sys
from typing import Final, NoReturn

import click

_LINE_ENDS: Final = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_REORDERING: Final = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_OBEYED: Final = {
    ord(character): ascii(character)[1:-1]
    for character in [*map(chr, (*range(0x20), *range(0x7F, 0xA0))), *_LINE_ENDS, *_REORDERING]
}
_OBEYED_EXCEPT_LINES: Final = {code: text for code, text in _OBEYED.items() if chr(code) not in "\n\t"}


def plain(text: str) -> str:
    r"""Return one line of text in which control characters are escaped.

    A file name may contain characters that move the cursor, set the window's title or end a line, and so show the user
    whatever its author likes.

    >>> print(plain("red\x1b[31m.png\nerror: all is lost"))
    red\x1b[31m.png\nerror: all is lost
    """
    return text.translate(_OBEYED)


class PlainFormatter(logging.Formatter):
    """Escapes control characters in messages; in tracebacks, all except line ends."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Return the message in one line."""
        return plain(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802 (logging's name)
        """Return the traceback."""
        return super().formatException(ei).translate(_OBEYED_EXCEPT_LINES)  # type: ignore[arg-type]


def fail(message: str, code: int) -> NoReturn:
    """Print one line to stderr and end with an exit code."""
    click.echo(plain(message), err=True)
    sys.exit(code)
