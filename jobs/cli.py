"""The command line `maskrcnn`: its commands, its exit codes, and the place where every exception ends.

Exit codes: 0 done; 1 complete, with failures above the limit; 2 usage or configuration; 3 stopped before the end,
resumable; 141 nobody reads the output any more.
"""

import logging
import sys
from contextlib import nullcontext
from typing import Any, NoReturn

import click

from maskrcnn.errors import RunError, UsageError
from maskrcnn.io.url import redact_all

from .commands.check_model import check_model_command
from .commands.convert import convert
from .commands.demo import demo
from .commands.diff import diff
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.gc import gc
from .commands.json_log import json_handler, json_log
from .commands.plan import plan
from .commands.reduce import reduce
from .commands.replay import replay
from .commands.retry import retry
from .commands.run_end import ending_of
from .commands.segment import segment
from .commands.show import show
from .commands.signals import is_interrupted, stop_on_signals
from .commands.status import status
from .commands.submit import submit
from .commands.terminal import ClearingHandler, PlainFormatter, fail, guard_standard_streams
from .commands.train import train
from .commands.verify import verify
from .commands.working_directory import check_working_directory
from .interruption import INTERRUPTED, STOPPED, logs_json

log = logging.getLogger("maskrcnn")


class Group(click.Group):
    """Turns this project's errors into one line and an exit code."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the program; the output of its own help may fail as well."""
        guard_standard_streams()
        words = options.get("args", arguments[0] if arguments else None)
        with json_log() if logs_json(sys.argv[1:] if words is None else words) else nullcontext():
            try:
                return super().main(*arguments, **options)
            except RunError as error:
                fail(f"stopped: {error}", STOPPED)

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Read the options before the command; a wrong one is one line."""
        try:
            return super().make_context(*arguments, **options)
        except click.UsageError as error:
            _fail_usage(error)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; show a traceback only for a bug in the program."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, UsageError, RunError) as error:
            fail(*ending_of(error))
        except click.UsageError as error:
            _fail_usage(error)
        except click.ClickException as error:
            error.message = redact_all(error.message)  # type: ignore[misc]  # as click quotes arguments
            raise
        except (click.exceptions.Exit, click.Abort):
            raise
        except Exception:  # the last handler: what no command foresaw is logged whole, and ends resumable
            if is_interrupted():
                fail(INTERRUPTED, STOPPED)
            log.exception("this is a bug in maskrcnn-ray; please report it with the following")
            sys.exit(STOPPED)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find a command; suggest the nearest for an unknown one."""
        import difflib

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from error


def _fail_usage(error: click.UsageError) -> NoReturn:
    """Print a wrong option or argument in one line, with where the right ones are listed; exit code 2."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # of click 8.2 and later
        raise error
    path = error.ctx.command_path if error.ctx is not None else "maskrcnn"
    message = error.format_message()
    end = "" if message.endswith((".", "?", ")")) else "."
    fail(f"error: {message[:1].lower()}{message[1:]}{end} See `{path} --help`", 2)


def _text_handler() -> logging.Handler:
    handler = ClearingHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="maskrcnn-ray", prog_name="maskrcnn")
@click.option("-q", "--quiet", is_flag=True, help="Log only warnings and errors.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json: one object per line on standard error.",
)
def main(quiet: bool, log_format: str) -> None:
    """Find every object in millions of pictures: Mask R-CNN over image collections, on Ray."""
    logging.basicConfig(handlers=[json_handler() if log_format == "json" else _text_handler()])
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    stop_on_signals()
    check_working_directory()


for command in (
    segment, plan, status, verify, replay, retry, reduce, export, gc, demo, submit, train, evaluate, show, diff,
    convert, check_model_command,
):  # fmt: skip
    main.add_command(command)
