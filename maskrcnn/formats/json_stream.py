"""JSON of any size, read in pieces: the lists of one object, some thousands of entries at a time.

`json.loads` of 300 MB takes over 2 GB. Here the text is decoded some megabytes at a time, and an entry at a time.
"""

import codecs
import json
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, Final

from ..errors import UsageError

_READ_CHARACTERS: Final = 2**22
_BATCH: Final = 8192
_BLANKS: Final = " \t\n\r"
_BLANK: Final = re.compile(f"[{_BLANKS}]*")
_NEAR_END: Final = 16
"""Characters: a syntax error this close to the end of what was read may come from the missing rest."""


class _Text:
    """JSON text, of which some megabytes are held at a time."""

    def __init__(self, file: BinaryIO, parse_float: Callable[[str], Any]) -> None:
        self._file = file
        self._bytes = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._kept_json = json.JSONDecoder(parse_float=parse_float)
        self._text = ""
        self._at = 0
        self._lines = 0
        """Number of lines before the text."""
        self._last_line = 0
        """Number of the last line that is not blank, from 1, of those that were read."""
        self._ended = False

    def peek(self) -> str:
        """Return the next character that is not blank, or an empty string at the end."""
        while True:
            self._at = _BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def take(self, expected: str) -> str:
        """Return the next character, which must be one of `expected`.

        Raises:
            ValueError: it is not.
        """
        character = self.peek()
        if not character or character not in expected:
            raise self._fault(f"expected one of {expected}, found {character!r}", self._at)
        self._at += 1
        return character

    def value(self, *, kept: bool = False) -> Any:
        """Return the next value, with the caller's numbers if it is kept.

        Raises:
            ValueError: it is not JSON, is nested in thousands of levels, or a number has thousands of digits.
        """
        decoder = self._kept_json if kept else self._json
        self.peek()
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - _NEAR_END or error.msg.startswith("Unterminated")
                if self._ended or not cut:
                    at = len(self._text) if error.msg.startswith("Unterminated") else error.pos
                    raise self._fault(error.msg, at) from error
            except RecursionError as error:
                raise ValueError(
                    f"the value in line {self._line(self._at):,} is nested too deeply to be read: leave it out"
                ) from error
            except ValueError as error:  # of `int`
                raise ValueError(
                    f"the value in line {self._line(self._at):,} holds a number of too many digits: write it as text"
                ) from error
            else:
                if end < len(self._text) or self._ended:  # otherwise a number may continue
                    self._at = end
                    return value
            self._more()

    def _line(self, at: int) -> int:
        """Return the number of a line, from 1, by a position in the text."""
        return self._lines + self._text.count("\n", 0, at) + 1

    def _fault(self, why: str, at: int) -> ValueError:
        """Return the error for text that is not JSON, and what to do about it."""
        if at >= len(self._text.rstrip(_BLANKS)):
            return ValueError(
                f"it ends in line {self._last_line:,}, before its JSON does: write or copy it again"
                if self._last_line
                else "it is empty, and not JSON: write or copy it again"
            )
        return ValueError(f"line {self._line(at):,} is not JSON ({why}): correct it, or write the file again")

    def _more(self) -> None:
        self._lines += self._text.count("\n", 0, self._at)
        held = self._text[self._at :]
        data = self._file.read(max(_READ_CHARACTERS, len(held)))
        self._text, self._at, self._ended = held + self._bytes.decode(data, not data), 0, not data
        if begun := self._text.rstrip(_BLANKS):
            self._last_line = self._line(len(begun))


def read_lists(
    file: BinaryIO,
    source: str,
    names: Collection[str],
    values: Collection[str] = (),
    parse_float: Callable[[str], Any] = float,
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the entries of some lists of a COCO dataset, thousands at a time, and each list at least once.

    Other values are yielded as lists of one.

    Args:
        file: the JSON, UTF-8.
        source: its name, for messages.
        names: of the lists to read.
        values: names of other values to read; all else is skipped.
        parse_float: what makes a value of a number with a point or an exponent.

    Raises:
        UsageError: it is a list, as COCO results are, and not a dataset.
        ValueError: it is not valid JSON, or one of `names` is not a list.
    """
    text = _Text(file, parse_float)
    if text.peek() == "[":
        raise UsageError(
            f"{source} is not a COCO dataset but a list, as COCO results are: give the dataset, an object with the "
            "lists images, annotations and categories"
        )
    text.take("{")
    ended = text.peek() == "}"
    while not ended:
        name = text.value()
        text.take(":")
        if name in names:
            for entries in _entries(text):
                yield name, entries
        else:
            value = text.value()
            if name in values:
                yield name, [value]
        ended = text.take(",}") == "}"


def _entries(text: _Text) -> Iterator[list[Any]]:
    text.take("[")
    entries: list[Any] = []
    ended = text.peek() == "]"
    if ended:
        text.take("]")
    while not ended:
        entries.append(text.value(kept=True))
        ended = text.take(",]") == "]"
        if len(entries) == _BATCH:
            yield entries
            entries = []
    yield entries
