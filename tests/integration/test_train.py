"""`maskrcnn train` on a real Ray: workers that share a batch, a worker that is killed, faults that are reported."""

import json
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from commandline import maskrcnn_command
from labelled import write_labels
from local import LocalCluster
from maskrcnn_jobs.cli import main

from maskrcnn.models.model import load_model
from maskrcnn.training.config import LOSSES

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
SIDE = 128
OPTIONS = ["--model", "scenes", "--epochs", "2", "--batch-size", "2", "--crop", str(SIDE), "--min-size", str(SIDE),
           "--max-size", str(SIDE), "--freeze", "5", "--val-share", "0.4"]  # fmt: skip


def ended_here(*arguments):
    """Run a command for which no Ray is started in this process."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return write_labels(tmp_path_factory.mktemp("scenes"), range(12), SIDE, crowd_every=5)


@pytest.fixture(scope="module")
def alone(labels, tmp_path_factory, ray_cluster):
    """A training by one worker."""
    output = tmp_path_factory.mktemp("alone") / "out"
    command = ["train", str(labels), str(output), *OPTIONS, "--workers", "1", "--json"]
    done = maskrcnn_command(*command, cluster=ray_cluster)
    assert done.returncode == 0, done.stderr
    return output, json.loads(done.stdout)


def test_a_training_leaves_a_model_a_log_and_a_page(alone):
    output, result = alone
    assert load_model(result["model"]).card.architecture == "maskrcnn_efficientnet_lite0_fpn"
    assert [row["epoch"] for row in result["rows"]] == [1, 2]
    assert len((output / "log.csv").read_text().splitlines()) == 3
    assert "Epoch 2 of 2" in (output / "training.html").read_text()


def kill_a_worker_after(cluster: LocalCluster, output: Path, killed: list[int]) -> None:
    """Kill a worker of Ray Train as soon as an epoch is done."""
    until = time.monotonic() + 250
    while time.monotonic() < until and not (output / "log.csv").exists():
        time.sleep(0.05)
    for process in psutil.Process(cluster.nodes[0].process.pid).children(recursive=True):
        if any("RayTrainWorker" in part for part in process.cmdline()):
            process.send_signal(signal.SIGKILL)
            killed.append(process.pid)
            return


def test_two_workers_one_of_which_is_killed_train_what_one_trains(alone, labels, tmp_path, ray_cluster):
    output, killed = tmp_path / "out", []
    killer = threading.Thread(target=kill_a_worker_after, args=(ray_cluster, output, killed))
    killer.start()
    command = ["train", str(labels), str(output), *OPTIONS, "--workers", "2", "--json"]
    done = maskrcnn_command(*command, cluster=ray_cluster)
    killer.join()
    assert done.returncode == 0, done.stderr
    assert len(killed) == 1
    rows = json.loads(done.stdout)["rows"]
    assert [row["epoch"] for row in rows] == [1, 2]
    for ours, theirs in zip(rows, alone[1]["rows"], strict=True):
        for name in LOSSES:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-12)
        assert ours["mask_ap"] == theirs["mask_ap"]


def test_a_finished_training_is_reported_again_and_another_configuration_refused(alone, labels):
    output, result = alone
    code, out, _ = ended_here("train", labels, output, *OPTIONS, "--json")
    assert (code, json.loads(out)) == (0, result)
    code, _, err = ended_here("train", labels, output, *OPTIONS, "--epochs", 3)
    assert code == 2
    assert "was begun with epochs 2, now 3" in err


def test_what_diverges_is_reported_and_kept(labels, tmp_path, ray_cluster):
    wild = ["--optimizer", "sgd", "--learning-rate", "1e30", "--clip", "1e30", "--workers", "1"]
    command = ["train", str(labels), str(tmp_path / "out"), *OPTIONS, *wild]
    done = maskrcnn_command(*command, cluster=ray_cluster)
    assert done.returncode == 3
    assert "stopped: the loss is not finite any more" in done.stderr
    assert (tmp_path / "out" / "diverged-0.pt").exists()


def test_errors_of_the_dataset_are_listed_before_ray_starts(labels, tmp_path):
    content = json.loads(labels.read_text())
    content["annotations"][0]["category_id"] = 99
    content["annotations"][1]["bbox"] = [1, 2, float("nan"), 4]
    content["annotations"][2]["segmentation"] = [[1, 2, 3, 4]]
    content["images"][3]["file_name"] = "gone.png"
    broken = labels.parent / "broken.json"
    broken.write_text(json.dumps(content))
    done = maskrcnn_command("train", str(broken), str(tmp_path / "out"), *OPTIONS)
    err = done.stderr
    assert done.returncode == 2
    for kind in ("unknown category", "not four finite numbers", "fewer than three points", "cannot be read"):
        assert kind in err
    assert "starting Ray" not in err
    assert not (tmp_path / "out").exists()
    code, out, _ = ended_here("train", broken, "--check", "--skip-invalid", "--model", "scenes", "--json")
    assert code == 0
    assert (
        sum(finding["error"] for finding in json.loads(out)["findings"]) == 3
    )  # the box follows from the mask


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--freeze", 9], "--freeze"), (["--model", "nope"], "nope"), (["--model", "imagenet:x"], "Name one of"),
     (["--val-share", 0], "--val-share must be between 0 and 1"), (["--workers", 0], "--workers"),
     (["--min-size", 8], "--min-size must be at least 32"),
     (["--model", "random:ssdlite320_mobilenet_v3_large", "--min-size", 320], "320 x 320 pixels: leave out --min-size"),
     (["--model", "random:ssd300_vgg16", "--crop", 256], "squares of 300 pixels, its own size: leave out --crop"),
     (["--model", "random:maskrcnn_matterport_resnet50"], "name one of maskrcnn_resnet50_fpn, "),
     (["--model", "own_networks:build"], "a network of your own is trained by your own program")],
    ids=str,
)  # fmt: skip
def test_a_wrong_option_is_reported_before_anything_is_begun(labels, tmp_path, options, says):
    for last in (["--check"], [tmp_path / "out"]):
        code, _, err = ended_here("train", labels, *last, "--model", "scenes", *options)
        assert code == 2
        assert says in err
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_trained_into(labels, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    code, _, err = ended_here("train", labels, tmp_path, "--model", "scenes")
    assert code == 2
    assert "holds a run" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json"]
