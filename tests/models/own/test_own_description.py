"""A network of the user's own is described by another process: what its code does there cannot harm this one."""

import sys

import pytest
from own_networks import PLANTED, write_package

from maskrcnn.errors import UsageError
from maskrcnn.models.own import own_description
from maskrcnn.models.own.own_process import Limit
from maskrcnn.models.registry import describe_model
from maskrcnn.synthetic.planted import PLANTED_CATEGORIES

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_has_what_the_segmenter_says(folder):
    write_package(folder)
    (folder / "w.pth").write_bytes(b"abc")
    (folder / "torch.py").write_text("raise ImportError('the wrong torch')\n")
    arguments = {"depth": 50, "weights": str(folder / "w.pth")}
    card = describe_model("nets.pets:build", arguments=arguments)
    assert card.categories == PLANTED_CATEGORIES
    assert (card.has_masks, card.max_size, card.architecture) == (True, 1333, "own")
    assert card.own["factory"] == "nets.pets:build"
    assert card.own["arguments"] == arguments
    assert card.own["files"] == {
        arguments["weights"]: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    }
    assert str(folder) not in str(getattr(sys.modules.get("nets"), "__path__", ""))  # not imported here
    assert describe_model("nets.pets:build", arguments=arguments).sha256 == card.sha256
    (folder / "w.pth").write_bytes(b"abd")
    assert describe_model("nets.pets:build", arguments=arguments).sha256 != card.sha256


def test_a_process_that_its_code_leaves_behind_is_not_waited_for(folder):
    (folder / "nets.py").write_text("import os, time\nif os.fork() == 0: time.sleep(60)\n" + PLANTED)
    assert describe_model("nets:build").categories == PLANTED_CATEGORIES


ENDS = {
    "exits": ("import os; print('bye'); os._exit(3)", "ended its process with exit code 3: bye"),
    "is killed": ("import os; os.kill(os.getpid(), 9)", "ended its process by signal SIGKILL"),
    "closes stdout": ("import os; os.close(1); raise ValueError('a\\nb')", r"raised ValueError: a b \(nets\.py,"),
    "returns nothing": ("pass", "its factory returned None"),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_whatever_ends_it_is_one_line(case, folder):
    code, message = ENDS[case]
    (folder / "nets.py").write_text(f"def build(options):\n    {code}\n")
    with pytest.raises(UsageError, match=message) as caught:
        describe_model("nets:build")
    assert "\n" not in str(caught.value)


def test_a_factory_that_hangs_is_ended_and_where_it_was_is_said(folder, monkeypatch):
    monkeypatch.setattr(own_description, "PATIENCE", Limit(1.0, "do something"))
    (folder / "nets.py").write_text("import time\n\ntime.sleep(600)\n" + PLANTED)
    with pytest.raises(
        UsageError, match=r"its factory took more than 1 s \(at nets\.py, line 3\): do something"
    ):
        describe_model("nets:build")


def test_other_models_take_no_arguments(folder):
    for name in ("planted", "scenes", "coco"):
        with pytest.raises(UsageError, match="--model-arg is for a network of your own"):
            describe_model(name, arguments={"depth": 50})
    (folder / "nets.py").write_text(PLANTED)
    with pytest.raises(UsageError, match="--labels is for weights that do not name their categories"):
        describe_model("nets:build", labels="names.txt")
