"""The training configuration, and the names of the files of a training.

This module does not import torch.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from ..errors import UsageError

LOSSES: Final = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
"""torchvision's names, in the order of the equations in `losses`. A Faster R-CNN has the first four; `one_stage_losses`
names those of detectors of one stage."""
MEASURED: Final = ("mask_ap", "mask_ap50", "box_ap")
"""The columns of the average precision of a network that detects masks, …"""
MEASURED_BOXES: Final = ("box_ap", "box_ap50")
"""… and of one that detects boxes only."""
STAGES: Final = 5
"""Number of stages of each backbone; stage n halves the resolution for the n-th time."""
DEFAULT_CROP: Final = 512
FLIPS: Final = ("none", "horizontal", "both")
SCHEDULES: Final = ("cosine", "step")
OPTIMIZERS: Final = ("adamw", "sgd")
DTYPES: Final = ("float32", "bfloat16")
MODEL: Final = "model.safetensors"
CHECKPOINT: Final = "checkpoint.pt"
LOG: Final = "log.csv"
RESULT: Final = "result.json"
CONFIG_KEY: Final = "recipe"
"""Key of the training configuration in a checkpoint's identity and in the provenance of `model.safetensors`."""


def columns_of(losses: Sequence[str], *, has_masks: bool) -> tuple[str, ...]:
    """Return the columns of `log.csv`.

    Args:
        losses: of the network.
        has_masks: whether it detects masks.
    """
    measured = MEASURED if has_masks else MEASURED_BOXES
    return ("epoch", *losses, "loss", *measured, "learning_rate", "seconds")


def precision_of(row: Mapping[str, float]) -> float:
    """Return the average precision of an epoch by which epochs are compared; -1 if none was measured.

    It is that of masks, or of a network without masks that of boxes.
    """
    return row.get("mask_ap", row.get("box_ap", -1.0))


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """The training configuration: equal configurations on equal datasets give equal weights on one kind of device.

    Raises:
        UsageError: a value is out of range.
    """

    model: str = "coco"
    """The initial weights, as `initialization.start` takes them."""
    epochs: int = 12
    batch_size: int = 4
    """Images per step, over all workers."""
    optimizer: str = "adamw"
    learning_rate: float = 5e-4
    """Peak learning rate; the backbone is trained at half of it."""
    weight_decay: float = 0.02
    schedule: str = "cosine"
    """`cosine`: down to nearly 0; `step`: a tenth after two thirds of the steps, a hundredth after eight ninths."""
    warmup: float = 0.02
    """Share of the steps during which the learning rate rises."""
    clip: float = 5.0
    """Maximum norm of the gradient; a larger gradient is scaled down."""
    freeze: int = 2
    """Number of frozen stages of the backbone, 0 to 5; see `initialization.freeze`."""
    min_size: int | None = None
    max_size: int | None = None
    crop: int = DEFAULT_CROP
    """Side of the crops trained on, pixels; a multiple of 32. An SSD is trained on squares of its own size instead."""
    jitter: tuple[float, float] = (0.6, 1.4)
    """Range of the scale of a crop, relative to the scale at which the network sees the image in inference."""
    flips: str = "horizontal"
    color: float = 1.0
    """Strength of the changes of brightness, contrast and saturation (at 1: up to 40 %) and hue (at 1: up to 5 %)."""
    seed: int = 0
    max_detections: int = 100
    """Maximum number of instances per image in validation."""
    dtype: str = "float32"

    def __post_init__(self) -> None:
        checks = {
            "--epochs must be at least 1": self.epochs >= 1,
            "--batch-size must be at least 1": self.batch_size >= 1,
            f"--optimizer must be one of {', '.join(OPTIMIZERS)}": self.optimizer in OPTIMIZERS,
            "--learning-rate must be above 0": 0 < self.learning_rate < math.inf,
            "--weight-decay must be at least 0": 0 <= self.weight_decay < math.inf,
            f"--schedule must be one of {', '.join(SCHEDULES)}": self.schedule in SCHEDULES,
            "--clip must be above 0": self.clip > 0,
            "--crop must be a multiple of 32, at least 64": self.crop >= 64 and self.crop % 32 == 0,
            "--jitter must be two factors from above 0 to 16, the smaller first": 0
            < self.jitter[0]
            <= self.jitter[1]
            <= 16,
            f"--flips must be one of {', '.join(FLIPS)}": self.flips in FLIPS,
            "--color must be from 0 to 2": 0 <= self.color <= 2,
            "--seed must be from 0 to 2^31 - 1": 0 <= self.seed < 2**31,
            "--max-detections must be at least 1": self.max_detections >= 1,
            f"--freeze must be from 0 to {STAGES}": 0 <= self.freeze <= STAGES,
            f"--dtype must be one of {', '.join(DTYPES)}": self.dtype in DTYPES,
        }
        for rule, kept in checks.items():
            if not kept:
                raise UsageError(rule)


def identity_of(config: TrainingConfig, train_sha256: str, validation_sha256: str) -> str:
    """Return the identity of a training run as JSON: a checkpoint with another identity is refused."""
    return json.dumps(
        {CONFIG_KEY: asdict(config), "train": train_sha256, "validation": validation_sha256}, sort_keys=True
    )
