"""detectron2's Mask R-CNN and Faster R-CNN with FPN, built of torchvision's parts where they are equal.

The networks of `mask_rcnn_R_50_FPN`, `mask_rcnn_R_101_FPN`, `mask_rcnn_X_101_32x8d_FPN` and of `faster_rcnn_…`, with
the settings of an `RCNNConfig`, by default those of the model zoo. Where they differ from torchvision's
`maskrcnn_resnet50_fpn`:

| | torchvision | detectron2 |
|---|---|---|
| resize | of floats, four neighbours per pixel | of bytes, Pillow's bilinear filter, which widens when shrinking |
| size after it | rounded down | rounded |
| a block that halves the map | stride in the 3x3 convolution | stride in the first 1x1 convolution, but for X101 |
| normalisation | (x / 255 - mean) / deviation | x - mean; X101: (x - mean) / deviation |
| anchors | rounded to whole pixels | not rounded |
| their distance on a level | canvas size / map size, such as 61 if 64 does not divide it | 4, 8, 16, 32, 64 |
| proposals | at least 0.001 px wide and high | of any area |
| RoIAlign | two samples per bin and axis, not shifted | one per pixel of a bin, shifted by half a pixel |
| dropped boxes | thinner than 0.01 px, before the suppression | empty, after the limit on detections |
| mask to image | box rounded to whole pixels | box as it is (`masks.encode_resized`) |

Equal are pyramid, heads, box coder, suppression (0.7 per level, 0.5 per class) and limits (1,000 proposals per level
and in total, 100 detections). detectron2 has the background last, reads BGR and regresses no box for the background;
`conversion` brings these orders into torchvision's.

References: https://github.com/facebookresearch/detectron2, the folders layers/ and modeling/, data/transforms/.
"""

from collections.abc import Sequence
from typing import Final, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import MultiScaleRoIAlign, roi_align

from ...masks.encode_resized import pasted
from .rcnn_config import DETECTRON2, RCNNConfig

__all__ = [
    "AdaptiveRoIAlign",
    "OneMap",
    "ShortestEdgeTransform",
    "assembled",
    "build_detectron2",
    "cell_anchors",
    "set_strides",
]

STRIDES: Final = (4, 8, 16, 32, 64)
"""The strides of the pyramid's levels, pixels of the resized image."""
ONE_STRIDE: Final = (16,)
"""The stride of the map of a network without a pyramid."""

_LEVELS: Final = ("0", "1", "2", "3")


def build_detectron2(
    body: str, masks: bool, num_classes: int, min_size: int, max_size: int, config: RCNNConfig
) -> FasterRCNN:
    """Build a network with random weights.

    Args:
        body: the name of its ResNet in `torchvision.models`.
        masks: whether it is a Mask R-CNN.
        num_classes: as of `model.build_network`, as are the other arguments.
        min_size: the length that the shorter side of an image is resized to, pixels, …
        max_size: … unless the longer side would then exceed this.
        config: its settings.
    """
    backbone = resnet_fpn_backbone(backbone_name=body, weights=None, trainable_layers=5)
    set_strides(backbone.body, config)
    return assembled(backbone, masks, num_classes, (min_size, max_size), config)


def assembled(
    backbone: nn.Module,
    masks: bool,
    num_classes: int | None,
    sizes: tuple[int, int],
    config: RCNNConfig,
    **parts: nn.Module,
) -> FasterRCNN:
    """Return a network with detectron2's settings around a backbone.

    Args:
        backbone: whose maps are the levels of a pyramid and one more, or a single one of stride 16.
        masks: as of `build_detectron2`.
        num_classes: None: the predictors are among the parts.
        sizes: its `min_size` and `max_size`.
        config: as there.
        parts: of a `FasterRCNN` or `MaskRCNN`, in place of those of a network with FPN.
    """
    pyramid = config.levels > 1
    names, strides = (_LEVELS, STRIDES) if pyramid else (_LEVELS[:1], ONE_STRIDE)
    settings = {
        "rpn_anchor_generator": CellAnchors(config.sizes_by_level, config.aspect_ratios, strides),
        "rpn_pre_nms_top_n_test": config.pre_nms_limit,
        "rpn_post_nms_top_n_test": config.post_nms_limit,
        "rpn_post_nms_top_n_train": 1000,
        "rpn_nms_thresh": config.rpn_nms_threshold,
        "box_roi_pool": AdaptiveRoIAlign(names, 7, strides),
        "box_score_thresh": config.min_score,
        "box_nms_thresh": config.nms_threshold,
        "box_detections_per_img": config.max_detections,
        "bbox_reg_weights": config.box_weights[-4:],  # of the last stage
    }
    if masks:
        settings["mask_roi_pool"] = AdaptiveRoIAlign(names, 14, strides)
    network = (MaskRCNN if masks else FasterRCNN)(backbone, num_classes, **settings | parts)
    network.config = config  # written by `model.save_model`
    network.transform = ShortestEdgeTransform(*sizes, config.pixel_mean, config.pixel_std)
    network.transform.size_divisible = (
        STRIDES[3] if pyramid else 1
    )  # without FPN detectron2 does not pad images
    network.rpn.box_coder = BoxCoder(config.rpn_box_weights)
    network.rpn.min_size = float(np.finfo(np.float32).tiny)
    network.rpn.ranks_by_logits = True  # read by `forward.Forward`
    network.roi_heads.drops_empty_boxes_last = True  # read by `forward.Forward`
    return network


