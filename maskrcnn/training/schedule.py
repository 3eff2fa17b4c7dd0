"""The course of a training: steps of an epoch, order of the images, learning rate."""

import math

import numpy as np

from .config import TrainingConfig


def steps_of(images: int, batch_size: int) -> int:
    """Return the number of steps of an epoch: the number of whole batches, at least one."""
    return max(1, images // batch_size)


def order_of(epoch: int, images: int, config: TrainingConfig) -> list[list[int]]:
    """Return the rows of each batch of an epoch, in an order drawn from the seed and the epoch.

    Images left over after the last whole batch are not used in this epoch. A dataset smaller than a batch is repeated
    to fill it.
    """
    generator = np.random.default_rng([config.seed, 1, epoch])
    order = generator.permutation(images).tolist()
    steps, size = steps_of(images, config.batch_size), config.batch_size
    order = (order * (size // images + 1))[: steps * size]
    return [order[at : at + size] for at in range(0, steps * size, size)]


def learning_rate(done: float, config: TrainingConfig) -> float:
    """Compute the learning rate as a share of its peak, after a share of the steps.

    >>> config = TrainingConfig(warmup=0.1)
    >>> [round(learning_rate(done, config), 2) for done in (0.0, 0.1, 0.55, 1.0)]
    [0.01, 1.0, 0.5, 0.0]
    """
    if done < config.warmup:
        return 0.01 + 0.99 * done / config.warmup
    if config.schedule == "step":
        return 1.0 if done < 2 / 3 else 0.1 if done < 8 / 9 else 0.01
    return 0.002 + 0.998 * 0.5 * (
        1 + math.cos(math.pi * min(1.0, (done - config.warmup) / (1 - config.warmup)))
    )
