"""Reading the files that weights come in, without torch and without unpickling anything.

A pickle is only searched for the names in it; a safetensors file says in its header what it holds.
"""

import io
import json
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from .errors import ItemError, UsageError
from .storage import is_remote, read_input

_MAX_BYTES: Final = 8 * 2**30
_MAX_LABELS_BYTES: Final = 2**20


def read_weights(uri: str) -> bytes:
    """Return the bytes of a weights file, local or remote.

    Raises:
        UsageError: it cannot be read, or is a web page or a Git LFS pointer.
    """
    data = _read(uri, "weights", _MAX_BYTES)
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UsageError(f"{uri} is a web page, not weights: was its URL that of a download?")
    if start.startswith(b"version https://git-lfs"):
        raise UsageError(f"{uri} is a Git LFS pointer, not weights: fetch it with `git lfs pull`")
    return data


def safetensors_header(shown: str, data: bytes) -> dict[str, Any]:
    """Read the header, and check that the file is as long as it says.

    Raises:
        UsageError: it is truncated, or no such file.

    Reference: https://github.com/huggingface/safetensors#format
    """
    if len(data) < 8:
        raise UsageError(f"{shown} is truncated: {len(data)} bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if length > len(data) - 8:
        raise UsageError(f"{shown} is truncated, or no safetensors file: its header is longer than the file")
    try:
        header = json.loads(data[8 : 8 + length])
        end = max(int(entry["data_offsets"][1]) for key, entry in header.items() if key != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise UsageError(f"{shown} is no safetensors file: its header cannot be read") from error
    if end != len(data) - 8 - length:
        raise UsageError(f"{shown} is truncated: {len(data)} bytes of {8 + length + end}")
    return dict(header)


def names_in_pickle(uri: str, data: bytes) -> frozenset[str]:
    """Return all strings of a file that `torch.save` wrote, without running its pickle.

    Raises:
        UsageError: it is truncated, or no such file.
    """
    try:
        return frozenset(
            argument
            for pickle in _pickles(data)
            for _, argument, _ in pickletools.genops(pickle)
            if isinstance(argument, str)
        )
    except (ValueError, IndexError, KeyError, zipfile.BadZipFile, OSError) as error:
        what = "truncated" if data.startswith(b"PK") else "truncated, or no file of torch.save"
        raise UsageError(f"{uri} is {what}: {error}") from error


def read_labels(uri: str) -> list[str]:
    """Return the category names of labels 1, 2, … from a file of one a line; empty for unused labels.

    Raises:
        UsageError: it cannot be read, or names the background, nothing, or a category twice.
    """
    try:
        text = _read(uri, "labels", _MAX_LABELS_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"the labels file {uri} is no UTF-8 text") from error
    names = ["" if line.strip() == "N/A" else line.strip() for line in text.rstrip().splitlines()]
    if not any(names):
        raise UsageError(f"the labels file {uri} names no category")
    if names[0].strip("_").lower() == "background":
        raise UsageError(f"the labels file {uri} begins with the background: begin with label 1")
    for line, name in enumerate(names, start=1):
        if name and name in names[: line - 1]:
            raise UsageError(f"the labels file {uri} names {name!r} twice, the second time on line {line}")
    return names


def _read(uri: str, what: str, max_bytes: int) -> bytes:
    if not is_remote(uri) and Path(uri).is_dir():
        raise UsageError(f"{uri} is a directory, not a {what} file")
    try:
        return read_input(uri, max_bytes)
    except ItemError as error:
        raise UsageError(f"the {what} file {uri} cannot be read: {error.message}") from error


def _pickles(data: bytes) -> Iterator[io.BytesIO]:
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    yield io.BytesIO(archive.read(name))
        return
    # Before torch 1.6: a magic number, a version, the machine and the object, one pickle after another.
    stream = io.BytesIO(data)
    for _ in range(4):
        yield stream
