"""What a listing finds and that is no input: log it, or refuse it with `--strict`."""

import logging
from typing import Final

import pyarrow as pa

from maskrcnn.errors import UsageError, plural
from maskrcnn.io.manifests.skipped import counts_of
from maskrcnn.io.storage import Storage
from maskrcnn.io.url import redact
from maskrcnn.pipeline.list_inputs import Inputs
from maskrcnn.pipeline.manifest_file import read_skipped
from maskrcnn.pipeline.plan import read_run

log = logging.getLogger("maskrcnn")

_SHOWN_KINDS: Final = 6
"""Kinds of skipped files in one message."""


def log_skipped(inputs: Inputs) -> None:
    """Log the numbers of files that a listing skipped, by kind."""
    if inputs.skipped.num_rows:
        log.info("skipped files: %s", _shown_counts(counts_of(inputs.skipped)))


def _shown_counts(counts: dict[str, int], at_most: int | None = None) -> str:
    some = [f"{count:,} {kind or '(no suffix)'}" for kind, count in counts.items()]
    return ", ".join(some[:at_most]) + (", …" if len(some) > len(some[:at_most]) else "")


def refuse_planned_skips(source: str, storage: Storage) -> None:
    """Raise UsageError if the listing of a plan that exists skipped files."""
    if read_run(storage)["inputs"].get("skipped_sha256"):
        refuse_skipped(source, read_skipped(storage))


def refuse_skipped(source: str, skipped: pa.Table) -> None:
    """Raise UsageError with the counts and the first names of the files that a listing skipped."""
    if not skipped.num_rows:
        return
    names = ", ".join(map(repr, skipped["name"].slice(0, 3).to_pylist())) + (
        ", …" if skipped.num_rows > 3 else ""
    )
    raise UsageError(
        f"{redact(source)}: with --strict no file may be skipped, and {plural(skipped.num_rows, 'file')} would "
        f"be ({_shown_counts(counts_of(skipped), _SHOWN_KINDS)}): {names}; move them, or leave out --strict"
    )
