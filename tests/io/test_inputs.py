"""A listing that takes long says how far it is, and does not enter what the kernel shows as files."""

import logging
import re
from pathlib import Path

import pytest

from maskrcnn.errors import StoreSetupError
from maskrcnn.io import reporting
from maskrcnn.io.inputs import list_inputs

needs_linux = pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="needs Linux")


def test_a_long_listing_counts_the_files_that_it_has_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("a", "a/b", "c"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            (tmp_path / folder / f"{number}.png").touch()
    caplog.set_level(logging.INFO, "maskrcnn")
    assert len(list_inputs(str(tmp_path))) == 9
    assert caplog.messages == [], "nothing is said of what is done at once"
    monkeypatch.setattr(reporting, "REPORT_EVERY_S", 0.0)
    assert len(list_inputs(str(tmp_path))) == 9
    counts = [
        int(re.fullmatch(rf"listing {tmp_path}: (\d+) files? so far", text)[1]) for text in caplog.messages
    ]  # type: ignore[index]
    assert counts == sorted(counts)
    assert counts[-1] == 9


@needs_linux
@pytest.mark.parametrize("folder", ["/proc", "/proc/self", "/sys/kernel"])
def test_a_file_system_of_the_kernel_is_no_input(folder: str) -> None:
    with pytest.raises(
        StoreSetupError, match=rf"^{folder} is in a file system of the kernel, .*: name another"
    ):
        list_inputs(folder)


@needs_linux
def test_a_file_system_of_the_kernel_below_the_input_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "processes").symlink_to("/proc")
    caplog.set_level(logging.INFO, "maskrcnn")
    assert list_inputs(str(tmp_path))["name"].to_pylist() == ["a.png"]
    assert caplog.messages == [f"left out {tmp_path}/processes, a file system of the kernel"]
