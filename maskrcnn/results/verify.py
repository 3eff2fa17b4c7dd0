"""Prove that an output is complete: every input exactly once, every file as it was written, all consistent.

Only the output itself is used, neither `shards/` nor `receipts/`, so the proof also holds after `maskrcnn gc`. A check
is a function that yields what is wrong with an output. A check that depends on others runs only if they passed;
otherwise it counts as not passed.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from ..errors import plural
from ..io.storage import Storage
from ..pipeline.plan import RUN, check_version
from ..pipeline.success import RunAll
from .verify_checks import (
    check_coco,
    check_images,
    check_instances,
    check_listing,
    check_manifest,
    check_parts,
    check_records,
    check_statistics,
    check_windows,
)
from .verify_loading import BrokenError, LoadedOutput, load_output, read_json, why_unfinished
from .verify_parts import KEPT_FINDINGS, Checking

log = logging.getLogger("maskrcnn")


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation."""

    check: str
    """The name of the check that found it."""
    where: str
    """A path below the output, or an image or an instance by its id."""
    line: str
    """One line for a person."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one check."""

    check: str
    passed: bool
    line: str
    """What was counted; if it did not pass, why not."""
    findings: int
    """Number of findings, including those that are not kept."""


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """The result of verifying an output."""

    unfinished: str | None
    """Why the run is not finished, in one line; then nothing was checked."""
    outcomes: tuple[Outcome, ...] = ()
    findings: tuple[Finding, ...] = ()
    """The first `KEPT_FINDINGS` of each check."""

    @property
    def proven(self) -> bool:
        """Whether all checks were run and passed."""
        return self.unfinished is None and all(outcome.passed for outcome in self.outcomes)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: proven, unfinished, checks, findings."""
        return {
            "proven": self.proven,
            "unfinished": self.unfinished,
            "checks": [asdict(outcome) for outcome in self.outcomes],
            "findings": [asdict(finding) for finding in self.findings],
        }


def verify_run(url: str | os.PathLike[str], run_all: RunAll | None = None) -> VerificationReport:
    """Verify a finished run: that its output is complete, intact and consistent.

    Args:
        url: its directory, local or remote.
        run_all: how the parts are distributed; by default they are verified here, one after the other.

    Raises:
        UsageError: there is no run, or it is of another schema version.
        RunError: the store failed.
    """
    storage = Storage(url)
    with contextlib.suppress(BrokenError):  # a missing or broken record is a finding
        check_version(storage, read_json(storage, RUN))
    if unfinished := why_unfinished(storage):
        return VerificationReport(unfinished)
    done: dict[str, Outcome] = {}
    findings: list[Finding] = []
    try:
        output = load_output(storage)
    except BrokenError as error:
        findings.append(Finding("records", *error.fault))
        done["records"] = Outcome("records", passed=False, line="1 finding", findings=1)
        done |= {name: _not_done(name, ["records"]) for name, _, _ in CHECKS[1:]}
        return VerificationReport(None, tuple(done.values()), tuple(findings))
    by_parts = {name: functools.partial(check, run_all=run_all) for name, check in CHECKS_BY_PARTS.items()}
    for name, check, needed in CHECKS:
        if failed := [other for other in needed if not done[other].passed]:
            done[name] = _not_done(name, failed)
            continue
        log.info("checking %s", name)
        done[name], kept = _conclude(name, by_parts.get(name, check)(output))
        findings += kept
    return VerificationReport(None, tuple(done.values()), tuple(findings))


def _conclude(name: str, check: Checking) -> tuple[Outcome, list[Finding]]:
    """Run a check to its end, and keep the first of its findings."""
    kept: list[Finding] = []
    count = 0
    line = ""
    while True:
        try:
            fault = next(check)
        except StopIteration as end:
            line = end.value or line
            break
        except BrokenError as error:  # which ends the generator
            fault = error.fault
        if isinstance(fault, int):
            count += fault
            continue
        count += 1
        if len(kept) < KEPT_FINDINGS:
            kept.append(Finding(name, *fault))
    if count:
        line = plural(count, "finding")
    return Outcome(name, passed=not count, line=line, findings=count), kept


def _not_done(name: str, failed: Sequence[str]) -> Outcome:
    return Outcome(
        name, passed=False, line=f"not run, because {' and '.join(failed)} did not pass", findings=0
    )


CHECKS: Final[tuple[tuple[str, Callable[[LoadedOutput], Checking], tuple[str, ...]], ...]] = (
    ("records", check_records, ()),
    ("manifest", check_manifest, ()),
    ("listing", check_listing, ()),
    ("parts", check_parts, ()),
    ("images", check_images, ("manifest", "parts")),
    ("instances", check_instances, ("images",)),
    ("statistics", check_statistics, ("instances",)),
    ("windows", check_windows, ("instances",)),
    ("coco", check_coco, ("instances",)),
)
"""Name, function, and the checks that must pass first."""
CHECKS_BY_PARTS: Final = {
    "parts": check_parts,
    "instances": check_instances,
    "statistics": check_statistics,
    "coco": check_coco,
}
"""Those that read most, whose parts do not depend on each other."""
