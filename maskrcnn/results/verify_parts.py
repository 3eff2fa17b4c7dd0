"""A check of `verify` applied to parts of an output that do not depend on each other, here or by Ray tasks."""

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar, cast

from ..pipeline.success import RunAll
from .invariants import Fault
from .verify_loading import BrokenError, LoadedOutput, checking

KEPT_FINDINGS: Final = 20
"""Maximum number kept of each check; all are counted."""
Checking = Generator[Fault | int, None, str]
"""Yields what is wrong, or the number of further faults, and returns a line with the counts."""

T = TypeVar("T")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Checked(Generic[T]):
    """What a part of a check found."""

    faults: list[Fault]
    """The first `KEPT_FINDINGS`."""
    more: int
    """The number of further ones."""
    broken: Fault | None
    """What ended it."""
    result: T | None


def over(
    check: Callable[[LoadedOutput, Item], Generator[Fault, None, T]],
    output: LoadedOutput,
    items: Sequence[Item],
    run_all: RunAll | None,
) -> Generator[Fault | int, None, list[T]]:
    """Apply a check to items that do not depend on each other; yield what is wrong, and return its results, in order.

    Args:
        check: of one item.
        output: the run.
        items: parts, or other files.
        run_all: how they are distributed; None: here, one after the other.

    Raises:
        BrokenError: the first that a check raised.
    """
    name = check.__name__.strip("_").partition("_")[0]
    apply = functools.partial(check_item, check, dataclasses.replace(output, success={}))
    found: Iterable[Checked[T]] = (
        map(apply, checking(name, items)) if run_all is None else run_all(apply, items)
    )
    results: list[T] = []
    for one in found:
        yield from one.faults
        if one.more:
            yield one.more
        if one.broken is not None:
            raise BrokenError(one.broken.where, one.broken.line)
        results.append(cast(T, one.result))
    return results


def check_item(
    check: Callable[[LoadedOutput, Item], Generator[Fault, None, T]], output: LoadedOutput, item: Item
) -> Checked[T]:
    """Run a check of one item to its end."""
    faults: list[Fault] = []
    count = 0
    running = check(output, item)
    try:
        while True:
            fault = next(running)
            count += 1
            if len(faults) < KEPT_FINDINGS:
                faults.append(fault)
    except StopIteration as end:
        return Checked(faults, count - len(faults), None, end.value)
    except BrokenError as error:
        return Checked(faults, count - len(faults), error.fault, None)
