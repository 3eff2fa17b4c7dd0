"""A storage whose n-th mutating call fails: before it did anything, after it did all, or half way through.

It replaces methods of the class `Storage`, since the code under test builds its own. What it counts are the calls
that others would see; a method that calls another is one call. A call that is killed half way is killed by the
kernel, in the middle of writing its file (a limit on the file's size), not by pretence.
"""

import contextlib
import functools
import json
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from maskrcnn.errors import RunError
from maskrcnn.io.schemes import store_of
from maskrcnn.io.storage import Storage
from maskrcnn.io.stores.s3_store import S3Store
from maskrcnn.io.url import Url

MUTATING: Final = (
    *("write", "put_file", "building", "create"),
    *("remove", "remove_tree", "abort_uploads", "remove_leftovers"),
)
READING: Final = ("read", "open", "exists", "size", "list", "folders")

Mode = Literal["raise before", "raise half", "raise after", "kill before", "kill half", "kill after"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
PHASES: Final = ("plan", "PUT part", "PUT receipt", "reduce")

_PLANNING: Final = (
    "probes",
    "manifest",
    "skipped",
    "retired-",
    "run.json",
    "plan.json",
    "plan-",
    "rows-",
)
_PARQUET_HEAD_BYTES: Final = 600


class NotApplicableError(Exception):
    """The call has no such half: nothing is written, or one file is removed."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call to the storage."""

    number: int
    """From 1."""
    method: str
    path: str

    @property
    def phase(self) -> str:
        """One of `PHASES`, or `gc`."""
        if self.method in ("abort_uploads", "remove_leftovers"):
            return "gc"
        if self.path.startswith(_PLANNING):
            return "plan"
        if self.path.startswith(("shards", "receipts")):
            if self.method == "remove_tree":
                return "gc"
            return "PUT part" if self.path.startswith("shards") else "PUT receipt"
        return "reduce"

    def __str__(self) -> str:
        return f"call {self.number}, {self.method} {self.path} ({self.phase})"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at which mutating call."""

    number: int
    mode: Mode

    def __str__(self) -> str:
        return f"{self.mode} {self.number}"


Hook = Callable[[Storage, Step, int | None], contextlib.AbstractContextManager[None]]
"""Entered before a call and left after it; is passed the storage, the step, and the bytes that it writes, if known."""


@contextlib.contextmanager
def watched(hook: Hook, methods: tuple[str, ...] = MUTATING, *, built: bool = False) -> Iterator[None]:
    """Let a hook stand around each outermost call of these methods, of every `Storage` of this process.

    Args:
        hook: stands around the calls.
        methods: their names.
        built: of a file that is built, it stands around the storing alone, and not around the building.
    """
    state = threading.local()
    lock = threading.Lock()
    count = 0

    @contextlib.contextmanager
    def around(storage: Storage, method: str, path: str, size: int | None) -> Iterator[None]:
        nonlocal count
        if getattr(state, "inside", False):
            yield
            return
        with lock:
            count += 1
            step = Step(count, method, path)
        state.inside = True
        try:
            with hook(storage, step, size):
                yield
        finally:
            state.inside = False

    originals = {name: vars(Storage)[name] for name in methods}
    wrappers = {"building": _storing if built else _building}
    for name, original in originals.items():
        setattr(Storage, name, wrappers.get(name, _calling)(name, original, around))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Storage, name, original)


def _calling(name: str, original: Any, around: Any) -> Any:
    @functools.wraps(original)
    def call(self: Storage, *given: Any) -> Any:
        path, content = (*given, "", b"")[0], (*given, b"", b"")[1]
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        with around(self, name, path, size):
            return original(self, *given)

    return call


def _building(name: str, original: Any, around: Any) -> Any:
    @contextlib.contextmanager
    def build(self: Storage, path: str) -> Iterator[Path]:
        with around(self, name, path, 2 * _PARQUET_HEAD_BYTES), original(self, path) as local:
            yield local

    return build


def _storing(name: str, original: Any, around: Any) -> Any:
    @contextlib.contextmanager
    def build(self: Storage, path: str) -> Iterator[Path]:
        with contextlib.ExitStack() as storing, original(self, path) as local:
            yield local
            storing.enter_context(around(self, name, path, None))

    return build


@contextlib.contextmanager
def faulty(fault: Fault | None, trace: Path) -> Iterator[None]:
    """Let one mutating call fail, and write all of them, one per line, to a file that outlives this process."""

    @contextlib.contextmanager
    def hook(storage: Storage, step: Step, size: int | None) -> Iterator[None]:
        hits = fault is not None and step.number == fault.number
        with trace.open("a") as file:
            file.write(json.dumps(asdict(step)) + "\n")
        if not hits or fault is None:
            yield
            return
        deed, _, when = fault.mode.partition(" ")
        if when == "before":
            _end(deed, step)
        if when == "half" and step.method.startswith("remove"):
            _remove_half(storage, step)
            _end(deed, step)
        elif (
            when == "half"
            and not Url.parse(storage.url).is_local
            and step.method in ("write", "create", "put_file")
        ):
            _leave_upload(storage, step)
            _end(deed, step)
        with _no_file_above(size, deed) if when == "half" else contextlib.nullcontext():
            yield
        if when == "half":
            raise NotApplicableError(str(step))
        _end(deed, step)

    with watched(hook):
        yield


def steps_of(trace: Path) -> list[Step]:
    """Return the steps that were written to a trace."""
    return [Step(**json.loads(line)) for line in trace.read_text().splitlines()] if trace.exists() else []


def _end(deed: str, step: Step) -> None:
    if deed == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RunError(f"planted: {step}")


def _remove_half(storage: Storage, step: Step) -> None:
    paths = storage.list(step.path) if step.method == "remove_tree" else []
    if len(paths) < 2:
        raise NotApplicableError(str(step))
    for path in paths[: len(paths) // 2]:
        storage.remove(path)


def _leave_upload(storage: Storage, step: Step) -> None:
    """Leave what a writer of a large object leaves when it dies: an upload that nobody completes."""
    url = Url.parse(storage.url).join(step.path)
    store = store_of(url)
    assert isinstance(store, S3Store)
    store.client().call_s3("create_multipart_upload", Bucket=url.bucket, Key=url.key)


@contextlib.contextmanager
def _no_file_above(size: int | None, deed: str) -> Iterator[None]:
    """Let the kernel stop this process, or fail its write, in the middle of a file."""
    if not size:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if deed == "kill":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
