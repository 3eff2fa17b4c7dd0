"""The scripts of `tests/benchmarks`: that they run, and that their arithmetic is right. No times are asserted."""

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import baselines, device, precision
from benchmarks.inputs import photo
from benchmarks.measure import table, to_json
from maskrcnn.masks.encode import detections_from_network
from maskrcnn.synthetic.scenes import render_scene
from maskrcnn.types import Detections

pytestmark = pytest.mark.slow


def found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Detections:
    count = len(boxes)
    return detections_from_network(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int32), np.array(scores, np.float32),
        np.full((count, 28, 28), 0.9, np.float32), height=50, width=50, capped=False,
    )  # fmt: skip


@pytest.mark.parametrize("module", [device, precision])
def test_the_examples_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


# --- how far boxes move ---


def test_strong_ones_are_found_again_each_once_and_by_their_label() -> None:
    reference = found([[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [40, 40, 45, 45]], [1, 1, 2, 1],
                      [0.9, 0.8, 0.7, 0.4])  # fmt: skip
    other = found([[0, 0, 10, 12], [20, 20, 30, 30]], [1, 3], [0.6, 0.5])
    change = precision.moved([other], [reference])
    assert change.strong == 3
    assert change.distances.tolist() == [0.5]
    assert change.share == pytest.approx(1 / 3)
    assert change.farthest_px == 2.0


def test_what_has_no_strong_ones_has_no_share() -> None:
    nothing = found([], [], [])
    assert np.isnan(precision.moved([nothing], [nothing]).share)
    assert precision.moved([nothing], [found([[0, 0, 9, 9]], [1], [0.9])]).share == 0.0


def test_precision_compares_dtypes(capsys: pytest.CaptureFixture[str]) -> None:
    figures = precision.compare([render_scene(1_000_000, 128)], ("float32", "bfloat16"))
    assert figures["float32"]["found_again"] == 1.0
    assert figures["float32"]["max_px"] == 0.0
    assert 0 < figures["bfloat16"]["mean_px"] < 5
    assert len(capsys.readouterr().out.splitlines()) == 2


# --- the device ---


def test_the_bounds_follow_from_the_slower_of_products_and_copies() -> None:
    peaks = device.Peaks({"float32": 10.0, "bfloat16": 20.0}, copied=5.0)
    parts = [(20.0, 1.0), (10.0, 15.0)]
    assert peaks.bounds("bfloat16", parts) == (1 / 1.5, 1 / (1.0 + 3.0))
    assert peaks.bounds("float32", parts) == (1 / 3.0, 1 / (2.0 + 6.0))


def test_only_what_ran_on_the_device_counts() -> None:
    events = [
        {"cat": "kernel", "ts": 10.0, "dur": 5.0},
        {"cat": "gpu_memcpy", "ts": 12.0, "dur": 4.0},
        {"cat": "cuda_runtime", "ts": 0.0, "dur": 100.0},
        {"name": "process_name"},
    ]
    assert device.union(device.device_spans(events)) == 6.0


def test_tf32_is_put_back() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with device.tf32(True):
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    sizes = {"min_size": 96, "max_size": 160}
    baselines.write_random_model(
        path, [photo(90, 120, seed=0)], architecture="maskrcnn_efficientnet_lite0_fpn", **sizes
    )
    return str(path)


def test_everything_runs_without_an_accelerator(weights: str, tmp_path: Path) -> None:
    command = ["--device", "cpu", "--quick", "--repeats", "1", "--weights", weights, "--count", "3"]
    rows = device.measure(device.parsed(command), tmp_path)
    assert [row.section for row in rows] == [
        "equality", "equality", *["roofline"] * 3, *["stock"] * 2, "network", "network", "worker", "worker",
    ]  # fmt: skip
    assert "labels equal" in rows[0].equal
    assert all(row.ratio is not None for row in rows if row.section == "network")
    assert 0 < (rows[-1].ours or 0) <= 1
    facts = device.facts("cpu", command)
    assert facts["command"].startswith("python -m tests.benchmarks.device --device cpu --quick")
    assert json.loads(to_json(rows, facts, {}))["rows"]
    assert table(rows).count("\n") == len(rows)


def test_a_difference_ends_it(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "BOX_TOLERANCE_PX", -1.0)
    options = device.parsed(["--device", "cpu", "--quick", "--weights", weights])
    with pytest.raises(SystemExit, match="stock torchvision finds something else"):
        device.measure(options, tmp_path)
