"""The generated scenes are reproducible, exact, and varied enough to be useful."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn.synthetic.scene_parts import CATEGORIES
from maskrcnn.synthetic.scenes import Scene, coco_dataset, render_scene, statistics, write_scenes

pytestmark = pytest.mark.slow

SEEDS = range(24)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(seed) for seed in SEEDS]


def test_a_scene_is_reproducible_from_its_seed(scenes: list[Scene]) -> None:
    for seed in (0, 7):
        again = render_scene(seed)
        assert np.array_equal(again.image, scenes[seed].image)
        assert np.array_equal(again.labels, scenes[seed].labels)
        assert np.array_equal(again.category_ids, scenes[seed].category_ids)
    assert not np.array_equal(scenes[0].image, scenes[1].image)


@pytest.mark.parametrize("size", [256, 384, 640])
def test_shapes(size: int) -> None:
    scene = render_scene(3, size)
    assert scene.image.shape == (size, size, 3)
    assert scene.image.dtype == np.uint8
    assert scene.labels.shape == (size, size)
    assert scene.masks.shape == (len(scene.category_ids), size, size)
    assert len(scene.category_ids) <= 60


def test_masks_are_exact_and_disjoint(scenes: list[Scene]) -> None:
    for scene in scenes:
        masks = scene.masks
        assert masks.sum(axis=0).max() == 1
        assert np.array_equal(masks.any(axis=0), scene.labels > 0)
        assert masks.sum(axis=(1, 2)).min() >= 40
        assert set(scene.category_ids.tolist()) <= {category.id for category in CATEGORIES}


def test_the_image_changes_along_the_rims_of_masks(scenes: list[Scene]) -> None:
    """The ground truth is aligned with the drawing."""
    across, elsewhere = [], []
    for scene in scenes[:8]:
        light = scene.image.astype(float).mean(axis=2)
        step = np.abs(light[:, 2:] - light[:, :-2])
        rim = (scene.labels[:, 2:] != scene.labels[:, :-2]) & (scene.labels[:, 2:] != 0)
        across.append(step[rim].mean())
        elsewhere.append(step[~rim].mean())
    assert np.mean(across) > 2 * np.mean(elsewhere)


def test_the_scenes_are_varied(scenes: list[Scene]) -> None:
    measured = statistics(scenes)
    assert len(CATEGORIES) >= 6
    assert measured["objects_least"] >= 10
    assert measured["objects_most"] <= 60
    assert measured["share_under_32x32"] >= 0.20
    assert measured["share_touching"] >= 0.10
    assert measured["mean_mask_of_box"] <= 0.80
    drawn = np.unique(np.concatenate([scene.category_ids for scene in scenes]))
    assert drawn.tolist() == [category.id for category in CATEGORIES]


def test_statistics_of_a_known_scene() -> None:
    """Three squares of 4 pixels, two of which touch at a corner, and a diagonal of 3 pixels."""
    labels = np.zeros((12, 12), dtype=np.uint8)
    labels[0:2, 0:2], labels[2:4, 2:4], labels[8:10, 0:2] = 1, 2, 3
    labels[[6, 7, 8], [6, 7, 8]] = 4
    scene = Scene(np.zeros((12, 12, 3), dtype=np.uint8), labels, np.ones(4, dtype=np.int64))
    measured = statistics([scene])
    assert measured["objects_mean"] == 4
    assert measured["share_touching"] == 0.5
    assert measured["share_under_32x32"] == 1
    assert measured["mean_mask_of_box"] == pytest.approx((1 + 1 + 1 + 3 / 9) / 4, abs=1e-4)


def test_written_scenes_are_a_coco_dataset(tmp_path: Path) -> None:
    write_scenes(tmp_path / "new", 3, seed=5, size=256)
    ground_truth = COCO(str(tmp_path / "new" / "instances.json"))
    assert sorted(ground_truth.imgs) == [1, 2, 3]
    assert [category["name"] for category in ground_truth.loadCats(ground_truth.getCatIds())] == [
        category.name for category in CATEGORIES
    ]
    for image_id, image in ground_truth.imgs.items():
        scene = render_scene(5 + image_id - 1, 256)
        with Image.open(tmp_path / "new" / image["file_name"]) as picture:
            assert np.array_equal(np.array(picture), scene.image)
        annotations = ground_truth.imgToAnns[image_id]
        assert len(annotations) == len(scene.category_ids)
        for annotation, mask, category_id in zip(annotations, scene.masks, scene.category_ids, strict=True):
            assert np.array_equal(ground_truth.annToMask(annotation), mask)
            assert annotation["category_id"] == category_id
            assert annotation["area"] == mask.sum()
            assert annotation["iscrowd"] == 0
            assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
    assert sorted(ground_truth.anns) == list(range(1, len(ground_truth.anns) + 1))


def test_the_dataset_is_json(scenes: list[Scene]) -> None:
    dataset = coco_dataset(scenes[:2])
    assert json.loads(json.dumps(dataset)) == dataset