def set_strides(resnet: ResNet, config: RCNNConfig) -> None:
    """Set the convolution that halves the map in the stages of a ResNet of torchvision."""
    if config.stride_in_1x1:
        for stage in (resnet.layer2, resnet.layer3, resnet.layer4):
            block = cast(Bottleneck, stage[0])
            block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)


class OneMap(nn.Module):
    """A ResNet without a pyramid as backbone: its last map alone.

    Args:
        resnet: of torchvision, its strides set.
        last: the name of the last stage that it runs.
    """

    def __init__(self, resnet: nn.Module, last: str) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(resnet, {last: _LEVELS[0]})
        self.out_channels = self.body[last][-1].conv3.out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the map, (B, C, H / 16, W / 16), under the name of the first level."""
        maps: dict[str, Tensor] = self.body(x)
        return maps


def cell_anchors(size: float, ratios: Sequence[float]) -> list[list[float]]:
    """Return the anchors of a level around the origin, (ratios, 4) xmin, ymin, xmax, ymax, pixels.

    Args:
        size: of the side of a square one, pixels.
        ratios: height by width.
    """
    sides = [(size / ratio**0.5, size * ratio**0.5) for ratio in ratios]
    return [[-width / 2, -height / 2, width / 2, height / 2] for width, height in sides]


class CellAnchors(AnchorGenerator):  # type: ignore[misc]  # torchvision has no types
    """Anchors of exact sizes at exact distances.

    Args:
        sizes: the sides of the square anchors of each level, pixels.
        ratios: height by width, on every level.
        strides: of the levels, pixels.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]] = DETECTRON2.sizes_by_level,
        ratios: Sequence[float] = DETECTRON2.aspect_ratios,
        strides: Sequence[int] = STRIDES,
    ) -> None:
        super().__init__(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))
        self.cell_anchors = [
            torch.tensor([anchor for size in level for anchor in cell_anchors(size, ratios)])
            for level in sizes
        ]
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors of each image, (H * W * ratios over all levels, 4) pixels."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        grids = [list(feature.shape[-2:]) for feature in feature_maps]
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors] * len(image_list.image_sizes)


