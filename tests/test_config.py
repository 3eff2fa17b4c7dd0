"""Configuration: valid or not there, and the digest that a resume must repeat."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.config import (
    InferenceConfig,
    ResourceConfig,
    ShardingConfig,
    default_shard_images,
    digest_of,
    settings_of,
)
from maskrcnn.errors import UsageError


@pytest.mark.parametrize(
    ("group", "fields", "message"),
    [
        (InferenceConfig, {"min_score": 1.0}, "--min-score"),
        (InferenceConfig, {"min_score": -0.1}, "--min-score"),
        (InferenceConfig, {"max_detections": 0}, "--max-detections"),
        (InferenceConfig, {"limit": 0}, "--limit"),
        (InferenceConfig, {"limit": 10**30}, "--limit"),
        (ShardingConfig, {"shard_images": 0}, "--shard-images"),
        (ResourceConfig, {"threads": 0}, "--threads"),
        (ResourceConfig, {"batch_size": 0}, "--batch-size"),
        (ResourceConfig, {"actors": -1}, "--actors"),
    ],
)
def test_a_wrong_value_names_its_option(group: Any, fields: dict[str, Any], message: str) -> None:
    model = {"model": "scenes"} if group is InferenceConfig else {}
    with pytest.raises(UsageError, match=message):
        group(**model, **fields)


@given(st.integers(1, 10**9))
def test_shards_are_neither_tiny_nor_huge(rows: int) -> None:
    assert 16 <= default_shard_images(rows) <= 1000


@given(rows=st.integers(1, 10**9), minutes=st.floats(1e-3, 1e5), image_s=st.floats(1e-4, 1e3))
def test_a_shard_takes_a_fiftieth_of_the_time_after_which_its_machine_is_taken_away(
    rows: int, minutes: float, image_s: float
) -> None:
    """It is the largest such one that is not larger than on machines that stay, and at least one image."""
    size, most = default_shard_images(rows, minutes, image_s), default_shard_images(rows)
    assert 1 <= size <= most
    assert size == 1 or size * image_s <= minutes * 60 / 50 * (1 + 1e-9)
    assert size == most or (size + 1) * image_s >= minutes * 60 / 50 * (1 - 1e-9)


def test_every_setting_of_what_to_compute_and_how_to_cut_enters_the_digest() -> None:
    compute, cut = InferenceConfig(model="scenes"), ShardingConfig(16)
    settings = settings_of(compute, cut)
    names = {field.name for group in (compute, cut) for field in dataclasses.fields(group)}
    # No run had these before there were networks of the user's own, augmentations, tables of pictures, and sidecars.
    assert set(settings) == names - {"model_args", "tta", "image_column", "sidecars"}
    for name, other in {
        "min_score": 0.5,
        "max_detections": 7,
        "limit": 3,
        "categories": ("car",),
        "allow_http": True,
        "model_args": {"depth": 50},
        "tta": "flip",
        "image_column": "photo",
    }.items():
        changed = settings_of(dataclasses.replace(compute, **{name: other}), cut)
        assert digest_of(changed) != digest_of(settings)
    assert not names & {field.name for field in dataclasses.fields(ResourceConfig)}
