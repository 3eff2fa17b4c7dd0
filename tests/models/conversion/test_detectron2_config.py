"""A configuration of detectron2 is taken over, or what is not supported in it is named."""

import copy
import dataclasses

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.errors import UsageError
from maskrcnn.models.architectures.network_config import config_of
from maskrcnn.models.architectures.rcnn_config import DETECTRON2
from maskrcnn.models.conversion.detectron2_config import parsed
from maskrcnn.models.networks import NETWORKS

FPN = "maskrcnn_resnet50_fpn_detectron2"
LEVELS = ["p2", "p3", "p4", "p5", "p6"]
WHOLE = {
    "CUDNN_BENCHMARK": False,
    "DATASETS": {"TRAIN": ["mine_train"], "TEST": []},
    "GLOBAL": {"HACK": 1.0},
    "INPUT": {"FORMAT": "BGR", "MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 1333, "CROP": {"ENABLED": False}},
    "MODEL": {
        "ANCHOR_GENERATOR": {
            "ANGLES": [[-90, 0, 90]], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]], "NAME": "DefaultAnchorGenerator",
            "OFFSET": 0.0, "SIZES": [[32], [64], [128], [256], [512]],
        },
        "BACKBONE": {"FREEZE_AT": 2, "NAME": "build_resnet_fpn_backbone"},
        "DEVICE": "cuda",
        "FPN": {"FUSE_TYPE": "sum", "IN_FEATURES": ["res2", "res3", "res4", "res5"], "NORM": "", "OUT_CHANNELS": 256},
        "KEYPOINT_ON": False,
        "LOAD_PROPOSALS": False,
        "MASK_ON": True,
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "PANOPTIC_FPN": {"COMBINE": {"ENABLED": True}},
        "PIXEL_MEAN": [103.53, 116.28, 123.675],
        "PIXEL_STD": [1.0, 1.0, 1.0],
        "PROPOSAL_GENERATOR": {"MIN_SIZE": 0, "NAME": "RPN"},
        "RESNETS": {
            "DEFORM_MODULATED": False, "DEFORM_NUM_GROUPS": 1, "DEFORM_ON_PER_STAGE": [False] * 4, "DEPTH": 50,
            "NORM": "FrozenBN", "NUM_GROUPS": 1, "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
            "RES2_OUT_CHANNELS": 256, "RES5_DILATION": 1, "STEM_OUT_CHANNELS": 64, "STRIDE_IN_1X1": True,
            "WIDTH_PER_GROUP": 64,
        },
        "RETINANET": {"NUM_CLASSES": 80, "NORM": ""},
        "ROI_BOX_CASCADE_HEAD": {"IOUS": [0.5, 0.6, 0.7]},
        "ROI_BOX_HEAD": {
            "BBOX_REG_LOSS_TYPE": "smooth_l1", "BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
            "CLS_AGNOSTIC_BBOX_REG": False, "CONV_DIM": 256, "FC_DIM": 1024, "NAME": "FastRCNNConvFCHead", "NORM": "",
            "NUM_CONV": 0, "NUM_FC": 2, "POOLER_RESOLUTION": 7, "POOLER_SAMPLING_RATIO": 0, "POOLER_TYPE": "ROIAlignV2",
            "SMOOTH_L1_BETA": 0.0, "TRAIN_ON_PRED_BOXES": False, "USE_FED_LOSS": False, "USE_SIGMOID_CE": False,
        },
        "ROI_HEADS": {
            "BATCH_SIZE_PER_IMAGE": 512, "IN_FEATURES": LEVELS[:4], "IOU_LABELS": [0, 1], "IOU_THRESHOLDS": [0.5],
            "NAME": "StandardROIHeads", "NMS_THRESH_TEST": 0.5, "NUM_CLASSES": 4, "POSITIVE_FRACTION": 0.25,
            "PROPOSAL_APPEND_GT": True, "SCORE_THRESH_TEST": 0.05,
        },
        "ROI_MASK_HEAD": {
            "CLS_AGNOSTIC_MASK": False, "CONV_DIM": 256, "NAME": "MaskRCNNConvUpsampleHead", "NORM": "", "NUM_CONV": 4,
            "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0, "POOLER_TYPE": "ROIAlignV2",
        },
        "RPN": {
            "BATCH_SIZE_PER_IMAGE": 256, "BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0], "BOUNDARY_THRESH": -1,
            "CONV_DIMS": [-1], "HEAD_NAME": "StandardRPNHead", "IN_FEATURES": LEVELS, "NMS_THRESH": 0.7,
            "POST_NMS_TOPK_TEST": 1000, "PRE_NMS_TOPK_TEST": 1000, "PRE_NMS_TOPK_TRAIN": 2000,
        },
        "SEM_SEG_HEAD": {"NAME": "SemSegFPNHead", "NORM": "GN"},
        "WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    },
    "OUTPUT_DIR": "./output",
    "SOLVER": {"BASE_LR": 0.02, "STEPS": [60000, 80000]},
    "TEST": {"AUG": {"ENABLED": False}, "DETECTIONS_PER_IMAGE": 100},
    "VERSION": 2,
}  # fmt: skip
"""As its trainer writes it, with fewer keys of training."""


