"""The moves of tensors from a file of another program to a network here, and the steps that a report lists."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UsageError
from ..architectures.network_shapes import Shape
from ..architectures.rcnn_config import RCNNConfig

__all__ = [
    "Move",
    "Origin",
    "Step",
    "first_side",
    "last_first",
    "misshapen",
    "moved",
    "padding",
    "shapes_of",
]


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of a network of detectron2 or MMDetection besides its tensors."""

    config: RCNNConfig | None = None
    """Its settings; None: those of the model zoo."""
    bgr: bool | None = None
    """Whether it reads blue first; None: as in the model zoo."""
    min_size: int | None = None
    """The length that the shorter side of an image is resized to, pixels, …; None: as in the model zoo."""
    max_size: int | None = None
    """… unless the longer side would then exceed this."""


@dataclass(frozen=True, slots=True)
class Step:
    """The conversion of one tensor, for the report."""

    source: str
    """Its name in the source; empty if the source does not have it."""
    target: str
    """Its name in the output file; empty if it was dropped."""
    action: str
    """taken, flipped, transposed, reordered, padded, rescaled, added or dropped."""
    shape: Shape
    """Its shape in the source."""
    new_shape: Shape
    """Its shape in the output file."""
    note: str
    """The reason, if it was not taken unchanged."""


@dataclass(frozen=True, slots=True)
class Move:
    """The target of a tensor, and the change that it needs."""

    source: str
    target: str
    shape: Shape
    action: str = "taken"
    note: str = ""
    change: Callable[[Tensor], Tensor] | None = None


def moved(uri: str, tensors: Mapping[str, Tensor], moves: list[Move]) -> tuple[dict[str, Tensor], list[Step]]:
    """Return the converted tensors by their new names, and the steps.

    Raises:
        UsageError: a tensor is missing, unknown, or has the wrong shape.
    """
    wanted = {move.source for move in moves if move.source}
    faults = [f"lacks the tensor {name}" for name in wanted - tensors.keys()]
    faults = [min(faults) + _others(len(faults))] if faults else []
    unknown = tensors.keys() - wanted
    if unknown:
        faults.append(f"has the unknown tensor {min(unknown)}{_others(len(unknown))}")
    if faults:
        raise UsageError(f"{uri} does not fit: it {', and '.join(faults)}")
    placed, steps = {}, []
    for move in moves:
        tensor = tensors[move.source] if move.source else torch.zeros(move.shape)
        if tuple(tensor.shape) != move.shape:
            raise UsageError(misshapen(uri, move.source, tensor, move.shape))
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UsageError(
                f"{uri}: the tensor {move.source} is not finite: the training diverged, or its values exceed float32"
            )
        if move.target.endswith("running_var") and bool((tensor < 0).any()):
            raise UsageError(f"{uri}: the tensor {move.source} contains variances, of which one is negative")
        new = move.change(tensor) if move.change is not None else tensor
        if move.action == "rescaled" and not torch.isfinite(new).all():
            raise UsageError(
                f"{uri}: with this --norm-eps the norm of {move.source} is infinite, since a variance is 0"
            )
        if move.target:
            placed[move.target] = (new.float() if new.is_floating_point() else new).contiguous()
        new_shape = tuple(new.shape) if move.target else ()
        shape = move.shape if move.source else ()
        steps.append(Step(move.source, move.target, move.action, shape, new_shape, move.note))
    return placed, steps


def _others(count: int) -> str:
    return f" and {count - 1} more" if count > 1 else ""


def misshapen(uri: str, name: str, tensor: Tensor, expected: Shape) -> str:
    """Return the message on a tensor of another shape."""
    return f"{uri}: the tensor {name} has the shape {tuple(tensor.shape)}, not {expected}"


def first_side(tensors: Mapping[str, Tensor], name: str) -> int:
    """Return the first dimension of a tensor; 2 if it is missing, which is reported later."""
    return tensors[name].shape[0] if name in tensors and tensors[name].ndim else 2


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return the shapes of tensors by their names."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def last_first(tensor: Tensor) -> Tensor:
    """Return the rows of a tensor with the last one first: the background."""
    return tensor.roll(1, 0)


def padding(rows: int) -> Callable[[Tensor], Tensor]:
    """Return a function that adds rows of zeros before those of a tensor: those of the background."""
    return lambda tensor: torch.cat([tensor.new_zeros(rows, *tensor.shape[1:]), tensor])
