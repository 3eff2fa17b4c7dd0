"""Segment a collection from Python, without Ray: for a notebook, a debugger, a script."""

import os
from typing import Any

from maskrcnn.config import Device, InferenceConfig, ResourceConfig
from maskrcnn.io.storage import Storage
from maskrcnn.results.run import Run, open_run

from .planning import Request, absolute
from .run import run_segment


def segment_collection(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str,
    labels: str | None,
    images_root: str | None,
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
    if isinstance(inference.get("categories"), (list, set, frozenset)):
        inference["categories"] = tuple(sorted(inference["categories"]))
    request = Request(
        os.fspath(source),
        os.fspath(output),
        InferenceConfig(absolute(model), labels and absolute(labels), **inference),
        shard_images,
        images_root,
        coco,
    )
    resources = ResourceConfig(device, batch_size, dtype, threads, ray=False)
    run_segment(request, resources, None)
    return open_run(Storage(request.output).url)
