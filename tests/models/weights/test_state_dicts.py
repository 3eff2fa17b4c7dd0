"""The weights of one network are found wherever a training script put them; other networks are named."""

import argparse
import io
import pathlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torchvision.models.detection import keypointrcnn_resnet50_fpn, maskrcnn_resnet50_fpn
from torchvision.models.segmentation import deeplabv3_resnet50, fcn_resnet50

from maskrcnn.errors import UsageError
from maskrcnn.models.conversion.keys_detectron2 import architecture_of_detectron2, detectron2_names
from maskrcnn.models.conversion.keys_mmdetection import mmdetection_names
from maskrcnn.models.networks import LIKENESS, NETWORKS, architecture_of
from maskrcnn.models.weights.checkpoint_files import Checkpoint, read_checkpoint
from maskrcnn.models.weights.state_dicts import unsupported_network

V2 = "maskrcnn_resnet50_fpn_v2"
SHAPES = NETWORKS[V2].shapes(3)
Json = dict[str, Any]


def weights(fill: float = 0.0) -> Json:
    """All tensors of a network, each of which repeats one number in the file."""
    return {name: torch.full((), fill).expand(shape) for name, shape in SHAPES.items()}


def read(content: Any) -> Checkpoint:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return read_checkpoint("m.pth", buffer.getvalue())


def prefixed(prefix: str, state: Json) -> Json:
    return {prefix + name: tensor for name, tensor in state.items()}


SAVED: dict[str, Callable[[Json], Any]] = {
    "alone": lambda state: state,
    "ordered": OrderedDict,
    "the PyTorch tutorial": lambda state: {
        "epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "loss": torch.tensor(0.25),
    },
    "an ImageNet script": lambda state: {"state_dict": prefixed("module.", state), "best_acc1": np.float64(0.7)},
    "torch.compile": lambda state: prefixed("_orig_mod.", state),
    "torch.compile of a part": lambda state: {
        name.replace("backbone.", "backbone._orig_mod.", 1): tensor for name, tensor in state.items()
    },
    "torch.compile within DistributedDataParallel": lambda state: {"model": prefixed("module._orig_mod.", state)},
    "Lightning": lambda state: {
        "epoch": 1, "state_dict": prefixed("model.", state) | {"criterion.weight": torch.ones(3)},
        "hyper_parameters": {"lr": 1e-3, "root": pathlib.PosixPath("data/train")}, "callbacks": {"ModelCheckpoint": {}},
    },
    "Lightning, net": lambda state: {"state_dict": prefixed("net.", state), "pytorch-lightning_version": "2.4.0"},
    "Lightning with a compiled model": lambda state: {"state_dict": prefixed("model._orig_mod.", state)},
    "EMA alone": lambda state: {"ema_state_dict": state, "updates": 100},
    "EMA beside": lambda state: {"model": state, "model_ema": prefixed("module.", weights(1.0))},
    "timm": lambda state: {"state_dict": state, "state_dict_ema": weights(1.0), "args": argparse.Namespace(lr=1)},
    "EMA in Lightning": lambda state: {
        "state_dict": prefixed("model.", state) | prefixed("ema_model.module.", weights(1.0))
    },
    "torch's AveragedModel": lambda state: {"n_averaged": torch.tensor(3)} | prefixed("module.", state),
    "nested": lambda state: {"checkpoint": {"model": {"state_dict": state}, "step": 7}},
    "twice": lambda state: {"model": state, "state_dict": dict(state)},
    "a default dictionary": lambda state: {"model": state, "history": np.zeros(3), "best": (1, 2.5)},
}  # fmt: skip


@pytest.mark.parametrize("wrap", SAVED.values(), ids=SAVED.keys())
def test_weights_are_found_as_training_scripts_save_them(wrap: Callable[[Json], Any]) -> None:
    checkpoint = read(wrap(weights()))
    assert checkpoint.shapes == SHAPES
    assert architecture_of(checkpoint.shapes) == V2
    assert {tensor.storage for tensor in checkpoint.saved.values()} != {None}


@pytest.mark.slow
@settings(max_examples=25)
@given(
    st.lists(st.sampled_from(["module.", "_orig_mod.", "model.", "net.", "detector.", "ema."]), max_size=4),
    st.lists(st.sampled_from(["model", "state_dict", "ema", "weights", "checkpoint"]), max_size=3),
)
def test_no_wrapper_and_no_key_hides_them(prefixes: list[str], keys: list[str]) -> None:
    content: Any = prefixed("".join(prefixes), weights())
    for key in keys:
        content = {key: content, "epoch": 1}
    assert read(content).shapes == SHAPES


