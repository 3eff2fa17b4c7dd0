"""Whether the numbers of a file of weights are there and finite, without torch: known before a run starts."""

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from .checkpoint_files import Checkpoint
from .torch_files import TENSOR_BYTES, SavedTensor

__all__ = ["check_checkpoint_values", "check_safetensors_values"]

_EXPONENTS: Final[Mapping[str, tuple[int, int]]] = {
    "float64": (8, 0x7FF0_0000_0000_0000), "float32": (4, 0x7F80_0000), "float16": (2, 0x7C00), "bfloat16": (2, 0x7F80),
    "F64": (8, 0x7FF0_0000_0000_0000), "F32": (4, 0x7F80_0000), "F16": (2, 0x7C00), "BF16": (2, 0x7F80),
}  # fmt: skip
"""Of each floating-point type, by torch's and by safetensors' name, the bytes of a number, and the bits of its
exponent: all of them are set in infinity and NaN."""


def check_safetensors_values(shown: str, data: bytes, names: Mapping[str, str] | None = None) -> None:
    """Check that the numbers of a safetensors file are finite.

    Args:
        shown: the file's name in messages.
        data: its bytes; its header is valid.
        names: the tensors to check, by their names in messages; None: all.

    Raises:
        UsageError: one is not finite.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    for name, key in (names or {key: key for key in header}).items():
        if (kind := header[key]["dtype"]) in _EXPONENTS:
            size = _EXPONENTS[kind][0]
            first, end = header[key]["data_offsets"]
            _check(shown, name, kind, np.frombuffer(data, f"<u{size}", (end - first) // size, start + first))


def check_checkpoint_values(shown: str, checkpoint: Checkpoint, data: bytes) -> None:
    """Check that the weights of a checkpoint are there and finite.

    Args:
        shown: the file's name in messages.
        checkpoint: what `read_checkpoint` returned for the file.
        data: the file's bytes.

    Raises:
        UsageError: the file is damaged, or a number is not finite.
    """
    if checkpoint.file is None:
        check_safetensors_values(shown, data, checkpoint.names)
        return
    storages: dict[str, bytes | memoryview] = {}
    for name, tensor in checkpoint.saved.items():
        if tensor.storage not in storages:
            storages[tensor.storage] = checkpoint.file.storage(tensor.storage)
        bits = _bits(shown, name, tensor, storages[tensor.storage])
        if tensor.dtype in _EXPONENTS:
            _check(shown, name, tensor.dtype, bits)


def _bits(shown: str, name: str, tensor: SavedTensor, storage: bytes | memoryview) -> NDArray[Any]:
    """Return the numbers of a tensor as unsigned integers of the same size."""
    size = TENSOR_BYTES[tensor.dtype]
    if 0 in tensor.shape:
        return np.empty(0, f"<u{size}")
    strides = tuple(size * stride for stride in tensor.strides)
    try:
        return np.ndarray(tensor.shape, f"<u{size}", storage, size * tensor.offset, strides)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{shown} is damaged: the tensor {name} does not fit its numbers") from error


def _check(shown: str, name: str, kind: str, bits: NDArray[Any]) -> None:
    exponent = bits.dtype.type(_EXPONENTS[kind][1])
    if ((bits & exponent) == exponent).any():
        raise UsageError(f"{shown}: the tensor {name} is not finite: the training diverged")
