"""The configuration in a checkpoint of MMDetection is taken over, or what is not supported in it is named."""

import pytest

from maskrcnn.errors import UsageError
from maskrcnn.models.architectures.rcnn_config import MMDETECTION, RCNNConfig
from maskrcnn.models.conversion.mmdetection_config import origin_of_text
from maskrcnn.models.conversion.moves import Origin

MODEL = """
model = dict(
    type='MaskRCNN',{preprocessor}
    backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='BN', requires_grad=True), style='{style}'),
    neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5),
    rpn_head=dict(
        type='RPNHead',
        anchor_generator=dict(
            type='AnchorGenerator', scales=[{scale}], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[.0, .0, .0, .0], target_stds=[1.0, 1.0, 1.0, 1.0])),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0)),
        bbox_head=dict(
            type='Shared2FCBBoxHead', reg_class_agnostic=False,
            bbox_coder=dict(target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2])),
        mask_head=dict(type='FCNMaskHead', num_classes=80)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=2000)),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type='{nms}', iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5)))
"""


def second(style="pytorch", scale=8, nms="nms", norm="mean=[123.675, 116.28, 103.53], to_rgb=True"):
    """As version 2 writes it."""
    return MODEL.format(style=style, scale=scale, nms=nms, preprocessor="") + (
        f"img_norm_cfg = dict({norm}, std=[58.395, 57.12, 57.375])\n"
        "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', img_scale=(1000, 600), "
        "transforms=[dict(type='Resize', keep_ratio=True), "
        f"dict(type='Normalize', {norm}, std=[58.395, 57.12, 57.375])])]\n"
        "optimizer = dict(type='SGD', lr=2 * 0.01)\n"
    )


def third(style="pytorch", bgr_to_rgb=True, mean="[123.675, 116.28, 103.53]", std="[58.395, 57.12, 57.375]"):
    """As version 3 writes it."""
    preprocessor = (
        f"\n    data_preprocessor=dict(type='DetDataPreprocessor', mean={mean}, std={std}, "
        f"bgr_to_rgb={bgr_to_rgb}, pad_mask=True, pad_size_divisor=32),"
    )
    return MODEL.format(style=style, scale=8, nms="nms", preprocessor=preprocessor) + (
        "test_pipeline = [dict(type='Resize', scale=(1333, 800), keep_ratio=True)]\n"
    )


def test_those_of_the_base_configurations_give_their_settings():
    assert origin_of_text("m.pth", second(), MMDETECTION) == Origin(MMDETECTION, False, 600, 1000)
    assert origin_of_text("m.pth", third(), MMDETECTION) == Origin(MMDETECTION, False, 800, 1333)


def test_the_style_of_caffe_is_another_stride_and_order_of_channels():
    expected = Origin(RCNNConfig(), True, 800, 1333)  # as detectron2's
    text = third("caffe", False, "[103.530, 116.280, 123.675]", "[1.0, 1.0, 1.0]")
    assert origin_of_text("m.pth", text, MMDETECTION) == expected
    found = origin_of_text("m.pth", second("caffe", norm="mean=[1.0, 2.0, 3.0], to_rgb=False"), MMDETECTION)
    assert found.bgr
    assert found.config.pixel_mean == (3, 2, 1)


def test_anchors_of_another_scale_are_of_other_sizes():
    assert origin_of_text("m.pth", second(scale=4), MMDETECTION).config.anchor_sizes == (16, 32, 64, 128, 256)


def test_limits_are_found_where_older_versions_write_them():
    older = (
        "test_cfg = dict(rpn=dict(max_num=500, nms_thr=0.6), rcnn=dict(score_thr=0.1, nms=dict(iou_thr=0.4)))"
    )
    config = origin_of_text("m.pth", older, MMDETECTION).config
    assert (config.post_nms_limit, config.rpn_nms_threshold) == (500, 0.6)
    assert (config.min_score, config.nms_threshold) == (0.1, 0.4)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (second(nms="soft_nms"), r"model\.test_cfg\.rcnn\.nms\.type 'soft_nms': only nms is supported"),
        (second(scale="4, 8"), r"anchor_generator\.scales \[4, 8\]"),
        (second().replace("sampling_ratio=0", "sampling_ratio=2"), r"sampling_ratio '2'"),
        (second().replace("'StandardRoIHead'", "'CascadeRoIHead'"), r"roi_head\.type 'CascadeRoIHead'"),
        (second().replace("keep_ratio=True", "keep_ratio=False"), "another aspect ratio"),
        (second().replace("depth=50", "depth=50, dcn=dict(type='DCN')"), r"model\.backbone\.dcn"),
        (second().replace("score_thr=0.05", "score_thr='x'"), "has a configuration that is not supported"),
    ],
)
def test_what_is_not_supported_is_named(text, complaint):
    with pytest.raises(UsageError, match=complaint) as caught:
        origin_of_text("m.pth", text, MMDETECTION)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "model = (", "import os\nos.remove('x')\nmodel = os.environ", "x" * 99999]
)
def test_a_text_that_says_nothing_gives_the_base_configuration(text):
    assert origin_of_text("m.pth", text, MMDETECTION) == Origin(MMDETECTION, False)
