"""Defects to plant into the real code: each is what somebody once wrote, and must be found."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

DEFECTS: dict[str, Callable[[], AbstractContextManager[None]]] = {}


@contextlib.contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Plant a defect for the time of a block; None: none."""
    if name is None:
        yield
        return
    with DEFECTS[name]():
        yield
