"""The files of a run: local, on S3, or in another store.

The output belongs to the run: a store that fails stops it with a `RunError` of one clear line. No listing is cached,
for another process may have written since.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from ..errors import RunError, UsageError
from .schemes import store_of
from .stores.local_store import TEMPORARY
from .stores.store import Store
from .url import Url


class Storage:
    """An output directory or prefix: a local path, `s3://…`, `gs://…`, `az://…` or `memory://…`.

    It holds only its URL: it may be pickled, and used by any number of threads. Paths are relative to
    it, with `/`, and never leave it.

    Raises:
        UsageError: the URL names no folder, or is not UTF-8.
        RunError: every method, where the store fails; the message contains the action, the URL, and what to do.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        root = Url.parse(url)
        store_of(root)
        if not root.path.strip("/") and not (root.is_local and root.path):
            raise UsageError(f"{os.fspath(url)!r} names no folder or bucket: name one")
        if os.fspath(url).encode(errors="replace").decode() != os.fspath(url):
            raise UsageError(f"{os.fspath(url)!a} is not UTF-8, as names in tables are: name another folder")
        path = str(root.local_path.absolute()) if root.is_local else root.key.rstrip("/")
        self._root: Final = Url(root.scheme, root.bucket, path)
        self.url: Final = self._root.text

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    @property
    def _store(self) -> Store:
        return store_of(self._root)

    def _at(self, path: str) -> Url:
        parts = path.rstrip("/").split("/")
        if "\0" in path or any(part in ("", ".", "..") for part in parts):
            raise RunError(f"{path!r} is not a path below {self.url}")
        return self._root.join(path)

    def read(self, path: str) -> bytes:
        """Return a file's content. Raises FileNotFoundError if it is missing."""
        url = self._at(path)
        with self._store.output_faults("read", url, missing=True):
            return self._store.read(url)

    def open(self, path: str) -> BinaryIO:
        """Open a file for random access. Raises FileNotFoundError if it is missing.

        Remote files are unbuffered: each `read` is one range request, as pyarrow likes it.
        """
        url = self._at(path)
        with self._store.output_faults("read", url, missing=True):
            return self._store.open(url)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless it exists; return whether it has this content now, byte for byte.

        This holds after a lost reply, and for the second of two writers of equal bytes. Of writers of different bytes
        one wins, on local files, S3, and every store that honours conditions (`If-None-Match`). On a store that ignores
        or refuses them the file is looked for, written, and read back: it has one of the contents in the end, but a
        writer that got True may find another's later, if both wrote at once. No order of plain reads and writes can
        do better; whoever depends on it reads the file again.
        """
        url = self._at(path)
        with self._store.output_faults("write", url):
            return self._store.create(url, data)

    def write(self, path: str, data: bytes) -> None:
        """Write a file atomically, replacing any other: by one PUT, or locally by a temporary file and a rename.

        Where the outcome of a PUT is unknown, the file is read back: if it has this content, it was written.
        """
        url = self._at(path)
        with self._store.output_faults("write", url):
            self._store.write(url, data)

    def put_file(self, path: str, local: Path) -> None:
        """Write a local file as `write` does; on S3 from 5 GiB as a multipart upload, which is as atomic."""
        url = self._at(path)
        with self._store.output_faults("write", url):
            self._store.write_file(url, local)

    @contextlib.contextmanager
    def building(self, path: str) -> Iterator[Path]:
        """Yield a local file to build, and store it as `put_file` does when the block ends without an error.

        For a local output it is built beside its target, so that nothing is copied; otherwise in `TMPDIR`. What a full
        or broken disk raises within the block becomes a `RunError` that contains the path.
        """
        with self._store.building(self._at(path)) as local:
            yield local

    def exists(self, path: str) -> bool:
        """Return whether there is a file, not a folder."""
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        """Return a file's size in bytes. Raises FileNotFoundError if it is missing."""
        url = self._at(path)
        with self._store.output_faults("read", url, missing=True):
            return self._store.stat(url).bytes

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders in a folder, sorted; none if it is missing. Local ones may be empty."""
        url = self._at(prefix.rstrip("/"))
        with self._store.output_faults("list", url), contextlib.suppress(FileNotFoundError):
            return sorted(self._store.folders(url))
        return []

    def list(self, prefix: str = "") -> list[str]:
        """Return the files below a folder (all, if empty), sorted, relative to the root; none if missing."""
        folder = prefix.rstrip("/") + "/" if prefix else ""
        url = self._at(folder.rstrip("/")) if prefix else self._root
        with self._store.output_faults("list", url):
            found = [folder + name for names, _ in self._store.scan(url) for name in names]
        return sorted(path for path in found if not TEMPORARY.search(path))

    def remove(self, path: str) -> None:
        """Remove a file; a missing one is no error."""
        url = self._at(path)
        with self._store.output_faults("remove", url), contextlib.suppress(FileNotFoundError):
            self._store.remove(url)

    def remove_tree(self, prefix: str) -> None:
        """Remove all files below a folder; a missing one is no error."""
        url = self._at(prefix.rstrip("/"))
        with self._store.output_faults("remove", url), contextlib.suppress(FileNotFoundError):
            self._store.remove_tree(url)

    def abort_uploads(self) -> int:
        """Abort the multipart uploads that are open, of killed and of running processes; return their number."""
        with self._store.output_faults("list the uploads below", self._root):
            return self._store.abort_uploads(self._root)

    def remove_leftovers(self) -> int:
        """Remove the temporary files that killed processes left in a local output; return their number."""
        with self._store.output_faults("clean up", self._root):
            return self._store.remove_leftovers(self._root)
