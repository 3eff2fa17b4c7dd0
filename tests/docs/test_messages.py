"""The guide "When Ray does not start": its messages are those of the code, and what can be provoked is."""

import inspect
import re

import pytest
from docs.pages import DOCS
from maskrcnn_jobs.driver import cluster, local_ray, nodes, where_to_run

from maskrcnn.config import ResourceConfig
from maskrcnn.errors import RunError, UsageError

OURS = (
    "Ray did not start", "Ray has no place", "cannot connect to Ray", "an actor needs", "node …",
    "on the cluster at", "this machine has no GPU",
)  # fmt: skip
GUIDE = (DOCS / "guides" / "when-ray-does-not-start.md").read_text(encoding="utf-8")


def test_the_messages_are_those_of_the_code() -> None:
    """But for what stands in place of `HOST:PORT` and `…`."""
    source = "".join(inspect.getsource(module) for module in (cluster, where_to_run, local_ray, nodes))
    code = " ".join(re.sub(r'"\s+f?"', "", source).split())
    messages = re.findall(r"^- `(.+?)`", GUIDE, re.MULTILINE)
    ours = [message for message in messages if message.startswith(OURS)]
    assert len(ours) >= 9
    for message in ours:
        fixed = re.split(r"HOST:PORT|this machine$|…", message.partition(": ")[0])
        assert [piece for piece in fixed if piece.strip(" .") not in code] == []


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
