"""Reading the files that weights come in, without torch and without unpickling anything.

Both kinds say which tensors they hold, and of what shapes: a safetensors file in its header, a pickle in its
operations, followed here only as far as they make plain values. What does not fit is refused before a run.
"""

import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from safetensors import SafetensorError, deserialize

from ..errors import ItemError, RunError, UsageError
from ..io.inputs import read_input
from ..io.stores import store_of
from ..io.url import Url
from .matterport_config import MATTERPORT

Shape = tuple[int, ...]

_MAX_BYTES: Final = 8 * 2**30
_MAX_LABELS_BYTES: Final = 2**20


def check_store(uri: str, what: str) -> None:
    """Raise UsageError if a uri is of no store that is known here, as https:// is."""
    try:
        store_of(Url.parse(uri))
    except RunError as error:
        raise UsageError(f"the {what} cannot be read: {error}") from error


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
    check_store(uri, what)
    if Url.parse(uri).is_local and Path(uri).is_dir():
        raise UsageError(f"{uri} is a directory, not a {what} file")
    try:
        return read_input(uri, max_bytes)
    except ItemError as error:
        raise UsageError(f"the {what} file {uri} cannot be read: {error.message}") from error


# --- safetensors --------------------------------------------------------------------------------------------

_DTYPES: Final = frozenset("F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL".split())


def safetensors_header(shown: str, data: bytes) -> tuple[Any, dict[str, Shape]]:
    """Read the metadata and the tensors' shapes, and check that the file is as long as it says.

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
        metadata = header.pop("__metadata__", None)
        size = 8 + length + max(int(entry["data_offsets"][1]) for entry in header.values())
        shapes = {name: _shape(entry["shape"]) for name, entry in header.items()}
        unknown = {str(entry["dtype"]) for entry in header.values()} - _DTYPES
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{shown} is no safetensors file: its header cannot be read") from error
    if size != len(data):
        truncated = "is truncated: it " if size > len(data) else ""
        raise UsageError(f"{shown} {truncated}has {len(data)} bytes, its header says {size}")
    if unknown:
        raise UsageError(f"{shown} has tensors of the unknown type {min(unknown)!r}")
    return metadata, shapes


def check_safetensors(shown: str, data: bytes) -> None:
    """Raise UsageError if shapes, types and places of the tensors contradict each other."""
    try:
        deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise UsageError(f"{shown} is no valid safetensors file: {error}") from error


def _shape(sizes: Any) -> Shape:
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("a shape is no list of sizes")
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
"""What a pickle may name: what weights are made of, and what torchvision's training scripts keep beside them."""

