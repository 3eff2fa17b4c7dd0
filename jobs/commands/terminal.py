"""Standard output and a terminal, which may be gone or full."""

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Final, NoReturn, TextIO

import click

from maskrcnn.errors import RunError
from maskrcnn.io.url import redact_all

from ..driver.progress import CLEAR, is_redrawn
from .json_log import JsonStream
from .plain_text import plain, plain_lines


class PlainFormatter(logging.Formatter):
    """Escapes control characters in messages; in tracebacks, all except line ends."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Return the message in one line, without the secrets of a URL."""
        return plain(redact_all(super().formatMessage(record)))

    def formatException(self, ei: object) -> str:  # noqa: N802 (logging's name)
        """Return the traceback."""
        text = redact_all(super().formatException(ei))  # type: ignore[arg-type]
        return plain_lines(text)


class ClearingHandler(logging.StreamHandler[TextIO]):
    """Writes each message to a line of its own, also where a terminal shows a line of progress."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        if is_redrawn(self.stream):
            self.stream.write(CLEAR)
        super().emit(record)


class Ended(SystemExit):
    """A command ends with a message.

    Attributes:
        message: one line, which was printed.
        exit_code: of the command.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(exit_code)
        self.message = message
        self.exit_code = exit_code


def fail(message: str, code: int) -> NoReturn:
    """Print one line to stderr and end with an exit code."""
    write_error(message)
    raise Ended(message, code)


def write_error(message: str) -> None:
    """Write one line to stderr in one piece, from any thread; nothing where it is closed.

    A line of progress that a terminal shows is cleared.
    """
    with contextlib.suppress(OSError):
        if isinstance(sys.stderr, JsonStream):
            sys.stderr.say("ERROR", message)
        else:
            click.echo(f"{CLEAR if is_redrawn(sys.stderr) else ''}{plain(redact_all(message))}", err=True)


# Standard output and standard error

CLOSED_PIPE: Final = 141
"""The exit code of a program whose output nobody reads any more: 128 + SIGPIPE, as the shell reports it."""


class _Guarded(io.TextIOWrapper):
    """A standard stream whose failures are not those of another file.

    Args:
        stream: standard output or standard error.
        failed: is called with a failure; if it returns, that and all further text is discarded.
    """

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=getattr(stream, "line_buffering", False),
        )
        self._failed = failed

    def write(self, text: str) -> int:
        """Write text."""
        with self._guard():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with self._guard():
            super().flush()

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is buffered would fail again when the process ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            self._failed(error)


def guard_standard_streams() -> None:
    """Let output that nobody reads end the command silently, and a full disk in one line.

    What is written to a terminal that was closed, and all that cannot be written to stderr, is discarded.
    """
    if sys.stderr is None:  # it was closed before the start, as cron and daemons do
        discarding = os.open(os.devnull, os.O_WRONLY)  # takes the number 2, which no other file may get
        os.set_inheritable(discarding, True)
        sys.stderr = os.fdopen(discarding, "w", encoding="utf-8")
    # In a test, and where one is closed, they are something else.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        sys.stdout.flush()
        sys.stdout = _Guarded(sys.stdout, _output_failed)
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        sys.stderr = _Guarded(sys.stderr, lambda _: None)


def _output_failed(error: OSError) -> None:
    if error.errno == errno.EPIPE:
        sys.exit(CLOSED_PIPE)
    if error.errno != errno.EIO:  # which a terminal that is gone raises
        raise RunError(
            f"the result cannot be written to standard output: {(error.strerror or str(error)).lower()}; "
            "repeat the command to print it again"
        ) from error
