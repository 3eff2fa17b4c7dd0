"""Read weights files without torch and without unpickling: the names and shapes of their tensors, and their metadata.

A safetensors file has the names and shapes in its header, a file of `torch.save` in the operations of its pickle, which
`restricted_pickle` follows. A file that does not fit its network is thus refused before a run starts.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from safetensors import SafetensorError, deserialize

from ..errors import ItemError, RunError, UsageError
from ..io.inputs import read_input
from ..io.schemes import store_of
from ..io.url import Url
from .network_shapes import Shape
from .restricted_pickle import CONTAINERS, PickleRules, dict_of_pairs, kind_of, read_pickle

_MAX_BYTES: Final = 8 * 2**30
_MAX_LABELS_BYTES: Final = 2**20


def check_store(uri: str, what: str) -> None:
    """Raise UsageError if a URI names a store that is not supported, such as https://."""
    try:
        store_of(Url.parse(uri))
    except RunError as error:
        raise UsageError(f"the {what} cannot be read: {error}") from error


def read_weights(uri: str) -> bytes:
    """Return the bytes of a weights file, local or remote.

    Raises:
        UsageError: the file cannot be read, or is a web page or a Git LFS pointer.
    """
    data = _read(uri, "weights", _MAX_BYTES)
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UsageError(f"{uri} is a web page, not weights: was its URL that of a download?")
    if start.startswith(b"version https://git-lfs"):
        raise UsageError(f"{uri} is a Git LFS pointer, not weights: fetch it with `git lfs pull`")
    return data


def read_labels(uri: str) -> list[str]:
    """Return the category names of labels 1, 2, … from a file with one per line; empty for unused labels.

    Raises:
        UsageError: the file cannot be read, or names the background, no category at all, or a category twice.
    """
    try:
        text = _read(uri, "labels", _MAX_LABELS_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"the labels file {uri} is not UTF-8 text: save it as UTF-8") from error
    names = ["" if line.strip() == "N/A" else line.strip() for line in text.rstrip().splitlines()]
    if not any(names):
        raise UsageError(f"the labels file {uri} names no category: write one per line, from label 1")
    if names[0].strip("_").lower() == "background":
        raise UsageError(f"the labels file {uri} begins with the background: begin with label 1")
    for line, name in enumerate(names, start=1):
        if name and name in names[: line - 1]:
            raise UsageError(f"the labels file {uri} names {name!r} twice, the second time on line {line}")
    return names


