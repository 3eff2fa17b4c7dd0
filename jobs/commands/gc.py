"""The command `maskrcnn gc`: remove what a finished run no longer needs."""

import click

from maskrcnn.errors import RunError, plural


@click.command()
@click.argument("output")
def gc(output: str) -> None:
    """Remove what only the processing of a finished run needed: shards/, open uploads, files of killed processes.

    Without shards/ nothing can be retried, and the tables cannot be written again.
    """
    removed = [
        plural(count, what.replace("files", "file").replace("uploads", "upload"), what)
        for what, count in collect_garbage(output).items()
        if count
    ]
    click.echo(f"removed {', '.join(removed) or 'nothing'}")


def collect_garbage(output: str) -> dict[str, int]:
    """Remove what only the processing of a finished run needed; return counts of what was removed, by description.

    Raises:
        UsageError: there is no run, or it is of another schema version.
        RunError: the run, or a retry, is not finished, so that its shards are still needed.
    """
    from maskrcnn.pipeline.plan import PLAN, no_run, read_plan, read_run
    from maskrcnn.pipeline.receipts import SHARDS
    from maskrcnn.pipeline.reduce import remove_superseded
    from maskrcnn.pipeline.success import finished

    from ..driver.driver_records import PROBES
    from ..driver.planning import output_storage

    storage = output_storage(output)
    plan = read_plan(storage)
    if plan is None:
        raise no_run(output, PLAN)
    read_run(storage)
    success = finished(storage, plan)
    if success is None:
        raise RunError(
            f"{output} is not finished, so its shards are still needed: continue it with `maskrcnn {plan.command}`"
        )
    removed = {"superseded files": remove_superseded(storage, success)}
    for folder in (SHARDS, PROBES):
        removed[f"files in {folder}/"] = len(storage.list(folder))
        storage.remove_tree(folder)
    removed["open uploads"] = storage.abort_uploads()
    removed["unfinished files"] = storage.remove_leftovers()
    return removed
