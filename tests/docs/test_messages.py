"""The guide "When Ray does not start": its messages are those of the code, and what can be provoked is."""

import inspect
import re
from pathlib import Path

import pytest
from docs.pages import DOCS
from maskrcnn_jobs.driver import cluster

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import RunError, UsageError

OURS = ("Ray did not start", "cannot connect to Ray", "on the cluster at", "this machine has no GPU")
GUIDE = (DOCS / "guides" / "when-ray-does-not-start.md").read_text(encoding="utf-8")


def test_the_messages_are_those_of_the_code() -> None:
    """But for what stands in place of `HOST:PORT` and `…`."""
    code = " ".join(re.sub(r'"\s+f?"', "", inspect.getsource(cluster)).split())
    messages = re.findall(r"^- `(.+?)`", GUIDE, re.MULTILINE)
    ours = [message for message in messages if message.startswith(OURS)]
    assert len(ours) >= 6
    for message in ours:
        fixed = re.split(r"HOST:PORT|this machine$|…", message.partition(": ")[0])
        assert [piece for piece in fixed if piece.strip(" .") not in code] == []


def test_a_long_path_of_the_temporary_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("a" * 120)
    folder.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(RunError, match=r"cannot connect to Ray at this machine: .*AF_UNIX path length"),
        cluster.connected(None, ResourceConfig(actors=1)),
    ):
        pass


def test_nothing_that_listens_is_one_line() -> None:
    with (
        pytest.raises(RunError, match=r"cannot connect to Ray at 127\.0\.0\.1:1: Connection refused"),
        cluster.connected("127.0.0.1:1", ResourceConfig(device="cpu")),
    ):
        pass


def test_a_cluster_needs_a_device() -> None:
    with (
        pytest.raises(UsageError, match=r"on the cluster at .* --device cpu or --device cuda"),
        cluster.connected("127.0.0.1:1", ResourceConfig()),
    ):
        pass
