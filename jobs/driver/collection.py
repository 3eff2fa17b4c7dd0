"""Segment a collection from Python, without Ray: for a notebook, a debugger, a script."""

import dataclasses
import os
from typing import Any, get_args

from maskrcnn.config import Device, InferenceConfig, ResourceConfig
from maskrcnn.errors import UsageError
from maskrcnn.formats.coco_writer import MODES
from maskrcnn.io.storage import Storage
from maskrcnn.results.run import Run, open_run

from .planning import Request, absolute
from .run import run_segment


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
    **inference: Any,
) -> Run:
    """Do what `maskrcnn.segment_collection` says, whose arguments these are.

    Raises:
        UsageError: an argument is wrong, or OUTPUT holds another run.
        RunError: the run stopped before its end.
    """
    known = {field.name for field in dataclasses.fields(InferenceConfig)}
    if unknown := sorted(inference.keys() - known):
        raise UsageError(
            f"segment_collection has no argument {unknown[0]!r}: it has {', '.join(sorted(known))}"
        )
    for name, value, allowed in (("device", device, get_args(Device)), ("coco", coco, MODES)):
        if value not in allowed:
            raise UsageError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    numbers: dict[str, object] = {"batch_size": batch_size, "threads": threads, "shard_images": shard_images}
    for name, number in numbers.items():
        if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
            raise UsageError(f"{name} must be a whole number, not {number!r}")
    categories = inference.pop("categories", ())
    if isinstance(categories, str):
        categories = [categories]
    inference["categories"] = tuple(sorted(set(categories)))
    request = Request(
        os.fspath(source),
        os.fspath(output),
        InferenceConfig(
            absolute(os.fspath(model)), absolute(os.fspath(labels)) if labels else None, **inference
        ),
        shard_images,
        os.fspath(images_root) if images_root else None,
        coco,
    )
    resources = ResourceConfig(device, batch_size, dtype, threads, ray=False)
    run_segment(request, resources, None)
    return open_run(Storage(request.output).url)
