"""matterport's Mask R-CNN with ResNet-50 or -101 and FPN, built of torchvision's parts where they are equal.

The network of https://github.com/matterport/Mask_RCNN, version 2.1, for inference. Where it differs from torchvision's
`maskrcnn_resnet50_fpn`:

| | torchvision | matterport |
|---|---|---|
| resize | of floats, shorter side to `min_size`, up or down | of bytes, truncated; never down to `min_size` |
| canvas | the image, padded below and right to multiples of 32 | a square with the image in its middle |
| normalisation | (x / 255 - mean) / deviation, then padding | padding, then x - mean |
| convolutions before norms | without biases | with biases |
| epsilon of the norms | 1e-5 | 1e-3, and norms in the heads |
| stem's pooling | padded on each side | padded below and right |
| a block that halves the map | stride in the 3x3 convolution | stride in the first 1x1 convolution |
| RPN | 256 channels, one logit per anchor | 512 channels, two logits, softmax |
| anchors | rounded to whole pixels | not rounded |
| coordinates | pixels | 0 to 1 from the centre of the first pixel to that of the last |
| proposals | the best 1,000 of each level, suppressed by level, those of 0.001 px and more | the best 6,000 of all, \
suppressed together, of any size; filled up to 1,000 with zeros |
| offsets log dw, log dh | at most log(1000 / 16) | of any size |
| level of a box | floor | round |
| pooling | RoIAlign, the mean of four samples per bin | crop and resize, one sample; outer ones on the box's edges |
| head of boxes | two dense layers | the same with norms, written as convolutions |
| classes of a box | each above the score threshold | only the best one |
| suppression | 0.5 per class | 0.3 per class |
| boxes | float | whole pixels |
| mask to image | bilinear, aligned to an enlarged box | bilinear to the box, zeros around |

Equal are bottlenecks, pyramid, box coder, predictors and the mask head's layers. The order of coordinates
and axes is converted by `conversion.key_mapping`. Inside the network boxes are xmin, ymin, xmax, ymax, normalised.
"""

import math
from functools import partial
from typing import Final, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.misc import Conv2dNormActivation

from .matterport_config import STRIDE, MatterportConfig

__all__ = ["CropAndResize", "MatterportRCNN", "NormalisedAnchors", "SquareTransform", "build_matterport"]

_LEVELS: Final = ("0", "1", "2", "3")
_Norm: Final = partial(FrozenBatchNorm2d, eps=1e-3)


class MatterportRCNN(MaskRCNN):  # type: ignore[misc]  # torchvision has no types
    """The parts of the network, under the names in torchvision's documentation; `forward_matterport` has its steps."""

    config: MatterportConfig

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> NoReturn:
        """Raise an error: torchvision's steps between the parts are not those of this network.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "matterport's network cannot be called or trained directly: run it with maskrcnn.models.segmenter"
        )


def build_matterport(
    depth: int, num_classes: int, min_size: int, max_size: int, config: MatterportConfig
) -> MatterportRCNN:
    """Build the network with random weights; for use by `network_entry.Network.build`.

    Args:
        depth: layers of the ResNet, 50 or 101.
        num_classes: labels, the background (0) included.
        min_size: IMAGE_MIN_DIM, pixels.
        max_size: IMAGE_MAX_DIM, a multiple of 64.
        config: the rest of its configuration.

    Raises:
        ValueError: `max_size` is not a multiple of 64.
    """
    if max_size % STRIDE:
        raise ValueError(f"max_size must be a multiple of {STRIDE}, not {max_size}")
    backbone = resnet_fpn_backbone(
        backbone_name=f"resnet{depth}", weights=None, norm_layer=_Norm, trainable_layers=5
    )
    body = backbone.body
    for stage in (body.layer2, body.layer3, body.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    # After a ReLU, padding with zeros is equivalent to padding with minus infinity.
    body["maxpool"] = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2))
    head = RPNHead(256, 3)
    head.conv = nn.Sequential(Conv2dNormActivation(256, 512, 3, norm_layer=None))
    head.cls_logits, head.bbox_pred = nn.Conv2d(512, 6, 1), nn.Conv2d(512, 12, 1)
    network = MatterportRCNN(
        backbone,
        rpn_anchor_generator=NormalisedAnchors(config),
        rpn_head=head,
        rpn_nms_thresh=config.rpn_nms_threshold,
        rpn_pre_nms_top_n_test=config.pre_nms_limit,
        rpn_post_nms_top_n_test=config.post_nms_rois_inference,
        box_roi_pool=CropAndResize(7),
        box_head=ClassHead(),
        box_predictor=FastRCNNPredictor(1024, num_classes),
        box_nms_thresh=config.detection_nms_threshold,
        mask_roi_pool=CropAndResize(14),
        mask_head=MaskRCNNHeads(256, (256,) * 4, 1, norm_layer=_Norm),
        mask_predictor=MaskRCNNPredictor(256, 256, num_classes),
    )
    for module in (network.backbone.body, network.roi_heads.mask_head):
        _give_biases(module)
    network.rpn.box_coder = _box_coder(config.rpn_bbox_std_dev)
    network.roi_heads.box_coder = _box_coder(config.bbox_std_dev)
    network.transform = SquareTransform(min_size, max_size, config)
    network.config = config
    return network


def _give_biases(module: nn.Module) -> None:
    """Replace the convolutions in a module that have no biases by ones that do."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d) and child.bias is None:
            sizes = child.in_channels, child.out_channels, child.kernel_size, child.stride, child.padding
            setattr(module, name, nn.Conv2d(*sizes))  # type: ignore[arg-type]  # the sizes of an existing convolution
        _give_biases(child)