_LITERALS: Final = frozenset("BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING".split())
_NEW: Final[Mapping[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TAKEN: Final = (  # items from the top of the stack; none: down to the last mark
    ("TUPLE", "APPENDS", "SETITEMS"),
    ("TUPLE1", "APPEND", "BUILD", "BINPERSID"),
    ("TUPLE2", "SETITEM", "REDUCE", "NEWOBJ"),
    ("TUPLE3",),
)
_TAKES: Final = {operation: count for count, operations in enumerate(_TAKEN) for operation in operations}
_DAMAGES: Final = (ValueError, LookupError, TypeError, AttributeError, OSError, RuntimeError, zlib.error)
_MAGIC: Final = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


class _Named(NamedTuple):
    """What a pickle has by a name; it is neither imported nor called."""

    name: str


class _Tensor(NamedTuple):
    shape: Shape


def tensors_in_pickle(uri: str, data: bytes) -> dict[str, Shape]:
    """Return the shapes of the tensors of a state dict that `torch.save` wrote, without running its pickle.

    Raises:
        UsageError: it is truncated, no such file, or holds anything else than a state dict and plain values.
    """
    try:
        for stream in _pickles(data):
            content = _content(uri, stream)
    except (*_DAMAGES, zipfile.BadZipFile) as error:
        what = "truncated or damaged" if data.startswith(b"PK") else "truncated, or no file of torch.save"
        raise UsageError(f"{uri} is {what}: {error}") from error
    state = state_dict_in(content)
    if not isinstance(state, dict):
        raise UsageError(f"{uri} holds a {_kind(state)}, not a state dict")
    shapes: dict[str, Shape] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, _Tensor):
            raise UsageError(f"{uri} is no state dict: it holds a {_kind(value)} at {key!r}")
        # Weights saved from a parallel wrapper have its prefix.
        shapes[key.removeprefix("module.")] = value.shape
    return shapes


def state_dict_in(content: Any) -> Any:
    """Return the state dict of a checkpoint, where one stands beside other things, or else the content."""
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    return content


def _pickles(data: bytes) -> Iterator[io.BytesIO]:
    """Yield where the pickles begin; the last one has the content."""
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            (name,) = (name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
            if archive.getinfo(name).file_size > len(data):
                raise ValueError("its pickle is compressed")
            yield io.BytesIO(archive.read(name))
        return
    # Before torch 1.6: a magic number, a version, the machine and the object, one pickle after another.
    if not data.startswith(_MAGIC):
        raise ValueError("it lacks torch's magic number")
    stream = io.BytesIO(data)
    for _ in range(4):
        yield stream


def _content(uri: str, stream: io.BytesIO) -> Any:
    """Follow a pickle as far as it makes plain values and says the shapes of tensors."""
    stack: list[Any] = []
    marked: list[list[Any]] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        operation = opcode.name
        if operation in _LITERALS:
            stack.append(argument)
        elif operation in _NEW:
            stack.append(_NEW[operation]())
        elif operation == "GLOBAL":
            stack.append(_named(uri, str(argument)))
        elif operation == "MARK":
            marked.append(stack)
            stack = []
        elif operation in ("BINPUT", "LONG_BINPUT"):
            memo[int(argument or 0)] = stack[-1]
        elif operation in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif operation in _TAKES:
            count = _TAKES[operation]
            items = stack[-count:]
            if count:
                del stack[-count:]
            else:
                stack = marked.pop()
            _apply(operation, stack, items)
        elif operation not in ("PROTO", "STOP"):
            raise UsageError(
                f"{uri} uses the pickle operation {operation}, which weights do not need and which is refused: "
                "write it with torch.save and its own protocol, or convert it to safetensors"
            )
    return stack.pop()


def _apply(operation: str, stack: list[Any], items: list[Any]) -> None:
    if operation.startswith("TUPLE"):
        stack.append(tuple(items))
    elif operation.startswith("APPEND"):
        stack[-1].extend(items)
    elif operation.startswith("SETITEM"):
        stack[-1].update(_entries(zip(items[::2], items[1::2], strict=True)))
    elif operation == "BINPERSID":
        stack.append(_Named("storage"))
    elif operation != "BUILD":  # which sets attributes
        stack.append(_called(*items))


def _called(function: _Named, arguments: tuple[Any, ...]) -> Any:
    name = function.name
    if name == "collections.OrderedDict":
        return dict(_entries(arguments[0] if arguments else ()))
    if name in _TENSORS:
        return _Tensor(_shape(arguments[2]))
    return arguments[0] if name in _PARAMETERS else function


def _entries(pairs: Iterable[Any]) -> Iterator[tuple[str | int, Any]]:
    # Other keys are not those of a state dict, and the hash of a tuple may take for ever.
    return ((key, value) for key, value in pairs if isinstance(key, str | int))


def _named(uri: str, argument: str) -> _Named:
    name = argument.replace(" ", ".").replace("__builtin__.", "builtins.")
    if name not in GLOBALS:
        raise UsageError(
            f"{uri} holds more than weights: its pickle names {name!r}, which could run any code when it is "
            "loaded and is not allowed; have its author convert the weights to safetensors"
        )
    return _Named(name)


def _kind(value: object) -> str:
    return value.name if isinstance(value, _Named) else type(value).__name__.strip("_")


# --- what the networks hold ---------------------------------------------------------------------------------

_LITE0: Final = ((3, 0, 16, 1), (3, 1, 24, 2), (5, 1, 40, 2), (3, 1, 80, 3), (5, 0, 112, 3), (5, 1, 192, 4))
"""Kernel, whether it halves the image, channels, repeats."""
_FPN: Final = ("inner_blocks", "layer_blocks")
_OLDER: Final = {
    "rpn.head.conv.": "rpn.head.conv.0.0.",
    **{f"roi_heads.mask_head.mask_fcn{i + 1}.": f"roi_heads.mask_head.{i}.0." for i in range(4)},
    **{f"backbone.fpn.{kind}.{i}.": f"backbone.fpn.{kind}.{i}.0." for kind in _FPN for i in range(4)},
}
"""What a layer was called before torchvision 0.13, which understands it, and is now."""


def check_tensors(shown: str, architecture: str, shapes: Mapping[str, Shape], labels: int) -> None:
    """Raise UsageError if a tensor of a network is missing, unknown, or of another shape."""
    expected = network_shapes(architecture, labels)
    shapes = {current_name(name): shape for name, shape in shapes.items()}
    # Frozen norms count no batches.
    missing = [name for name in expected.keys() - shapes.keys() if not name.endswith(".num_batches_tracked")]
    for names, fault in ((missing, "lacks"), (shapes.keys() - expected.keys(), "has the unknown")):
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UsageError(f"{shown} is no {architecture}: it {fault} tensor {min(names)!r}{others}")
    for name, shape in shapes.items():
        if shape != expected[name]:
            raise UsageError(f"{shown}: the tensor {name} has the shape {shape}, not {expected[name]}")


def network_shapes(architecture: str, labels: int) -> dict[str, Shape]:
    """Return the tensors of a network of `model.ARCHITECTURES`; the labels include the background."""
    shapes: dict[str, Shape] = {}

    def layer(name: str, *shape: int, norm: str | None = None) -> None:
        shapes[f"{name}.weight"] = shape
        for part in ("bias",) if norm is None else ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm or name}.{part}"] = shape[:1]
        if norm is not None and not frozen:
            shapes[f"{norm}.num_batches_tracked"] = ()

    if architecture in MATTERPORT:
        return _matterport(MATTERPORT[architecture], labels)
    frozen = architecture == "maskrcnn_resnet50_fpn_detectron2"  # norms which count no batches
    second, lite = architecture == "maskrcnn_resnet50_fpn_v2", architecture.endswith("lite0_fpn")
    trunk = _lite0(layer) if lite else _resnet18(layer) if "resnet18" in architecture else _resnet50(layer)
    width, inner = (96, 256) if lite else (256, 1024)
    blocks = [(f"backbone.fpn.inner_blocks.{i}", channels, 1) for i, channels in enumerate(trunk)]
    blocks += [(f"backbone.fpn.layer_blocks.{i}", width, 3) for i in range(4)]
    blocks += [(f"roi_heads.box_head.{i}", width, 3) for i in range(4 if second else 0)]
    blocks += [(f"roi_heads.mask_head.{i}", width, 3) for i in range(3 if lite else 4)]
    for name, before, kernel in blocks:
        layer(f"{name}.0", width, before, kernel, kernel, norm=f"{name}.1" if second else None)
    for i in range(2 if second else 1):
        layer(f"rpn.head.conv.{i}.0", width, width, 3, 3)
    layer("rpn.head.cls_logits", 3, width, 1, 1)
    layer("rpn.head.bbox_pred", 12, width, 1, 1)
    for name, before in (("5", width * 49),) if second else (("fc6", width * 49), ("fc7", inner)):
        layer(f"roi_heads.box_head.{name}", inner, before)
    layer("roi_heads.box_predictor.cls_score", labels, inner)
    layer("roi_heads.box_predictor.bbox_pred", labels * 4, inner)
    layer("roi_heads.mask_predictor.conv5_mask", width, width, 2, 2)
    layer("roi_heads.mask_predictor.mask_fcn_logits", labels, width, 1, 1)
    return shapes


def _matterport(depth: int, labels: int) -> dict[str, Shape]:
    """Return the tensors of matterport's network: convolutions have biases, and norms count no batches."""
    shapes: dict[str, Shape] = {}

    def layer(name: str, *shape: int, norm: str | None = None) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]
        for part in () if norm is None else ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = shape[:1]

    for i, channels in enumerate(_resnet50(layer, 23 if depth == 101 else 6)):
        layer(f"backbone.fpn.inner_blocks.{i}.0", 256, channels, 1, 1)
        layer(f"backbone.fpn.layer_blocks.{i}.0", 256, 256, 3, 3)
    layer("rpn.head.conv.0.0", 512, 256, 3, 3)
    layer("rpn.head.cls_logits", 6, 512, 1, 1)
    layer("rpn.head.bbox_pred", 12, 512, 1, 1)
    heads = "roi_heads"
    layer(f"{heads}.box_head.conv1", 1024, 256, 7, 7, norm=f"{heads}.box_head.bn1")
    layer(f"{heads}.box_head.conv2", 1024, 1024, 1, 1, norm=f"{heads}.box_head.bn2")
    layer(f"{heads}.box_predictor.cls_score", labels, 1024)
    layer(f"{heads}.box_predictor.bbox_pred", labels * 4, 1024)
    for i in range(4):
        layer(f"{heads}.mask_head.{i}.0", 256, 256, 3, 3, norm=f"{heads}.mask_head.{i}.1")
    layer(f"{heads}.mask_predictor.conv5_mask", 256, 256, 2, 2)
    layer(f"{heads}.mask_predictor.mask_fcn_logits", labels, 256, 1, 1)
    return shapes