def changed(key, value):
    """The configuration as YAML, with another value of a key."""
    return yaml.safe_dump(whole({key: value}))


def whole(values):
    """The configuration with other values at some keys."""
    content = copy.deepcopy(WHOLE)
    for key, value in values.items():
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[last] = value
    return content


CASCADE = {
    "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": [
        [10.0, 10.0, 5.0, 5.0],
        [20.0, 20.0, 10.0, 10.0],
        [30.0, 30.0, 15.0, 15.0],
    ],
}
ONE_MAP = {
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.FPN.IN_FEATURES": [],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
}
READ = ("MODEL.RESNETS.OUT_FEATURES", "MODEL.RPN.IN_FEATURES", "MODEL.ROI_HEADS.IN_FEATURES")
C4 = ONE_MAP | {
    **{key: ["res4"] for key in READ},
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
    "MODEL.ROI_BOX_HEAD.NAME": "",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 0,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
}
DC5 = ONE_MAP | {key: ["res5"] for key in READ} | {"MODEL.RESNETS.RES5_DILATION": 2}
KINDS = {"fpn": {}, "fpn_cascade": CASCADE, "c4": C4, "dc5": DC5}
"""What the configurations of the model zoo's other networks have in place of that with FPN."""


def test_that_of_the_model_zoo_gives_its_settings():
    settings = parsed("c.yaml", yaml.safe_dump(WHOLE))
    assert settings.applied_to(FPN) == DETECTRON2
    assert settings.bgr
    assert (settings.min_size, settings.max_size) == (800, 1333)
    settings.check({"MODEL.RESNETS.DEPTH": 50, "MODEL.ROI_HEADS.NUM_CLASSES": 4})
    with pytest.raises(
        UsageError, match=r"not that of these weights: MODEL\.RESNETS\.DEPTH is 50, and they have 101"
    ):
        settings.check({"MODEL.RESNETS.DEPTH": 101})


@pytest.mark.parametrize("kind", KINDS)
def test_each_network_takes_its_own_configuration_and_no_other(kind):
    architecture = f"maskrcnn_resnet50_{kind}_detectron2"
    settings = {other: parsed("c.yaml", yaml.safe_dump(whole(values))) for other, values in KINDS.items()}
    assert settings.pop(kind).applied_to(architecture) == NETWORKS[architecture].config
    for other in settings.values():
        with pytest.raises(
            UsageError, match=f"not supported for {architecture}, the network of these weights"
        ):
            other.applied_to(architecture)


def test_a_cascade_has_divisors_for_each_of_three_heads_and_a_single_map_any_number_of_sizes():
    key = "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"
    heads = [[1.0, 2, 3, 4], [5.0, 6, 7, 8], [9.0, 10, 11, 12]]
    cascade = "maskrcnn_resnet50_fpn_cascade_detectron2"
    settings = parsed("c.yaml", yaml.safe_dump(whole(CASCADE | {key: heads})))
    assert settings.applied_to(cascade).box_weights == tuple(range(1, 13))
    settings = parsed("c.yaml", yaml.safe_dump(whole(CASCADE | {key: heads[:2]})))
    with pytest.raises(UsageError, match=f"{key} must have 12 numbers, not 8"):
        settings.applied_to(cascade)
    settings = parsed("c.yaml", yaml.safe_dump(whole(CASCADE | {"MODEL.ROI_BOX_CASCADE_HEAD.MINE": 1})))
    with pytest.raises(UsageError, match=r"MODEL\.ROI_BOX_CASCADE_HEAD\.MINE is not known"):
        settings.applied_to(cascade)
    sizes = {"MODEL.ANCHOR_GENERATOR.SIZES": [[24.0, 96.0]]}
    config = parsed("c.yaml", yaml.safe_dump(whole(C4 | sizes))).applied_to("maskrcnn_resnet50_c4_detectron2")
    assert (config.anchor_sizes, config.anchors) == ((24, 96), 6)


@pytest.mark.parametrize(
    "config", {network.config for network in NETWORKS.values() if network.detectron2 is not None}
)
def test_a_model_s_file_has_its_settings(config):
    other = dataclasses.replace(config, nms_threshold=0.25, min_score=0.125)
    assert config_of(other.to_json(), config) == other


NUMBERS = st.floats(1, 500, width=32)


