"""The settings in which two runs differ, in the words of the command line."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["PLANNED_AND_NOW", "RUNS_A_AND_B", "Words", "differences"]


@dataclass(frozen=True, slots=True)
class Words:
    """How the value of a setting in one of two runs is shown."""

    value: str
    """With `{}` for the value."""
    flag: str
    """Of an option without a value that was given."""
    absent: str
    """Of what was not given."""


PLANNED_AND_NOW: Final = (
    Words("planned {}", "planned with it", "planned without it"),
    Words("now {}", "now with it", "now without it"),
)
RUNS_A_AND_B: Final = tuple(
    Words(f"{{}} in {run}", f"given in {run}", f"not given in {run}") for run in ("A", "B")
)
_LISTED: Final = 5
"""The number of values of a long list that are shown, from the first in which two lists differ."""


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], words: Sequence[Words] = PLANNED_AND_NOW
) -> list[str]:
    """Return one phrase for each setting in which two configurations differ.

    None, False, an empty list and a setting that is absent say that it was not given; True says that a flag was. The
    arguments of a factory are shown one by one.

    >>> differences({"min_score": 0.05, "limit": None}, {"min_score": 0.5, "limit": 3})
    ['limit: planned without it, now 3', 'min-score: planned 0.05, now 0.5']
    >>> differences({"model_args": {"depth": 50, "boxes": True}}, {"model_args": {"depth": 18}}, RUNS_A_AND_B)
    ['model-arg boxes: true in A, not given in B', 'model-arg depth: 50 in A, 18 in B']
    """
    one, other = _flat(one), _flat(other)
    phrases = []
    for name in sorted(one.keys() | other.keys()):
        values = one.get(name), other.get(name)
        if values[0] != values[1] and not all(map(_is_absent, values)):
            shown = [_shown(values[i], values[1 - i], words[i]) for i in (0, 1)]
            phrases.append(f"{name}: {', '.join(shown)}")
    return phrases


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by the names of their options, and each argument of a factory by itself, as it is given."""
    flat: dict[str, Any] = {}
    for setting, value in settings.items():
        name = setting.replace("_", "-")
        if isinstance(value, Mapping):
            flat |= {f"{name.removesuffix('s')} {key}": _argument(each) for key, each in value.items()}
        else:
            flat[name] = value
    return flat


def _argument(value: Any) -> str:
    """Return the VALUE of `--model-arg NAME=VALUE`: JSON, and other text as it is."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:  # not JSON, so that it needs no quotes
            return value
    return json.dumps(value, ensure_ascii=False)


def _is_absent(value: Any) -> bool:
    return value is None or value is False or value == []


def _shown(value: Any, against: Any, words: Words) -> str:
    if value is True:
        return words.flag
    if _is_absent(value):
        return words.absent
    if isinstance(value, list):
        return words.value.format(_listed(value, against if isinstance(against, list) else []))
    return words.value.format(value)


def _listed(values: list[Any], others: list[Any]) -> str:
    """Return a list as it is given; of a long one the part from where it differs from another one."""
    if len(values) <= 2 * _LISTED:
        return ",".join(map(str, values))
    same = next((at for at, (a, b) in enumerate(zip(values, others, strict=False)) if a != b), len(others))
    first = min(same, len(values) - 1)
    shown = ",".join(map(str, values[first : first + _LISTED]))
    before, after = "…," * (first > 0), ",…" * (first + _LISTED < len(values))
    return f"{before}{shown}{after} ({len(values):,})"
