"""Read numpy arrays from the pickles of detectron2's model zoo with `restricted_pickle`, without unpickling.

Each array is made last, from its bytes, after its type and shape were checked against their number.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ..weights.restricted_pickle import (
    CONTAINERS,
    DamageError,
    GlobalName,
    PickleRules,
    dict_of_pairs,
    kind_of,
    read_pickle,
    reason_of,
)

__all__ = ["arrays_in_pickle"]

Array = NDArray[Any]

_NUMPY: Final = ("numpy.core.", "numpy._core.")
_GLOBALS: Final = frozenset(
    [
        *(f"{core}multiarray.{name}" for core in _NUMPY for name in ("_reconstruct", "scalar")),
        *(f"{core}numeric._frombuffer" for core in _NUMPY),
        *("numpy.ndarray", "numpy.dtype", "_codecs.encode", "collections.OrderedDict"),
        "builtins.bytes",  # of an empty array
    ]
)
_KINDS: Final = frozenset("f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1".split())

_LITERALS: Final = frozenset(
    """INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 STRING
    BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8""".split()
)


class _Dtype:
    def __init__(self, kind: str) -> None:
        self.kind, self.order = kind, "<"


class _Array:
    """An array as far as the pickle has described it."""

    def __init__(self) -> None:
        self.shape: Any = None
        self.dtype: Any = None
        self.data: Any = None
        self.columns_first = False


def arrays_in_pickle(uri: str, data: bytes) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays under `model` in a detectron2 pickle, and the plain values next to it.

    Args:
        uri: the file's name in messages.
        data: its bytes.

    Raises:
        UsageError: the file is truncated, not a pickle, names what is not allowed, or contains something else.
    """
    try:
        content = read_pickle(uri, data, _RULES)
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            keys = (
                ", ".join(str(key)[:40] for key in list(content)[:3])
                if isinstance(content, dict)
                else type(content).__name__
            )
            raise UsageError(
                f"{uri} is not a model of detectron2, which has a dict at 'model' (this contains {keys}): "
                "files of Caffe2 and Detectron1 are not supported"
            )
        arrays = {}
        made: dict[int, Array] = {}
        n_bytes = 0
        for name, value in content["model"].items():
            if not isinstance(name, str) or not isinstance(value, _Array):
                raise UsageError(f"{uri} contains a {kind_of(value).lower()} at {name!r}, not an array")
            if id(value) not in made:
                made[id(value)] = _made(name, value)
                n_bytes += made[id(value)].nbytes
                if n_bytes > len(data):
                    raise UsageError(f"{uri} has arrays of more bytes than the file itself")
            arrays[name] = made[id(value)]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{uri} is truncated, or not a pickle of weights: {reason_of(error)}") from error
    beside = {key: value for key, value in content.items() if isinstance(value, str | int | float)}
    return arrays, beside


def _called(function: Any, arguments: Any) -> Any:
    """Return what the named function would return for its arguments, as far as it is needed."""
    if not isinstance(function, GlobalName) or not isinstance(arguments, tuple):
        raise DamageError("it calls something that is not a function")
    name = function.name.rpartition(".")[2]
    if name == "_reconstruct":
        return _Array()
    if name == "dtype":
        if not isinstance(arguments[0], str):
            raise DamageError("a type of numbers is not named by a text")
        return _Dtype(arguments[0].lstrip("<=|"))
    if name == "encode":
        text, codec = arguments
        if codec not in ("latin1", "latin-1"):
            raise DamageError("it encodes text otherwise than as latin1")
        return text.encode("latin-1")
    if name == "bytes" and not arguments:
        return b""
    if name == "OrderedDict":
        return dict_of_pairs(arguments[0] if arguments else ())
    made = _Array()
    if name == "scalar":
        made.dtype, made.data = arguments
        made.shape = ()
    elif name == "_frombuffer":
        made.data, made.dtype, made.shape, order = arguments
        made.columns_first = order == "F"
    else:
        raise DamageError(f"it calls {function.name}")
    return made


def _build(thing: Any, state: Any) -> None:
    """Set the state of an array or a dtype, as its `__setstate__` would."""
    if isinstance(thing, _Dtype):
        thing.order = state[1]
        if state[2] is not None or state[3] is not None:
            raise DamageError("an array has a structured type")
    elif isinstance(thing, _Array):
        _, thing.shape, thing.dtype, thing.columns_first, thing.data = state
    else:
        raise DamageError(f"it sets the state of a {type(thing).__name__}")


def _made(name: str, array: _Array) -> Array:
    """Return the array, in its own memory."""
    kind = array.dtype.kind if isinstance(array.dtype, _Dtype) else None
    if kind not in _KINDS or array.dtype.order not in ("<", ">", "|", "="):
        raise DamageError(f"the tensor {name} has the type {kind}, which is not numeric")
    data = array.data.encode("latin-1") if isinstance(array.data, str) else array.data
    shape = array.shape
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise DamageError(f"the tensor {name} has no shape")
    if not isinstance(data, bytes | bytearray):
        raise DamageError(f"the tensor {name} has no bytes")
    dtype = np.dtype((">" if array.dtype.order == ">" else "<") + kind)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise DamageError(f"the tensor {name} has {len(data)} bytes, which do not fit its shape {shape}")
    flat = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
    return np.array(flat.reshape(shape, order="F" if array.columns_first else "C"), order="C")


_RULES: Final = PickleRules(
    literals=_LITERALS,
    operations=CONTAINERS | {"STACK_GLOBAL", "LIST", "DICT", "PUT", "GET", "MEMOIZE", "FRAME"},
    global_names=_GLOBALS,
    refused_global="{uri} contains more than arrays: its pickle names {name}, which could run any code when it is "
    "loaded and is not allowed",
    refused_operation="{uri} uses the pickle operation {operation}, which weights do not need and which is "
    "not allowed",
    call=_called,
    set_state=_build,
)