@pytest.mark.slow
@given(
    mean=st.lists(NUMBERS, min_size=3, max_size=3),
    sizes=st.lists(NUMBERS, min_size=5, max_size=5),
    ratios=st.lists(NUMBERS, min_size=1, max_size=5),
    threshold=st.floats(0.125, 1, width=16),
    limit=st.integers(1, 9999),
    bgr=st.booleans(),
)
def test_every_number_arrives_where_it_belongs(mean, sizes, ratios, threshold, limit, bgr):
    content = copy.deepcopy(WHOLE)
    content["INPUT"]["FORMAT"] = "BGR" if bgr else "RGB"
    content["MODEL"]["PIXEL_MEAN"] = mean
    content["MODEL"]["ANCHOR_GENERATOR"] |= {"SIZES": [[size] for size in sizes], "ASPECT_RATIOS": [ratios]}
    content["MODEL"]["ROI_HEADS"]["NMS_THRESH_TEST"] = threshold
    content["MODEL"]["RPN"]["POST_NMS_TOPK_TEST"] = limit
    config = parsed("c.yaml", yaml.safe_dump(content)).applied_to(FPN)
    assert config.pixel_mean == tuple(reversed(mean) if bgr else mean)
    assert (config.anchor_sizes, config.aspect_ratios) == (tuple(sizes), tuple(ratios))
    assert (config.nms_threshold, config.post_nms_limit) == (threshold, limit)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.META_ARCHITECTURE", "RetinaNet"),
        ("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
        ("_BASE_", "../Base-RCNN-C4.yaml"),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]),
        ("MODEL.RESNETS.NORM", "GN"),
        ("MODEL.RESNETS.RES5_DILATION", 2),
        ("MODEL.FPN.FUSE_TYPE", "avg"),
        ("MODEL.ANCHOR_GENERATOR.OFFSET", 0.5),
        ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"),
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        ("MODEL.ROI_MASK_HEAD.NAME", "CoarseMaskHead"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64, 128, 256, 512]]),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0], [2.0], [1.0], [1.0], [1.0]]),
        ("MODEL.PIXEL_MEAN", "red"),
        ("MODEL.RPN.POST_NMS_TOPK_TEST", 10.5),
        ("INPUT.FORMAT", "YUV-BT.601"),
        ("INPUT.MIN_SIZE_TEST", 0),
        ("MODEL.ROI_BOX_HEAD.MY_OPTION", 1),
        ("MODEL.POINT_HEAD", {"NUM_CLASSES": 80}),
    ],
)
def test_what_is_not_supported_is_named_by_its_key(key, value):
    with pytest.raises(UsageError, match=key.replace(".", r"\.")) as caught:
        parsed("c.yaml", changed(key, value)).applied_to(FPN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.MY_OPTION", 3),
        ("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.5),
        ("MODEL.RETINANET.NORM", "GN"),
        ("MY_PROJECT", {"A": [1]}),
    ],
)
def test_what_has_no_effect_on_results_is_left_out(key, value):
    assert parsed("c.yaml", changed(key, value)).applied_to(FPN) == DETECTRON2


def test_without_masks_the_mask_head_has_no_effect():
    content = copy.deepcopy(WHOLE)
    content["MODEL"]["MASK_ON"] = False
    content["MODEL"]["ROI_MASK_HEAD"]["NUM_CONV"] = 0
    assert parsed("c.yaml", yaml.safe_dump(content)).applied_to(FPN) == DETECTRON2


def test_tuples_are_read_as_python_writes_them_and_as_text():
    tagged = "MODEL: {ROI_BOX_HEAD: {BBOX_REG_WEIGHTS: !!python/tuple [20.0, 20.0, 10.0, 10.0]}}"
    text = 'MODEL: {ROI_BOX_HEAD: {BBOX_REG_WEIGHTS: "(20.0, 20.0, 10.0, 10.0)"}}'
    for each in (tagged, text):
        assert parsed("c.yaml", each).applied_to(FPN).box_weights == (20, 20, 10, 10)


NINES = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
BOMB = "\n".join(["a0: &a0 [0]", *NINES, "MODEL: {}"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("MODEL: [", "cannot be read as YAML"),
        (
            "MODEL: !!python/object/apply:os.getcwd []",
            "cannot be read as YAML: could not determine a constructor",
        ),
        ("- 1", "is not a configuration of detectron2"),
        ("model: {}", "is not a configuration of detectron2"),
        ("_BASE_: ../mine.yaml\nMODEL: {}", r"continues '\.\./mine\.yaml': give the config\.yaml"),
        (BOMB, "has more than 10,000 values"),
        ("MODEL: &a {B: *a}", "has more than 10,000 values"),
        ("[" * 5000, "cannot be read as YAML"),
    ],
)
def test_what_is_no_configuration_is_refused_in_one_line(text, complaint):
    with pytest.raises(UsageError, match=complaint) as caught:
        parsed("c.yaml", text)
    assert "\n" not in str(caught.value)


def test_a_value_out_of_its_range_is_named():
    with pytest.raises(
        UsageError, match=r"MODEL\.ROI_HEADS\.NMS_THRESH_TEST must be above 0 and at most 1, not 7"
    ):
        parsed("c.yaml", changed("MODEL.ROI_HEADS.NMS_THRESH_TEST", 7.0)).applied_to(FPN)
