"""A wrongly converted network is detected, in the stage that is wrong."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from checkpoints import SIZES, detectron2_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import maps_of
from pycocotools.mask import decode
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from maskrcnn.models.conversion.key_mapping import KEY_MAPPINGS
from maskrcnn.models.conversion.keys_detectron2 import config_of_zoo
from maskrcnn.models.conversion.moves import Origin, moved
from maskrcnn.models.conversion.parity import (
    Row,
    _final_rows,
    compare,
    displacement,
    generated_images,
    matched_row,
)
from maskrcnn.models.conversion.reference_detectron2 import Instances, ReferenceDetectron2
from maskrcnn.models.forward import Forward
from maskrcnn.models.model import Model, build_network, load_model
from maskrcnn.models.registry import NO_CATEGORY, ModelCard
from maskrcnn.models.segmenter import MaskRCNNSegmenter
from maskrcnn.synthetic.scenes import render_scene
from maskrcnn.types import Category

pytestmark = pytest.mark.slow

LEVELS = ["0", "1", "2", "3"]


class Remembered:
    """A reference that computes each stage once, since comparisons call the stages with the same values."""

    def __init__(self, reference):
        self.reference, self.known = reference, {}

    def __getattr__(self, stage):
        def remembered(*given):
            if stage not in self.known:
                self.known[stage] = getattr(self.reference, stage)(*given)
            return self.known[stage]

        return remembered


@pytest.fixture(scope="module")
def reference():
    return Remembered(ReferenceDetectron2(detectron2_tensors(), *SIZES))


@pytest.fixture(scope="module")
def network():
    tensors = detectron2_tensors()
    architecture, moves = KEY_MAPPINGS["detectron2"]("m.pkl", tensors, Origin())
    network = build_network(architecture, 5, *SIZES).eval()
    network.load_state_dict(moved("m.pkl", tensors, moves)[0])
    return network.requires_grad_(False)


def card_of(architecture, sizes):
    categories = tuple(Category(label, f"c{label}") for label in range(1, 5))
    return ModelCard("m", None, "", architecture, categories, (NO_CATEGORY, 1, 2, 3, 4), *sizes, None)


def faulty_stages(reference, network):
    card = card_of("maskrcnn_resnet50_fpn_detectron2", SIZES)
    rows = compare(reference, Model(network, card), generated_images()[:1])
    assert len({row.stage for row in rows}) == len(rows)
    return [row.stage for row in rows if not row.within_limit]


def test_a_correct_network_differs_in_no_stage(reference, network):
    assert faulty_stages(reference, network) == []


def torchvision_resize(network):
    mean, std = network.transform.image_mean, network.transform.image_std
    network.transform = GeneralizedRCNNTransform(*SIZES, mean, std)


def red_and_blue_swapped(network):
    weight = network.backbone.body.conv1.weight
    weight.copy_(weight.flip(1))


def stride_in_the_3x3(network):
    for stage in (network.backbone.body.layer2, network.backbone.body.layer3, network.backbone.body.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (1, 1), (2, 2)


def another_epsilon(network):
    for layer in network.backbone.body.modules():
        if hasattr(layer, "running_var"):
            layer.eps = 1e-3


def rounded_anchors(network):
    anchors = network.rpn.anchor_generator
    anchors.cell_anchors = [cell.round() for cell in anchors.cell_anchors]


def anchors_in_the_middle_of_a_stride(network):
    anchors = network.rpn.anchor_generator
    anchors.cell_anchors = [cell + 2 * 2**level for level, cell in enumerate(anchors.cell_anchors)]


def fewer_proposals(network):
    network.rpn._post_nms_top_n = {"training": 500, "testing": 500}


def suppression_at_a_half(network):
    network.rpn.nms_thresh = 0.5


def samples_by_two(network):
    network.roi_heads.box_roi_pool = MultiScaleRoIAlign(LEVELS, 7, 2)
    network.roi_heads.mask_roi_pool = MultiScaleRoIAlign(LEVELS, 14, 2)


def background_last(network):
    for tensor in network.roi_heads.box_predictor.cls_score.parameters():
        tensor.copy_(tensor.roll(-1, 0))


def boxes_of_the_next_class(network):
    for tensor in network.roi_heads.box_predictor.bbox_pred.parameters():
        tensor.copy_(tensor.roll(4, 0))


def box_weights_of_one(network):
    network.roi_heads.box_coder.weights = (1.0, 1.0, 1.0, 1.0)


def masks_of_the_next_class(network):
    for tensor in network.roi_heads.mask_predictor.mask_fcn_logits.parameters():
        tensor.copy_(tensor.roll(1, 0))


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("mistake", "stage"),
    [
        (torchvision_resize, "resized and normalised, mean"),
        (red_and_blue_swapped, "features 0"),
        (stride_in_the_3x3, "features 0"),
        (another_epsilon, "features 0"),
        (rounded_anchors, "proposals, unmatched"),
        (anchors_in_the_middle_of_a_stride, "proposals, unmatched"),
        (fewer_proposals, "proposals, unmatched"),
        (suppression_at_a_half, "proposals, unmatched"),
        (samples_by_two, "class probabilities"),
        (background_last, "class probabilities"),
        (boxes_of_the_next_class, "boxes of all classes"),
        (box_weights_of_one, "boxes of all classes"),
        (masks_of_the_next_class, "mask probabilities"),
    ],
)
def test_an_injected_error_is_detected_in_its_stage(mistake, stage, reference, network):
    broken = copy.deepcopy(network)
    with torch.no_grad():
        mistake(broken)
    assert faulty_stages(reference, broken)[0] == stage


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["fpn_cascade", "c4", "dc5"])
def test_instances_are_those_of_the_reference(kind):
    """The image needs no resize, in which bytes are rounded differently."""
    architecture = f"maskrcnn_resnet50_{kind}_detectron2"
    config = dataclasses.replace(config_of_zoo(architecture), pre_nms_limit=200, post_nms_limit=60)
    tensors = detectron2_tensors(architecture=architecture, config=config)
    _, moves = KEY_MAPPINGS["detectron2"]("m.pkl", tensors, Origin(config))
    network = build_network(architecture, 5, 96, 160, config).eval()
    network.load_state_dict(moved("m.pkl", tensors, moves)[0])
    image = generated_images()[0][:96, :130].copy()
    expected = ReferenceDetectron2(tensors, 96, 160, config).instances(image)
    limits = {"min_score": config.min_score, "max_detections": config.max_detections}
    (found,) = MaskRCNNSegmenter(Model(network, card_of(architecture, (96, 160))), **limits).segment([image])
    assert len(found) == len(expected.boxes) > 10
    for box, label, score, mask in zip(
        expected.boxes, expected.labels.tolist(), expected.scores, expected.masks, strict=True
    ):
        away = np.where(found.labels == label, np.abs(found.boxes - box.numpy()).max(1), np.inf)
        nearest = int(away.argmin())
        assert away[nearest] <= 0.02
        assert abs(found.scores[nearest] - float(score)) <= 1e-4
        assert (decode(found.rles()[nearest]) != mask).sum() <= 3


def test_a_stage_without_comparisons_is_not_sound():
    assert not Row("masks", 0.0, "px", 1.0, 0).within_limit
    assert not Row("masks", float("nan"), "px", 1.0, 5).within_limit
    assert Row("masks", 1.0, "px", 1.0, 5).within_limit


def test_proposals_are_ranked_by_logits_where_their_sigmoids_are_equal():
    torch.manual_seed(2)
    architecture = "fasterrcnn_resnet50_fpn_detectron2"
    config = dataclasses.replace(config_of_zoo(architecture), pre_nms_limit=200, post_nms_limit=60)
    network = build_network(architecture, 5, 96, 128, config).eval().requires_grad_(False)
    head = network.rpn.head
    head.cls_logits.weight *= 1e4
    layers = {"conv": head.conv[0][0], "objectness_logits": head.cls_logits, "anchor_deltas": head.bbox_pred}
    tensors = {f"proposal_generator.rpn_head.{name}.weight": layer.weight for name, layer in layers.items()}
    tensors |= {f"proposal_generator.rpn_head.{name}.bias": layer.bias for name, layer in layers.items()}
    reference = ReferenceDetectron2(
        tensors | {"backbone.fpn_lateral2.weight": head.conv[0][0].bias}, 96, 128, config
    )
    features = maps_of((96, 128), 256, 1)
    features["pool"] = torch.randn(1, 256, 2, 2)
    logits = torch.cat([logit.flatten() for logit in reference.rpn_head(features)[0]])
    assert (logits.sigmoid() == 1).sum() > 60  # more than are kept
    expected = reference.proposals(features, torch.empty(0), (96, 128))
    limits = torch.tensor([[128.0, 96.0, 128.0, 96.0]])
    boxes, present, _ = Forward(network, [1], 0.05, 10).propose(features, (96, 128), limits)
    row = matched_row(boxes[0][present[0]], expected, 0.05)
    assert (row.difference, row.compared) == (0.0, 60)


# --- the outlines of masks ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 3), st.data())
def test_one_pixel_of_a_mask_may_differ_and_a_displaced_mask_may_not(height, width, by, data):
    mask = np.zeros((20, 20), np.bool_)
    mask[2 : 2 + height, 2 : 2 + width] = True
    assert displacement(mask, mask) == 0
    one = mask.copy()
    one[data.draw(st.integers(0, 19)), data.draw(st.integers(0, 19))] ^= True
    assert displacement(one, mask) == 0
    moved = np.roll(mask, (by, by), (0, 1))
    assert displacement(moved, mask) > 0.1
    assert displacement(~mask, mask) > 0.1
    assert displacement(np.zeros_like(mask), mask) > (0.1 if height * width > 1 else -1)


class AsFound:
    """A reference that finds what a segmenter finds, with its masks changed."""

    def __init__(self, segmenter, change=lambda masks: masks):
        self.segmenter, self.change = segmenter, change

    def instances(self, image):
        (found,) = self.segmenter.segment([image])
        ids = self.segmenter._category_ids.tolist()
        labels = torch.tensor([ids.index(category) for category in found.labels.tolist()])
        masks = np.stack([decode(rle) for rle in found.rles()]).astype(np.bool_)
        return Instances(torch.tensor(found.boxes), labels, torch.tensor(found.scores), self.change(masks))


def smallest_moved(masks):
    """Move the smallest mask by two pixels."""
    smallest = int(masks.sum((1, 2)).argmin())
    masks[smallest] = np.roll(masks[smallest], 2, 1)
    return masks


def higher_threshold(masks):
    """Take away the border of each mask, as a higher threshold would."""
    inner = (
        masks[:, 1:-1, 1:-1]
        & masks[:, 2:, 1:-1]
        & masks[:, :-2, 1:-1]
        & masks[:, 1:-1, 2:]
        & masks[:, 1:-1, :-2]
    )
    return np.pad(inner, ((0, 0), (1, 1), (1, 1)))


def one_pixel_each(masks):
    """Change a pixel of each mask, as rounding may."""
    for mask in masks:
        y, x = np.argwhere(mask)[0]
        mask[y, x] = False
    return masks


@pytest.mark.parametrize(
    ("change", "faulty"),
    [
        (lambda masks: masks, []),
        (one_pixel_each, []),
        (smallest_moved, ["instances, outlines of masks"]),
        (higher_threshold, ["instances, outlines of masks"]),
        (lambda masks: np.roll(masks, 1, 2), ["instances, outlines of masks"]),
        (lambda masks: masks[::-1].copy(), ["instances, outlines of masks"]),
    ],
    ids=["none", "rounding", "one mask moved", "higher threshold", "all moved", "exchanged"],
)
def test_a_fault_of_the_final_masks_is_detected(change, faulty):
    model = load_model("scenes")
    segmenter = MaskRCNNSegmenter(model, min_score=0.3)
    image = render_scene(3, 128).image
    rows = _final_rows(AsFound(segmenter, change), segmenter, model, image)
    assert [row.stage for row in rows if not row.within_limit] == faulty