def test_an_average_is_read_where_it_is_alone_and_said_where_it_is_not() -> None:
    assert read({"model_ema": weights()}).notice is None
    both = read({"ema": {"model": weights(1.0)}, "model": weights()})
    assert both.place == "model"
    assert both.notice == "the weights under 'model' are read, not those under 'ema.model'"


def test_two_networks_are_not_chosen_between() -> None:
    for content in (
        {"student": weights(), "teacher": weights(1.0)},
        prefixed("student.", weights()) | prefixed("teacher.", weights(1.0)),
    ):
        with pytest.raises(
            UsageError, match=r"contains several networks \(student, teacher\): save the state dict"
        ):
            read(content)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_without_our_metadata_are_a_state_dict(metadata: dict[str, str] | None) -> None:
    tensors = {f"model.{name}": torch.zeros(shape, dtype=torch.int8) for name, shape in SHAPES.items()}
    checkpoint = read_checkpoint("m.safetensors", save(tensors, metadata))
    assert checkpoint.shapes == SHAPES
    assert checkpoint.place == "model"


# Other networks


def names_of(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


FREE = {"weights": None, "weights_backbone": None}
TORCHVISION = {
    "Keypoint R-CNN": keypointrcnn_resnet50_fpn,
    "classifier or a semantic segmentation": deeplabv3_resnet50,
    "semantic segmentation": fcn_resnet50,
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "build"), TORCHVISION.items(), ids=TORCHVISION.keys())
def test_torchvisions_other_networks_are_named(name: str, build: Callable[..., torch.nn.Module]) -> None:
    with torch.device("meta"):
        shapes = names_of(build(**FREE))
    message = str(unsupported_network(shapes))
    assert name in message
    assert "supported are torchvision's detectors" in message


DETECTRON2 = {name: shape for name, (_, shape) in detectron2_names(5).items()}
MMDETECTION = {name: shape for name, (_, shape) in mmdetection_names(5).items()}


def changed(old: str, new: str) -> dict[str, tuple[int, ...]]:
    return {name.replace(old, new): shape for name, shape in DETECTRON2.items()}


OTHERS: dict[str, dict[str, tuple[int, ...]]] = {
    "a Cascade R-CNN of MMDetection": {
        n.replace("roi_head.bbox_head.", "roi_head.bbox_head.0."): s for n, s in MMDETECTION.items()
    },
    "is a Cascade R-CNN with convolutions in its box head": {
        **changed("roi_heads.box_predictor.", "roi_heads.box_predictor.0."),
        "roi_heads.box_head.0.conv1.weight": (256, 256, 3, 3),
    },
    "a Keypoint R-CNN": DETECTRON2 | {"roi_heads.keypoint_head.conv_fcn1.weight": (512, 256, 3, 3)},
    "is a Mask R-CNN with ResNet-152": changed("backbone.bottom_up.", "backbone.")
    | {"backbone.res4.35.conv1.weight": (256, 1024, 1, 1)},
    "is a Mask R-CNN with ResNeXt": changed("backbone.bottom_up.", "backbone.")
    | {"backbone.res2.0.conv2.weight": (256, 8, 3, 3)},
    "a PointRend": DETECTRON2 | {"roi_heads.mask_point_head.fc1.weight": (256, 336, 1)},
    "a Panoptic FPN": DETECTRON2 | {"sem_seg_head.p2.0.weight": (128, 256, 3, 3)},
    "with ResNet-152": DETECTRON2 | {"backbone.bottom_up.res4.35.conv1.weight": (256, 1024, 1, 1)},
    "with deformable convolutions": DETECTRON2 | {"backbone.bottom_up.res3.0.conv2_offset.weight": (18, 128, 3, 3)},
    "with norms in its pyramid": DETECTRON2 | {"backbone.fpn_lateral2.norm.weight": (256,)},
    "with norms in its heads": DETECTRON2 | {"roi_heads.mask_head.mask_fcn1.norm.weight": (256,)},
    "with convolutions in its box head": DETECTRON2 | {"roi_heads.box_head.conv1.weight": (256, 256, 3, 3)},
    "with ResNet-18 or ResNet-34": {n: s for n, s in DETECTRON2.items() if "conv3" not in n},
    "another pyramid than FPN over res2 to res5": {n: s for n, s in DETECTRON2.items() if "fpn_lateral5" not in n},
    "a Faster R-CNN with ResNeXt": {
        n: s for n, s in DETECTRON2.items() if "mask_head" not in n
    } | {"backbone.bottom_up.res2.0.conv2.weight": (128, 4, 3, 3)},
    "with ResNeXt or Wide ResNet": DETECTRON2 | {"backbone.bottom_up.res2.0.conv2.weight": (256, 8, 3, 3)},
    "with group norms": {n: s for n, s in DETECTRON2.items() if "running" not in n},
    "a Mask R-CNN of MMDetection with deformable convolutions": MMDETECTION | {
        "backbone.layer2.0.conv2.conv_offset.weight": (27, 128, 3, 3)
    },
    "a Mask R-CNN of MMDetection with ResNeXt": MMDETECTION | {"backbone.layer1.0.conv2.weight": (128, 4, 3, 3)},
    "of MMDetection with group or other norms": MMDETECTION | {"neck.lateral_convs.0.gn.weight": (256,)},
    "of MMDetection with another pyramid than FPN": MMDETECTION | {"neck.pafpn_convs.0.conv.weight": (256, 256, 3, 3)},
    "a Faster R-CNN of MMDetection with another box head": {
        n: s for n, s in MMDETECTION.items() if "mask_head" not in n
    } | {"roi_head.bbox_head.cls_convs.0.conv.weight": (256, 256, 3, 3)},
    "a Mask R-CNN or Faster R-CNN of MMDetection 1": {
        n.replace("roi_head.", ""): s for n, s in MMDETECTION.items()
    },
    "a PointRend of MMDetection": MMDETECTION | {"roi_head.point_head.fcs.0.conv.weight": (256, 336, 1)},
    "a Mask R-CNN of maskrcnn-benchmark": {
        "backbone.body.stem.conv1.weight": (64, 3, 7, 7), "roi_heads.box.feature_extractor.fc6.weight": (1024, 12544),
    },
    "a YOLO": {"model.0.conv.weight": (16, 3, 3, 3), "model.22.cv2.0.0.conv.weight": (64, 64, 3, 3)},
    "a DETR": {"transformer.encoder.layers.0.linear1.weight": (2048, 256), "backbone.0.body.conv1.weight": (64, 3)},
    "a Segment Anything model": {"image_encoder.pos_embed": (1, 64, 64, 768)},
    "such as a U-Net": {"encoder.conv1.weight": (64, 3, 7, 7), "segmentation_head.0.weight": (1, 16, 3, 3)},
    "a ResNet without a detector": {"conv1.weight": (64, 3, 7, 7), "fc.weight": (1000, 2048)},
}  # fmt: skip


