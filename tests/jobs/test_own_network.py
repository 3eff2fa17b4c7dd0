"""A network of the user's own in the commands: planned, run, continued and refused as any other model."""

import json
import shutil

import pytest
from click.testing import CliRunner
from commandline import maskrcnn_command, parts
from maskrcnn_jobs.cli import main
from own_networks import PLANTED, write_package
from planted_images import write_planted

import maskrcnn

pytestmark = pytest.mark.slow
COMMAND = ("segment", "photos", "out", "--model", "nets.pets:build", "--no-ray", "--shard-images", "2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a package and photos, and a finished run of each model."""
    folder = tmp_path_factory.mktemp("own")
    write_package(folder)
    write_planted(folder / "photos", 5, seed=4)
    (folder / "w.pth").write_bytes(b"1")
    arguments = ["--model-arg", "depth=50", "--model-arg", "weights=w.pth"]
    run = maskrcnn_command(*COMMAND, *arguments, "--json", cwd=folder)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["ok"] + json.loads(run.stdout)["empty"] == 5  # nothing else is printed
    return folder


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """A copy of it as the working directory."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def run(*arguments):
    result = CliRunner().invoke(main, arguments)
    assert "Traceback" not in result.output
    return result


def test_its_tables_are_those_of_the_same_network_by_name(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished)
    assert maskrcnn.verify("out").proven
    by_name = maskrcnn.segment_collection("photos", tmp_path / "name", model="planted", shard_images=2)
    assert parts(finished / "out") == parts(tmp_path / "name")
    assert "own" not in by_name.info["model"]
    assert "model_args" not in by_name.info["settings"]
    maskrcnn.segment_collection(
        "photos", tmp_path / "python", model="nets.pets:build", model_args={"depth": 50}, shard_images=2
    )
    assert parts(finished / "out") == parts(tmp_path / "python")


def test_the_run_records_factory_arguments_and_digests(finished):
    info = json.loads((finished / "out" / "run.json").read_text())
    weights = str(finished / "w.pth")
    own = info["model"]["own"]
    assert own["factory"] == info["model"]["name"] == info["settings"]["model"] == "nets.pets:build"
    assert own["arguments"] == info["settings"]["model_args"] == {"depth": 50, "weights": weights}
    assert list(own["files"]) == [weights]
    assert len(own["code_sha256"]) == len(info["model"]["sha256"]) == 64
    assert [category["name"] for category in info["model"]["categories"]] == ["plank", "coin", "leaf"]


def arguments_of(depth="50", weights="w.pth"):
    return (*COMMAND, "--model-arg", f"depth={depth}", "--model-arg", f"weights={weights}")


def test_other_code_arguments_or_files_are_another_run(finished, monkeypatch):
    """In place, because the run records the path of the weights."""
    monkeypatch.chdir(finished)
    assert run(*arguments_of()).exit_code == 0
    other = run(*arguments_of(depth="18"))
    assert (other.exit_code, other.stderr.count("planned")) == (2, 1)
    assert "(model-arg depth: planned 50, now 18); repeat its command to continue it" in other.stderr
    code = finished / "nets" / "planted.py"
    for path, what in ((finished / "w.pth", "w.pth (sha256): planned"), (code, "code (sha256): planned")):
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        changed = run(*arguments_of())
        assert changed.exit_code == 2
        assert what in changed.stderr
        assert "holds another run" in changed.stderr
        assert "restore what was changed to continue it, or name another output" in changed.stderr
        retried = run("retry", "out", "--no-ray")
        assert retried.exit_code == 2
        assert "is not as it was when the run was planned; restore it" in retried.stderr
        path.write_bytes(before)
    assert run("retry", "out", "--no-ray").stdout == "nothing to retry\n"


def test_a_picture_is_drawn(folder):
    [image] = [path.name for path in (folder / "photos").iterdir() if path.name.endswith("0.png")]
    shown = run("show", f"photos/{image}", "--model", "nets.pets:build", "--output", "a.png", "--json")
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["files"] == ["a.png"]
    assert (folder / "a.png").exists()


BREAKS = {
    "returns nothing": ("return None", "its `outcomes` returned None, expected a list"),
    "returns too few": ("return []", "its `outcomes` returned 0 results, expected a list"),
    "another size": (
        "return [maskrcnn.Detections.empty(3, 3) for _ in images]",
        "it returned detections of 3 x 3 ",
    ),
    "pixels as masks": (
        "return [replace(each, masks=[m.tolist() for m in each.boxes]) for each in self.segment(images)]",
        "it made maskrcnn.Detections that are not valid: `masks[0]` is a list of length 4, expected a tuple of ",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_what_is_no_result_stops_the_run_in_one_line(case, folder):
    code = PLANTED.replace("return maskrcnn.PlantedSegmenter", "return Wrong")
    code += "\nfrom dataclasses import replace\n"
    code += "\nclass Wrong(maskrcnn.PlantedSegmenter):\n    def outcomes(self, images):\n"
    line, what = BREAKS[case]
    (folder / "wrong.py").write_text(f"{code}        {line}\n")
    stopped = run("segment", "photos", "wrong-out", "--model", "wrong:build", "--no-ray")
    assert stopped.exit_code == 2
    assert stopped.stderr.splitlines()[-1].startswith(f"error: --model wrong:build: {what}")


def test_categories_that_change_between_processes_are_refused_and_the_run_is_no_dead_end(folder):
    """The planned categories stand in a file here, which each process that builds the network turns around."""
    order = folder / "order.txt"
    order.write_text("0")
    code = f"""
import maskrcnn
from pathlib import Path

ORDER = Path({str(order)!r})


def build(options):
    turned = ORDER.read_text() == "1"
    ORDER.write_text("0" if turned else "1")
    categories = maskrcnn.PlantedSegmenter().categories
    return maskrcnn.PlantedSegmenter(categories[::-1] if turned else categories)
"""
    (folder / "changing.py").write_text(code)
    command = ("segment", "photos", "changing-out", "--model", "changing:build", "--no-ray")
    refusal = "error: --model changing:build: its categories change from process to process, in another order"
    refused = run(*command)  # planned one way, built the other way
    assert (refused.exit_code, refused.stderr.splitlines()[-1][: len(refusal)]) == (2, refusal)
    assert refused.stderr.rstrip().endswith("then start again in an empty directory")
    order.write_text("1")
    again = run(*command)  # planned the other way
    assert (again.exit_code, again.stderr.splitlines()[-1][: len(refusal)]) == (2, refusal)
    (folder / "changing.py").write_text(code.replace("[::-1] if turned", " if turned"))
    fixed = run(*command)  # nothing was done yet, so that it is planned anew
    assert fixed.exit_code == 0, fixed.stderr


def test_a_network_that_raises_fails_image_by_image(folder):
    code = PLANTED.replace("return maskrcnn.PlantedSegmenter", "return Raises")
    code += (
        "\nclass Raises(maskrcnn.PlantedSegmenter):\n    def outcomes(self, images): raise KeyError('x')\n"
    )
    (folder / "raises.py").write_text(code)
    (folder / "list.txt").write_text("photos/planted-000000.png\n")
    failed = run("segment", "list.txt", "raises-out", "--model", "raises:build", "--no-ray")
    assert failed.exit_code == 1
    [row] = maskrcnn.open_run("raises-out").images().to_pylist()
    assert (row["error"], row["message"]) == (
        "worker_crash", "alone in its process: the network raised KeyError: 'x'",
    )  # fmt: skip


USAGE = {
    "no module": ["plan", "photos", "new", "--model", "missing:build"],
    "no equals sign": ["plan", "photos", "new", "--model", "nets.pets:build", "--model-arg", "depth"],
    "a secret": ["plan", "photos", "new", "--model", "nets.pets:build", "--model-arg", "w=https://h/w?token=hush"],
    "a secret in one word": ["plan", "photos", "new", "--model", "nets.pets:build", "--model-arg=w=s3://k:hush@b/w"],
    "another model": ["plan", "photos", "new", "--model", "planted", "--model-arg", "depth=50"],
    "no argument": ["plan", "photos", "new", "--model", "nets.pets:build", "--model-arg", "width=50"],
    "no category": ["plan", "photos", "new", "--model", "nets.pets:build", "--categories", "cat"],
    "a run's own model": ["show", "out", "--model-arg", "depth=50"],
    "a training": ["train", "photos/instances.json", "new", "--model", "nets.pets:build"],
    "a submitted secret": ["submit", "--address", "http://127.0.0.1:1", "--", "segment", "photos", "new",
                           "--model-arg=w=s3://k:hush@b/w"],
    "a check of nothing": ["check-model", "missing:build"],
}  # fmt: skip


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_command_is_one_line(case, folder):
    result = run(*USAGE[case])
    assert result.exit_code == 2, result.output
    [last] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "hush" not in result.output
    assert not (folder / "new").exists(), last
