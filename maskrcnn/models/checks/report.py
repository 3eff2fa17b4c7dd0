"""What the checks of a model found out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ...types import Category
from .batch_costs import Cost

__all__ = ["Check", "ModelReport", "Status", "failed", "not_checked", "ok"]

Status = Literal["ok", "failed", "not_checked"]


@dataclass(frozen=True, slots=True)
class Check:
    """One property of a model."""

    name: str
    status: Status
    line: str
    """What was found, or why it was not checked, for a person."""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What was found out about a model."""

    model: str
    sha256: str
    categories: tuple[Category, ...]
    has_masks: bool
    execution: Mapping[str, Any]
    checks: tuple[Check, ...]
    costs: tuple[Cost, ...]

    @property
    def sound(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "failed" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {"execution": dict(self.execution), "sound": self.sound}

    @classmethod
    def from_json(cls, report: Mapping[str, Any]) -> "ModelReport":
        """Return the report that `to_json` returned."""
        return cls(
            report["model"],
            report["sha256"],
            tuple(Category(**category) for category in report["categories"]),
            report["has_masks"],
            report["execution"],
            tuple(Check(**check) for check in report["checks"]),
            tuple(Cost(**cost) for cost in report["costs"]),
        )


def ok(name: str, line: str) -> Check:
    """Return a check that the model passed."""
    return Check(name, "ok", line)


def failed(name: str, line: str) -> Check:
    """Return a check that it failed."""
    return Check(name, "failed", line)


def not_checked(name: str, why: str) -> Check:
    """Return a check that could not be made, with the reason."""
    return Check(name, "not_checked", why)
