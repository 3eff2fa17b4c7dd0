"""Models and weights that torchvision publishes: in torch's cache, or downloaded into it, without importing torch."""

import hashlib
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...errors import UsageError
from ...io.url import is_there
from .checkpoint_files import Checkpoint

log = logging.getLogger("maskrcnn")

__all__ = [
    "NORM_EPS",
    "PUBLISHED",
    "PublishedModel",
    "PublishedWeights",
    "is_cached",
    "norm_eps_of",
    "read_published",
    "torch_hub",
]

NORM_EPS: Final = 1e-5
"""The epsilon of the norms of all networks of torchvision, but of its published `coco-v1`."""


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """A file that torchvision publishes."""

    file: str
    """In torch's cache; the last part of the stem is the start of its sha256."""
    member: str
    """Of an enumeration in `torchvision.models`, such as `ResNet50_Weights.IMAGENET1K_V1`."""
    norm_eps: float = NORM_EPS
    """The epsilon of the batch norms of the classifier that they belong to; not set for those of detectors."""

    @property
    def sha256_start(self) -> str:
        """The first digits of its sha256, hexadecimal."""
        return Path(self.file).stem.rpartition("-")[2]


def is_cached(weights: PublishedWeights) -> bool:
    """Return whether a published file is in torch's cache."""
    return is_there(torch_hub() / "checkpoints" / weights.file)


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A model trained on COCO that torchvision publishes."""

    name: str
    architecture: str
    weights: PublishedWeights
    batch_norm_eps: float | None = None
    """The epsilon that its batch norms were trained with; None: the one that its network is built with."""


def _detector(name: str, member: str, digits: str, *, eps: float | None = None) -> PublishedModel:
    """Return one of torchvision's detectors that have the name of their architecture."""
    joint = "-" if "-" not in digits else "_"
    weights = PublishedWeights(f"{name}{joint}{digits}.pth", f"detection.{member}_Weights.COCO_V1")
    return PublishedModel(name, name, weights, eps)


PUBLISHED: Final[dict[str, PublishedModel]] = {
    "coco": PublishedModel(
        "coco",
        "maskrcnn_resnet50_fpn_v2",
        PublishedWeights(
            "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", "detection.MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1"
        ),
    ),
    "coco-v1": PublishedModel(
        "coco-v1",
        "maskrcnn_resnet50_fpn",
        PublishedWeights(
            "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", "detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1"
        ),
        batch_norm_eps=0.0,  # torchvision sets it when it loads these weights
    ),
    **{
        model.name: model
        for model in (
            _detector("fasterrcnn_resnet50_fpn", "FasterRCNN_ResNet50_FPN", "coco-258fb6c6", eps=0.0),
            _detector("fasterrcnn_resnet50_fpn_v2", "FasterRCNN_ResNet50_FPN_V2", "coco-dd69338a"),
            _detector("fasterrcnn_mobilenet_v3_large_fpn", "FasterRCNN_MobileNet_V3_Large_FPN", "fb6a3cc7"),
            _detector(
                "fasterrcnn_mobilenet_v3_large_320_fpn", "FasterRCNN_MobileNet_V3_Large_320_FPN", "907ea3f9"
            ),
            _detector("retinanet_resnet50_fpn", "RetinaNet_ResNet50_FPN", "coco-eeacb38b", eps=0.0),
            _detector("retinanet_resnet50_fpn_v2", "RetinaNet_ResNet50_FPN_V2", "coco-5905b1c5"),
            _detector("fcos_resnet50_fpn", "FCOS_ResNet50_FPN", "coco-99b0c9b7"),
            _detector("ssd300_vgg16", "SSD300_VGG16", "coco-b556d3b4"),
            _detector("ssdlite320_mobilenet_v3_large", "SSDLite320_MobileNet_V3_Large", "coco-a79551df"),
        )
    },
}
"""By their names for `--model`; those that detect boxes only have torchvision's names."""


def norm_eps_of(architecture: str, checkpoint: Checkpoint, sha256: str) -> float | None:
    """Return the epsilon of the norms with which one of torchvision's networks was trained; None: it cannot be known.

    torchvision sets it to 0 when it loads the weights COCO_V1 of its first networks with ResNet-50, and what is
    fine-tuned from them keeps it; a state dict does not say so. Only frozen norms are concerned: they count no batches.

    Args:
        architecture: one of torchvision's.
        checkpoint: the weights.
        sha256: of their file, hexadecimal.

    Reference: https://github.com/pytorch/vision/pull/2940
    """
    for model in PUBLISHED.values():
        if sha256.startswith(model.weights.sha256_start):
            return NORM_EPS if model.batch_norm_eps is None else model.batch_norm_eps
    counts = any(name.endswith(".num_batches_tracked") for name in checkpoint.shapes)
    if counts or all(
        each.architecture != architecture or each.batch_norm_eps is None for each in PUBLISHED.values()
    ):
        return NORM_EPS
    started = checkpoint.arguments.get("weights")
    if isinstance(started, str) and started.rpartition(".")[2] in ("COCO_V1", "DEFAULT"):
        return 0.0
    if started is None and {"weights", "weights_backbone"} <= checkpoint.arguments.keys():
        return NORM_EPS  # torchvision's training script, which began with a backbone alone
    return None


def read_published(weights: PublishedWeights, model: str, alternatives: str = "") -> tuple[Path, bytes, str]:
    """Return a published file: its path in torch's cache, its bytes, and its sha256, hexadecimal.

    Args:
        weights: are downloaded if they are not in the cache.
        model: what `--model` was given, for messages.
        alternatives: what else a user without a network can do.

    Raises:
        UsageError: they are damaged, or not in the cache and cannot be downloaded.
    """
    path = torch_hub() / "checkpoints" / weights.file
    if not is_there(path):
        _download(weights, path, model, alternatives)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"the weights {path} cannot be read: {error.strerror}: delete them, and try again"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(weights.sha256_start):
        raise UsageError(f"{path} is damaged: its sha256 begins with {digest[:8]}; delete it and try again")
    return path, data, digest


def torch_hub() -> Path:
    """Return the directory of torch's downloads by torch's rules, without importing it.

    Raises:
        UsageError: it begins with `~` and there is no such home.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))  # noqa: PTH118 `~` stands for home
    try:
        return Path(home).expanduser() / "hub"
    except RuntimeError as error:
        variable = next((name for name in ("TORCH_HOME", "XDG_CACHE_HOME") if name in os.environ), "HOME")
        raise UsageError(
            f"the folder of downloaded weights is {home!r}, and there is no such home: set {variable} to a folder "
            "that can be written to"
        ) from error


def _download(weights: PublishedWeights, path: Path, model: str, alternatives: str) -> None:
    """Let torchvision download its weights in another process."""
    log.info("downloading the weights of %s to %s", model, path)
    fetch = "get_state_dict(progress=False, check_hash=True)"
    code = f"from torchvision import models; models.{weights.member}.{fetch}"
    done = subprocess.run([sys.executable, "-P", "-c", code], check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode == 0 and is_there(path):
        return
    cause = (done.stderr.strip() or "no reason given").splitlines()[-1]
    raise UsageError(
        f"the weights of --model {model} are not at {path} and could not be downloaded ({cause}). Without a "
        f"network: put {weights.file} there (TORCH_HOME moves the place){alternatives}"
    )
