"""Read files of `torch.save` without torch and without unpickling: what is in them, and the bytes of their tensors.

The names and shapes are in the operations of a pickle, which `restricted_pickle` follows; the values are beside it, as
entries of a zip archive, or, before torch 1.6, one after another behind the pickles.

References: torch/serialization.py, the functions `_save`, `_legacy_save` and `_legacy_load`.
"""

import dataclasses
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ...errors import UsageError
from ..architectures.network_shapes import Shape
from .file_kinds import DAMAGED, TORCH_MAGIC, ZIP
from .restricted_pickle import (
    CONTAINERS,
    DamageError,
    GlobalName,
    PickleRules,
    dict_of_pairs,
    read_pickle,
    reason_of,
)

__all__ = ["GLOBALS", "TENSOR_BYTES", "SavedTensor", "TorchFile", "namespace_of", "read_torch_file"]

_DTYPES: Final[Mapping[str, str]] = {
    f"torch.{name}Storage": dtype
    for name, dtype in (
        ("Double", "float64"), ("Float", "float32"), ("Half", "float16"), ("BFloat16", "bfloat16"),
        ("Byte", "uint8"), ("Char", "int8"), ("Short", "int16"), ("Int", "int32"), ("Long", "int64"),
        ("Bool", "bool"),
    )
}  # fmt: skip
"""torch's name of a type of numbers by that of its storage."""
TENSOR_BYTES: Final[Mapping[str | None, int]] = {
    None: 1, "bool": 1, "uint8": 1, "int8": 1, "float16": 2, "bfloat16": 2, "int16": 2, "float32": 4, "int32": 4,
    "float64": 8, "int64": 8,
}  # fmt: skip
"""The bytes of a number of each type, by torch's name of it."""
_TENSORS: Final = tuple(f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3"))
_PARAMETERS: Final = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
)
_PLAIN: Final = """
torch.storage.UntypedStorage torch.Size torch.device builtins.set builtins.bytearray builtins.complex _codecs.encode
collections.OrderedDict collections.Counter collections.defaultdict builtins.list builtins.dict builtins.int
builtins.float argparse.Namespace numpy.core.multiarray.scalar numpy._core.multiarray.scalar numpy.dtype
numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct numpy.ndarray
mmengine.logging.history_buffer.HistoryBuffer builtins.getattr
pathlib.PosixPath pathlib.WindowsPath pathlib._local.PosixPath pathlib._local.WindowsPath datetime.datetime
"""
_NAMESPACE: Final = "argparse.Namespace"
GLOBALS: Final = frozenset(
    (*_TENSORS, *_PARAMETERS, *_DTYPES, *(f"torch.{dtype}" for dtype in _DTYPES.values()), *_PLAIN.split())
)
"""The globals that a pickle may name: the parts of weights, and what training scripts store with them."""

_LITERALS: Final = frozenset("BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING".split())
_DAMAGES: Final = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, OSError, RuntimeError,
    zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


class _Storage(NamedTuple):
    key: str
    dtype: str | None
    """None: the tensors say it."""


class SavedTensor(NamedTuple):
    """A tensor as a file describes it."""

    shape: Shape
    dtype: str
    """torch's name of it, such as `float32`."""
    storage: str
    """The key of its storage, for `TorchFile.storage`."""
    offset: int
    """The place of its first number in the storage, as the strides counted in numbers."""
    strides: tuple[int, ...]


class _Namespace(NamedTuple):
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TorchFile:
    """A file of `torch.save`."""

    uri: str
    """Its name in messages."""
    content: Any
    """Dictionaries, lists, texts and numbers as they are; tensors as `SavedTensor`; of anything else its name."""
    _archive: zipfile.ZipFile | None
    _entry: str
    _places: Mapping[str, memoryview]

    def storage(self, key: str) -> bytes | memoryview:
        """Return the numbers of a storage, little-endian.

        Raises:
            UsageError: the file does not have them, or they are damaged.
        """
        try:
            return self._places[key] if self._archive is None else self._archive.read(self._entry + key)
        except _DAMAGES as error:
            raise UsageError(f"{self.uri} is truncated or damaged: {DAMAGED}") from error


def read_torch_file(uri: str, data: bytes) -> TorchFile:
    """Read a file that `torch.save` wrote.

    Args:
        uri: its name in messages.
        data: its bytes.

    Raises:
        UsageError: it is truncated, not of `torch.save`, or contains more than tensors and plain values.
    """
    try:
        return _of_zip(uri, data) if data.startswith(ZIP) else _of_pickles(uri, data)
    except _DAMAGES as error:
        what = "truncated or damaged" if data.startswith(ZIP) else "truncated, or not a file of torch.save"
        raise UsageError(f"{uri} is {what}: {reason_of(error)}") from error


