"""Arrays in a pickle, which is followed and never run.

Python's own unpickler, even where it may name only what is allowed, still calls it with what the file says: shapes
that fill the memory, states that a C extension trusts, keys whose hash takes for ever. Here a pickle's operations are
read one after another, and only those that make plain values, dicts and numpy arrays mean anything. Each array is made
at the end, from its bytes, of a type and a shape that agree with their number.
"""

import math
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError

__all__ = ["arrays_in_pickle"]

Array = NDArray[Any]

MAX_OPERATIONS: Final = 2_000_000
"""A checkpoint of 400 arrays has some 10,000."""

_NUMPY: Final = ("numpy.core.", "numpy._core.")
_GLOBALS: Final = frozenset(
    [
        *(f"{core}multiarray.{name}" for core in _NUMPY for name in ("_reconstruct", "scalar")),
        *(f"{core}numeric._frombuffer" for core in _NUMPY),
        *("numpy.ndarray", "numpy.dtype", "_codecs.encode", "collections.OrderedDict"),
        *("builtins.bytes", "__builtin__.bytes"),  # of an empty array
    ]
)
_KINDS: Final = frozenset("f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1".split())

_LITERALS: Final = frozenset(
    """INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 STRING
    BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8""".split()
)
_NEW: Final[Mapping[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_TAKES: Final = {
    **dict.fromkeys(("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS"), 0),  # down to the last mark
    **dict.fromkeys(("TUPLE1", "APPEND", "BUILD"), 1),
    **dict.fromkeys(("TUPLE2", "SETITEM", "REDUCE", "STACK_GLOBAL"), 2),
    "TUPLE3": 3,
}
_PUTS: Final = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GETS: Final = frozenset(("GET", "BINGET", "LONG_BINGET"))
_IGNORED: Final = frozenset(("PROTO", "FRAME", "STOP"))


class _Named(NamedTuple):
    """What a pickle has by a name; it is neither imported nor called."""

    name: str


class _Dtype:
    def __init__(self, kind: str) -> None:
        self.kind, self.order = kind, "<"


class _Array:
    """An array as far as the pickle has told of it."""

    def __init__(self) -> None:
        self.shape: Any = None
        self.dtype: Any = None
        self.data: Any = None
        self.columns_first = False


def arrays_in_pickle(uri: str, data: bytes) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays below "model" of a detectron2 pickle, and the plain values beside it.

    Args:
        uri: what messages call the file.
        data: its bytes.

    Raises:
        UsageError: it is truncated, no pickle, names what is not allowed, or holds something else.
    """
    try:
        content = _content(uri, data)
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            keys = (
                ", ".join(map(str, list(content)[:3]))
                if isinstance(content, dict)
                else type(content).__name__
            )
            raise UsageError(
                f"{uri} is no model of detectron2, which has a dict at 'model' (this holds {keys}); "
                "files of Caffe2 and Detectron1 are not supported"
            )
        arrays = {}
        for name, value in content["model"].items():
            if not isinstance(name, str) or not isinstance(value, _Array):
                raise UsageError(f"{uri} holds a {_kind(value)} at {name!r}, not an array")
            arrays[name] = _made(name, value)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{uri} is truncated, or no pickle of weights: {str(error)[:200]}") from error
    beside = {key: value for key, value in content.items() if isinstance(value, str | int | float)}
    return arrays, beside


def _content(uri: str, data: bytes) -> Any:
    stack: list[Any] = []
    marked: list[list[Any]] = []
    memo: dict[int, Any] = {}
    for nth, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        operation = opcode.name
        if nth > MAX_OPERATIONS:
            raise UsageError(f"{uri} has more than {MAX_OPERATIONS:,} operations, which no weights need")
        if operation in _LITERALS:
            stack.append(argument)
        elif operation in _NEW:
            stack.append(_NEW[operation]())
        elif operation == "GLOBAL":
            stack.append(_named(uri, str(argument).replace(" ", ".")))
        elif operation == "MARK":
            marked.append(stack)
            stack = []
        elif operation in _PUTS:
            memo[len(memo) if operation == "MEMOIZE" else int(argument or 0)] = stack[-1]
        elif operation in _GETS:
            stack.append(memo[int(argument or 0)])
        elif operation in _TAKES:
            items, stack = _taken(_TAKES[operation], stack, marked)
            _apply(uri, operation, stack, items)
        elif operation not in _IGNORED:
            raise UsageError(
                f"{uri} uses the pickle operation {operation}, which weights do not need; refused"
            )
    return stack.pop()


def _taken(count: int, stack: list[Any], marked: list[list[Any]]) -> tuple[list[Any], list[Any]]:
    """Return the items that an operation takes, and the stack below them."""
    if not count:
        return stack, marked.pop()
    if len(stack) < count:
        raise ValueError("its stack is empty")
    return stack[-count:], stack[:-count]


def _apply(uri: str, operation: str, stack: list[Any], items: list[Any]) -> None:
    if operation == "STACK_GLOBAL":
        stack.append(_named(uri, f"{items[0]}.{items[1]}"))
    elif operation.startswith("TUPLE"):
        stack.append(tuple(items))
    elif operation == "LIST":
        stack.append(items)
    elif operation == "DICT":
        stack.append(_entries(items))
    elif operation.startswith("APPEND"):
        stack[-1].extend(items)
    elif operation.startswith("SETITEM"):
        stack[-1].update(_entries(items))
    elif operation == "BUILD":
        _build(stack[-1], items[0])
    else:
        stack.append(_called(*items))


def _entries(items: list[Any]) -> dict[str | int, Any]:
    # Other keys are not those of weights, and the hash of a tuple may take for ever.
    return {
        key: value for key, value in zip(items[::2], items[1::2], strict=True) if isinstance(key, str | int)
    }


def _named(uri: str, name: str) -> _Named:
    if name not in _GLOBALS:
        raise UsageError(
            f"{uri} holds more than arrays: its pickle names {name!r}, which could run any code when it is loaded "
            "and is refused"
        )
    return _Named(name)


def _called(function: Any, arguments: Any) -> Any:
    """Return what the function of a name would make of its arguments, as far as it is needed."""
    if not isinstance(function, _Named) or not isinstance(arguments, tuple):
        raise TypeError("it calls what is no function")
    name = function.name.rpartition(".")[2]
    if name == "_reconstruct":
        return _Array()
    if name == "dtype":
        return _Dtype(str(arguments[0]).lstrip("<=|"))
    if name == "encode":
        text, codec = arguments
        if codec not in ("latin1", "latin-1"):
            raise ValueError(f"it encodes text as {codec!r}")
        return text.encode("latin-1")
    if name == "bytes" and not arguments:
        return b""
    if name == "OrderedDict":
        return _entries([part for pair in (arguments[0] if arguments else ()) for part in pair])
    made = _Array()
    if name == "scalar":
        made.dtype, made.data = arguments
        made.shape = ()
    elif name == "_frombuffer":
        made.data, made.dtype, made.shape, order = arguments
        made.columns_first = order == "F"
    else:
        raise TypeError(f"it calls {function.name}")
    return made


def _build(thing: Any, state: Any) -> None:
    """Do what `__setstate__` of an array or a dtype does."""
    if isinstance(thing, _Dtype):
        thing.order = state[1]
        if state[2] is not None or state[3] is not None:
            raise ValueError("an array has a type with parts")
    elif isinstance(thing, _Array):
        _, thing.shape, thing.dtype, thing.columns_first, thing.data = state
    else:
        raise TypeError(f"it sets the state of a {type(thing).__name__}")


def _made(name: str, array: _Array) -> Array:
    """Return the array, of its own memory."""
    kind = array.dtype.kind if isinstance(array.dtype, _Dtype) else None
    if kind not in _KINDS or array.dtype.order not in ("<", ">", "|", "="):
        raise ValueError(f"the tensor {name} has the type {kind}, not one of numbers")
    data = array.data.encode("latin-1") if isinstance(array.data, str) else array.data
    shape = array.shape
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"the tensor {name} has no shape")
    if not isinstance(data, bytes | bytearray):
        raise TypeError(f"the tensor {name} has no bytes")
    dtype = np.dtype((">" if array.dtype.order == ">" else "<") + kind)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"the tensor {name} has {len(data)} bytes, and the shape {shape}")
    flat = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
    return np.array(flat.reshape(shape, order="F" if array.columns_first else "C"), order="C")


def _kind(value: object) -> str:
    return value.name if isinstance(value, _Named) else type(value).__name__.strip("_").lower()
