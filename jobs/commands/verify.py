"""The command `maskrcnn verify`: prove that a finished run is complete and unchanged."""

import json
import sys
from typing import TYPE_CHECKING

import click

from maskrcnn.errors import plural

from .plain_text import plain
from .shared_options import json_option, tasks_option

if TYPE_CHECKING:
    from maskrcnn.results.verify import VerificationReport


@click.command()
@click.argument("output")
@tasks_option
@json_option
def verify(output: str, address: str | None, as_json: bool) -> None:
    """Prove that a finished OUTPUT is complete: each input exactly once, each file unchanged since it was written.

    It reads all of OUTPUT, and nothing else. The exit code is 0 if this is proven, 1 if not, and 3 if the run is not
    finished.
    """
    from maskrcnn.results.verify import verify_run

    from ..driver.planning import output_storage
    from ..driver.workers import tasks_at

    with tasks_at(address) as run_all:
        report = verify_run(output_storage(output).url, None if address is None else run_all)
    click.echo(json.dumps(report.to_json()) if as_json else _text(report, output))
    sys.exit(3 if report.unfinished else 0 if report.proven else 1)


def _text(report: "VerificationReport", output: str) -> str:
    if report.unfinished:
        return f"unfinished: {report.unfinished}"
    lines = [f"{outcome.check}: {outcome.line}" for outcome in report.outcomes]
    lines += [plain(f"  {finding.check}: {finding.where}: {finding.line}") for finding in report.findings]
    more = sum(outcome.findings for outcome in report.outcomes) - len(report.findings)
    lines += [f"  and {plural(more, 'more finding')}"] if more else []
    return "\n".join([*lines, f"{'proven' if report.proven else 'not proven'}: {output}"])
