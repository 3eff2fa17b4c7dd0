"""Segment a collection from Python, without Ray: for a notebook, a debugger, a script."""

import dataclasses
import numbers
import operator
import os
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, Final, get_args

from maskrcnn.config import Device, InferenceConfig, ResourceConfig
from maskrcnn.errors import UsageError
from maskrcnn.formats.coco_writer import MODES
from maskrcnn.io.archives.sidecars import check_suffixes
from maskrcnn.io.storage import Storage
from maskrcnn.models.own.own_arguments import checked_arguments
from maskrcnn.results.run import Run, open_run

from .planning import Request, absolute
from .run import run_segment

DTYPES: Final = ("float32", "bfloat16", "float16")
_WORDS: Final[dict[type, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
}


def segment_collection(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None,
    images_root: str | os.PathLike[str] | None,
    shard_images: int | None,
    coco: str,
    device: Device,
    batch_size: int | None,
    threads: int | None,
    dtype: str | None,
    strict: bool,
    update: bool,
    **inference: Any,
) -> Run:
    """Do what `maskrcnn.segment_collection` says, whose arguments these are.

    Raises:
        UsageError: an argument is wrong, or OUTPUT holds another run.
        RunError: the run stopped before its end.
    """
    types = {field.name: field.type for field in dataclasses.fields(InferenceConfig)}
    if unknown := sorted(inference.keys() - types):
        raise UsageError(
            f"segment_collection has no argument {unknown[0]!r}: it has {', '.join(sorted(types))}"
        )
    for name, value, allowed in (
        ("device", device, get_args(Device)),
        ("coco", coco, MODES),
        ("dtype", dtype, (*DTYPES, None)),
    ):
        if not (value is None or isinstance(value, str)) or value not in allowed:
            raise UsageError(f"{name} must be one of {', '.join(filter(None, allowed))}, not {_shown(value)}")
    source, output = _path("source", source), _path("output", output)
    model = absolute(_path("model", model))
    labels = absolute(_path("labels", labels)) if labels else None
    images_root = _path("images_root", images_root) if images_root else None
    counts = {"batch_size": batch_size, "threads": threads, "shard_images": shard_images}
    batch_size, threads, shard_images = (
        _checked(name, number, int | None) for name, number in counts.items()
    )
    arguments = inference.pop("model_args", None) or {}
    if not isinstance(arguments, Mapping):
        raise UsageError(f"model_args must be a dict of arguments, not {_shown(arguments)}")
    categories = _names("categories", inference.pop("categories", ()))
    sidecars = check_suffixes(_names("sidecars", inference.pop("sidecars", ())))
    inference = {name: _checked(name, value, types[name]) for name, value in inference.items()}
    request = Request(
        source,
        output,
        InferenceConfig(
            model,
            labels,
            categories=categories,
            model_args=checked_arguments(arguments),
            sidecars=sidecars,
            **inference,
        ),
        shard_images,
        images_root,
        coco,
        _checked("strict", strict, bool),
        _checked("update", update, bool),
    )
    resources = ResourceConfig(device, batch_size, dtype, threads, ray=False)
    run_segment(request, resources, None)
    return open_run(Storage(request.output).url)


def _path(name: str, value: Any) -> str:
    """Return an argument that is a path or a URL, as text. Raises UsageError if it is not."""
    if isinstance(value, str | os.PathLike) and isinstance(path := os.fspath(value), str):
        return path
    several = isinstance(value, Iterable) and not isinstance(value, bytes)
    hint = (
        ": write the paths of the images into a .txt file, one per line, and pass its path" if several else ""
    )
    raise UsageError(f"{name} must be a path or a URL, not {_shown(value)}{hint}")


def _names(name: str, value: Any) -> tuple[str, ...]:
    """Return an argument that is a name, names, or None for none, in their order. Raises UsageError if it is not."""
    names: list[Any] = [value]
    if value is None or (isinstance(value, Iterable) and not isinstance(value, str)):
        names = list(value or ())
    if all(isinstance(each, str) for each in names):
        return tuple(sorted(set(names)))
    raise UsageError(f"{name} must be a list of names, not {_shown(value)}")


def _checked(name: str, value: Any, kind: Any) -> Any:
    """Return an argument as a value of its type, to which numbers of numpy are converted.

    Args:
        name: of the argument.
        value: of any type.
        kind: the type of a field of `InferenceConfig`: `int`, `float`, `bool` or `str`, or one of them or None.

    Raises:
        UsageError: it is of another type.
    """
    kinds = get_args(kind) or (kind,)
    if value is None and NoneType in kinds:
        return None
    [kind] = [each for each in kinds if each is not NoneType]
    if kind in (bool, str) and isinstance(value, kind):
        return value
    if kind is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return operator.index(value)
    if kind is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    raise UsageError(f"{name} must be {_WORDS[kind]}, not {_shown(value)}")


def _shown(value: Any) -> str:
    """Return a value of the wrong type as a message shows it: in one line, and not all of a list.

    >>> _shown("3"), _shown(None), _shown([1, 2]), _shown(b"x")
    ("'3'", 'None', 'a list', 'bytes')
    """
    if value is None or isinstance(value, str | int | float):
        return repr(value)[:100]
    kind = type(value).__name__
    return kind if kind.endswith("s") else f"an {kind}" if kind[0].lower() in "aeiou" else f"a {kind}"
