"""The tensors that each network must hold, by name and shape, without building it and without torch."""

from collections.abc import Callable, Sequence
from typing import Any, Final

__all__ = [
    "SMALL_MOBILENET",
    "Shape",
    "cascade_shapes",
    "current_name",
    "layer_namer",
    "lite0",
    "matterport_shapes",
    "mobilenet",
    "mobilenet_body",
    "one_map_shapes",
    "resnet18",
    "resnet50",
    "torchvision_shapes",
]

Shape = tuple[int, ...]
Body = Callable[[Callable[..., None]], tuple[int, ...]]
"""Names the layers of a backbone's body by calling its argument; returns the channels of its maps."""

_LITE0: Final = ((3, 0, 16, 1), (3, 1, 24, 2), (5, 1, 40, 2), (3, 1, 80, 3), (5, 0, 112, 3), (5, 1, 192, 4))
"""Kernel, whether it halves the image, channels, repeats."""
_MOBILENET: Final = (
    *((3, 16, 16, 0), (3, 64, 24, 0), (3, 72, 24, 0), (5, 72, 40, 24), (5, 120, 40, 32), (5, 120, 40, 32)),
    *(
        (3, 240, 80, 0),
        (3, 200, 80, 0),
        (3, 184, 80, 0),
        (3, 184, 80, 0),
        (3, 480, 112, 120),
        (3, 672, 112, 168),
    ),
    *((5, 672, 160, 168), (5, 960, 160, 240), (5, 960, 160, 240)),
)
"""Kernel, channels between, channels after, channels of the squeeze and excitation (0: none)."""
SMALL_MOBILENET: Final = (*_MOBILENET[:-3], (5, 672, 80, 168), (5, 480, 80, 120), (5, 480, 80, 120))
"""The blocks of SSDLite's MobileNet."""
_FPN: Final = ("inner_blocks", "layer_blocks")
_FORMER_NAMES: Final = {
    "rpn.head.conv.": "rpn.head.conv.0.0.",
    **{f"roi_heads.mask_head.mask_fcn{i + 1}.": f"roi_heads.mask_head.{i}.0." for i in range(4)},
    **{f"backbone.fpn.{kind}.{i}.": f"backbone.fpn.{kind}.{i}.0." for kind in _FPN for i in range(4)},
}
"""Layers by their name before torchvision 0.13, which still reads it, and by their present name."""


def torchvision_shapes(
    labels: int,
    body: Body,
    *,
    channels: int = 256,
    box_features: int = 1024,
    box_convolutions: int = 0,
    mask_convolutions: int = 4,
    rpn_convolutions: int = 1,
    pyramid_norms: bool = False,
    frozen_norms: bool = False,
    anchors: int = 3,
    masks: bool = True,
) -> dict[str, Shape]:
    """Return the tensors of a network that torchvision's classes make up: their names and shapes.

    Args:
        labels: the background included.
        body: the backbone below the pyramid.
        channels: of the pyramid, and of the convolutions behind it.
        box_features: outputs of the dense layers of the box head.
        box_convolutions: of the box head; where there are some, one dense layer follows, else two.
        mask_convolutions: of the mask head.
        rpn_convolutions: of the RPN.
        pyramid_norms: whether norms follow the convolutions of the pyramid and of the heads.
        frozen_norms: whether all norms are frozen and count no batches.
        anchors: of each position of a map.
        masks: whether there is a mask head.
    """
    shapes: dict[str, Shape] = {}
    layer = layer_namer(shapes, counted=not frozen_norms)
    maps = body(layer)
    blocks = [(f"backbone.fpn.inner_blocks.{i}", before, 1) for i, before in enumerate(maps)]
    blocks += [(f"backbone.fpn.layer_blocks.{i}", channels, 3) for i in range(len(maps))]
    blocks += [(f"roi_heads.box_head.{i}", channels, 3) for i in range(box_convolutions)]
    blocks += [(f"roi_heads.mask_head.{i}", channels, 3) for i in range(mask_convolutions if masks else 0)]
    for name, before, kernel in blocks:
        layer(f"{name}.0", channels, before, kernel, kernel, norm=f"{name}.1" if pyramid_norms else None)
    for i in range(rpn_convolutions):
        layer(f"rpn.head.conv.{i}.0", channels, channels, 3, 3)
    layer("rpn.head.cls_logits", anchors, channels, 1, 1)
    layer("rpn.head.bbox_pred", 4 * anchors, channels, 1, 1)
    dense = (str(box_convolutions + 1),) if box_convolutions else ("fc6", "fc7")
    for name, before in zip(dense, (channels * 49, box_features), strict=False):
        layer(f"roi_heads.box_head.{name}", box_features, before)
    layer("roi_heads.box_predictor.cls_score", labels, box_features)
    layer("roi_heads.box_predictor.bbox_pred", labels * 4, box_features)
    if masks:
        layer("roi_heads.mask_predictor.conv5_mask", channels, channels, 2, 2)
        layer("roi_heads.mask_predictor.mask_fcn_logits", labels, channels, 1, 1)
    return shapes