def _resnet50(layer: Callable[..., None], third: int = 6) -> tuple[int, ...]:
    """Name the layers of a ResNet whose third stage has so many blocks: 6 of 50 layers, 23 of 101."""
    layer("backbone.body.conv1", 64, 3, 7, 7, norm="backbone.body.bn1")
    before = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (third, 256), (3, 512)), start=1):
        for i in range(blocks):
            name = f"backbone.body.layer{stage}.{i}"
            layer(f"{name}.conv1", width, before, 1, 1, norm=f"{name}.bn1")
            layer(f"{name}.conv2", width, width, 3, 3, norm=f"{name}.bn2")
            layer(f"{name}.conv3", width * 4, width, 1, 1, norm=f"{name}.bn3")
            if i == 0:
                layer(f"{name}.downsample.0", width * 4, before, 1, 1, norm=f"{name}.downsample.1")
            before = width * 4
    return 256, 512, 1024, 2048


def _resnet18(layer: Callable[..., None]) -> tuple[int, ...]:
    layer("backbone.body.conv1", 64, 3, 7, 7, norm="backbone.body.bn1")
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for i in range(2):
            name = f"backbone.body.layer{stage}.{i}"
            layer(f"{name}.conv1", width, before, 3, 3, norm=f"{name}.bn1")
            layer(f"{name}.conv2", width, width, 3, 3, norm=f"{name}.bn2")
            if before != width:
                layer(f"{name}.downsample.0", width, before, 1, 1, norm=f"{name}.downsample.1")
            before = width
    return 64, 128, 256, 512


def _lite0(layer: Callable[..., None]) -> tuple[int, ...]:
    layer("backbone.body.stem.1", 32, 3, 3, 3)
    before, block = 32, 0
    for kernel, halves, channels, repeats in _LITE0:
        for repeat in range(repeats):
            name, inner = f"backbone.body.blocks.{block}.layers", before * 6 if block else before
            at = (2 if block else 0) + (halves if repeat == 0 else 0)
            if block:
                layer(f"{name}.0", inner, before, 1, 1)
            layer(f"{name}.{at}", inner, 1, kernel, kernel)
            layer(f"{name}.{at + 2}", channels, inner, 1, 1)
            before, block = channels, block + 1
    return 24, 40, 112, 192


def current_name(name: str) -> str:
    """Return what torchvision calls a tensor today, from a name of today or before 0.13."""
    layer, dot, part = name.rpartition(".")
    return _OLDER.get(layer + dot, layer + dot) + part
