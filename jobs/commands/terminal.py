"""What reaches a terminal: text, and nothing that a terminal would obey."""

import logging
from typing import Final

_LINE_ENDS: Final = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_REORDERING: Final = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_OBEYED: Final = {
    ord(character): ascii(character)[1:-1]
    for character in [*map(chr, (*range(0x20), *range(0x7F, 0xA0))), *_LINE_ENDS, *_REORDERING]
}
_OBEYED_BUT_LINES: Final = {code: text for code, text in _OBEYED.items() if chr(code) not in "\n\t"}


def plain(text: str) -> str:
    r"""Return one line of text in which control characters are spelled out.

    A file's name may hold what moves the cursor, sets the window's title or ends a line, and with it whatever its
    author would like the user to read.

    >>> print(plain("red\x1b[31m.png\nerror: all is lost"))
    red\x1b[31m.png\nerror: all is lost
    """
    return text.translate(_OBEYED)


class PlainFormatter(logging.Formatter):
    """Spells out control characters in messages, and in tracebacks all but line ends."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Return the message, in one line."""
        return plain(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802 (logging's name)
        """Return the traceback."""
        return super().formatException(ei).translate(_OBEYED_BUT_LINES)  # type: ignore[arg-type]
