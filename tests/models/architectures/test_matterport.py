"""matterport's network against the results of its own code under TensorFlow, stage by stage; and its parts alone."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matterport_oracle import (
    SIZES,
    TOLERANCES,
    Stored,
    far,
    faulty_stages,
    images_of,
    model_of,
    script,
    tensors_of,
)
from pycocotools import mask as coco_mask
from torch import nn
from torchvision.models.detection._utils import BoxCoder

from maskrcnn.masks.encode import encode_masks
from maskrcnn.masks.encode_resized import encode_resized
from maskrcnn.models import segmenter as segmenter_module
from maskrcnn.models.architectures.matterport import (
    CropAndResize,
    NormalisedAnchors,
    SquareTransform,
    _resized,
)
from maskrcnn.models.architectures.matterport_config import MatterportConfig
from maskrcnn.models.conversion.parity import generated_images
from maskrcnn.models.conversion.parity_matterport import FastStages, compare_matterport
from maskrcnn.models.conversion.reference_matterport import ReferenceMatterport
from maskrcnn.models.fuse import for_cpu, fused
from maskrcnn.models.model import Model
from maskrcnn.models.segmenter import MaskRCNNSegmenter

pytestmark = pytest.mark.slow

BLANK = np.zeros((100, 150, 3), np.uint8)


@pytest.fixture(scope="module")
def tensors():
    return tensors_of("resnet50")


@pytest.fixture(scope="module")
def model(tensors):
    return model_of("resnet50", tensors)


@pytest.fixture(scope="module")
def fast(model):
    return FastStages(model)


# --- the oracle -----------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("network", "image"), [(name, image) for name in ("resnet50", "resnet101") for image in images_of(name)]
)
def test_every_stage_and_the_instances_match_the_reference(network, image, fast):
    if network == "resnet101":
        fast = FastStages(model_of(network, tensors_of(network)))
    assert list(faulty_stages(fast, Stored(network, image), TOLERANCES[network])) == []


def test_without_a_minimum_score_the_maximum_number_is_detected(model):
    stored = Stored("resnet50", "b_384x384")
    (found,) = MaskRCNNSegmenter(model, min_score=0.0).segment([stored.pixels])
    assert len(found) == len(stored["final_conf000_scores"])
    assert far(found.scores, stored["final_conf000_scores"]) < 1e-4


def test_a_higher_maximum_finds_more_among_the_same_proposals(model):
    stored = Stored("resnet50", "a_152x220")
    few, many = (
        MaskRCNNSegmenter(model, min_score=0.3, max_detections=most).segment([stored.pixels])[0]
        for most in (10, 60)
    )
    count = len(few)
    assert len(many) > count
    assert np.array_equal(few.boxes, many.boxes[:count])
    assert np.array_equal(few.scores, many.scores[:count])


def test_the_reference_implementation_matches_the_oracle(tensors):
    stored = Stored("resnet50", "c_400x300")  # rounding puts the last sample of a box behind the map
    found = ReferenceMatterport(tensors, *SIZES["resnet50"], MatterportConfig()).instances(stored.pixels)
    assert np.array_equal(found.labels, stored["final_class_ids"])
    assert np.array_equal(found.boxes, stored["final_rois"])
    assert far(found.scores, stored["final_scores"]) < 1e-4
    assert far(found.masks.sum((1, 2)), stored["final_mask_area"]) <= 2
    assert np.abs(found.masks[:10] ^ stored.masks()).sum((1, 2)).max() <= 2


# Injected errors


def norms_of(network):
    return [layer for layer in network.modules() if hasattr(layer, "running_var")]


def another_epsilon(network):
    for layer in norms_of(network):
        layer.eps = 1e-5


def another_epsilon_in_the_head(network):
    for layer in norms_of(network.roi_heads.box_head):
        layer.eps = 1e-5


def another_epsilon_in_the_mask_head(network):
    for layer in norms_of(network.roi_heads.mask_head):
        layer.eps = 1e-5


def padding_on_both_sides_of_the_pooling(network):
    network.backbone.body["maxpool"] = nn.MaxPool2d(3, 2, 1)


def same_padding_of_the_first_convolution(network):
    body = network.backbone.body
    body.conv1.padding = (0, 0)
    body._modules = OrderedDict([("pad", nn.ZeroPad2d((2, 3, 2, 3))), *body._modules.items()])


def red_and_blue_swapped(network):
    weight = network.backbone.body.conv1.weight
    weight.copy_(weight.flip(1))


def no_biases_before_norms(network):
    for block in network.backbone.body.layer3:
        block.conv2.bias.zero_()


def stride_in_the_3x3(network):
    for stage in (network.backbone.body.layer2, network.backbone.body.layer3, network.backbone.body.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (1, 1), (2, 2)


class CentredAnchors(NormalisedAnchors):
    def _level(self, level, *sizes):
        return super()._level(level, *sizes) + np.float32(2 * 2**level / (sizes[-1] - 1))


def anchors_at_the_middle_of_places(network):
    network.rpn.anchor_generator = CentredAnchors(MatterportConfig())


class LongAnchors(NormalisedAnchors):
    def _level(self, level, rows, columns, height, width):
        # Without subtracting a pixel at the far end.
        return super()._level(level, rows, columns, height, width) * np.float32((width - 1) / width)


def coordinates_by_the_side(network):
    network.rpn.anchor_generator = LongAnchors(MatterportConfig())


def background_and_object_swapped(network):
    for tensor in network.rpn.head.cls_logits.parameters():
        tensor.copy_(tensor.unflatten(0, (3, 2)).flip(1).flatten(0, 1))


def offsets_as_they_are(network):
    network.rpn.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))


def offsets_of_x_and_y_swapped(network):
    for tensor in network.rpn.head.bbox_pred.parameters():
        tensor.copy_(tensor.unflatten(0, (-1, 4))[:, [1, 0, 3, 2]].flatten(0, 1))


def fewer_proposals(network):
    network.rpn._post_nms_top_n = {"training": 900, "testing": 900}


def proposals_suppressed_at_a_half(network):
    network.rpn.nms_thresh = 0.5


class Centres(CropAndResize):
    """Samples at the centres of bins."""

    def samples(self, low, high, sides):
        bins = self.output_size[0]
        half = (high - low) / (2 * bins)
        return super().samples(low + half, high - half, sides)


def samples_at_the_middle_of_bins(network):
    network.roi_heads.box_roi_pool, network.roi_heads.mask_roi_pool = Centres(7), Centres(14)


class Floored(CropAndResize):
    """Levels rounded down."""

    def level(self, boxes, area):
        return super().level(boxes * 2**-0.499, area)


def levels_rounded_down(network):
    network.roi_heads.box_roi_pool = Floored(7)


def classes_shifted(network):
    for tensor in network.roi_heads.box_predictor.cls_score.parameters():
        tensor.copy_(tensor.roll(-1, 0))


def boxes_of_the_next_class(network):
    for tensor in network.roi_heads.box_predictor.bbox_pred.parameters():
        tensor.copy_(tensor.roll(4, 0))


def instances_suppressed_at_a_half(network):
    network.roi_heads.nms_thresh = 0.5


def box_offsets_as_they_are(network):
    network.roi_heads.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))


def deconvolution_in_and_out_swapped(network):
    weight = network.roi_heads.mask_predictor.conv5_mask.weight
    weight.copy_(weight.transpose(0, 1).clone())


def deconvolution_flipped(network):
    weight = network.roi_heads.mask_predictor.conv5_mask.weight
    weight.copy_(weight.flip(2, 3))


def masks_of_the_next_class(network):
    for tensor in network.roi_heads.mask_predictor.mask_fcn_logits.parameters():
        tensor.copy_(tensor.roll(1, 0))


class Repeating(SquareTransform):
    """Padding that repeats the border."""

    def prepared(self, pixels, size):
        floats = pixels.permute(2, 0, 1)[None].double()
        resized = nn.functional.interpolate(floats, size=size, mode="bilinear")[0]
        return super().prepared(resized.to(torch.uint8).permute(1, 2, 0), size)


def a_resize_that_repeats_the_border(network):
    network.transform = Repeating(*SIZES["resnet50"], MatterportConfig())


class AtTheCorner(SquareTransform):
    def boxes(self, boxes, size, canvas, original):
        # Clips to the canvas instead of the window.
        return super().boxes(boxes, canvas, canvas, original)


def boxes_of_the_whole_canvas(network):
    network.transform = AtTheCorner(*SIZES["resnet50"], MatterportConfig())


MISTAKES = [
    (a_resize_that_repeats_the_border, "molded"),
    (another_epsilon, "C1"),
    (padding_on_both_sides_of_the_pooling, "C1"),
    (same_padding_of_the_first_convolution, "C1"),
    (red_and_blue_swapped, "C1"),
    (stride_in_the_3x3, "C3"),
    (no_biases_before_norms, "C4"),
    (background_and_object_swapped, "rpn_logits"),
    (offsets_of_x_and_y_swapped, "rpn_bbox"),
    (anchors_at_the_middle_of_places, "anchors_norm"),
    (coordinates_by_the_side, "anchors_norm"),
    (offsets_as_they_are, "rois"),
    (fewer_proposals, "rois"),
    (proposals_suppressed_at_a_half, "rois"),
    (samples_at_the_middle_of_bins, "roi_feat"),
    (levels_rounded_down, "roi_feat"),
    (another_epsilon_in_the_head, "cls_logits"),
    (classes_shifted, "cls_logits"),
    (boxes_of_the_next_class, "bbox"),
    (box_offsets_as_they_are, "det_conf070"),
    (instances_suppressed_at_a_half, "det_conf070"),
    (another_epsilon_in_the_mask_head, "det_masks28"),
    (deconvolution_in_and_out_swapped, "det_masks28"),
    (deconvolution_flipped, "det_masks28"),
    (masks_of_the_next_class, "det_masks28"),
    (boxes_of_the_whole_canvas, "final_rois"),
]


def first_faulty(model, image="a_152x220"):
    stages = faulty_stages(FastStages(model), Stored("resnet50", image), TOLERANCES["resnet50"])
    return next(stages, (None, 0))[0]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("mistake", "stage"), MISTAKES, ids=lambda value: getattr(value, "__name__", value))
def test_an_injected_error_is_detected_in_its_stage(mistake, stage, model):
    broken = copy.deepcopy(model.module)
    with torch.no_grad():
        mistake(broken)
    assert first_faulty(Model(broken, model.card)) == stage


def test_an_interpolating_pyramid_is_detected_at_its_second_map(model, monkeypatch):
    plain = torch.nn.functional.interpolate

    def bilinear(x, size, mode):
        return plain(x, size=size, mode="bilinear" if mode == "nearest" else mode)

    monkeypatch.setattr(torch.nn.functional, "interpolate", bilinear)
    assert first_faulty(model) == "P2"


def test_masks_pasted_by_torchvision_s_rule_are_detected_in_the_last_stage(model, monkeypatch):
    monkeypatch.setattr(segmenter_module, "encode_resized", encode_masks)
    assert first_faulty(model) == "final_mask_area"


# --- folded and plain -----------------------------------------------------------------------------------------


def test_the_folded_and_rearranged_network_computes_the_same(model):
    torch.manual_seed(0)
    plain, folded = model.module, for_cpu(fused(model.module))
    images = 100 * torch.randn(1, 3, 128, 192)
    with torch.inference_mode():
        maps = plain.backbone(images)
        mine = folded.backbone(images.contiguous(memory_format=torch.channels_last))
        pairs = list(zip(mine.values(), maps.values(), strict=True))
        for one, other in zip(
            folded.rpn.head(list(maps.values())), plain.rpn.head(list(maps.values())), strict=True
        ):
            pairs += zip(one, other, strict=True)
        boxes, squares = torch.randn(5, 256, 7, 7), torch.randn(5, 256, 14, 14)
        pairs += zip(
            *(net.roi_heads.box_predictor(net.roi_heads.box_head(boxes)) for net in (folded, plain)),
            strict=True,
        )
        mask = [net.roi_heads.mask_predictor(net.roi_heads.mask_head(squares)) for net in (folded, plain)]
        pairs.append(tuple(mask))
    assert len(pairs) == 5 + 10 + 2 + 1
    for one, other in pairs:
        assert float((one - other).abs().max() / other.abs().max()) < 2e-5
    assert not norms_of(folded)


def test_a_batch_returns_the_same_as_its_images_one_by_one(model):
    images = generated_images()
    limits = {"min_score": 0.3, "max_detections": 20}
    alone = MaskRCNNSegmenter(model, **limits).segment(images)
    together = MaskRCNNSegmenter(model, **limits, batch_size=2).segment(images)
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.labels, other.labels)
        assert np.array_equal(one.boxes, other.boxes)
        assert far(one.scores, other.scores) < 1e-4


def test_calling_the_network_directly_is_refused(model):
    with pytest.raises(NotImplementedError, match="segmenter"):
        model.module([torch.zeros(3, 64, 64)])


# --- what the oracle does not show ----------------------------------------------------------------------------


def test_few_proposals_are_filled_up_with_zeros_in_both_implementations(tensors):
    # Few anchors, and most of them suppressed: the zeros are classified, and may be detected.
    config = MatterportConfig(pre_nms_limit=120, rpn_nms_threshold=0.3, post_nms_rois_inference=150)
    rows = compare_matterport(
        ReferenceMatterport(tensors, *SIZES["resnet50"], config),
        model_of("resnet50", tensors, config),
        generated_images()[:1],
    )
    assert [row for row in rows if not row.within_limit] == []


def test_another_configuration_is_computed_by_both(tensors):
    config = MatterportConfig(
        image_resize_mode="pad64",
        image_min_scale=1.2,
        mean_pixel=(43.5, 39.6, 48.2),
        rpn_anchor_scales=(8.0, 16.0, 32.0, 64.0, 128.0),
        rpn_anchor_ratios=(0.4, 1.0, 2.5),
        rpn_bbox_std_dev=(0.1, 0.15, 0.2, 0.25),
        bbox_std_dev=(0.12, 0.1, 0.25, 0.2),
        detection_nms_threshold=0.5,
    )
    rows = compare_matterport(
        ReferenceMatterport(tensors, 200, 384, config),
        model_of("resnet50", tensors, config, (200, 384)),
        [generated_images()[1][:150, :105]],
    )
    assert [row for row in rows if not row.within_limit] == []


def test_windows_are_not_resized_and_use_the_smallest_canvas(model):
    segmenter = MaskRCNNSegmenter(model, rescale=False, min_score=0.3)
    assert segmenter.canvas(100, 150) == (128, 192)
    image = generated_images()[0]
    (found,) = segmenter.segment([image])
    assert len(found)
    assert found.boxes.max() <= max(image.shape)


def test_a_black_image_is_processed(model):
    (found,) = MaskRCNNSegmenter(model).segment([BLANK])
    assert (found.height, found.width) == BLANK.shape[:2]


# --- the parts ------------------------------------------------------------------------------------------------

SIDES = st.integers(1, 60)


@settings(max_examples=60)
@given(
    old=st.tuples(SIDES, SIDES), new=st.tuples(SIDES, SIDES), low=st.integers(0, 100), seed=st.integers(0, 99)
)
def test_bytes_are_resized_bit_for_bit(old, new, low, seed):
    image = np.random.default_rng(seed).integers(low, 256, (*old, 3)).astype(np.uint8)
    expected = script("preprocess_reference").resize_linear(image, *new).astype(np.uint8)
    assert np.array_equal(_resized(torch.from_numpy(image), new).numpy(), expected)


@settings(max_examples=200)
@given(
    min_size=st.integers(10, 400),
    side=st.integers(1, 8),
    shape=st.tuples(st.integers(1, 900), st.integers(1, 900)),
)
def test_an_image_has_the_size_and_position_of_the_reference(min_size, side, shape):
    transform = SquareTransform(min_size, 64 * side, MatterportConfig())
    height, width = shape
    scale = max(1, min_size / min(shape))
    scale = 64 * side / max(shape) if round(max(shape) * scale) > 64 * side else scale
    assert transform.resized(height, width) == (round(height * scale), round(width * scale))
    assert max(transform.resized(height, width)) <= 64 * side
    assert transform.canvas(transform.resized(height, width), rescaled=True) == (64 * side, 64 * side)


@settings(max_examples=100)
@given(
    corner=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    side=st.tuples(st.integers(0, 90), st.integers(0, 90)),
    level=st.floats(0.0, 1.0),
    spread=st.floats(0.0, 1.0),
    seed=st.integers(0, 99),
)
def test_run_lengths_equal_those_of_the_reference_s_pasted_masks(corner, side, level, spread, seed):
    square = np.random.default_rng(seed).random((28, 28)) * spread + level * (1 - spread)
    square = square.astype(np.float32)
    (y, x), (height, width) = corner, side
    expected = np.zeros((130, 130), np.bool_)
    if height and width:
        expected = script("preprocess_reference").paste_mask(
            square, (y, x, y + height, x + width), (130, 130)
        )
    box = np.array([[x, y, x + width, y + height]], np.float32)
    encoded = encode_resized(box, square[None], 130, 130)
    found = coco_mask.decode({"size": [130, 130], "counts": encoded.counts[0]}).astype(np.bool_)
    assert np.array_equal(found, expected)
    assert encoded.areas[0] == expected.sum()
    assert encoded.counts[0] == coco_mask.encode(np.asfortranarray(expected, np.uint8))["counts"]
