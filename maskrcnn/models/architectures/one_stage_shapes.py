"""The tensors of torchvision's detectors of one stage, by name and shape: RetinaNet, FCOS, SSD and SSDLite."""

from collections.abc import Callable
from typing import Final

from .network_shapes import SMALL_MOBILENET, Shape, layer_namer, mobilenet, resnet50

__all__ = ["fcos_shapes", "retinanet_shapes", "ssd_shapes", "ssdlite_shapes"]

_HEADS: Final = ("classification_head", "regression_head")
_VGG: Final = ((0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256),
               (17, 256, 512), (19, 512, 512), (21, 512, 512))  # fmt: skip
"""Place, channels before, channels after."""


def retinanet_shapes(labels: int, *, second: bool = False) -> dict[str, Shape]:
    """Return the tensors of `retinanet_resnet50_fpn`, or of its second version, whose heads have group norms.

    Args:
        labels: the background included.
        second: whether it is the second version.
    """
    shapes: dict[str, Shape] = {}
    layer = layer_namer(shapes)
    _pyramid(layer, 2048 if second else 256)
    for head in _HEADS:
        for i in range(4):
            norm = f"head.{head}.conv.{i}.1" if second else None
            _convolution(shapes, f"head.{head}.conv.{i}.0", norm, bias=not second)
    layer("head.classification_head.cls_logits", 9 * labels, 256, 3, 3)
    layer("head.regression_head.bbox_reg", 36, 256, 3, 3)
    return shapes


def fcos_shapes(labels: int) -> dict[str, Shape]:
    """Return the tensors of `fcos_resnet50_fpn`, given the number of labels, the background included."""
    shapes: dict[str, Shape] = {}
    layer = layer_namer(shapes)
    _pyramid(layer, 256)
    for head in _HEADS:
        for i in range(0, 12, 3):
            _convolution(shapes, f"head.{head}.conv.{i}", f"head.{head}.conv.{i + 1}")
    layer("head.classification_head.cls_logits", labels, 256, 3, 3)
    layer("head.regression_head.bbox_reg", 4, 256, 3, 3)
    layer("head.regression_head.bbox_ctrness", 1, 256, 3, 3)
    return shapes


def ssd_shapes(labels: int) -> dict[str, Shape]:
    """Return the tensors of `ssd300_vgg16`, given the number of labels, the background included."""
    shapes: dict[str, Shape] = {"backbone.scale_weight": (512,)}
    layer = layer_namer(shapes)
    for place, before, after in _VGG:
        layer(f"backbone.features.{place}", after, before, 3, 3)
    for i in (1, 3, 5):
        layer(f"backbone.extra.0.{i}", 512, 512, 3, 3)
    layer("backbone.extra.0.7.1", 1024, 512, 3, 3)
    layer("backbone.extra.0.7.3", 1024, 1024, 1, 1)
    maps = (512, 1024, 512, 256, 256, 256)
    for i, (before, between, after) in enumerate(
        ((1024, 256, 512), (512, 128, 256), (256, 128, 256), (256, 128, 256)), start=1
    ):
        layer(f"backbone.extra.{i}.0", between, before, 1, 1)
        layer(f"backbone.extra.{i}.2", after, between, 3, 3)
    for head, each in zip(_HEADS, (labels, 4), strict=True):
        for i, (channels, anchors) in enumerate(zip(maps, (4, 6, 6, 6, 4, 4), strict=True)):
            layer(f"head.{head}.module_list.{i}", anchors * each, channels, 3, 3)
    return shapes


def ssdlite_shapes(labels: int) -> dict[str, Shape]:
    """Return the tensors of `ssdlite320_mobilenet_v3_large`, given the number of labels, the background included."""
    shapes: dict[str, Shape] = {}
    layer = layer_namer(shapes)

    def name_of(block: int, part: str) -> str:
        # The first layer of block 13 belongs to the first map, its others to the second.
        if block < 13:
            return f"backbone.features.0.{block}.{part}"
        if block == 13:
            inner = part.removeprefix("block.")
            return (
                f"backbone.features.0.13.{inner[2:]}"
                if inner.startswith("0.")
                else f"backbone.features.1.0.{inner}"
            )
        return f"backbone.features.1.{block - 13}.{part}"

    _, last = mobilenet(layer, name_of, SMALL_MOBILENET)
    maps = [672, last]
    for i, after in enumerate((512, 256, 256, 128)):
        name, between = f"backbone.extra.{i}", after // 2
        layer(f"{name}.0.0", between, maps[-1], 1, 1, norm=f"{name}.0.1")
        layer(f"{name}.1.0", between, 1, 3, 3, norm=f"{name}.1.1")
        layer(f"{name}.2.0", after, between, 1, 1, norm=f"{name}.2.1")
        maps.append(after)
    for head, each in zip(_HEADS, (labels, 4), strict=True):
        for i, channels in enumerate(maps):
            name = f"head.{head}.module_list.{i}"
            layer(f"{name}.0.0", channels, 1, 3, 3, norm=f"{name}.0.1")
            layer(f"{name}.1", 6 * each, channels, 1, 1)
    return shapes


def _pyramid(layer: Callable[..., None], before_p6: int) -> None:
    for i, channels in enumerate(resnet50(layer)[1:]):
        layer(f"backbone.fpn.inner_blocks.{i}.0", 256, channels, 1, 1)
        layer(f"backbone.fpn.layer_blocks.{i}.0", 256, 256, 3, 3)
    layer("backbone.fpn.extra_blocks.p6", 256, before_p6, 3, 3)
    layer("backbone.fpn.extra_blocks.p7", 256, 256, 3, 3)


def _convolution(shapes: dict[str, Shape], name: str, norm: str | None = None, *, bias: bool = True) -> None:
    """Add a convolution of a head, and the group norm after it."""
    shapes[f"{name}.weight"] = (256, 256, 3, 3)
    for each in ([f"{name}.bias"] if bias else []) + ([f"{norm}.weight", f"{norm}.bias"] if norm else []):
        shapes[each] = (256,)