def cascade_shapes(labels: int, body: Body, *, stages: int = 3, **facts: Any) -> dict[str, Shape]:
    """Return the tensors of a network with several box heads, each of which returns one box for all classes.

    Args:
        labels: the background included.
        body: the backbone below the pyramid.
        stages: the number of box heads.
        facts: other arguments of `torchvision_shapes`.
    """
    shapes = torchvision_shapes(labels, body, **facts)
    for name in [
        name for name in shapes if name.startswith(("roi_heads.box_head.", "roi_heads.box_predictor."))
    ]:
        shape = shapes.pop(name)
        shape = (4, *shape[1:]) if ".bbox_pred." in name else shape
        part, rest = name.removeprefix("roi_heads.").split(".", 1)
        shapes |= {f"roi_heads.{part}.{stage}.{rest}": shape for stage in range(stages)}
    return shapes


def one_map_shapes(
    labels: int, body: Body, *, anchors: int = 15, masks: bool = True, res5_in_heads: bool = False
) -> dict[str, Shape]:
    """Return the tensors of a network without a pyramid, with frozen norms.

    Args:
        labels: the background included.
        body: the ResNet.
        anchors: of each position of the map.
        masks: whether there is a mask head.
        res5_in_heads: whether the last stage is a part of the box head, in place of dense layers.
    """
    shapes: dict[str, Shape] = {}
    layer = layer_namer(shapes, counted=False)
    *_, before, last = body(layer)
    channels = before if res5_in_heads else last
    layer("rpn.head.conv.0.0", channels, channels, 3, 3)
    layer("rpn.head.cls_logits", anchors, channels, 1, 1)
    layer("rpn.head.bbox_pred", 4 * anchors, channels, 1, 1)
    if not res5_in_heads:
        layer("roi_heads.box_head.fc6", 1024, last * 49)
        layer("roi_heads.box_head.fc7", 1024, 1024)
    layer("roi_heads.box_predictor.cls_score", labels, last if res5_in_heads else 1024)
    layer("roi_heads.box_predictor.bbox_pred", labels * 4, last if res5_in_heads else 1024)
    if masks:
        for i in range(0 if res5_in_heads else 4):
            layer(f"roi_heads.mask_head.{i}.0", 256, 256 if i else last, 3, 3)
        layer("roi_heads.mask_predictor.conv5_mask", last if res5_in_heads else 256, 256, 2, 2)
        shapes["roi_heads.mask_predictor.conv5_mask.bias"] = (256,)
        layer("roi_heads.mask_predictor.mask_fcn_logits", labels, 256, 1, 1)
    if not res5_in_heads:
        return shapes
    moved = "backbone.body.layer4.", "roi_heads.box_head.layer4."
    return {name.replace(*moved): shape for name, shape in shapes.items()}


def layer_namer(shapes: dict[str, Shape], *, counted: bool = True) -> Callable[..., None]:
    """Return a function that adds the tensors of a layer: of its name and shape, and of the norm after it.

    A layer with a norm has no bias.

    Args:
        shapes: to which it adds.
        counted: whether norms count batches.
    """

    def layer(name: str, *shape: int, norm: str | None = None) -> None:
        shapes[f"{name}.weight"] = shape
        for part in ("bias",) if norm is None else ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm or name}.{part}"] = shape[:1]
        if norm is not None and counted:
            shapes[f"{norm}.num_batches_tracked"] = ()

    return layer


def matterport_shapes(labels: int, depth: int) -> dict[str, Shape]:
    """Return the tensors of matterport's network: convolutions have biases, and norms count no batches.

    Args:
        labels: the background included.
        depth: of the ResNet, 50 or 101.
    """
    shapes: dict[str, Shape] = {}

    def layer(name: str, *shape: int, norm: str | None = None) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]
        for part in () if norm is None else ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = shape[:1]

    for i, channels in enumerate(resnet50(layer, 23 if depth == 101 else 6)):
        layer(f"backbone.fpn.inner_blocks.{i}.0", 256, channels, 1, 1)
        layer(f"backbone.fpn.layer_blocks.{i}.0", 256, 256, 3, 3)
    layer("rpn.head.conv.0.0", 512, 256, 3, 3)
    layer("rpn.head.cls_logits", 6, 512, 1, 1)
    layer("rpn.head.bbox_pred", 12, 512, 1, 1)
    heads = "roi_heads"
    layer(f"{heads}.box_head.conv1", 1024, 256, 7, 7, norm=f"{heads}.box_head.bn1")
    layer(f"{heads}.box_head.conv2", 1024, 1024, 1, 1, norm=f"{heads}.box_head.bn2")
    layer(f"{heads}.box_predictor.cls_score", labels, 1024)
    layer(f"{heads}.box_predictor.bbox_pred", labels * 4, 1024)
    for i in range(4):
        layer(f"{heads}.mask_head.{i}.0", 256, 256, 3, 3, norm=f"{heads}.mask_head.{i}.1")
    layer(f"{heads}.mask_predictor.conv5_mask", 256, 256, 2, 2)
    layer(f"{heads}.mask_predictor.mask_fcn_logits", labels, 256, 1, 1)
    return shapes