def _read(uri: str, what: str, max_bytes: int) -> bytes:
    check_store(uri, what)
    if (url := Url.parse(uri)).is_local and url.local_path.is_dir():
        raise UsageError(f"{uri} is a directory, not a {what} file")
    try:
        return read_input(uri, max_bytes)
    except ItemError as error:
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
        raise UsageError(f"{shown} is truncated: {len(data)} bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if length > len(data) - 8:
        raise UsageError(
            f"{shown} is truncated, or not a safetensors file: its header is longer than the file"
        )
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__", None)
        size = 8 + length + max(int(entry["data_offsets"][1]) for entry in header.values())
        shapes = {name: _shape(entry["shape"]) for name, entry in header.items()}
        unknown = {str(entry["dtype"]) for entry in header.values()} - _DTYPES
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{shown} is not a safetensors file: its header cannot be read") from error
    if size != len(data):
        truncated = "is truncated: it " if size > len(data) else ""
        raise UsageError(f"{shown} {truncated}has {len(data)} bytes, its header says {size}")
    if unknown:
        raise UsageError(f"{shown} has tensors of the unknown type {min(unknown)!r}")
    return metadata, shapes


def check_safetensors(shown: str, data: bytes) -> None:
    """Raise UsageError if shapes, types and offsets of the tensors contradict each other."""
    try:
        deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise UsageError(f"{shown} is not a valid safetensors file: {error}") from error


def _shape(sizes: Any) -> Shape:
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("a shape is not a list of sizes")
    return tuple(sizes)


# --- pickles ------------------------------------------------------------------------------------------------

_TENSORS: Final = tuple(f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3"))
_PARAMETERS: Final = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
)
_PLAIN: Final = """
torch.DoubleStorage torch.FloatStorage torch.HalfStorage torch.BFloat16Storage torch.ByteStorage torch.CharStorage
torch.ShortStorage torch.IntStorage torch.LongStorage torch.BoolStorage torch.storage.UntypedStorage
torch.float64 torch.float32 torch.float16 torch.bfloat16 torch.uint8 torch.int8 torch.int16 torch.int32 torch.int64
torch.bool torch.Size torch.device builtins.set builtins.bytearray builtins.complex _codecs.encode
collections.OrderedDict collections.Counter argparse.Namespace
"""
GLOBALS: Final = frozenset((*_TENSORS, *_PARAMETERS, *_PLAIN.split()))
"""The globals that a pickle may name: the parts of weights, and what torchvision's training scripts store with them."""

_LITERALS: Final = frozenset("BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING".split())
_DAMAGES: Final = (ValueError, LookupError, TypeError, AttributeError, OSError, RuntimeError, zlib.error)
_MAGIC: Final = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


class _Tensor(NamedTuple):
    shape: Shape


def tensors_in_pickle(uri: str, data: bytes) -> dict[str, Shape]:
    """Return the shapes of the tensors of a state dict that `torch.save` wrote, without unpickling it.

    Raises:
        UsageError: the file is truncated, not of `torch.save`, or contains more than a state dict and plain values.
    """
    try:
        for stream in _pickles(data):
            content = read_pickle(uri, stream, _RULES)
    except (*_DAMAGES, zipfile.BadZipFile) as error:
        what = "truncated or damaged" if data.startswith(b"PK") else "truncated, or not a file of torch.save"
        raise UsageError(f"{uri} is {what}: {error}") from error
    state = state_dict_in(content)
    if not isinstance(state, dict):
        raise UsageError(f"{uri} contains a {kind_of(state)}, not a state dict")
    shapes: dict[str, Shape] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, _Tensor):
            raise UsageError(f"{uri} is not a state dict: it contains a {kind_of(value)} at {key!r}")
        # Weights saved from a DataParallel wrapper have its prefix.
        shapes[key.removeprefix("module.")] = value.shape
    return shapes


def state_dict_in(content: Any) -> Any:
    """Return the state dict of a checkpoint that stores it under `model` or `state_dict`, else the content itself."""
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    return content


def _pickles(data: bytes) -> Iterator[io.BytesIO]:
    """Yield a stream at the start of each pickle; the last one has the content."""
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            (name,) = (name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
            if archive.getinfo(name).file_size > len(data):
                raise ValueError("its pickle is compressed, which torch.save does not do")
            yield io.BytesIO(archive.read(name))
        return
    # Before torch 1.6: magic number, version, machine and object, one pickle after another.
    if not data.startswith(_MAGIC):
        raise ValueError("it lacks torch's magic number")
    stream = io.BytesIO(data)
    for _ in range(4):
        yield stream


def _call(function: Any, arguments: Any) -> Any:
    """Return the result of a call, as far as the shapes depend on it."""
    name = function.name
    if name == "collections.OrderedDict":
        return dict_of_pairs(arguments[0] if arguments else ())
    if name in _TENSORS:
        return _Tensor(_shape(arguments[2]))
    return arguments[0] if name in _PARAMETERS else function


_RULES: Final = PickleRules(
    literals=_LITERALS,
    operations=CONTAINERS | {"EMPTY_SET", "BINPERSID", "NEWOBJ"},
    global_names=GLOBALS,
    refused_global="{uri} contains more than weights: its pickle names {name}, which could run any code when it is "
    "loaded and is not allowed; ask its author to convert the weights to safetensors",
    refused_operation="{uri} uses the pickle operation {operation}, which weights do not need: write it with "
    "torch.save and its default protocol, or convert it to safetensors",
    call=_call,
    set_state=lambda _, __: None,  # attributes have no effect on shapes
)
