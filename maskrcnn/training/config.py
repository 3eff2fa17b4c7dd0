"""What a training is told: the recipe, and what follows from it without a network: order, rates, names.

Nothing here imports torch.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from ..errors import UsageError

LOSSES: Final = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
"""torchvision's names, in the order of the equations of `losses`."""
STAGES: Final = 5
"""Of each trunk; stage n halves the image for the n-th time."""
FLIPS: Final = ("none", "horizontal", "both")
SCHEDULES: Final = ("cosine", "step")
OPTIMIZERS: Final = ("adamw", "sgd")
DTYPES: Final = ("float32", "bfloat16")
MODEL: Final = "model.safetensors"
CHECKPOINT: Final = "checkpoint.pt"
LOG: Final = "log.csv"
RESULT: Final = "result.json"
COLUMNS: Final = ("epoch", *LOSSES, "loss", "mask_ap", "mask_ap50", "box_ap", "learning_rate", "seconds")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """What is computed. Equal recipes on equal datasets give equal weights on one kind of device.

    Raises:
        UsageError: a value is out of range.
    """

    model: str = "coco"
    """What to start from: as `warmstart.start` takes it."""
    epochs: int = 12
    batch_size: int = 4
    """Images a step, over all workers."""
    optimizer: str = "adamw"
    learning_rate: float = 5e-4
    """At its peak; the trunk learns at half of it."""
    weight_decay: float = 0.02
    schedule: str = "cosine"
    """`cosine` to nothing, or `step`: a tenth after two thirds of the steps, a hundredth after eight ninths."""
    warmup: float = 0.02
    """Share of the steps in which the rate rises."""
    clip: float = 5.0
    """The largest norm of a gradient."""
    freeze: int = 2
    """Stages of the trunk that stay as they are, 0 to 5."""
    min_size: int | None = None
    max_size: int | None = None
    crop: int = 512
    """Side of the crops that are learned from, pixels, a multiple of 32."""
    jitter: tuple[float, float] = (0.6, 1.4)
    """Range of the scale of a crop, times the scale at which the network will see the image."""
    flips: str = "horizontal"
    color: float = 1.0
    """How strongly brightness, contrast, saturation (up to 40 %) and hue (up to 5 %) change."""
    seed: int = 0
    max_detections: int = 100
    """The most instances an image when validating."""
    dtype: str = "float32"

    def __post_init__(self) -> None:
        checks = {
            "--epochs is at least 1": self.epochs >= 1,
            "--batch-size is at least 1": self.batch_size >= 1,
            f"--optimizer is one of {', '.join(OPTIMIZERS)}": self.optimizer in OPTIMIZERS,
            "--learning-rate is above 0": 0 < self.learning_rate < math.inf,
            "--weight-decay is at least 0": 0 <= self.weight_decay < math.inf,
            f"--schedule is one of {', '.join(SCHEDULES)}": self.schedule in SCHEDULES,
            "--clip is above 0": self.clip > 0,
            "--crop is a multiple of 32, at least 64": self.crop >= 64 and self.crop % 32 == 0,
            "--jitter is two factors, the smaller first": 0 < self.jitter[0] <= self.jitter[1] <= 16,
            f"--flips is one of {', '.join(FLIPS)}": self.flips in FLIPS,
            "--color is from 0 to 2": 0 <= self.color <= 2,
            "--seed is from 0 to 2^31 - 1": 0 <= self.seed < 2**31,
            "--max-detections is at least 1": self.max_detections >= 1,
            f"--freeze is from 0 to {STAGES}": 0 <= self.freeze <= STAGES,
            f"--dtype is one of {', '.join(DTYPES)}": self.dtype in DTYPES,
        }
        for rule, kept in checks.items():
            if not kept:
                raise UsageError(rule)


def steps_of(images: int, batch_size: int) -> int:
    """Return the steps of an epoch: whole batches, at least one."""
    return max(1, images // batch_size)


def order_of(epoch: int, images: int, recipe: TrainingConfig) -> list[list[int]]:
    """Return the rows of each batch of an epoch.

    Images that fill no whole batch wait for another epoch; fewer than a batch are taken again and again.
    """
    generator = np.random.default_rng([recipe.seed, 1, epoch])
    order = generator.permutation(images).tolist()
    steps, size = steps_of(images, recipe.batch_size), recipe.batch_size
    order = (order * (size // images + 1))[: steps * size]
    return [order[at : at + size] for at in range(0, steps * size, size)]


def learning_rate(done: float, recipe: TrainingConfig) -> float:
    """Compute the share of the peak rate after a share of the steps.

    >>> recipe = Recipe(warmup=0.1)
    >>> [round(learning_rate(done, recipe), 2) for done in (0.0, 0.1, 0.55, 1.0)]
    [0.01, 1.0, 0.5, 0.0]
    """
    if done < recipe.warmup:
        return 0.01 + 0.99 * done / recipe.warmup
    if recipe.schedule == "step":
        return 1.0 if done < 2 / 3 else 0.1 if done < 8 / 9 else 0.01
    return 0.002 + 0.998 * 0.5 * (
        1 + math.cos(math.pi * min(1.0, (done - recipe.warmup) / (1 - recipe.warmup)))
    )


def identity_of(recipe: TrainingConfig, train_sha256: str, validation_sha256: str) -> str:
    """Return what a checkpoint must agree with, as JSON."""
    return json.dumps(
        {"recipe": asdict(recipe), "train": train_sha256, "validation": validation_sha256}, sort_keys=True
    )
