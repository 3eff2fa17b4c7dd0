"""The command `maskrcnn submit`: run another command as a Ray job on a cluster."""

import asyncio
import logging
import shlex
import sys
from collections.abc import Sequence

import click

from maskrcnn.errors import RunError, UsageError

from ..interruption import STOPPED
from .notification import NOTIFY

log = logging.getLogger("maskrcnn")


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--address", required=True, help="Address of the cluster's dashboard, http://HOST:8265.")
@click.option(
    "--working-dir", help="A folder to upload with the job; the cluster's nodes need maskrcnn-ray installed."
)
@click.option("--no-wait", is_flag=True, help="Return once the job is submitted.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def submit(
    context: click.Context, address: str, working_dir: str | None, no_wait: bool, command: tuple[str, ...]
) -> None:
    """Run a command on a cluster through Ray Jobs.

    For example: maskrcnn submit --address http://HOST:8265 -- segment s3://in s3://out --device cuda

    The options of maskrcnn itself stand before the command's name: -- --log-format json segment …
    """
    group = context.find_root().command
    if isinstance(group, click.Group):
        check_command(group, command)
    sys.exit(submit_job(address, command, working_dir=working_dir, wait=not no_wait))


def check_command(group: click.Group, words: Sequence[str]) -> None:
    """Check options of the program, and the name of a command after them.

    Args:
        group: the program.
        words: what would follow its name on a command line.

    Raises:
        UsageError: they name no command.
        click.UsageError: an option before it does not exist, or has another value than it takes.
    """
    with group.make_context("maskrcnn", list(words)) as context:
        _, rest, _ = group.make_parser(context).parse_args(list(words))
        known = group.list_commands(context)
    if not rest:
        raise UsageError(f"name a command after {shlex.join(words)}: {', '.join(known)}")
    if rest[0] not in known:
        raise UsageError(f"maskrcnn has no command {rest[0]!r}; it has {', '.join(known)}")


def submit_job(address: str, command: Sequence[str], *, working_dir: str | None, wait: bool) -> int:
    """Submit `maskrcnn COMMAND` to the cluster and follow its log.

    Credentials are never sent: the job reads them from its node's role or environment.

    Args:
        address: of the cluster's dashboard.
        command: its name and arguments, and before these options of `maskrcnn` itself.
        working_dir: a folder to upload with the job.
        wait: follow the log until the job ends.

    Returns:
        The command's exit code; 0 without waiting, `STOPPED` if the job ended without an exit code.

    Raises:
        UsageError: the command contains a password or a token, which Ray would store in plain text.
        RunError: the cluster cannot be reached.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    from maskrcnn.io.manifests.sources import refuse_query, refuse_user
    from maskrcnn.io.url import redact

    from ..driver.ray_errors import advise, condense
    from ..driver.where_to_run import check_reachable

    urls = {address: "--address"}
    for argument in command:  # and what follows each `=`, as in --model-arg=NAME=VALUE
        words = argument.split("=")
        urls |= {"=".join(words[first:]): "the command" for first in range(len(words))}
    for url, what in urls.items():
        refuse_user(url, what)
        refuse_query(url, what)
    if any(argument.partition("=")[0] == "--notify" for argument in command):
        raise UsageError(
            f"--notify names a secret, which Ray would store in plain text: set {NOTIFY} where the command runs"
        )
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"--address {redact(address)!r} is no dashboard's address: it is http://HOST:8265")
    check_reachable(address, "submit to")
    try:
        client = JobSubmissionClient(address)
        runtime_env = {"working_dir": working_dir} if working_dir else {}
        job = client.submit_job(entrypoint=shlex.join(["maskrcnn", *command]), runtime_env=runtime_env)
    except Exception as error:  # Ray and its HTTP client raise many kinds, all for the address or the network
        raise RunError(f"cannot submit to {address}: {advise(condense(error))}") from error
    click.echo(job)
    if not wait:
        return 0
    try:
        asyncio.run(_follow(client, job))
    except KeyboardInterrupt:
        log.warning("the job keeps running; stop it with: ray job stop --address %s %s", address, job)
        raise
    info = client.get_job_info(job)
    log.info("%s: %s", job, info.status)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    return info.driver_exit_code or STOPPED


async def _follow(client: "object", job: str) -> None:
    async for text in client.tail_job_logs(job):  # type: ignore[attr-defined]
        click.echo(text, nl=False)
