"""Read the arrays of a Keras weights file with h5py, which the extra `convert` installs.

Only the content of the file itself is read: links to other files, and external data, are refused.
"""

import io
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ..weights.file_kinds import DAMAGED, HDF5, ZIP

__all__ = ["arrays_in_h5"]

_MAX_BYTES: Final = 4 * 2**30
_MAX_DEPTH: Final = 8
_MAX_ARRAYS: Final = 10_000


def arrays_in_h5(uri: str, data: bytes) -> dict[str, NDArray[np.float32]]:
    """Return the arrays of a file of `save_weights` or `model.save`, by layer and name, such as `conv1/kernel`.

    Raises:
        UsageError: the file is truncated, damaged, not of HDF5, or contains other types than floats, or a tensor
            twice; or h5py is not installed.
    """
    if not data.startswith(HDF5):
        raise UsageError(f"{uri} is not an HDF5 file: it is {_likely(data)}")
    try:
        import h5py  # noqa: PLC0415  an extra, which is not needed elsewhere
    except ImportError as error:
        raise UsageError(f"{uri} needs h5py: pip install 'maskrcnn-ray[convert]'") from error
    arrays: dict[str, NDArray[np.float32]] = {}
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            root = file.get("model_weights", file)  # where `model.save` puts them
            if not isinstance(root, h5py.Group):
                raise UsageError(f"{uri} is an HDF5 file, but not of Keras: its model_weights is not a group")
            found = list(_datasets(h5py, uri, root, ""))
            if sum(dataset.nbytes for _, dataset in found) > _MAX_BYTES:
                raise UsageError(f"{uri} has more than {_MAX_BYTES // 2**30} GiB of tensors, the limit")
            for path, dataset in found:
                name = "/".join(path.split("/")[-2:]).partition(":")[0]
                if name in arrays:
                    raise UsageError(f"{uri} has the tensor {name} twice")
                if dataset.dtype.kind != "f":
                    raise UsageError(f"{uri}: the tensor {name} has the type {dataset.dtype}, not floats")
                with np.errstate(
                    over="ignore"
                ):  # values that are too large become infinite, which the caller refuses
                    arrays[name] = np.asarray(dataset[()], np.float32)
    except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{uri} is truncated or damaged: {DAMAGED}") from error
    return arrays


def _datasets(h5py: Any, uri: str, group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the path and the dataset of each dataset below a group."""
    if path.count("/") > _MAX_DEPTH:
        raise UsageError(f"{uri} is not a file of Keras weights: its groups are nested too deeply")
    for index, name in enumerate(group):
        below = f"{path}/{name}" if path else str(name)
        if index > _MAX_ARRAYS:
            raise UsageError(f"{uri} is not a file of Keras weights: it has too many entries")
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise UsageError(f"{uri}: {below} is a link, which is refused")
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(h5py, uri, item, below)
        elif isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise UsageError(f"{uri}: the data of {below} is in another file, which is refused")
            yield below, item


def _likely(data: bytes) -> str:
    """Return what kind of file this is instead."""
    if data[:1] == b"\x80":
        return "a pickle, which is not opened"
    if data.startswith(ZIP):
        return "a zip archive, as .pth and .keras files are"
    return f"something else; {DAMAGED}"
