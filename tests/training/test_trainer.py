"""Training: the result depends on the configuration and the data alone, even after a kill, and a model is written."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from labelled import write_labels

from maskrcnn.errors import ItemError, RunError, UsageError
from maskrcnn.models.model import load_model
from maskrcnn.models.networks import NETWORKS, TRAINABLE
from maskrcnn.models.segmenter import MaskRCNNSegmenter
from maskrcnn.training import trainer as training
from maskrcnn.training.config import LOSSES, TrainingConfig, columns_of
from maskrcnn.training.dataset import read_dataset, split_dataset
from maskrcnn.training.initialization import freeze_batch_norm_statistics
from maskrcnn.training.trainer import Process, Task, train
from maskrcnn.training.validation import validate

pytestmark = pytest.mark.slow

SIDE = 128
CONFIG = TrainingConfig(
    model="scenes", epochs=2, batch_size=2, crop=SIDE, min_size=SIDE, max_size=SIDE, freeze=5, color=0.5
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread: sums in another order have other last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    labels = write_labels(tmp_path_factory.mktemp("scenes"), range(8), SIDE, crowd_every=5)
    return read_dataset(str(labels))


def task(dataset, folder, config=CONFIG, images=None):
    train_images, validation = split_dataset(dataset.images, 0.4)
    return Task(
        config,
        str(folder),
        images if images is not None else train_images,
        validation,
        dataset.categories,
        "x",
    )


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["network"]


def equal(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(task(dataset, folder), Process())


def test_a_model_a_log_and_a_checkpoint_are_written(dataset, trained):
    folder, state = trained
    model = load_model(str(folder / "model.safetensors"))
    assert model.categories == dataset.categories
    assert (model.card.min_size, model.card.max_size) == (SIDE, SIDE)
    lines = (folder / "log.csv").read_text().splitlines()
    assert lines[0].split(",") == list(columns_of(LOSSES, has_masks=True))
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2"]
    for row in state.rows:
        assert row["loss"] == pytest.approx(sum(row[name] for name in LOSSES))
        assert all(np.isfinite(row[name]) and row[name] > 0 for name in LOSSES)
        assert 0 <= row["mask_ap"] <= 1
    assert state.best == max(row["mask_ap"] for row in state.rows)


def test_the_heads_are_trained_and_the_frozen_backbone_is_unchanged(trained):
    folder, _ = trained
    trained_weights, scenes = weights(folder), load_model("scenes").module.state_dict()
    same = {name for name, tensor in trained_weights.items() if torch.equal(tensor, scenes[name])}
    assert {name for name in trained_weights if name.startswith("backbone.body")} <= same
    assert not {name for name in trained_weights if name.startswith("roi_heads")} <= same


class Killed(BaseException):
    """Not caught anywhere, like SIGKILL."""


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_killed_run_continues_with_the_same_result(dataset, trained, tmp_path, monkeypatch, step):
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    done = []

    def kill(state, _steps, _notes):
        done.append((state.epoch, state.step))
        if len(done) == step:
            raise Killed

    with pytest.raises(Killed):
        train(task(dataset, tmp_path), Process(), kill)
    state = train(task(dataset, tmp_path), Process())
    folder, uninterrupted = trained
    assert equal(weights(tmp_path), weights(folder))
    timeless = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in s.rows] for s in (state, uninterrupted)
    ]
    assert timeless[0] == timeless[1]


def test_a_checkpoint_of_another_configuration_is_refused(dataset, trained):
    folder, _ = trained
    wrong = Task(
        **{**{name: getattr(task(dataset, folder), name) for name in Task.__slots__}, "identity": "y"}
    )
    with pytest.raises(UsageError, match="another training configuration or dataset"):
        train(wrong, Process())


def test_a_loss_that_is_not_finite_stops_and_saves_the_batch(dataset, tmp_path):
    wild = TrainingConfig(**{**{name: getattr(CONFIG, name) for name in CONFIG.__slots__},
                     "optimizer": "sgd", "learning_rate": 1e30, "clip": 1e30, "warmup": 0.0})  # fmt: skip
    with pytest.raises(RunError, match="not finite") as raised:
        train(task(dataset, tmp_path, wild), Process())
    saved = torch.load(tmp_path / "diverged-0.pt", weights_only=True)
    assert len(saved["images"]) == len(saved["targets"]) == len(saved["image_ids"]) == 2
    assert all(image.shape == (3, SIDE, SIDE) for image in saved["images"])
    assert str(saved["image_ids"]) in str(raised.value)
    assert not all(np.isfinite(value) for value in saved["losses"].values()) or not np.isfinite(
        saved["gradient_norm"]
    )


def test_a_missing_image_raises_not_found(dataset, tmp_path):
    images = dataset.images.set_column(
        2, dataset.images.schema.field("uri"), [["/no/such.png"] * len(dataset.images)]
    )
    with pytest.raises(ItemError, match="not_found"):
        train(task(dataset, tmp_path, images=images), Process())


def test_without_a_validation_set_the_model_is_that_of_the_last_epoch(dataset, tmp_path):
    base = task(
        dataset,
        tmp_path,
        TrainingConfig(**{**{n: getattr(CONFIG, n) for n in CONFIG.__slots__}, "epochs": 1}),
    )
    alone = Task(base.config, base.folder, base.train, base.validation.slice(0, 0), base.categories, "x")
    state = train(alone, Process())
    assert "mask_ap" not in state.rows[0]
    assert ",,," in (tmp_path / "log.csv").read_text()
    assert load_model(str(tmp_path / "model.safetensors")).categories == dataset.categories


# --- networks without masks -------------------------------------------------------------------------------------

LITE = "ssdlite320_mobilenet_v3_large"


def boxes_task(folder, architecture, repeats, **options):
    """A task that trains a network without masks on two scenes, from random weights and without validation."""
    dataset = read_dataset(str(write_labels(folder, range(2), SIDE)), masks=False)
    fixed = NETWORKS[architecture].resize.fixed
    sizes = {} if fixed else {"min_size": SIDE, "max_size": SIDE, "crop": SIDE}
    config = TrainingConfig(
        model=f"random:{architecture}", batch_size=2, freeze=0, color=0.0, flips="none", jitter=(1.0, 1.0),
        warmup=0.1, weight_decay=0.0, **sizes | options,
    )  # fmt: skip
    images = pa.concat_tables([dataset.images] * repeats)
    return Task(config, str(folder / "out"), images, images.slice(0, 0), dataset.categories, "x")


def box_ap(model, work):
    """The box AP of a model on the two scenes of a task."""
    segmenter = MaskRCNNSegmenter(model)
    assert not segmenter.has_masks
    return validate(segmenter, work.train.slice(0, 2), work.categories, 100)["box_ap"]


@pytest.mark.sampled(0)  # each takes a minute and more: `make chaos` runs them
@pytest.mark.parametrize("architecture", [name for name in TRAINABLE if not NETWORKS[name].has_masks])
def test_a_network_without_masks_learns_two_images_from_random_weights(tmp_path, architecture):
    rate = 5e-4 if "vgg" in architecture else 1e-3
    work = boxes_task(tmp_path, architecture, 20, epochs=4, learning_rate=rate)
    trainer = training._Trainer(work, Process())
    before = box_ap(trainer._model(), work)
    rows = train(work, Process()).rows
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert before < 0.05
    assert box_ap(load_model(str(tmp_path / "out" / "model.safetensors")), work) > before + 0.2


def test_the_smallest_network_without_masks_begins_to_learn(tmp_path):
    """With the statistics of new norms it would not: the maps of a MobileNet would vanish."""
    work = boxes_task(tmp_path, LITE, 2, epochs=2, learning_rate=2e-3)
    rows = train(work, Process()).rows
    assert rows[1]["loss"] < 0.9 * rows[0]["loss"]
    names = ("loss_classification", "loss_bbox_regression")
    header = (tmp_path / "out" / "log.csv").read_text().splitlines()[0]
    assert header.split(",") == list(columns_of(names, has_masks=False))
    assert "mask" not in header
    assert rows[0]["loss"] == pytest.approx(sum(rows[0][name] for name in names))
    assert not load_model(str(tmp_path / "out" / "model.safetensors")).card.has_masks


def test_a_batch_of_a_detector_of_one_stage_has_the_mean_gradient_of_its_images(tmp_path):
    """So that it makes no difference which workers compute which images."""
    work = boxes_task(tmp_path, LITE, 1)
    trainer = training._Trainer(work, Process())
    trainer.network.train()
    freeze_batch_norm_statistics(trainer.network)
    samples = [trainer._samples()[0, row] for row in range(2)]
    gradients = []
    for batch in (samples, samples[:1], samples[1:]):
        trainer._gradients(batch)
        gradients.append(trainer.gradient.double())
    whole, *halves = gradients
    assert whole.abs().max() > 0
    torch.testing.assert_close(whole, (halves[0] + halves[1]) / 2, rtol=1e-6, atol=1e-9)
    at_once = (
        trainer._gradients_at_once(samples) / 2
    )  # one pass over both, as on CUDA: the mean over all positives
    alone = sum(trainer._gradients([sample]) for sample in samples) / 2
    assert torch.isfinite(at_once).all()
    assert (at_once / alone).sub(1).abs().max() < 0.5


def test_mixed_precision_trains(dataset, tmp_path):
    mixed = TrainingConfig(
        **{**{n: getattr(CONFIG, n) for n in CONFIG.__slots__}, "epochs": 1, "dtype": "bfloat16"}
    )
    state = train(task(dataset, tmp_path, mixed), Process())
    assert np.isfinite(state.rows[0]["loss"])
