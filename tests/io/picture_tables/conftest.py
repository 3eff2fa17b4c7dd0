"""What the tests of tables share."""

import pytest

from maskrcnn.io.stores.local_store import LocalStore


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges that are read of local files, as they are read."""
    found: list[tuple[int, int]] = []
    read_range = LocalStore.read_range

    def counted(self, url, start=0, stop=None, etag=None):
        found.append((start, stop))
        return read_range(self, url, start, stop, etag)

    monkeypatch.setattr(LocalStore, "read_range", counted)
    return found