@pytest.mark.parametrize(("what", "shapes"), OTHERS.items(), ids=OTHERS.keys())
def test_a_network_that_is_not_supported_is_named(what: str, shapes: dict[str, tuple[int, ...]]) -> None:
    message = unsupported_network(shapes)
    assert message is not None
    assert what in message
    assert "supported are torchvision's detectors" in message


@pytest.mark.parametrize(
    "architecture", [name for name, network in NETWORKS.items() if network.from_state_dict]
)
def test_networks_of_torchvision_are_recognised_by_their_tensors(architecture: str) -> None:
    shapes = NETWORKS[architecture].shapes(5)
    assert architecture_of(shapes) == architecture.replace("_320_fpn", "_fpn")
    frozen = {name: shape for name, shape in shapes.items() if not name.endswith(".num_batches_tracked")}
    assert architecture_of(frozen) == architecture_of(shapes)
    incomplete = dict(list(shapes.items())[:-1])
    assert architecture_of(incomplete) is None
    assert architecture_of(incomplete, LIKENESS) == architecture_of(shapes)


def test_a_network_that_is_supported_is_not_refused() -> None:
    assert unsupported_network(NETWORKS["maskrcnn_resnet50_fpn"].shapes(5)) is None
    assert unsupported_network(MMDETECTION) is None
    for architecture, network in NETWORKS.items():
        if network.detectron2 is not None:
            shapes = {name: shape for name, (_, shape) in detectron2_names(5, architecture).items()}
            assert unsupported_network(shapes) is None
            assert architecture_of_detectron2(shapes) == architecture
    assert architecture_of(DETECTRON2, LIKENESS) is None


@pytest.mark.slow
def test_other_backbones_of_torchvision_are_named() -> None:
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone

    with torch.device("meta"):
        network = MaskRCNN(resnet_fpn_backbone(backbone_name="resnext50_32x4d", weights=None), 3)
        assert "is a Mask R-CNN with ResNeXt or Wide ResNet" in str(unsupported_network(names_of(network)))
        mobile = mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True)
        network = MaskRCNN(mobile, 3)
        assert "such as MobileNet" in str(unsupported_network(names_of(network)))
        assert unsupported_network(names_of(maskrcnn_resnet50_fpn(**FREE))) is None
