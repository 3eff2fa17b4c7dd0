"""The local file system: files written under a temporary name and then renamed."""

import contextlib
import errno
import logging
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from ...errors import StoreSetupError
from ..refusals import Refusal
from ..url import Url, is_folder
from .store import ObjectStat, Page, Store

log = logging.getLogger("maskrcnn")

TEMPORARY: Final = re.compile(r"(^|/)\.[0-9a-f]{32}\.tmp$")
LEFTOVER_S: Final = 3600.0
"""A temporary file that was not written to for so long belongs to no living process."""
LOCAL_ETAG: Final = re.compile(r"\d+-\d+")
"""`size-mtime_ns`; an etag of another form in a manifest is the user's own, and is only copied."""
_KERNEL: Final = (
    *("proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "securityfs", "debugfs", "tracefs"),
    *("bpf", "pstore", "mqueue", "configfs", "fusectl", "binfmt_misc", "efivarfs"),
)
"""File systems that hold no files of anybody's: processes, devices and settings look like them."""
_NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class LocalStore(Store):
    """Local files."""

    # Reading

    def stat(self, url: Url) -> ObjectStat:
        """Return size and etag. Raises FileNotFoundError or IsADirectoryError where there is no file."""
        return _stat(url.local_path)

    def read(self, url: Url) -> bytes:
        """Return a file's content."""
        return url.local_path.read_bytes()

    def open(self, url: Url) -> BinaryIO:
        """Open a regular file."""
        _stat(url.local_path)
        return url.local_path.open("rb")

    def read_input(self, url: Url, max_bytes: int, etag: str | None) -> bytes:  # noqa: ARG002
        """Read a file; its etag is not compared. Raises ItemError: `too_many_bytes`, before it is read."""
        if (size := _stat(url.local_path).bytes) > max_bytes:
            raise Refusal.TOO_MANY_BYTES.error(count=size, limit=max_bytes)
        with url.local_path.open("rb") as file:
            # Not `max_bytes`, which would be allocated. One byte more shows whether the file is growing.
            return file.read(size + 1)

    def open_input(self, url: Url, etag: str | None) -> BinaryIO:
        """Open a file. Raises ItemError: `changed`, `empty_file`."""
        status = _stat(url.local_path)
        if status.bytes == 0:
            raise Refusal.EMPTY.error()
        if etag and LOCAL_ETAG.fullmatch(etag) and status.etag != etag:
            raise Refusal.CHANGED_ETAG.error(etag=status.etag, planned=etag)
        return url.local_path.open("rb")

    def read_range(self, url: Url, start: int = 0, stop: int | None = None, etag: str | None = None) -> bytes:
        """Return a range of a file's bytes. Raises ItemError: `changed`, `empty_file`."""
        with self.open_input(url, etag) as file:
            file.seek(start)
            return file.read(-1 if stop is None else max(stop - start, 0))

    # Listing

    def scan(self, url: Url, stem: str = "") -> Iterator[Page]:  # noqa: ARG002
        """Yield the files below a folder, a page for each of its folders; file systems of the kernel are left out.

        Raises:
            RunError: a folder cannot be read, or is in a file system of the kernel, like `/proc`.
        """
        root, kernel = url.key.rstrip("/") + "/", _kernel_devices()
        if kernel and is_folder(root) and os.stat(root).st_dev in kernel:  # noqa: PTH116 (pathlib removes the slash)
            raise StoreSetupError(
                f"{url} is in a file system of the kernel, which holds no files: name another folder"
            )
        yield from self._scan(root, "", (), kernel)

    def _scan(
        self, root: str, below: str, parents: tuple[tuple[int, int], ...], kernel: frozenset[int]
    ) -> Iterator[Page]:
        folder = Path(root, below)
        try:
            with self.output_faults("list", Url.parse(str(folder)), missing=True):
                here = folder.stat()
                if here.st_dev in kernel:
                    log.info("left out %s, a file system of the kernel", folder)
                    return
                entries = list(os.scandir(folder))
        except FileNotFoundError:
            return
        # A link to a folder that contains it would be followed forever.
        if (identity := (here.st_dev, here.st_ino)) in parents:
            return
        names: list[str] = []
        stats: list[ObjectStat | None] = []
        for entry in entries:
            if self._is_folder(entry):
                yield from self._scan(root, f"{below}{entry.name}/", (*parents, identity), kernel)
            elif entry.is_symlink() or entry.is_file():
                names.append(below + entry.name)
                # A broken link is an input too, one that will fail; and a file may vanish meanwhile.
                try:
                    stats.append(_stat(entry))
                except OSError:
                    stats.append(None)
        yield names, stats

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        # A circular link is an input that will fail; an entry that may not be looked at could be a whole folder.
        try:
            return entry.is_dir()
        except OSError as error:
            if error.errno == errno.ELOOP:
                return False
            with self.output_faults("list", Url.parse(entry.path)):
                raise

    def display_name(self, root: Url, name: str) -> str:
        """Return a file's name, escaped if it is not UTF-8, in a way that no other file is named."""
        if name.isascii() or name.encode(errors="replace").decode() == name:
            return name
        # Backslashes are escaped too, so that no two names become one; where such a file exists, one more is put in.
        text = os.fsencode(name).replace(b"\\", rb"\x5c").decode(errors="backslashreplace")
        while os.path.lexists(root.join(text).key):
            text = text.replace("\\x", r"\\x", 1)
        return text

    def folders(self, url: Url) -> list[str]:
        """Return the names of the folders in a folder; they may be empty."""
        return [entry.name for entry in os.scandir(url.local_path) if entry.is_dir()]

    # Writing

    def write(self, url: Url, data: bytes) -> None:
        """Write a file under a temporary name, and rename it."""
        _replace(url.local_path, lambda file: file.write(data))

    def write_file(self, url: Url, local: Path) -> None:
        """Copy a file under a temporary name, and rename it."""
        with local.open("rb") as source:
            _replace(url.local_path, lambda file: shutil.copyfileobj(source, file, 2**20))

    def create(self, url: Url, data: bytes) -> bool:
        """Write a file under a temporary name, and link it to its own name unless that is taken."""
        target = url.local_path
        with _temporary(target) as temporary:
            temporary.write_bytes(data)
            _sync(temporary)
            try:
                os.link(temporary, target)
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                # Some network shares and memory cards: as on a store without conditional writes.
                if not target.exists():
                    temporary.replace(target)
            _sync_names(target.parent)
        return target.read_bytes() == data

    @contextlib.contextmanager
    def building(self, url: Url) -> Iterator[Path]:
        """Yield a temporary name in the target's folder, so that nothing is copied, and rename it. Raises RunError."""
        with self.output_faults("write", url), _renamed_to(url.local_path) as temporary:
            yield temporary

    # Removing

    def remove(self, url: Url) -> None:
        """Remove a file. Raises FileNotFoundError."""
        url.local_path.unlink()

    def remove_tree(self, url: Url) -> None:
        """Remove a folder. Raises FileNotFoundError."""
        shutil.rmtree(url.local_path)

    def remove_leftovers(self, url: Url) -> int:
        """Remove the temporary files that were not written to for an hour; return their number."""
        removed = 0
        latest = time.time() - LEFTOVER_S
        for file in url.local_path.rglob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError):  # its writer is alive, and has renamed it
                if TEMPORARY.search(str(file)) and file.lstat().st_mtime < latest:
                    file.unlink()
                    removed += 1
        return removed


def _kernel_devices() -> frozenset[int]:
    """Return the device numbers of the file systems in which the kernel shows itself; none where it names none."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    devices = set()
    for mount, _, source in (line.partition(" - ") for line in mounts):
        if source.partition(" ")[0] in _KERNEL:
            major, _, minor = mount.split(" ")[2].partition(":")
            devices.add(os.makedev(int(major), int(minor)))
    return frozenset(devices)


def _stat(file: Path | os.DirEntry[str]) -> ObjectStat:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "not a file", os.fspath(file))
    return ObjectStat(status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def _replace(target: Path, write: Callable[[BinaryIO], object]) -> None:
    with _renamed_to(target) as temporary, temporary.open("xb") as file:
        write(file)


@contextlib.contextmanager
def _renamed_to(target: Path) -> Iterator[Path]:
    with _temporary(target) as temporary:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync_names(target.parent)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # the first failure is the one to report
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_names(folder: Path) -> None:
    """Make the names in a folder survive a power failure."""
    with contextlib.suppress(OSError):  # not every file system can sync folders
        _sync(folder)
