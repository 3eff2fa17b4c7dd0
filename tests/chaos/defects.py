"""Defects to plant into the real code: each is what somebody once wrote, and must be found."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from chaos.local_job import Job

DEFECTS: dict[str, Callable[[Job], AbstractContextManager[None]]] = {}
