"""Disks that are full or read-only: small file systems in memory where they may be mounted, else limits on files."""

import contextlib
import functools
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest import mock

from click.testing import CliRunner
from maskrcnn_jobs.cli import main

from chaos.crash import Case, in_child, prepared
from chaos.faulty_storage import Fault, Step, faulty, watched
from chaos.invariants import check_is_final, check_promises, invariant
from chaos.local_job import SHARD_IMAGES, Job, run_job
from maskrcnn.io.storage import Storage

PAGE: Final = 4096
BALLAST: Final = "ballast"


@dataclass(frozen=True)
class Disk:
    """A small disk of its own."""

    path: Path
    mounted: bool
    """Whether it is a file system; else a folder, and only the size of its files can be limited."""

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return "tmpfs" if self.mounted else "RLIMIT_FSIZE and modes"

    @contextlib.contextmanager
    def leaving(self, n_bytes: int) -> Iterator[None]:
        """Leave so many bytes free for the time of a block; where nothing is mounted, let no file be larger."""
        if not self.mounted:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
            yield
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            return
        free = shutil.disk_usage(self.path).free
        ballast = self.path / BALLAST
        ballast.write_bytes(b"\1" * (free - n_bytes))
        yield
        ballast.unlink()

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Let nobody write to it for the time of a block."""
        if self.mounted:
            _mount("-o", "remount,ro", str(self.path))
            yield
            _mount("-o", "remount,rw", str(self.path))
            return
        folders = [self.path, *(path for path in self.path.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        yield
        for folder in folders:
            folder.chmod(0o755)


@contextlib.contextmanager
def small_disk(path: Path, n_bytes: int) -> Iterator[Disk]:
    """Give a disk for the time of a block: a tmpfs where this process may mount one, else a folder."""
    path.mkdir(parents=True)
    options = f"size={n_bytes},mode=0755"
    mounted = os.getuid() == 0 and _mount("-t", "tmpfs", "-o", options, "tmpfs", str(path))
    try:
        yield Disk(path, mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=False)


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@dataclass(frozen=True)
class Said:
    """What a command said."""

    code: int
    line: str
    """The last."""


def command(*arguments: str) -> Said:
    """Run the command line here, without Ray. Raises BrokenError where it shows a traceback."""
    result = CliRunner().invoke(main, arguments)
    invariant("end", "Traceback" not in result.output, result.output)
    return Said(result.exit_code, (result.output.strip().splitlines() or [""])[-1])


def segment(job: Job) -> Said:
    """Run `maskrcnn segment`."""
    options = ("--model", "planted", "--device", "cpu", "--shard-images", str(SHARD_IMAGES))
    return command("segment", job.source, job.output, *options, "--max-failure-rate", "1")


@dataclass(frozen=True)
class Hardship:
    """A job whose disk is not as it should be."""

    case: Case
    free: int | None = None
    """Bytes that are left of the output's disk; None: it is read-only."""
    done: Fault | None = None
    """Where the run was killed before, so that it has done a part."""


@dataclass(frozen=True)
class Report:
    """What became of it."""

    disk: str
    step: Step | None
    """The last call before the command stopped; None where it did not."""
    line: str = ""


def run_in_hardship(hardship: Hardship) -> Report:
    """Run a job on a disk that is full or read-only, then on the same disk with space.

    Raises:
        BrokenError: an invariant does not hold.
    """
    steps: list[Step] = []

    @contextlib.contextmanager
    def noted(_storage: Storage, step: Step, _size: int | None) -> Iterator[None]:
        steps.append(step)
        yield

    case = hardship.case
    with prepared(case) as scratch, small_disk(Path(case.job.output), 64 * 2**20) as disk:
        job = case.job.to(str(disk.path / "out"), case.job.order)
        if hardship.done:
            struck = functools.partial(_struck, job, hardship.done, scratch / "trace")
            invariant("end", in_child(struck) < 0, "the run was not struck")
        trouble = disk.read_only() if hardship.free is None else disk.leaving(hardship.free)
        with trouble, watched(noted):
            said = segment(job)
        if said.code == 0:
            invariant("I4", hardship.free is not None, "a disk that is read-only was written to")
            check_is_final(job.output, case.ground_truth)
            return Report(disk.kind, None)
        words = "read-only|denied" if hardship.free is None else "the disk is full|larger than"
        invariant("end", said.code == 3, f"exit code {said.code}: {said.line}")
        invariant("end", re.match(f"stopped: .*({words})", said.line) is not None, f"it says {said.line!r}")
        check_promises(job.output, case.ground_truth)
        _goes_on(job, case)
        return Report(disk.kind, steps[-1] if steps else Step(0, "none", "plan.json"), said.line)


def _struck(job: Job, fault: Fault, trace: Path) -> None:
    with faulty(fault, trace):
        run_job(job)


def _goes_on(job: Job, case: Case) -> None:
    """The same command ends the run, and `verify` proves it."""
    again = segment(job)
    invariant("end", again.code == 0, f"the same command again: exit code {again.code}, {again.line}")
    proven = command("verify", job.output)
    invariant("verify", proven.code == 0, proven.line)
    check_is_final(job.output, case.ground_truth)


SCRATCHES: Final = ("a file", "missing", "read-only", "full")
"""The last two need a file system that may be mounted."""


@dataclass(frozen=True)
class Scratch:
    """A job whose folder for temporary files cannot be used."""

    case: Case
    kind: str
    """One of `SCRATCHES`."""
    remote: bool
    """Whether the output is an object store, for which files are built there."""
    noticed: bool
    """Whether it is so only from the moment on in which Python has settled for it; else Python takes another."""


def run_without_scratch(hardship: Scratch) -> Report:
    """Run a job without a place for temporary files, then with one.

    Raises:
        BrokenError: an invariant does not hold.
    """
    case = hardship.case
    with prepared(case) as scratch, small_disk(scratch / "disk", 2**20) as disk:
        job = case.job.to("memory://scratch/out" if hardship.remote else case.job.output)
        place = disk.path / "place"
        if hardship.kind == "a file":
            place.write_bytes(b"")
        elif hardship.kind != "missing":
            place.mkdir()
        trouble: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if hardship.kind in ("read-only", "full"):
            trouble = disk.read_only() if hardship.kind == "read-only" else disk.leaving(0)
        with trouble, mock.patch.dict(os.environ, TMPDIR=str(place)):
            tempfile.tempdir = None if hardship.noticed else str(place)
            said = segment(job)
        tempfile.tempdir = str(scratch)
        if hardship.noticed or not hardship.remote:
            invariant("end", said.code == 0, f"exit code {said.code}: {said.line}")
            check_is_final(job.output, case.ground_truth)
            return Report(disk.kind, None)
        invariant("end", said.code == 3, f"exit code {said.code}: {said.line}")
        invariant("end", re.match("stopped: .*TMPDIR", said.line) is not None, f"it says {said.line!r}")
        _goes_on(job, case)
        return Report(disk.kind, None, said.line)
