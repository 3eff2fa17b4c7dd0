"""The training configuration, the order of images and the learning rates."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.errors import UsageError
from maskrcnn.training.config import TrainingConfig, identity_of
from maskrcnn.training.schedule import learning_rate, order_of, steps_of


@given(st.integers(1, 50), st.integers(1, 8), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_uses_each_image_at_most_once(images, batch_size, epoch, seed):
    config = TrainingConfig(batch_size=batch_size, seed=seed)
    batches = order_of(epoch, images, config)
    assert len(batches) == steps_of(images, batch_size)
    assert {len(batch) for batch in batches} == {batch_size}
    rows = [row for batch in batches for row in batch]
    assert set(rows) <= set(range(images))
    if images >= batch_size:
        assert len(set(rows)) == len(rows)
    assert batches == order_of(epoch, images, config)


def test_each_epoch_and_seed_has_its_own_order():
    orders = [order_of(epoch, 40, TrainingConfig(seed=seed)) for epoch in range(3) for seed in range(3)]
    assert all(orders.count(order) == 1 for order in orders)


@given(st.sampled_from(["cosine", "step"]), st.floats(0.0, 0.5), st.floats(0, 1), st.floats(0, 1))
def test_the_learning_rate_only_falls_after_the_warm_up(schedule, warmup, one, other):
    config = TrainingConfig(schedule=schedule, warmup=warmup)
    early, late = sorted((one, other))
    assert 0 < learning_rate(late, config) <= 1.0
    if early >= warmup:
        assert learning_rate(late, config) <= learning_rate(early, config)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 0}, {"optimizer": "lion"}, {"learning_rate": 0.0}, {"learning_rate": float("nan")},
     {"schedule": "none"}, {"crop": 100}, {"crop": 32}, {"jitter": (2.0, 1.0)}, {"flips": "up"}, {"color": 3.0},
     {"seed": -1}, {"clip": 0.0}, {"dtype": "float16"}, {"weight_decay": -1.0}, {"max_detections": 0}, {"freeze": 9}],
    ids=str,
)  # fmt: skip
def test_the_error_for_a_value_out_of_range_names_its_option(wrong):
    option = next(iter(wrong)).replace("_", "-")
    with pytest.raises(UsageError, match=f"--{option}"):
        TrainingConfig(**wrong)


def test_each_field_and_dataset_changes_the_identity():
    default = TrainingConfig()
    changed = {"model": "scenes", "epochs": 3, "batch_size": 2, "optimizer": "sgd", "learning_rate": 1.0,
               "weight_decay": 0.0, "schedule": "step", "warmup": 0.5, "clip": 1.0, "freeze": 0, "min_size": 64,
               "max_size": 64, "crop": 64, "jitter": (1.0, 1.0), "flips": "none", "color": 0.0, "seed": 1,
               "max_detections": 1, "dtype": "bfloat16"}  # fmt: skip
    assert set(changed) == {field.name for field in dataclasses.fields(TrainingConfig)}
    identities = {identity_of(dataclasses.replace(default, **{k: v}), "a", "b") for k, v in changed.items()}
    identities |= {
        identity_of(default, "a", "b"),
        identity_of(default, "c", "b"),
        identity_of(default, "a", "c"),
    }
    assert len(identities) == len(changed) + 3
