"""The planted segmenter detects exactly the planted instances."""

import io
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from planted_images import random_instances, write_planted
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn.synthetic import planted
from maskrcnn.synthetic.planted import (
    PLANTED_CATEGORIES,
    PlantedInstance,
    PlantedSegmenter,
    plant,
    planted_instances,
)
from maskrcnn.types import Category, Segmenter

PLANK, COIN, LEAF = (category.id for category in PLANTED_CATEGORIES)


def coin(score, x=30.0, category_id=COIN):
    return PlantedInstance("ellipse", category_id, score, x, 30.0, 20.0, 12.0, 30.0)


@given(st.integers(0, 2**32), st.integers(0, 6), st.integers(40, 90), st.integers(40, 90))
def test_planted_instances_round_trip_through_an_image(seed, count, height, width):
    instances = random_instances(np.random.default_rng(seed), height, width, count)
    image = plant((height, width), instances)
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    assert planted_instances(image) == instances
    (found,) = PlantedSegmenter().segment([image])
    assert len(found) == count
    assert (np.diff(found.scores) <= 0).all()
    assert sorted(zip(found.labels.tolist(), found.scores.tolist(), strict=True)) == sorted(
        (i.category_id, float(np.float32(i.score))) for i in instances
    )


def test_a_mask_contains_the_pixels_whose_centres_the_shape_covers():
    turned = PlantedInstance("rectangle", PLANK, 0.9, x=40.0, y=30.0, width=20.0, height=10.0, degrees=90.0)
    upright = PlantedInstance("rectangle", PLANK, 0.8, x=40.0, y=30.0, width=20.0, height=10.0)
    disc = PlantedInstance("ellipse", COIN, 0.7, x=2.0, y=60.0, width=60.0, height=60.0)
    (found,) = PlantedSegmenter().segment([plant((64, 80), [turned, upright, disc])])
    masks = coco_mask.decode(found.rles())
    expected = np.zeros((64, 80, 3), np.uint8)
    expected[20:40, 35:45, 0] = 1
    expected[25:35, 30:50, 1] = 1
    y, x = np.mgrid[:64, :80] + 0.5
    expected[:, :, 2] = (x - 2) ** 2 + (y - 60) ** 2 <= 30**2
    assert (masks == expected).all()
    assert found.boxes.tolist() == [[35, 20, 45, 40], [30, 25, 50, 35], [0, 30, 32, 64]]
    assert found.areas.tolist() == [200, 200, int(expected[:, :, 2].sum())]
    assert found.touches_border.tolist() == [False, False, True]


def test_an_instance_outside_the_image_is_kept_with_an_empty_mask():
    (found,) = PlantedSegmenter().segment([plant((64, 64), [coin(0.9, x=500.0)])])
    assert found.areas.tolist() == [0]
    assert found.touches_border.tolist() == [False]
    assert found.boxes.tolist() == [[0, 0, 0, 0]]


def test_low_scores_are_dropped_and_the_limit_keeps_the_best():
    image = plant((64, 64), [coin(score) for score in (0.3, 0.9, 0.04, 0.5, 0.7)])
    (all_found,) = PlantedSegmenter().segment([image])
    assert all_found.scores == pytest.approx([0.9, 0.7, 0.5, 0.3])
    assert not all_found.capped
    (best,) = PlantedSegmenter(min_score=0.5, max_detections=1).segment([image])
    assert best.scores == pytest.approx([0.9])
    assert best.capped
    # As in a network, a score equal to the minimum is dropped.
    (above,) = PlantedSegmenter(min_score=0.5).segment([image])
    assert above.scores == pytest.approx([0.9, 0.7])


def test_only_the_given_categories_are_detected():
    image = plant((64, 64), [coin(0.9), coin(0.8, category_id=LEAF)])
    segmenter = PlantedSegmenter(categories=[Category(LEAF, "leaf")])
    (found,) = segmenter.segment([image])
    assert found.labels.tolist() == [LEAF]
    assert segmenter.categories == (Category(LEAF, "leaf"),)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((64, 64, 3), np.uint8),
        np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8),
    ],
    ids=["one pixel", "black", "noise"],
)
def test_nothing_is_detected_in_other_images(image):
    (found,) = PlantedSegmenter().segment([image])
    assert len(found) == 0
    assert (found.height, found.width) == image.shape[:2]
    assert not found.capped


@pytest.mark.parametrize("at", [3, 17, 21, 60], ids=["signature", "length", "checksum", "payload"])
def test_nothing_is_detected_after_a_byte_was_changed(at):
    image = plant((64, 64), [coin(0.9)])
    image.reshape(-1)[at] ^= 1
    assert planted_instances(image) == []


def test_too_many_instances_are_rejected():
    with pytest.raises(ValueError, match="do not fit into 8 x 8"):
        plant((8, 8), [coin(0.9)] * 5)


def test_the_segmenter_sleeps_for_each_image():
    segmenter = PlantedSegmenter(sleep_s=0.03)
    start = time.perf_counter()
    segmenter.segment([np.zeros((8, 8, 3), np.uint8)] * 3)
    assert time.perf_counter() - start >= 0.09


def test_it_implements_the_segmenter_protocol():
    segmenter: Segmenter = PlantedSegmenter()
    assert (segmenter.batch_size, segmenter.max_side) == (1, 1333)
    assert segmenter.categories == PLANTED_CATEGORIES
    assert json.loads(json.dumps(segmenter.execution))["device"] == "cpu"


def test_a_folder_contains_the_images_and_their_ground_truth(tmp_path, capsys):
    write_planted(tmp_path, count=12, seed=3)
    ground_truth = COCO(tmp_path / "instances.json")
    capsys.readouterr()
    assert len(ground_truth.imgs) == 12
    assert {a["category_id"] for a in ground_truth.anns.values()} == {c.id for c in PLANTED_CATEGORIES}
    empty = 0
    for image in ground_truth.imgs.values():
        with Image.open(tmp_path / image["file_name"]) as opened:
            pixels = np.asarray(opened)
        assert pixels.shape == (image["height"], image["width"], 3)
        (found,) = PlantedSegmenter().segment([pixels])
        annotations = ground_truth.loadAnns(ground_truth.getAnnIds(image["id"]))
        assert [a["segmentation"]["counts"].encode() for a in annotations] == list(found.masks)
        assert [a["area"] for a in annotations] == found.areas.tolist()
        empty += not annotations
    assert 0 < empty < 12


def test_a_folder_is_reproducible_from_its_seed(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_planted(tmp_path / name, count=2, seed=seed)
    a, b, c = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert a != c


def test_pillow_reads_the_png():
    pixels = np.random.default_rng(2).integers(0, 256, (5, 7, 3), np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(planted.png(pixels)))) == pixels).all()


@pytest.mark.slow
def test_neither_torch_nor_ray_is_imported():
    code = "import sys, maskrcnn.synthetic.planted; sys.exit(bool({'torch', 'ray'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