class AdaptiveRoIAlign(MultiScaleRoIAlign):  # type: ignore[misc]  # torchvision has no types
    """RoIAlign with one sample per pixel of a bin, aligned to the centres of pixels.

    Args:
        featmap_names: names of the maps: of strides 4 to 32, or of one map.
        output_size: bins per side.
        strides: of the maps, pixels; more are ignored.
    """

    def __init__(
        self, featmap_names: Sequence[str], output_size: int, strides: Sequence[int] = STRIDES
    ) -> None:
        super().__init__(list(featmap_names), output_size, sampling_ratio=0)
        self.strides = tuple(strides)

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Pool as torchvision's `MultiScaleRoIAlign` does: (N, C, S, S) of all boxes."""
        del image_shapes  # strides are powers of two by construction
        counts = torch.tensor([len(each) for each in boxes], device=boxes[0].device)
        image = torch.arange(len(boxes), device=counts.device).repeat_interleave(counts)
        return self.pool([x[name] for name in self.featmap_names], torch.cat(boxes), image)

    @staticmethod
    def level(boxes: Tensor) -> Tensor:
        """Return the level of each box, (N,) float32 from 0 to 3."""
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        return (4 + torch.log2(side / 224 + 1e-8)).floor().clamp(2, 5) - 2

    def pool(self, maps: Sequence[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """Pool the features of each box.

        On all levels but its own a box is made empty: there it costs nothing and adds zeros. Selecting the boxes of a
        level instead would make the host wait for the device.

        Args:
            maps: (B, C, H, W) of each stride.
            boxes: (N, 4) float32, pixels of the resized images.
            image: (N,) int64, the image of each box.

        Returns:
            (N, C, S, S), of the dtype of the boxes.

        Reference: `ROIPooler` in detectron2/modeling/poolers.py.
        """
        level = self.level(boxes) if len(maps) > 1 else torch.zeros_like(boxes[:, 0])
        regions = torch.cat([image[:, None].to(boxes.dtype), boxes], 1)
        pooled: Tensor | None = None
        for nth, (feature, stride) in enumerate(zip(maps, self.strides, strict=False)):
            own = torch.cat([regions[:, :1], boxes * (level == nth)[:, None]], 1)
            part = roi_align(feature.to(boxes.dtype), own, self.output_size, 1 / stride, 0, aligned=True)
            pooled = (
                part if pooled is None else pooled.add_(part) if not part.requires_grad else pooled + part
            )
        return cast(Tensor, pooled)


class ShortestEdgeTransform(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """Resizes bytes as Pillow does, and normalises them; resizes masks back by the centres of their pixels.

    Args:
        min_size: as for `model.build_network`.
        max_size: as for `model.build_network`.
        mean: of red, green and blue, from 0 to 255.
        std: what they are divided by.
    """

    def __init__(
        self,
        min_size: int,
        max_size: int,
        mean: Sequence[float] = DETECTRON2.pixel_mean,
        std: Sequence[float] = DETECTRON2.pixel_std,
    ) -> None:
        super().__init__(min_size, max_size, [value / 255 for value in mean], [value / 255 for value in std])
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return an image's size after the resize.

        Reference: `ResizeShortestEdge.get_output_shape` in detectron2/data/transforms/augmentation_impl.py.
        """
        smallest = self.torch_choice(self.min_size) if self.training else self.min_size[-1]
        scale = smallest / min(height, width)
        new = (smallest, scale * width) if height < width else (scale * height, smallest)
        if max(new) > self.max_size:
            scale = self.max_size / max(new)
            new = (new[0] * scale, new[1] * scale)
        return int(new[0] + 0.5), int(new[1] + 0.5)

    def prepared(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Return an image resized and normalised, (3, height, width) float32.

        Args:
            pixels: (H, W, 3) uint8, RGB.
            size: height and width of the result.
        """
        image = pixels.permute(2, 0, 1)
        image = image.float() if image.shape[-2:] == size else self.resampled(image, size)
        return (image - self._mean.to(image.device)) / self._std.to(image.device)

    def resampled(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Return an image resized, (3, height, width) float32, whole numbers.

        torch's filter for bytes is Pillow's except for the precision of its weights: of 10,000 values 4 to 11
        differ, by 1 of 255. On CUDA it has no filter for bytes; there floats are resized and rounded.

        Args:
            image: (3, H, W) uint8.
            size: height and width of the result.
        """
        image = image.float() if image.is_cuda else image
        resized = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
        return resized.round() if image.is_cuda else resized.float()

    def normalize(self, image: Tensor) -> Tensor:
        """Return the image unchanged: `resize` normalises it, after the resize."""
        return image

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize an image of values from 0 to 1 and its target, and normalise the image."""
        height, width = image.shape[-2:]
        size = self.resized(height, width)
        pixels = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], [height, width], list(size))
            if "masks" in target:
                target["masks"] = F.interpolate(target["masks"][None].float(), size=size)[0].byte()
        return self.prepared(pixels, size), target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Map boxes and masks back to the pixels of each image."""
        if self.training:
            return result
        for found, size, (height, width) in zip(result, image_shapes, original_image_sizes, strict=True):
            boxes = resize_boxes(found["boxes"], list(size), [height, width])
            found["boxes"] = boxes
            if "masks" not in found:
                continue
            rows, columns = (index.ravel() for index in np.indices((height, width)))
            pixels = [
                torch.from_numpy(pasted(box, mask, rows, columns)).view(1, height, width)
                for box, mask in zip(boxes.cpu().numpy(), found["masks"][:, 0].cpu().numpy(), strict=True)
            ]
            empty = torch.zeros((0, 1, height, width))
            found["masks"] = (torch.stack(pixels) if pixels else empty).to(boxes.device)
        return result
