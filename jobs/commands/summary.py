"""The result of a run, as `segment`, `retry`, `reduce` and `status` print it."""

import json
import logging
from typing import Any

import click

from maskrcnn.errors import plural

from .terminal import fail

log = logging.getLogger("maskrcnn")


def conclude(success: dict[str, Any], output: str, as_json: bool, max_failure_rate: float) -> None:
    """Print what `_SUCCESS` counts; exit with code 1 if a larger share of images or windows failed."""
    counts = success["counts"]
    windows = success.get("windows", {})
    if as_json:
        click.echo(json.dumps(counts | ({"windows": windows} if windows else {}) | {"output": output}))
    else:
        click.echo(summary_line(counts, output))
        warn_of_capped(success, output)
        if windows:
            by_status = ", ".join(f"{count:,} {status}" for status, count in windows.items())
            click.echo(f"{plural(sum(windows.values()), 'window')}: {by_status}")
    rates = {"images": counts["failed"] / counts["images"]}
    if windows:
        rates["windows"] = windows.get("failed", 0) / sum(windows.values())
    for table, rate in rates.items():
        if rate > max_failure_rate:
            fail(
                f"{rate:.1%} of the {table} failed, more than --max-failure-rate {max_failure_rate:.1%}; "
                f"the column `error` of {table}/ gives the reasons",
                1,
            )


def warn_of_capped(success: dict[str, Any], output: str) -> None:
    """Log the number of images in which the maximum number of instances was reached, so that others may be missing."""
    import pyarrow.compute as pc

    from maskrcnn.io.parquet import read_table
    from maskrcnn.io.storage import Storage
    from maskrcnn.pipeline.success import parts_of

    storage = Storage(output)
    columns = (read_table(storage, part.images, ["capped"])["capped"] for part in parts_of(success))
    if capped := sum(pc.sum(column).as_py() or 0 for column in columns):
        log.warning(
            "%s the maximum number of instances, so others may be missing (column `capped`): a new run with a larger "
            "--max-detections finds them",
            f"{plural(capped, 'image')} {'has' if capped == 1 else 'have'}",
        )


def summary_line(counts: dict[str, int], output: str) -> str:
    """Return the counts of a run's images and instances in one line."""
    return (
        f"{plural(counts['images'], 'image')}: {counts['ok']:,} ok, {counts['empty']:,} empty, "
        f"{counts['failed']:,} failed; {plural(counts['instances'], 'instance')} in {output}"
    )