def resnet50(
    layer: Callable[..., None], third: int = 6, *, second: int = 4, groups: int = 1, width: int = 64
) -> tuple[int, ...]:
    """Name the layers of a ResNet with blocks of three convolutions.

    Args:
        layer: names one.
        third: the blocks of its third stage: 6 of ResNet-50, 23 of ResNet-101, 36 of ResNet-152.
        second: of its second stage: 8 of ResNet-152.
        groups: of the middle convolutions: 32 of ResNeXt.
        width: of all groups together in the first stage.
    """
    layer("backbone.body.conv1", 64, 3, 7, 7, norm="backbone.body.bn1")
    before = 64
    for stage, (blocks, after) in enumerate(((3, 256), (second, 512), (third, 1024), (3, 2048)), start=1):
        between = width * 2 ** (stage - 1)
        for i in range(blocks):
            name = f"backbone.body.layer{stage}.{i}"
            layer(f"{name}.conv1", between, before, 1, 1, norm=f"{name}.bn1")
            layer(f"{name}.conv2", between, between // groups, 3, 3, norm=f"{name}.bn2")
            layer(f"{name}.conv3", after, between, 1, 1, norm=f"{name}.bn3")
            if i == 0:
                layer(f"{name}.downsample.0", after, before, 1, 1, norm=f"{name}.downsample.1")
            before = after
    return 256, 512, 1024, 2048


def mobilenet_body(layer: Callable[..., None]) -> tuple[int, ...]:
    """Name the layers of a MobileNetV3-Large below a pyramid of two maps."""
    return mobilenet(layer, lambda block, part: f"backbone.body.{block}.{part}", _MOBILENET)


def mobilenet(
    layer: Callable[..., None],
    name_of: Callable[[int, str], str],
    blocks: Sequence[tuple[int, int, int, int]],
) -> tuple[int, ...]:
    """Name the layers of a MobileNetV3-Large; return the channels of its last two stages.

    Args:
        layer: names one.
        name_of: returns the name of a layer, given its block and its place in the block.
        blocks: kernel, channels between, channels after, channels of the squeeze and excitation (0: none).
    """

    def normed(block: int, part: str, *shape: int) -> None:
        name = name_of(block, part)
        layer(f"{name}0", *shape, norm=f"{name}1")

    normed(0, "", 16, 3, 3, 3)
    before = 16
    for block, (kernel, between, after, squeezed) in enumerate(blocks, start=1):
        at = 0
        if between != before:
            normed(block, "block.0.", between, before, 1, 1)
            at = 1
        normed(block, f"block.{at}.", between, 1, kernel, kernel)
        if squeezed:
            at += 1
            layer(name_of(block, f"block.{at}.fc1"), squeezed, between, 1, 1)
            layer(name_of(block, f"block.{at}.fc2"), between, squeezed, 1, 1)
        normed(block, f"block.{at + 1}.", after, between, 1, 1)
        before = after
    last = 6 * before
    normed(len(blocks) + 1, "", last, before, 1, 1)
    return before, last


def resnet18(layer: Callable[..., None], blocks: tuple[int, int, int, int] = (2, 2, 2, 2)) -> tuple[int, ...]:
    """Name the layers of a ResNet with blocks of two convolutions: 2 blocks a stage of ResNet-18, else of ResNet-34."""
    layer("backbone.body.conv1", 64, 3, 7, 7, norm="backbone.body.bn1")
    before = 64
    for stage, (count, width) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), start=1):
        for i in range(count):
            name = f"backbone.body.layer{stage}.{i}"
            layer(f"{name}.conv1", width, before, 3, 3, norm=f"{name}.bn1")
            layer(f"{name}.conv2", width, width, 3, 3, norm=f"{name}.bn2")
            if before != width:
                layer(f"{name}.downsample.0", width, before, 1, 1, norm=f"{name}.downsample.1")
            before = width
    return 64, 128, 256, 512


def lite0(layer: Callable[..., None]) -> tuple[int, ...]:
    """Name the layers of an EfficientNet-Lite0 whose norms are folded."""
    layer("backbone.body.stem.1", 32, 3, 3, 3)
    before, block = 32, 0
    for kernel, halves, channels, repeats in _LITE0:
        for repeat in range(repeats):
            name, inner = f"backbone.body.blocks.{block}.layers", before * 6 if block else before
            at = (2 if block else 0) + (halves if repeat == 0 else 0)
            if block:
                layer(f"{name}.0", inner, before, 1, 1)
            layer(f"{name}.{at}", inner, 1, kernel, kernel)
            layer(f"{name}.{at + 2}", channels, inner, 1, 1)
            before, block = channels, block + 1
    return 24, 40, 112, 192


def current_name(name: str) -> str:
    """Return the present name of a torchvision tensor, given that or its name before 0.13."""
    layer, dot, part = name.rpartition(".")
    return _FORMER_NAMES.get(layer + dot, layer + dot) + part
