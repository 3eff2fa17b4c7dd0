"""The files of a run: local, on S3, or wherever else fsspec writes.

The output belongs to the run: a store that fails stops it with a `RunError` of one clear line. No listing is cached,
for another process may have written since.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, cast

from ..errors import RunError
from . import atomic, s3
from .atomic import TEMPORARY, look, look_local
from .inputs import scan
from .stores import RangeReader, check_url, is_remote, is_s3, join, output_faults, split_url

LEFTOVER_S: Final = 3600.0
"""A temporary file in which nothing was written for so long belongs to no living process."""


class Storage:
    """An output directory or prefix: a local path, `s3://…`, `gs://…` or `memory://…`.

    It holds nothing but its url: it may be pickled, and used by any number of threads. Paths are relative to
    it, with `/`, and never leave it.

    Raises:
        RunError: every method, where the store fails: what was done, with which url, and what to do.
    """

    def __init__(self, url: str) -> None:
        scheme, rest = split_url(url)
        if scheme:
            check_url(url)
        if not rest.strip("/") and (scheme or not rest):
            raise RunError(f"{url!r} names no folder or bucket")
        self.url: Final = url.rstrip("/") if scheme else str(Path(rest).absolute())

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def _at(self, path: str) -> str:
        parts = path.rstrip("/").split("/")
        if "\0" in path or any(part in ("", ".", "..") for part in parts):
            raise RunError(f"{path!r} is no path below {self.url}")
        return join(self.url, path)

    def read(self, path: str) -> bytes:
        """Return a file's content. Raises FileNotFoundError where there is none."""
        url = self._at(path)
        with output_faults("read", url, missing=True):
            if not is_remote(url):
                return Path(url).read_bytes()
            return atomic.fetch(url)

    def open(self, path: str) -> BinaryIO:
        """Open a file for random access. Raises FileNotFoundError where there is none.

        Remote files are unbuffered: each `read` is one range request, as pyarrow likes it.
        """
        url = self._at(path)
        with output_faults("read", url, missing=True):
            if not is_remote(url):
                look_local(Path(url))
                return Path(url).open("rb")
            return cast(BinaryIO, RangeReader(_range_reader(url), look(url).bytes))

    def create(self, path: str, data: bytes) -> bool:
        """Write a file only where there is none; return whether this content, byte for byte, stands there now.

        So it is after a reply that was lost, and for the second of two writers of equal bytes. Of writers of
        different bytes one wins, on local files, S3, and what keeps its conditions (`If-None-Match`). On a store
        that ignores or refuses them the file is looked for, written, and read back: one content stands in the end,
        but a writer who was told True may find another's later, if both wrote at once. No order of plain reads
        and writes can do better; who depends on it reads again what stands.
        """
        url = self._at(path)
        with output_faults("write", url):
            return atomic.create(url, data)

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole, replacing any other, by one PUT; locally by a temporary file and a rename.

        Where it is not known what became of a PUT, the file is read back: if it is this, it was written.
        """
        url = self._at(path)
        with output_faults("write", url):
            atomic.replace(url, data)

    def put_file(self, path: str, local: Path) -> None:
        """Write a local file as `write` does; above 5 GiB as a multipart upload, which is as atomic."""
        url = self._at(path)
        with output_faults("write", url):
            atomic.replace_by_file(url, local)

    @contextlib.contextmanager
    def building(self, path: str) -> Iterator[Path]:
        """Give a local file to build, and store it as `put_file` does when the block ends without an error.

        In a local output it is built beside its target, so that nothing is copied; else in `TMPDIR`. What a disk
        that is full or broken raises within the block becomes a `RunError` that names the place.
        """
        url = self._at(path)
        if is_remote(url):
            with _scratch(path) as folder:
                yield folder / "built"
                self.put_file(path, folder / "built")
        else:
            with output_faults("write", url), atomic.beside(Path(url)) as temporary:
                yield temporary

    def exists(self, path: str) -> bool:
        """Return whether a file, not a folder, is there."""
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        """Return a file's size in bytes. Raises FileNotFoundError where there is none."""
        url = self._at(path)
        with output_faults("read", url, missing=True):
            return look(url).bytes

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders in a folder, sorted; none if it is missing. Local ones may be empty."""
        url = self._at(prefix).rstrip("/")
        with output_faults("list", url):
            if is_s3(url):
                return sorted(s3.folders(url))
            if is_remote(url):
                below = (path.removeprefix(prefix.rstrip("/") + "/") for path in self.list(prefix))
                return sorted({path.partition("/")[0] for path in below if "/" in path})
            with contextlib.suppress(FileNotFoundError):
                return sorted(entry.name for entry in os.scandir(url) if entry.is_dir())
        return []

    def list(self, prefix: str = "") -> list[str]:
        """Return the files below a folder (all, if empty), sorted, relative to the root; none if missing."""
        url = self._at(prefix).rstrip("/") if prefix else self.url
        folder = prefix.rstrip("/") + "/" if prefix else ""
        with output_faults("list", url):
            found = [folder + name for names, _ in scan(url) for name in names]
        return sorted(path for path in found if not TEMPORARY.search(path))

    def remove(self, path: str) -> None:
        """Remove a file; that it is missing is fine."""
        url = self._at(path)
        with output_faults("remove", url), contextlib.suppress(FileNotFoundError):
            atomic.remove(url)

    def remove_tree(self, prefix: str) -> None:
        """Remove all files below a folder; that it is missing is fine."""
        url = self._at(prefix).rstrip("/")
        with output_faults("remove", url), contextlib.suppress(FileNotFoundError):
            if not is_remote(url):
                shutil.rmtree(url)
            elif is_s3(url):
                s3.remove_below(url)
            else:
                for path in self.list(prefix):
                    self.remove(path)

    def abort_uploads(self) -> int:
        """Abort the multipart uploads that are open: killed processes', and those under way; return how many."""
        with output_faults("list the uploads below", self.url):
            return s3.abort_uploads(self.url) if is_s3(self.url) else 0

    def remove_leftovers(self) -> int:
        """Remove the temporary files that killed processes left in a local output; return how many."""
        if is_remote(self.url):
            return 0
        removed = 0
        latest = time.time() - LEFTOVER_S
        with output_faults("clean up", self.url):
            for file in Path(self.url).rglob(".*.tmp"):
                with contextlib.suppress(FileNotFoundError):  # its writer lives, and is done
                    if TEMPORARY.search(str(file)) and file.lstat().st_mtime < latest:
                        file.unlink()
                        removed += 1
        return removed


def _range_reader(url: str) -> Callable[[int, int], bytes]:
    def read_range(start: int, stop: int) -> bytes:
        with output_faults("read", url):
            return atomic.fetch(url, start, stop)

    return read_range


@contextlib.contextmanager
def _scratch(path: str) -> Iterator[Path]:
    """Give a temporary folder to build a file in; its faults name it."""
    doing = f"build {path} in TMPDIR"
    with output_faults(doing, tempfile.tempdir or os.environ.get("TMPDIR", "(not set)")):
        folder = tempfile.TemporaryDirectory(prefix="maskrcnn-", ignore_cleanup_errors=True)
    with folder, output_faults(doing, folder.name):
        yield Path(folder.name)
