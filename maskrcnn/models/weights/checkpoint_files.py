"""Read weights files without torch and without unpickling: the names and shapes of their tensors, and their metadata.

A safetensors file has the names and shapes in its header; `torch_files` reads those of `torch.save`. A file that does
not fit its network is thus refused before a run starts.
"""

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from safetensors import SafetensorError, deserialize

from ...errors import ItemError, RunError, UsageError, plural
from ...io.inputs import read_input
from ...io.schemes import store_of
from ...io.url import AZURE_ACCOUNT_PATTERN, Url, is_folder, is_there
from ..architectures.network_shapes import Shape
from .file_kinds import DAMAGED, other_kind
from .state_dicts import find_state_dict
from .torch_files import SavedTensor, TorchFile, namespace_of, read_torch_file

_MAX_BYTES: Final = 8 * 2**30
_MAX_TEXT_BYTES: Final = 2**20


_QUERY: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^?]*\?[^/]*=")
"""Matches the start of a URL with a query, as of a presigned one, also where a slash is missing."""
_USER: Final = re.compile(r"://[^/]*@")
_ONE_SLASH: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")


def check_store(uri: str, what: str) -> None:
    """Raise UsageError if a URI names a store that is not supported, such as https://, or may contain a secret.

    The message does not repeat it: it would be written into logs, and the URI into the record of a run.
    """
    url = Url.parse(uri)
    slash = None if url.is_local and url.key != uri else _ONE_SLASH.match(uri)
    if slash is not None and not is_there(uri.partition("/")[0]):
        raise UsageError(f"the {what} cannot be read: write {slash[1]}:// with two slashes")
    try:
        store_of(url)
    except RunError as error:
        raise UsageError(f"the {what} cannot be read: {error}") from error
    if _USER.search(uri) and not re.match(AZURE_ACCOUNT_PATTERN, uri):
        raise UsageError(
            f"the {what} cannot be read: a URL takes no user and password, and nothing stands before it"
        )
    if _QUERY.match(uri):
        raise UsageError(
            f"the {what} cannot be read: leave out what follows the `?` of {uri.partition('?')[0]}, which may be a "
            "token and would be recorded; credentials come from the environment"
        )


