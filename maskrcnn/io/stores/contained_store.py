"""Inputs that lie within a file of another store: members of archives, pictures in tables."""

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator

from ..url import Url
from .store import InputStore, Store


class ContainedStore(InputStore):
    """A store of inputs that lie within files; what fails of such an input fails as its file does.

    Args:
        store_of: returns the store of a file.
    """

    def __init__(self, store_of: Callable[[Url], Store]) -> None:
        self._store_of = store_of

    @staticmethod
    @abstractmethod
    def file_of(url: Url) -> Url:
        """Return the URL of the file that an input lies in. Raises ItemError for one on the web."""

    @contextlib.contextmanager
    def input_faults(self, url: Url) -> Iterator[None]:
        """Convert a failure as the file's store does."""
        file = self.file_of(url)
        with self._store_of(file).input_faults(file):
            yield

    def read_range(self, url: Url, start: int = 0, stop: int | None = None, etag: str | None = None) -> bytes:
        """Return a range of an input's bytes."""
        with self.open_input(url, etag) as file:
            file.seek(start)
            return file.read(-1 if stop is None else max(stop - start, 0))
