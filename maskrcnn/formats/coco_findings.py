"""What is wrong with a COCO dataset, or worth knowing: counted by kind, in two severities."""

import logging
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

log = logging.getLogger("maskrcnn")

EXAMPLES: Final = 3
"""The number of places that a finding names."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of thing that is wrong, or worth knowing, with a dataset."""

    kind: str
    """What it is, in words."""
    error: bool
    """Whether what it concerns cannot be used. `train` stops, or leaves it out with `--skip-invalid`; `evaluate` leaves
    it out."""
    count: int
    examples: tuple[str, ...]
    """At most `EXAMPLES` places."""

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.examples) else ""
        level = "error" if self.error else "warning"
        return f"{level}: {self.kind} ({self.count:,}): {', '.join(self.examples)}{more}"


@dataclass(slots=True)
class Findings:
    """Collect findings; memory follows the number of kinds, not that of findings."""

    _counts: dict[tuple[bool, str], int] = field(default_factory=dict)
    _examples: dict[tuple[bool, str], list[str]] = field(default_factory=dict)

    def error(self, kind: str, where: object) -> None:
        """Add something that cannot be used."""
        self.add(kind, where, error=True)

    def warning(self, kind: str, where: object) -> None:
        """Add something that is used all the same."""
        self.add(kind, where, error=False)

    def add(self, kind: str, where: object, *, error: bool) -> None:
        """Add one of either severity."""
        key = error, kind
        self._counts[key] = self._counts.get(key, 0) + 1
        examples = self._examples.setdefault(key, [])
        if len(examples) < EXAMPLES:
            examples.append(shortened(where))

    def listed(self) -> tuple[Finding, ...]:
        """Return the findings, errors first, one for each kind."""
        return tuple(
            Finding(kind, error, count, tuple(self._examples[error, kind]))
            for (error, kind), count in sorted(
                self._counts.items(), key=lambda item: (not item[0][0], item[0][1])
            )
        )


def summary_of_errors(findings: Iterable[Finding]) -> str:
    """Return the first errors as part of a line, or an empty string where there are none."""
    errors = [str(finding).removeprefix("error: ") for finding in findings if finding.error]
    return "; ".join(errors[:EXAMPLES])


def log_findings(source: str, findings: Iterable[Finding]) -> None:
    """Log findings with the dataset that they are about, one per line; what has an error is left out."""
    for finding in findings:
        text = str(finding)
        if finding.error:
            text = f"left out: {text.removeprefix('error: ')}"
        log.warning("%s: %s", source, text)


def shortened(value: object) -> str:
    """Return a value as text of at most 120 characters."""
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}…"


def integer_of(value: object) -> int | None:
    """Return a JSON number as an integer of 64 bits (256.0 is 256), or None where it is not one."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) < 2**63 else None


def id_of(value: object) -> int | str | None:
    """Return an id, an integer or a text, or None where it is neither."""
    return value if isinstance(value, str) else integer_of(value)


def is_number_as_text(value: object) -> bool:
    """Return whether a JSON value is a number in quotes.

    >>> [is_number_as_text(value) for value in ("7", "-1.5e3", "leaf", "", 7)]
    [True, True, False, False, False]
    """
    return isinstance(value, str) and re.fullmatch(r"\s*[-+]?[0-9][0-9.eE+-]{0,40}\s*", value) is not None


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a JSON value is a finite number that a float holds."""
    # JSON has integers of any size, which a float cannot hold.
    return math.isfinite(value) if type(value) is float else type(value) is int and abs(value) < 2**63
