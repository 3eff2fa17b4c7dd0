"""`maskrcnn submit`: the same command line, as a Ray job on a cluster."""

import asyncio
import logging
import shlex
from collections.abc import Collection, Sequence
from typing import Final

import click

from maskrcnn.errors import RunError, UsageError
from maskrcnn.io.sources import refuse_user

log = logging.getLogger("maskrcnn")

STOPPED: Final = 3
"""The exit code of a run that stopped before its end."""


def submit_job(
    address: str, command: Sequence[str], *, known: Collection[str], working_dir: str | None, wait: bool
) -> int:
    """Submit `maskrcnn COMMAND` to the cluster and follow its log.

    Credentials never travel: the job reads them from its node's role or environment.

    Args:
        address: of the cluster's dashboard.
        command: its name and arguments.
        known: the commands that `maskrcnn` has.
        working_dir: a folder to send along.
        wait: follow the log until the job ends.

    Returns:
        The command's exit code; 0 where it is not waited for, `STOPPED` where the job ended without one.

    Raises:
        UsageError: the command is not one of maskrcnn's, or has a password in it, which Ray would keep in plain text.
        RunError: the cluster cannot be reached.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    if command[0] not in known:
        raise UsageError(f"maskrcnn has no command {command[0]!r}; it has {', '.join(known)}")
    for argument in command:
        for url in (argument, argument.partition("=")[2]):
            refuse_user(url, "the command")
    try:
        client = JobSubmissionClient(address)
        runtime_env = {"working_dir": working_dir} if working_dir else {}
        job = client.submit_job(entrypoint=shlex.join(["maskrcnn", *command]), runtime_env=runtime_env)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(f"cannot submit to {address}: {str(error).splitlines()[0]}") from error
    click.echo(job)
    if not wait:
        return 0
    try:
        asyncio.run(_follow(client, job))
    except KeyboardInterrupt:
        log.warning("the job goes on; stop it with: ray job stop --address %s %s", address, job)
        raise
    info = client.get_job_info(job)
    log.info("%s: %s", job, info.status)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    return info.driver_exit_code or STOPPED


async def _follow(client: "object", job: str) -> None:
    async for text in client.tail_job_logs(job):  # type: ignore[attr-defined]
        click.echo(text, nl=False)
