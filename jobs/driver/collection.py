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
    model: str = "coco",
    labels: str | None = None,
    images_root: str | None = None,
    shard_images: int | None = None,
    coco: str = "auto",
    device: Device = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    dtype: str | None = None,
    **inference: Any,
) -> Run:
    """Do in this process what `maskrcnn segment SOURCE OUTPUT --no-ray` does; continue OUTPUT if it is unfinished.

    Plan, receipts, tables and pages are those of the command, which can continue what was begun here, on Ray too. What
    the run is doing is logged by the logger `maskrcnn`, at the level INFO.

    Args:
        source: a folder, a glob, a prefix, a manifest (.txt, .csv, .parquet) or a COCO JSON.
        output: a directory or a prefix of an object store.
        model: `coco`, `coco-v1`, `scenes`, or the path or URL of a weights file.
        labels: names of the categories of a `.pth` file, one per line.
        images_root: folder that relative names in a manifest refer to.
        shard_images: images per shard, the unit that is done again after an interruption.
        coco: whether to write COCO JSON: `auto`, `always` or `never`.
        device: `auto`, `cpu` or `cuda`.
        batch_size: images per forward pass; None: 1 on the CPU, 8 on CUDA.
        threads: CPUs per image; None: 1.
        dtype: of the convolutions; None: float32 on the CPU, float16 on CUDA.
        inference: other fields of `config.InferenceConfig`: `min_score`, `max_detections`, `categories`, `limit`,
            `window`, `overlap`, `bands`, `scale`, `assume_crs`, `alpha`, `max_windows`, `allow_http`.

    Returns:
        The finished run.

    Raises:
        UsageError: an argument is wrong, or OUTPUT holds another run.
        RunError: the run stopped before its end; the same call continues it.
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
