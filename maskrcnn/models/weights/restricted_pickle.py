"""The one reader of pickles: follows their operations and executes none of them.

Python's own unpickler, even where it may only name what is allowed, still calls it with the file's arguments: shapes
that fill the memory, states that a C extension trusts, keys whose hash never ends. Here the operations are read one
after another; only those that make plain values have an effect, and a format's `PickleRules` say what its global names
stand for. Nothing is imported or called by name. Time and memory are proportional to the file: what calls copy is
counted, and a file whose calls copy more than it contains is refused.
"""

import io
import pickletools
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ...errors import UsageError
from .file_kinds import DAMAGED

__all__ = [
    "CONTAINERS",
    "MAX_OPERATIONS",
    "DamageError",
    "GlobalName",
    "PickleRules",
    "dict_of_pairs",
    "kind_of",
    "read_pickle",
    "reason_of",
]

MAX_OPERATIONS: Final = 2_000_000
"""A longer pickle is refused. A checkpoint of 400 tensors with the state of its optimizer has some 50,000."""
_ALLOWANCE: Final = 4096
"""Of what is copied by calls, this much is not counted."""
_LONGEST_KEY: Final = 2**31
"""Larger numbers are no keys of weights, and may be chosen so that all have one hash."""

_NEW: Final[Mapping[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_ARGUMENTS: Final = {
    **dict.fromkeys(("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS"), 0),  # all above the last mark
    **dict.fromkeys(("TUPLE1", "APPEND", "BUILD", "BINPERSID"), 1),
    **dict.fromkeys(("TUPLE2", "SETITEM", "REDUCE", "NEWOBJ", "STACK_GLOBAL"), 2),
    "TUPLE3": 3,
}
"""The number of items that an operation takes from the top of the stack."""
_PUTS: Final = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GETS: Final = frozenset(("GET", "BINGET", "LONG_BINGET"))
_COPIES: Final = frozenset(("REDUCE", "NEWOBJ", "BUILD"))
"""The operations that may copy what was made before: a file may name the same list a thousand times."""
_NO_EFFECT: Final = frozenset(("PROTO", "FRAME", "STOP"))

CONTAINERS: Final = frozenset(
    """NONE NEWTRUE NEWFALSE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT GLOBAL MARK BINPUT LONG_BINPUT BINGET LONG_BINGET
    TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS BUILD REDUCE PROTO STOP""".split()
)
"""The operations that every pickle of weights consists of, besides those that push a literal."""


class GlobalName(NamedTuple):
    """A global that a pickle names; it is neither imported nor called."""

    name: str
    """Module and attribute, separated by a dot."""


class DamageError(ValueError):
    """A fault of a file of weights, in words for its user; other exceptions that damage causes have none."""


def reason_of(error: Exception) -> str:
    """Return why a file cannot be read, for the end of a message."""
    return str(error)[:200] if isinstance(error, DamageError) else DAMAGED


@dataclass(frozen=True, slots=True)
class PickleRules:
    """What a format may contain, and what its parts become."""

    literals: frozenset[str]
    """Operations that push their argument: numbers, text, bytes."""
    operations: frozenset[str]
    """All other operations that are allowed, those of `CONTAINERS` among them."""
    global_names: frozenset[str]
    """The globals that a pickle may name."""
    refused_global: str
    """The message for any other: with `{uri}` and `{name}`."""
    refused_operation: str
    """The message for an operation that is not allowed: with `{uri}` and `{operation}`."""
    call: Callable[[Any, Any], Any]
    """What a global becomes that is called with a tuple of arguments."""
    set_state: Callable[[Any, Any], None]
    """What is done where an object's state is set."""
    refer: Callable[[Any], Any] = lambda _: GlobalName("storage")
    """What a persistent id becomes, which refers to something outside of the pickle."""


def read_pickle(uri: str, data: bytes | io.BytesIO, rules: PickleRules) -> Any:
    """Return the content of one pickle, as far as its rules give it a meaning.

    Args:
        uri: the file's name in messages.
        data: the pickle; of a stream, what follows it is not read.
        rules: of the format.

    Raises:
        UsageError: it names a global or uses an operation that is not allowed, has more than `MAX_OPERATIONS`, or
            calls that copy more than it contains.
        ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError: it is damaged.
    """
    stack: list[Any] = []
    marked: list[list[Any]] = []
    memo: dict[int, Any] = {}
    copied = 0
    for number, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        operation = opcode.name
        if number > MAX_OPERATIONS:
            raise UsageError(f"{uri} has more than {MAX_OPERATIONS:,} operations, which no weights need")
        if operation in rules.literals:
            stack.append(argument)
        elif operation not in rules.operations:
            raise UsageError(rules.refused_operation.format(uri=uri, operation=operation))
        elif operation in _NEW:
            stack.append(_NEW[operation]())
        elif operation == "GLOBAL":
            stack.append(_global(uri, str(argument).replace(" ", "."), rules))
        elif operation == "MARK":
            marked.append(stack)
            stack = []
        elif operation in _PUTS:
            memo[len(memo) if operation == "MEMOIZE" else int(argument or 0)] = stack[-1]
        elif operation in _GETS:
            stack.append(memo[int(argument or 0)])
        elif operation not in _NO_EFFECT:
            items, stack = _arguments(_ARGUMENTS[operation], stack, marked)
            if operation in _COPIES:
                copied += _size(items[-1])
                if copied > (position or 0) + _ALLOWANCE:
                    raise UsageError(f"{uri} would unfold to many times its size, which no weights need")
            _apply(uri, operation, stack, items, rules)
    return stack.pop()


def _arguments(count: int, stack: list[Any], marked: list[list[Any]]) -> tuple[list[Any], list[Any]]:
    """Return the items that an operation takes, and the stack below them."""
    if not count:
        return stack, marked.pop()
    if len(stack) < count:
        raise DamageError("its stack is empty")
    items = stack[-count:]
    del stack[-count:]
    return items, stack


def _size(arguments: Any) -> int:
    """Return how much a call may copy of its arguments, or of a state: characters, bytes and entries."""
    parts = arguments if type(arguments) is tuple else (arguments,)
    return sum(len(each) for each in parts if isinstance(each, Sized))


def _apply(uri: str, operation: str, stack: list[Any], items: list[Any], rules: PickleRules) -> None:
    if operation == "STACK_GLOBAL":
        if not all(isinstance(part, str) for part in items):
            raise DamageError("the name of a global is not text")
        stack.append(_global(uri, f"{items[0]}.{items[1]}", rules))
    elif operation.startswith("TUPLE"):
        stack.append(tuple(items))
    elif operation == "LIST":
        stack.append(items)
    elif operation == "DICT":
        stack.append(_dict_of_items(items))
    elif operation.startswith("APPEND"):
        stack[-1].extend(items)
    elif operation.startswith("SETITEM"):
        stack[-1].update(_dict_of_items(items))
    elif operation == "BUILD":
        rules.set_state(stack[-1], items[0])
    elif operation == "BINPERSID":
        stack.append(rules.refer(items[0]))
    else:
        stack.append(rules.call(*items))


def _global(uri: str, name: str, rules: PickleRules) -> GlobalName:
    name = name.replace("__builtin__.", "builtins.")
    if name not in rules.global_names:
        raise UsageError(_refusal(uri, name, rules))
    return GlobalName(name)


def _refusal(uri: str, name: str, rules: PickleRules) -> str:
    """Return the message about a global that is not allowed."""
    shown = repr(name[:120])
    if name.startswith("__torch__."):
        return f"{uri} is a TorchScript archive, whose code ({shown}) is not allowed: {_SAVE_WEIGHTS}"
    if name.startswith("ultralytics.") or name in ("models.yolo.Model", "models.yolo.DetectionModel"):
        return f"{uri} is a YOLO model of Ultralytics ({shown}), which is not supported: only Mask R-CNN is"
    if name.rpartition(".")[2][:1].isupper():
        return (
            f"{uri} contains Python objects of the class {shown}, as a module saved whole does, which is not allowed: "
            f"{_SAVE_WEIGHTS}"
        )
    return rules.refused_global.format(uri=uri, name=shown)


_SAVE_WEIGHTS: Final = (
    "where it can be loaded, save the weights alone with torch.save(model.state_dict(), FILE)"
)


def _dict_of_items(items: list[Any]) -> dict[str | int, Any]:
    return dict_of_pairs(zip(items[::2], items[1::2], strict=True))


def dict_of_pairs(pairs: Iterable[Any]) -> dict[str | int, Any]:
    """Return the pairs whose key is text or a number: weights need no others, and a tuple's hash may never end."""
    return {
        key: value
        for key, value in pairs
        if isinstance(key, str) or (isinstance(key, int) and -_LONGEST_KEY < key < _LONGEST_KEY)
    }


def kind_of(value: object) -> str:
    """Return what messages call a value that was not expected."""
    return value.name if isinstance(value, GlobalName) else type(value).__name__.strip("_")