def namespace_of(value: Any) -> Mapping[str, Any]:
    """Return the values of an `argparse.Namespace` that a file contains; nothing of another value."""
    return value.values if isinstance(value, _Namespace) else {}


def _of_zip(uri: str, data: bytes) -> TorchFile:
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries = {entry.filename: entry for entry in archive.infolist()}
    names = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if len(names) != 1:
        raise UsageError(f"{uri} is a zip archive, but not of torch.save: if it contains weights, unpack it")
    name = names[0]
    if sum(entry.file_size for entry in entries.values()) > len(data):
        raise DamageError("its pickle is compressed, which torch.save does not do")
    folder = name.removesuffix("data.pkl")
    if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
        raise DamageError("its numbers are big-endian")
    content = read_pickle(uri, archive.read(name), _RULES)
    return TorchFile(uri, content, archive, f"{folder}data/", {})


def _of_pickles(uri: str, data: bytes) -> TorchFile:
    """Read a file of before torch 1.6: magic number, version, machine, object, list of keys, and the storages."""
    if not data.startswith(TORCH_MAGIC):
        raise DamageError(f"it lacks torch's magic number; {DAMAGED}")
    stream = io.BytesIO(data)
    sizes: dict[str, int] = {}

    def refer(persistent_id: Any) -> _Storage:
        storage = _refer(persistent_id)
        sizes[storage.key] = TENSOR_BYTES[storage.dtype]
        return storage

    rules = dataclasses.replace(_RULES, refer=refer)
    *_, content, keys = (read_pickle(uri, stream, rules) for _ in range(5))
    places: dict[str, memoryview] = {}
    at = stream.tell()
    for key in keys:
        (count,) = struct.unpack_from("<q", data, at)
        end = at + 8 + count * sizes[key]
        if count < 0 or end > len(data):
            raise DamageError(f"a storage ends behind the end of the file; {DAMAGED}")
        places[key] = memoryview(data)[at + 8 : end]
        at = end
    return TorchFile(uri, content, None, "", places)


def _refer(persistent_id: Any) -> _Storage:
    """Return a storage by its persistent id: `storage`, type, key, device, count."""
    kind, name, key = persistent_id[:3]
    if kind != "storage" or not isinstance(name, GlobalName) or not isinstance(key, str):
        raise DamageError("it refers to something that is not a storage")
    if len(persistent_id) > 5 and persistent_id[5] is not None:
        raise DamageError("a storage is a part of another")
    return _Storage(key, _DTYPES.get(name.name))


def _tensor(arguments: Any) -> SavedTensor:
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, _Storage):
        raise DamageError("a tensor has no storage")
    dtype = storage.dtype or (arguments[6].name.removeprefix("torch.") if len(arguments) > 6 else "uint8")
    if dtype not in TENSOR_BYTES:
        raise DamageError(f"a tensor has the type {dtype[:40]}")
    for sizes in (shape, strides, (offset,)):
        if not isinstance(sizes, tuple) or not all(type(size) is int and size >= 0 for size in sizes):
            raise DamageError("the shape of a tensor is not a list of sizes")
    return SavedTensor(shape, dtype, storage.key, offset, strides)


def _call(function: Any, arguments: Any) -> Any:
    """Return the result of a call, as far as weights depend on it."""
    name = function.name
    if name == "collections.OrderedDict":
        return dict_of_pairs(arguments[0] if arguments else ())
    if name == "collections.defaultdict":
        return {}
    if name in _TENSORS:
        return _tensor(arguments)
    if name == _NAMESPACE:
        return _Namespace({})
    return arguments[0] if name in _PARAMETERS else function


def _set_state(thing: Any, state: Any) -> None:
    """Keep the values of an `argparse.Namespace`; the attributes of others have no effect on weights."""
    if isinstance(thing, _Namespace) and isinstance(state, dict):
        thing.values.update(state)


_RULES: Final = PickleRules(
    literals=_LITERALS,
    operations=CONTAINERS | {"EMPTY_SET", "BINPERSID", "NEWOBJ"},
    global_names=GLOBALS,
    refused_global="{uri} contains more than weights: its pickle names {name}, which could run any code when it is "
    "loaded and is not allowed; ask its author to convert the weights to safetensors",
    refused_operation="{uri} uses the pickle operation {operation}, which weights do not need: write it with "
    "torch.save and its default protocol, or convert it to safetensors",
    call=_call,
    set_state=_set_state,
    refer=_refer,
)
