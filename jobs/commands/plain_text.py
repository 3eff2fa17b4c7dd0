"""Text for a terminal, which obeys control characters."""

from typing import Final

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


def plain_lines(text: str) -> str:
    """Return a text of several lines likewise; its line ends and tabs are kept."""
    return text.translate(_OBEYED_EXCEPT_LINES)
