"""torchvision's detectors of boxes give here what torchvision's own code gives, however many classes are kept."""

import numpy as np
import pytest
import torch
from benchmarks.parity import DETECTORS, compare, random_model
from torchvision.ops import batched_nms

from maskrcnn.models import nms
from maskrcnn.models.segmenter import MaskRCNNSegmenter
from maskrcnn.synthetic.scenes import render_scene
from maskrcnn.types import detection_order

pytestmark = pytest.mark.slow

IMAGES = [render_scene(seed, 128).image[:, : 128 - 40 * seed] for seed in range(2)]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("architecture", DETECTORS)
def test_boxes_scores_and_labels_equal_torchvision_s(architecture: str) -> None:
    parity, _ = compare(architecture, IMAGES, size=128, repeats=0, classes=6)
    assert parity.instances > 50
    # Near the limit of their number, rounding decides which instances are the last.
    assert parity.unmatched <= 0.03 * parity.instances
    assert parity.box_px < 0.05
    assert parity.score < 5e-4


@pytest.mark.parametrize("architecture", ["ssdlite320_mobilenet_v3_large", "fcos_resnet50_fpn"])
def test_limits_of_score_number_and_category_are_obeyed(architecture: str) -> None:
    tensors = [torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 for image in IMAGES]
    model = random_model(architecture, tensors, 128, classes=6)
    names = ("class 2", "class 3", "class 6")
    few = MaskRCNNSegmenter(model, min_score=0.2, max_detections=5, categories=names)
    many = MaskRCNNSegmenter(model, min_score=0.2, max_detections=500, categories=names)
    for kept, whole in zip(few.segment(IMAGES), many.segment(IMAGES), strict=True):
        assert kept.masks is None
        assert set(whole.labels.tolist()) <= {2, 3, 6}
        assert (whole.scores > np.float32(0.2)).all()
        assert len(kept) == min(5, len(whole))
        assert kept.capped == (len(whole) >= 5)
        best = detection_order(whole.boxes, whole.labels, whole.scores)[:5]
        assert kept.scores.tolist() == whole.scores[best].tolist()
        limits = [whole.width, whole.height] * 2
        assert ((whole.boxes >= 0) & (whole.boxes <= limits)).all()


def test_weights_that_are_not_finite_fail_the_image() -> None:
    model = random_model("ssdlite320_mobilenet_v3_large", [torch.rand(3, 90, 90)] * 2, None, classes=2)
    with torch.no_grad():
        model.module.head.regression_head.module_list[0][-1].bias[0] = torch.nan
    (outcome,) = MaskRCNNSegmenter(model).outcomes(IMAGES[:1])
    assert getattr(outcome, "code", None) == "not_finite"


def test_the_best_boxes_of_each_image_are_those_that_torchvision_keeps() -> None:
    """Suppression by image and label, then the best of each image, for a batch at once."""
    torch.manual_seed(1)
    n, n_images, n_labels, most = 600, 3, 4, 20
    corners = torch.rand(n, 2) * 200
    boxes = torch.cat([corners, corners + torch.rand(n, 2) * 60], 1)
    image, label, score = torch.randint(n_images, (n,)), torch.randint(n_labels, (n,)), torch.rand(n)
    found = nms.select(image, label, boxes, score, 0.4, (n_images, n_labels, most))
    kept = found.order[found.kept]
    for number in range(n_images):
        own = (image == number).nonzero().squeeze(1)
        best = own[batched_nms(boxes[own], score[own], label[own], 0.4)[:most]]
        assert kept[image[kept] == number].tolist() == best.tolist()
