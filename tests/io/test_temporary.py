"""The folder for temporary files: it is made and removed, or one line says what to do."""

import tempfile
from pathlib import Path

import pytest

from maskrcnn.errors import RunError, StoreSetupError
from maskrcnn.io.temporary import temporary_folder


def test_a_folder_lasts_as_long_as_its_block() -> None:
    with temporary_folder() as folder:
        (folder / "a" / "b").mkdir(parents=True)
    assert not folder.exists()


def test_a_place_that_vanished_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with (
        pytest.raises(StoreSetupError, match=rf"in {tmp_path}/gone \(.*\): set TMPDIR to"),
        temporary_folder(),
    ):
        pass


def test_no_place_at_all_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
    with (
        pytest.raises(StoreSetupError, match=r"\(No usable .*/proc/none.*\): set TMPDIR to"),
        temporary_folder(),
    ):
        pass


def test_a_full_disk_is_one_line_and_other_failures_stay_what_they_are() -> None:
    def fill(file: str) -> None:
        with temporary_folder() as folder:
            (folder / "full").symlink_to(file)
            (folder / "full").write_bytes(b"x")

    with pytest.raises(RunError, match=r"cannot write temporary files in .*: free some space, or set TMPDIR"):
        fill("/dev/full")
    with pytest.raises(IsADirectoryError):
        fill("/")
