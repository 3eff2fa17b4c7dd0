"""Keras weights files with matterport's keys, complete and damaged."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from matterport_oracle import script


def names_of(classes: int = 81, backbone: str = "resnet50") -> dict[str, tuple[int, ...]]:
    """Return path and shape of each dataset, for a number of classes, the background included."""
    names = {}
    for group, layer, base, shape, _ in script("make_weights").weights(backbone):
        own = tuple(classes * side // 81 if side in (81, 324) else side for side in shape)
        names[f"{group}/{layer}/{base}:0"] = own
    return names


def hollow(path: Path, names: dict[str, tuple[int, ...]], root: str = "", **changes: Any) -> None:
    """Write a file of zeros that takes no disk space."""
    with h5py.File(path, "w") as file:
        group = file.require_group(root) if root else file
        group.attrs["layer_names"] = [b"input_image"]
        group.create_group("input_image")
        for name, shape in names.items():
            group.create_dataset(name, shape, changes.get("dtype", "f4"), chunks=shape or None)


def filled(path: Path, arrays: dict[str, np.ndarray], root: str = "") -> None:
    """Write a file of these arrays, by path."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(f"{root}/{name}" if root else name, data=array)


def arrays_of(classes: int = 81) -> dict[str, np.ndarray]:
    """Return the oracle's arrays by path; with another number of classes the last layers keep their first rows."""
    arrays = {}
    shapes = names_of(classes)
    for group, layer, base, array in script("make_weights").generate("resnet50"):
        path = f"{group}/{layer}/{base}:0"
        arrays[path] = np.ascontiguousarray(array[tuple(slice(side) for side in shapes[path])])
    return arrays