def _box_coder(deviations: tuple[float, ...]) -> BoxCoder:
    dy, dx, dh, dw = deviations
    return BoxCoder((1 / dx, 1 / dy, 1 / dw, 1 / dh), bbox_xform_clip=math.inf)


class ClassHead(nn.Module):
    """Two layers with norms for the pooled features of boxes: (N, 256, 7, 7) to (N, 1024)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(256, 1024, 7), _Norm(1024)
        self.conv2, self.bn2 = nn.Conv2d(1024, 1024, 1), _Norm(1024)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features of boxes."""
        x = self.bn1(self.conv1(x)).relu()
        features: Tensor = self.bn2(self.conv2(x)).relu().flatten(1)
        return features


class NormalisedAnchors(AnchorGenerator):  # type: ignore[misc]  # torchvision has no types
    """Anchors of exact sizes around the corners of map positions, in canvas coordinates from 0 to 1."""

    def __init__(self, config: MatterportConfig) -> None:
        scales = tuple((scale,) for scale in config.rpn_anchor_scales)
        super().__init__(scales, (config.rpn_anchor_ratios,) * len(scales))
        self._config = config

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors of each image, (H * W * 3 over all levels, 4)."""
        height, width = image_list.tensors.shape[-2:]
        anchors = torch.cat([
            torch.from_numpy(self._level(level, feature.shape[-2], feature.shape[-1], height, width))
            for level, feature in enumerate(feature_maps)
        ]).to(feature_maps[0].device)  # fmt: skip
        return [anchors] * len(image_list.image_sizes)

    def _level(self, level: int, rows: int, columns: int, height: int, width: int) -> NDArray[np.float32]:
        scale = self._config.rpn_anchor_scales[level]
        roots = np.sqrt(np.array(self._config.rpn_anchor_ratios))
        y, x, nth = np.meshgrid(np.arange(rows), np.arange(columns), np.arange(len(roots)), indexing="ij")
        y, x = (place.ravel() * 4.0 * 2**level for place in (y, x))
        half_height, half_width = (scale / roots / 2)[nth.ravel()], (scale * roots / 2)[nth.ravel()]
        corners = [x - half_width, y - half_height, x + half_width - 1, y + half_height - 1]
        span = np.array([width - 1, height - 1, width - 1, height - 1])
        return np.asarray((np.stack(corners, 1) / span).astype(np.float32))


class CropAndResize(MultiScaleRoIAlign):  # type: ignore[misc]  # torchvision has no types
    """TensorFlow's `crop_and_resize`: one sample per bin, the outer ones on the box's edges; run by `roi_align.pool`.

    Args:
        output_size: bins per side.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__(list(_LEVELS), output_size, sampling_ratio=1)

    def level(self, boxes: Tensor, area: Tensor) -> Tensor:
        """Return the level of each box, (N,) int64 from 0.

        Args:
            boxes: (N, 4) normalised.
            area: of the canvas, square pixels.
        """
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        return torch.log2(side / (224 / area.to(side.dtype).sqrt())).round().clamp(-2, 1).to(torch.int64) + 2

    def samples(self, low: Tensor, high: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions along one axis that each sample reads, and their weights.

        The operations and their order are TensorFlow's: by rounding, the last sample of a box that ends with the
        canvas may lie behind the last position, and is then zero.

        Args:
            low: (N,) the start of each box, normalised.
            high: (N,) its end.
            sides: (N,) int64, the number of positions.

        Returns:
            (N, bins, 2) int32 and float32.
        """
        bins = self.output_size[0]
        last = (sides - 1).to(low.dtype)[:, None]
        step = (high - low)[:, None] * last / (bins - 1)
        position = low[:, None] * last + torch.arange(bins, device=low.device, dtype=low.dtype) * step
        inside = (position >= 0) & (position <= last)
        first = torch.minimum(position.clamp(min=0).floor(), last)
        second = torch.minimum(first + 1, last)
        weight = torch.stack([1 - (position - first), position - first], 2)
        return torch.stack([first, second], 2).to(torch.int32), weight.where(inside[..., None], 0.0)


class SquareTransform(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """Resizes images as scikit-image does, into the middle of a canvas; maps boxes back to whole pixels.

    Args:
        min_size: as for `build_matterport`.
        max_size: as for `build_matterport`.
        config: as for `build_matterport`.
    """

    def __init__(self, min_size: int, max_size: int, config: MatterportConfig) -> None:
        mean = [value / 255 for value in config.mean_pixel]
        super().__init__(min_size, max_size, mean, [1 / 255] * 3, size_divisible=STRIDE)
        self._config = config

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return an image's size after the resize.

        Reference: `resize_image` in mrcnn/utils.py.
        """
        scale = max(1.0, self.min_size[-1] / min(height, width), self._config.image_min_scale)
        square = self._config.image_resize_mode == "square"
        if square and round(max(height, width) * scale) > self.max_size:
            scale = self.max_size / max(height, width)
        return round(height * scale), round(width * scale)

    def canvas(self, size: tuple[int, int], *, rescaled: bool, scale: float = 1.0) -> tuple[int, int]:
        """Return the size of the canvas for an image of this size; without a resize the smallest that holds it.

        Args:
            size: of the image after its resize, (height, width) pixels.
            rescaled: whether images are resized.
            scale: of the size in relation to the network's own.
        """
        if rescaled and self._config.image_resize_mode == "square":
            side = math.ceil(self.max_size * scale / STRIDE) * STRIDE
            return side, side
        return -(-size[0] // STRIDE) * STRIDE, -(-size[1] // STRIDE) * STRIDE

    def empty(self, count: int, canvas: tuple[int, int], device: torch.device) -> Tensor:
        """Return empty canvases, (B, 3, H, W) float32: black, less the mean."""
        mean = torch.tensor(self._config.mean_pixel, dtype=torch.float64, device=device)
        return (-mean).float()[:, None, None].expand(count, 3, *canvas).contiguous()

    def prepared(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Return an image resized, less the mean, (3, height, width) float32.

        Args:
            pixels: (H, W, 3) uint8, RGB.
            size: height and width of the result.
        """
        if pixels.shape[:2] != size:
            pixels = _resized(pixels, size)
        mean = torch.tensor(self._config.mean_pixel, dtype=torch.float64, device=pixels.device)
        return (pixels.permute(2, 0, 1).double() - mean[:, None, None]).float()

    def boxes(
        self,
        boxes: NDArray[np.float32],
        size: tuple[int, int],
        canvas: tuple[int, int],
        original: tuple[int, int],
    ) -> NDArray[np.float32]:
        """Return boxes in whole pixels of the image, (N, 4) xmin, ymin, xmax, ymax; some may be empty.

        Args:
            boxes: (N, 4) normalised.
            size: of the resized image on the canvas, (height, width) pixels.
            canvas: (height, width) pixels.
            original: size of the image, (height, width) pixels.

        Reference: `unmold_detections` in mrcnn/model.py; float32 and float64 are used as there.
        """
        low, high = window(size, canvas)
        window_low, extent = np.tile(low, 2), np.tile(high - low, 2)
        span = np.array([original[1] - 1, original[0] - 1] * 2)
        inner = (boxes - window_low) / extent
        return np.asarray(np.around(inner * span + np.array([0, 0, 1, 1])).astype(np.float32))


def corner(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Return the row and column on a canvas at which an image of a size starts."""
    return (canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2


def window(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return x and y, normalised, of the first pixel of an image on a canvas, and of its last."""
    top, left = corner(size, canvas)
    span = np.array([canvas[1] - 1, canvas[0] - 1], np.float32)
    low = np.array([left, top], np.float32) / span
    high = np.array([left + size[1] - 1, top + size[0] - 1], np.float32) / span
    return low, high


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an image resized, (height, width, 3) uint8: bilinear with zero padding, clipped to its range, truncated.

    Truncation exposes the last bit: the operations and their order are those that yield scikit-image's values.
    """
    frame = F.pad(pixels.double(), (0, 0, 1, 1, 1, 1))
    (y, down), (x, across) = (
        _taps(old, new, pixels.device) for old, new in zip(pixels.shape[:2], size, strict=True)
    )
    result = torch.zeros(*size, 3, dtype=torch.float64, device=pixels.device)
    for row, weight_y in ((y, 1 - down), (y + 1, down)):
        rows = frame[row]
        for column, weight_x in ((x, 1 - across), (x + 1, across)):
            result += rows[:, column] * weight_y[:, None, None] * weight_x[:, None]
    return result.clamp(pixels.min().double(), pixels.max().double()).to(torch.uint8)


def _taps(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first of the two positions in the padded frame that a new pixel reads, and the second's weight."""
    centre = (torch.arange(new, dtype=torch.float64, device=device) + 0.5) * (old / new) - 0.5
    first = centre.floor()
    return first.to(torch.int64) + 1, centre - first
