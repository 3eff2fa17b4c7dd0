"""The folder for temporary files: it is made and removed, or one line says what to do."""

import resource
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.errors import RunError, StoreSetupError
from maskrcnn.io.temporary import Spilled, temporary_folder


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


@given(values=st.lists(st.binary(max_size=40)), spill_bytes=st.sampled_from([1, 50, 10**6]), data=st.data())
def test_spilled_values_are_those_that_were_added_in_any_order_of_reading(
    values: list[bytes], spill_bytes: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maskrcnn.io.temporary.SPILL_BYTES", spill_bytes)
        spilled = Spilled[bytes]()
        for number, value in enumerate(values):
            assert spilled.append(value) == number
            read = data.draw(st.integers(0, number))
            assert spilled[read] == values[read]
    assert list(spilled) == values
    assert len(spilled) == len(values)


def test_without_a_place_for_spilled_values_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskrcnn.io.temporary.SPILL_BYTES", 10)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    spilled = Spilled[bytes]()
    with pytest.raises(StoreSetupError, match=rf"temporary file in {tmp_path}/gone \(.*\): set TMPDIR to"):
        spilled.append(b"more than ten bytes")


def test_spilled_values_that_the_disk_has_no_room_for_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.io.temporary.SPILL_BYTES", 10)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    spilled = Spilled[bytes]()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            RunError, match=r"cannot write temporary files .*: free some space, or set TMPDIR"
        ):
            spilled.append(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
