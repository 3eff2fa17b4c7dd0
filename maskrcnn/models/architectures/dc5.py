"""detectron2's Mask R-CNN and Faster R-CNN DC5, which have no pyramid: the last stage of their ResNet is dilated.

The networks of `mask_rcnn_R_50_DC5`, `mask_rcnn_R_101_DC5` and of `faster_rcnn_…`. Where they differ from those with
FPN in `detectron2`:

- The fifth stage does not halve the map, and its 3 x 3 convolutions have a dilation of 2, that of the first block too
  (torchvision dilates the others only).
- The region proposal network and the heads read its map, of stride 16 and 2,048 channels. The anchors of all sizes are
  at each position, and 6,000 of them become boxes.
- Images are not padded.

Reference: `build_resnet_backbone` in https://github.com/facebookresearch/detectron2, modeling/backbone/resnet.py.
"""

from torchvision.models import get_model
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FrozenBatchNorm2d

from .detectron2 import OneMap, assembled, set_strides
from .rcnn_config import OneMapConfig

__all__ = ["build_dc5"]


def build_dc5(
    body: str, masks: bool, num_classes: int, min_size: int, max_size: int, config: OneMapConfig
) -> FasterRCNN:
    """Build a network with random weights; the arguments are those of `build_detectron2`."""
    resnet = get_model(body, weights=None, norm_layer=FrozenBatchNorm2d)
    set_strides(resnet, config)
    first = resnet.layer4[0]
    first.conv1.stride = first.conv2.stride = first.downsample[0].stride = (1, 1)
    for block in resnet.layer4:
        block.conv2.dilation = block.conv2.padding = (config.res5_dilation,) * 2
    return assembled(OneMap(resnet, "layer4"), masks, num_classes, (min_size, max_size), config)
