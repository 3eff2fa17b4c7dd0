"""The log as JSON, one object per line, for programs that collect logs: all that a command writes to stderr."""

import contextlib
import datetime
import io
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, TextIO

from maskrcnn.io.url import redact_all

from .plain_text import plain, plain_lines

RESERVED: Final = ("time", "level", "message")


def json_line(level: str, message: str, fields: Mapping[str, Any], at: float | None = None) -> str:
    """Return a line of the log.

    Args:
        level: the name of its level, as Python's `logging` has it.
        message: one line; control characters and the secrets of URLs are not repeated.
        fields: further fields, of JSON values.
        at: when it was said, in seconds since 1970; None: now.
    """
    said = datetime.datetime.fromtimestamp(time.time() if at is None else at, datetime.UTC)
    line = {
        "time": said.isoformat(timespec="milliseconds"),
        "level": level,
        "message": plain(redact_all(message)),
    }
    # ASCII only: also a terminal or a file in another encoding then holds the same JSON.
    return json.dumps(line | {name: value for name, value in fields.items() if name not in RESERVED})


class JsonFormatter(logging.Formatter):
    """Makes a line of JSON of each record, with the fields that were passed as `extra={"fields": …}`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback is the field `exception`."""
        fields = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["exception"] = plain_lines(redact_all(self.formatException(record.exc_info)))
        return json_line(record.levelname, record.getMessage(), fields, record.created)


class JsonStream(io.TextIOBase):
    """Standard error on which each line is JSON: a line of other text becomes the message of an object.

    Such text is what libraries, warnings of Python and networks of the user's own write there.

    Args:
        stream: standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream: Final = stream
        self._begun = ""

    def write(self, text: str) -> int:
        """Write text; what follows the last line end waits for the next one."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self.say("INFO", line)
        return len(text)

    def say(self, level: str, message: str, **fields: Any) -> None:
        """Write one line in one piece, from any thread."""
        if message.strip() or fields:
            self.stream.write(json_line(level, message, fields) + "\n")
            self.stream.flush()

    def flush(self) -> None:
        """Write what is buffered, but for a line that has not ended."""
        self.stream.flush()

    def finish(self) -> None:
        """Write a line that has not ended, too."""
        begun, self._begun = self._begun, ""
        self.say("INFO", begun)

    def writable(self) -> bool:
        """Return that text can be written."""
        return True

    def isatty(self) -> bool:
        """Return that nothing can be redrawn."""
        return False

    def fileno(self) -> int:
        """Return the number of the file."""
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream."""
        return self.stream.encoding


_facts: Final[dict[str, Any]] = {}
"""What the last line says of the result of this process's command."""


def say_at_the_end(**facts: Any) -> None:
    """Add fields, of JSON values, to the last line of the log."""
    _facts.update(facts)


def end_json_log(code: int) -> None:
    """Write the last line of a log in JSON, with the command's exit code; nothing where the log is text."""
    stream = sys.stderr
    if isinstance(stream, JsonStream):
        stream.finish()
        level = "ERROR" if code else "INFO"
        stream.say(level, f"exit code {code}", **{"event": "end", "exit_code": code} | _facts)


def json_handler() -> logging.Handler:
    """Return the handler that logs JSON to standard error."""
    stream = sys.stderr
    handler = logging.StreamHandler(stream.stream if isinstance(stream, JsonStream) else stream)
    handler.setFormatter(JsonFormatter())
    return handler


@contextlib.contextmanager
def json_log() -> Iterator[None]:
    """Let all that is written to standard error in a block be JSON; the last line has the command's exit code."""
    _facts.clear()
    began, code, text = time.monotonic(), 0, sys.stderr
    sys.stderr = JsonStream(text)
    try:
        yield
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    finally:
        _facts.setdefault("seconds", round(time.monotonic() - began, 3))
        end_json_log(code)
        sys.stderr = text
