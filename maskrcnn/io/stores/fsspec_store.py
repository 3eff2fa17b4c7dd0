"""Stores that fsspec reaches without further help, such as memory://; `gcs_store` adds credentials."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from fsspec import filesystem

from ..url import Url
from .remote_store import RemoteStore, stat_of
from .store import ObjectStat, Page


class FsspecStore(RemoteStore):
    """A store behind an fsspec file system, whose own retries and conditions are used.

    Args:
        scheme: under which fsspec knows the file system.
        environment: how the names of the environment variables begin that configure it.
        extra: of this project, which installs the file system.
    """

    def __init__(self, scheme: str, environment: tuple[str, ...] = (), extra: str = "") -> None:
        super().__init__(scheme, environment, extra)

    def connect(self, environment: Mapping[str, str]) -> Any:  # noqa: ARG002 (fsspec reads it itself)
        """Return a new fsspec file system."""
        return filesystem(self.scheme, skip_instance_cache=True, use_listings_cache=False)

    def stat(self, url: Url) -> ObjectStat:
        """Return size and etag. Raises FileNotFoundError where there is no file."""
        info = self.client().info(url.path)
        if info["type"] != "file":
            raise FileNotFoundError(url.text)
        return stat_of(info)

    def read_range(self, url: Url, start: int = 0, stop: int | None = None, etag: str | None = None) -> bytes:  # noqa: ARG002
        """Return a range of an object's bytes; the etag is not compared."""
        return cast(bytes, self.client().cat_file(url.path, start=start or None, end=stop))

    def scan(self, url: Url, stem: str = "") -> Iterator[Page]:  # noqa: ARG002
        """Yield all files below a folder, as one page."""
        root = url.path.strip("/") + "/"
        found = self.client().find(url.path, detail=True)
        below = {path.lstrip("/"): info for path, info in found.items() if path.lstrip("/").startswith(root)}
        yield [path[len(root) :] for path in below], [stat_of(info) for info in below.values()]

    def put(self, url: Url, data: bytes, *, only_new: bool = False) -> None:
        """Write an object by one request."""
        options = {"mode": "create"} if only_new else {}
        self.client().pipe_file(url.path, data, **options)

    def put_file(self, url: Url, local: Path) -> None:
        """Write a local file's content."""
        self.client().put_file(str(local), url.path)

    def remove(self, url: Url) -> None:
        """Remove an object."""
        self.client().rm_file(url.path)