def read_weights(uri: str) -> bytes:
    """Return the bytes of a weights file, local or remote.

    Raises:
        UsageError: the file cannot be read, or is something else than weights, such as a web page.
    """
    data = _read(uri, "weights", _MAX_BYTES)
    if (what := other_kind(uri, data)) is not None:
        raise UsageError(f"{uri} {what}")
    return data


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of one network, as a training script or a library saved them."""

    names: Mapping[str, str]
    """The name in the file by the name in the network."""
    shapes: dict[str, Shape]
    """By the name in the network."""
    place: str
    """The keys under which they are, such as `ema.model`; empty: they are the whole file."""
    notice: str | None
    """What a user should know of how they were chosen."""
    arguments: Mapping[str, Any]
    """The arguments of the training script, where it stored them under `args`."""
    classes: tuple[str, ...]
    """The names of its classes, where MMDetection stored them under `meta`; distinct and not empty."""
    configuration: str | None
    """The text of the configuration that MMDetection stored there."""
    saved: Mapping[str, SavedTensor]
    """The tensors of a file of `torch.save`, by the name in the network; of a safetensors file none."""
    file: TorchFile | None
    """The file of `torch.save`; None: it is a safetensors file."""


def read_checkpoint(uri: str, data: bytes) -> Checkpoint:
    """Return the weights that a file of `torch.save` or a safetensors file contains, wherever they are in it.

    Args:
        uri: the file's name, by whose suffix a safetensors file is recognized.
        data: its bytes.

    Raises:
        UsageError: the file is damaged, or contains no weights, several networks, or more than weights and plain
            values.
    """
    if uri.lower().endswith(".safetensors"):
        _, header = safetensors_header(uri, data)
        check_safetensors(uri, data)
        found = find_state_dict(uri, header, lambda value: isinstance(value, tuple))
        shapes = {name: header[key] for name, key in found.names.items()}
        return Checkpoint(found.names, shapes, found.place, found.notice, {}, (), None, {}, None)
    file = read_torch_file(uri, data)
    found = find_state_dict(uri, file.content, lambda value: isinstance(value, SavedTensor))
    saved = {name: found.tensors[key] for name, key in found.names.items()}
    meta = file.content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    return Checkpoint(
        names=found.names,
        shapes={name: tensor.shape for name, tensor in saved.items()},
        place=found.place,
        notice=found.notice,
        arguments=namespace_of(file.content.get("args")),
        classes=_classes(meta),
        configuration=next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), None),
        saved=saved,
        file=file,
    )


def _classes(meta: Mapping[Any, Any]) -> tuple[str, ...]:
    """Return the names of classes in the metadata of MMDetection, versions 2 (`CLASSES`) and 3 (`dataset_meta`)."""
    dataset = meta.get("dataset_meta")
    for place in (dataset if isinstance(dataset, Mapping) else {}, meta):
        for key in ("classes", "CLASSES"):
            names = place.get(key)
            names = [names] if isinstance(names, str) else names
            if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
                usable = all(name.strip() for name in names) and len(set(names)) == len(names)
                return tuple(names) if usable else ()
    return ()


def read_text(uri: str, what: str) -> str:
    """Return the text of a small file, local or remote.

    Args:
        uri: its path or URL.
        what: it contains, in messages.

    Raises:
        UsageError: the file cannot be read, or is not UTF-8 text.
    """
    try:
        return _read(uri, what, _MAX_TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the {what} file {uri} is not UTF-8 text: {_CONTENT[what]}, saved as UTF-8"
        ) from error


def read_labels(uri: str) -> list[str]:
    """Return the category names of labels 1, 2, … from a file with one per line; empty for unused labels.

    Raises:
        UsageError: the file cannot be read, or names the background, no category at all, or a category twice.
    """
    text = read_text(uri, "labels")
    names = ["" if line.strip() == "N/A" else line.strip() for line in text.rstrip().splitlines()]
    if not any(names):
        raise UsageError(f"the labels file {uri} names no category: write one per line, from label 1")
    if names[0].strip("_").lower() == "background":
        raise UsageError(f"the labels file {uri} begins with the background: begin with label 1")
    for line, name in enumerate(names, start=1):
        if name and name in names[: line - 1]:
            raise UsageError(f"the labels file {uri} names {name!r} twice, the second time on line {line}")
    return names


_CONTENT: Final[Mapping[str, str]] = {
    "weights": "give a file with the weights alone, without the state of an optimizer",
    "labels": "give a text file with one category name per line, from label 1",
    "configuration": "give the config.yaml that detectron2's trainer wrote",
}
"""What a file should contain, for messages, by what it is."""


def _read(uri: str, what: str, max_bytes: int) -> bytes:
    if not uri.strip():
        raise UsageError(f"the name of the {what} file is empty: {_CONTENT[what]}")
    check_store(uri, what)
    if (url := Url.parse(uri)).is_local and is_folder(url.local_path):
        raise UsageError(f"{uri} is a directory, not a {what} file")
    try:
        return read_input(uri, max_bytes)
    except ItemError as error:
        # Of these two the store's messages advise what to do with an image.
        if error.code == "too_many_bytes":
            raise UsageError(
                f"the {what} file {uri} has more than {max_bytes:,} bytes: {_CONTENT[what]}"
            ) from error
        if error.code == "empty_file" and what != "weights":
            raise UsageError(f"the {what} file {uri} is empty: {_CONTENT[what]}") from error
        raise UsageError(f"the {what} file {uri} cannot be read: {error.message}") from error


# --- safetensors --------------------------------------------------------------------------------------------

_DTYPES: Final = frozenset("F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL".split())


def safetensors_header(shown: str, data: bytes) -> tuple[Any, dict[str, Shape]]:
    """Return the metadata and the shapes of the tensors; check that the file has the length that its header implies.

    Raises:
        UsageError: the file is truncated, or not a safetensors file.

    Reference: https://github.com/huggingface/safetensors#format
    """
    if len(data) < 8:
        raise UsageError(f"{shown} is truncated: {plural(len(data), 'byte')}; {DAMAGED}")
    (length,) = struct.unpack("<Q", data[:8])
    if length > len(data) - 8:
        raise UsageError(
            f"{shown} is truncated, or not a safetensors file: its header is longer than the file; {DAMAGED}"
        )
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__", None)
        size = 8 + length + max(int(entry["data_offsets"][1]) for entry in header.values())
        shapes = {name: _shape(entry["shape"]) for name, entry in header.items()}
        unknown = {str(entry["dtype"]) for entry in header.values()} - _DTYPES
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"{shown} is damaged, or not a safetensors file: its header cannot be read; {DAMAGED}"
        ) from error
    if size != len(data):
        truncated = "is truncated: it " if size > len(data) else ""
        raise UsageError(f"{shown} {truncated}has {len(data)} bytes, its header says {size}; {DAMAGED}")
    if unknown:
        raise UsageError(f"{shown} has tensors of the unknown type {min(unknown)!r}")
    return metadata, shapes


def check_safetensors(shown: str, data: bytes) -> None:
    """Raise UsageError if shapes, types and offsets of the tensors contradict each other."""
    try:
        deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise UsageError(f"{shown} is not a valid safetensors file ({error}): {DAMAGED}") from error


def _shape(sizes: Any) -> Shape:
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("a shape is not a list of sizes")
    return tuple(sizes)
