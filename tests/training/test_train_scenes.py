"""The training script: its schedule, its targets, and the baseline that it is compared with."""

from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn.synthetic.scene_parts import CATEGORIES
from maskrcnn.synthetic.scenes import Scene, render_scene
from maskrcnn.training.color_baseline import components, threshold_colors
from maskrcnn.training.train_scenes import learning_rate, measure, to_target

pytestmark = pytest.mark.slow


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(done) for done in np.linspace(0, 1, 101)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[2] == pytest.approx(1.0)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert learning_rate(1.5) == rates[-1] == pytest.approx(0.005)


def test_targets_equal_the_ground_truth() -> None:
    scene = render_scene(2, 256)
    target = to_target(scene)
    assert target["labels"].tolist() == scene.category_ids.tolist()
    assert np.array_equal(target["masks"].numpy(), scene.masks)
    for (x0, y0, x1, y1), mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
        assert mask.sum() == mask[y0:y1, x0:x1].sum()
        assert all(edge.any() for edge in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]))
    assert target["boxes"].dtype == torch.float32


@pytest.mark.parametrize("seed", range(5))
def test_components_are_4_connected(seed: int) -> None:
    mask = np.random.default_rng(seed).random((23, 31)) < 0.55
    labeled = components(mask)
    assert np.array_equal(labeled > 0, mask)
    # Neighbours have equal labels, and all pixels of a component are reached from its first pixel.
    for a, b in ((labeled[1:], labeled[:-1]), (labeled[:, 1:], labeled[:, :-1])):
        both = (a > 0) & (b > 0)
        assert np.array_equal(a[both], b[both])
    for number in np.unique(labeled[labeled > 0]):
        reached = np.zeros_like(mask)
        reached.flat[number - 1] = True
        while True:
            grown = reached.copy()
            grown[1:] |= reached[:-1]
            grown[:-1] |= reached[1:]
            grown[:, 1:] |= reached[:, :-1]
            grown[:, :-1] |= reached[:, 1:]
            grown &= mask
            if np.array_equal(grown, reached):
                break
            reached = grown
        assert np.array_equal(reached, labeled == number)


def test_the_color_baseline_finds_an_object_of_a_unique_color() -> None:
    """The baseline works where colour identifies the category, so that comparing with it is fair."""
    labels = np.zeros((40, 40), dtype=np.uint8)
    labels[5:20, 5:20] = 1
    image = np.full((40, 40, 3), 100, dtype=np.uint8)
    image[labels == 1] = (250, 10, 10)
    frequencies = np.zeros((16**3, len(CATEGORIES) + 1))
    frequencies[15 * 256, CATEGORIES[0].id] = 1
    detections = threshold_colors([Scene(image, labels, np.array([CATEGORIES[0].id]))], frequencies, 0.5)
    assert [result["category_id"] for result in detections] == [CATEGORIES[0].id]


def test_the_embedded_model_reaches_the_required_quality() -> None:
    """The limits are the project's requirements, not the quality reached, since only few unseen scenes are used."""
    import maskrcnn

    metrics = measure(Path(maskrcnn.__file__).parent / "models" / "scenes.safetensors", 8)
    assert metrics["mask_ap"] >= 0.45
    assert metrics["mask_ap50"] >= 0.75
    assert min(metrics["mask_ap_by_category"].values()) >= 0.25
    assert metrics["mask_ap_of_color_threshold"] <= 0.20
    assert metrics["mask_ap_of_filled_boxes"] <= 0.75 * metrics["mask_ap"]
