"""What `maskrcnn bench` measures without a cluster: masks, COCO JSON, fetching.

Each benchmark checks that both sides give the same before it takes their times.
"""

import gc
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from maskrcnn.errors import RunError, UsageError
from maskrcnn.formats.coco_writer import write_dataset
from maskrcnn.io.inputs import read_input
from maskrcnn.io.parquet import Part, write_tables
from maskrcnn.io.storage import Storage
from maskrcnn.io.url import Url
from maskrcnn.masks.encode import detections_from_network
from maskrcnn.models.registry import COCO_CATEGORIES
from maskrcnn.pipeline.list_inputs import read_inputs
from maskrcnn.pipeline.prefetch import Pool, Stopwatch, prefetch
from maskrcnn.pipeline.worker import FETCH_THREADS
from maskrcnn.schema import IMAGES, INSTANCES, MANIFEST, ImageResult, images_table, instances_table
from maskrcnn.types import Detections

from . import baselines
from .inputs import COCO_SIZE, MEAN_AREA, PHOTO_SIZE, smooth_instances
from .measure import Row, Settings, alternate, row, seconds

AT_LEAST_S: Final = 0.2
"""Short calls are repeated for so long, and their mean is taken."""
MEAN_AREAS: Final = (0.01, 0.04, 0.16)
"""Of the second table of masks, as shares of the image."""


def masks(settings: Settings) -> Iterator[Row]:
    """Measure 28 x 28 probabilities to run lengths, on one thread, against torchvision's paste and encode.

    Raises:
        RunError: the bytes differ.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for size in ((120, 160), (240, 320)) if settings.quick else (COCO_SIZE, PHOTO_SIZE):
            yield _masks_row(settings, size, MEAN_AREA, baselines.paste_and_encode, "pasted one by one")
            yield _masks_row(settings, size, MEAN_AREA, baselines.paste_all_and_encode, "pasted in one call")
            for mean_area in MEAN_AREAS:
                yield _masks_row(settings, size, mean_area, baselines.paste_and_encode, "pasted one by one")
    finally:
        torch.set_num_threads(threads)


def _masks_row(
    settings: Settings,
    size: tuple[int, int],
    mean_area: float,
    paste: Callable[..., tuple[bytes, ...]],
    how: str,
) -> Row:
    count = 10 if settings.quick else 100
    height, width = size
    boxes, probabilities = smooth_instances(height, width, count, mean_area=mean_area)

    def ours() -> tuple[bytes, ...]:
        return _detections(boxes, probabilities, height, width).masks

    def baseline() -> tuple[bytes, ...]:
        return paste(boxes, probabilities, height, width)

    expect_equal(f"masks at {width} x {height}", ours(), baseline())
    pairs = alternate(
        lambda: seconds(ours, AT_LEAST_S), lambda: seconds(baseline, AT_LEAST_S), settings.repeats
    )
    what = f"{count} masks, {width}x{height}, mean area {mean_area:.1%}, against paste + encode"
    return row("masks", what, pairs, unit="s", note=f"1 thread; {how}", equal="bytes")


def _detections(boxes: Any, probabilities: Any, height: int, width: int) -> Detections:
    """Return instances with made-up labels and scores, which leave their order as it is."""
    count = len(boxes)
    scores = np.linspace(1, 0.5, count, dtype=np.float32)
    labels = np.ones(count, np.int32)
    return detections_from_network(
        boxes, labels, scores, probabilities, height=height, width=width, capped=False
    )


# --- COCO JSON ---

_AN_IMAGE: Final = 8
_PART_IMAGES: Final = 5000
_DISTINCT: Final = 200
_INFO: Final = {"description": "bench"}


def coco(settings: Settings) -> Iterator[Row]:
    """Measure the COCO dataset form, written from Parquet, against `json.dump` and orjson of ready dictionaries.

    Raises:
        RunError: the files do not say the same.
    """
    annotations = 4000 if settings.quick else 1_000_000
    storage, parts = coco_run(settings.folder / "run", annotations)
    content = baselines.coco_content(storage, parts, COCO_CATEGORIES, _INFO)
    target = settings.folder / "baseline.json"

    def ours() -> None:
        write_dataset(storage, parts, COCO_CATEGORIES, "ours.json", _INFO)

    ours()
    what = f"COCO JSON of {annotations:,} annotations, against "
    gc.collect()
    gc.freeze()  # else a collection, on whichever side it falls, walks through all dictionaries
    try:
        for name, write in (("json.dump", baselines.json_dump), ("orjson", baselines.orjson_dump)):
            try:
                write(content, target)
            except ImportError:
                yield Row("coco", what + name, note=f"{name} is not installed")
                continue
            written = json.loads(target.read_bytes())
            expect_equal(f"COCO JSON by {name}", json.loads(storage.read("ours.json")), written)
            del written
            pairs = alternate(
                lambda: seconds(ours, AT_LEAST_S),
                lambda write=write: seconds(lambda: write(content, target), AT_LEAST_S),  # type: ignore[misc]
                settings.repeats,
            )
            note = "ours from Parquet, synced to disk; the baseline from ready dictionaries, not synced"
            yield row("coco", what + name, pairs, unit="s", note=note, equal="content")
    finally:
        gc.unfreeze()
    yield Row(
        "coco",
        f"peak memory of writing {annotations:,} annotations, above the interpreter's with its imports",
        unit="MB",
        ours=peak_of_writing(storage.url, parts),
        note="a fresh process",
    )


def coco_run(folder: Path, annotations: int) -> tuple[Storage, list[Part]]:
    """Write the tables of a run with so many annotations, eight an image, masks from a network's squares."""
    height, width = COCO_SIZE
    found = [
        _detections(*smooth_instances(height, width, _AN_IMAGE, seed=seed), height, width)
        for seed in range(min(_DISTINCT, -(-annotations // _AN_IMAGE)))
    ]
    storage, parts = Storage(str(folder)), []
    images = annotations // _AN_IMAGE
    for number, first in enumerate(range(0, images, _PART_IMAGES)):
        results = [
            ImageResult(
                i,
                i + 1,
                f"photo {i}.jpg",
                f"{i}.jpg",
                1,
                None,
                found[i % len(found)],
                width=width,
                height=height,
            )
            for i in range(first, min(first + _PART_IMAGES, images))
        ]
        rows = MANIFEST.empty_table()
        part = [
            write_tables(storage, f"images/{number}.parquet", IMAGES, [images_table(results, rows)]),
            write_tables(
                storage, f"instances/{number}.parquet", INSTANCES, [instances_table(results, COCO_CATEGORIES)]
            ),
        ]
        parts.append(Part(part[0].path, part[1].path, part[0].rows, part[1].rows))
    return storage, parts


def peak_of_writing(url: str, parts: Sequence[Part]) -> float | None:
    """Return the MB by which a fresh process grows at its peak; None where the system does not say."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, url, list(parts)).result()


def _peak(url: str, parts: Sequence[Part]) -> float | None:
    if (reset := Path("/proc/self/clear_refs")).exists():
        reset.write_text("5", encoding="ascii")  # the imports' peak is not the writing's
    before = _memory_mb("VmRSS")
    write_dataset(Storage(url), parts, COCO_CATEGORIES, "peak.json", _INFO)
    peak = _memory_mb("VmHWM")
    return None if before is None or peak is None else max(peak - before, 0.0)


def _memory_mb(key: str) -> float | None:
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:")), None)


# --- fetching ---

MAX_OBJECTS: Final = 1000


@dataclass(frozen=True, slots=True)
class _Fetched:
    """What `prefetch` needs to know of an object."""

    sha256: bytes
    held_bytes: int


def fetch(settings: Settings) -> Iterator[Row]:
    """Measure the worker's fetching ahead against s3fs, one object after the other.

    Raises:
        UsageError: the prefix is not one of S3.
        RunError: the bytes differ.
    """
    what = "objects/s of the worker's fetching ahead, over s3fs one by one"
    if settings.s3 is None:
        yield Row("fetch", what, note="not measured: name a prefix with --s3 s3://bucket/prefix")
        return
    if Url.parse(settings.s3).is_local:
        raise UsageError(f"--s3 {settings.s3} is no s3:// prefix")
    listed = read_inputs(settings.s3, images_root=None, limit=100 if settings.quick else MAX_OBJECTS)
    uris = listed.table["uri"].to_pylist()
    expect_equal("fetched objects", fetch_ahead(uris), [_sha256(data) for data in baselines.fetch_each(uris)])
    measured = alternate(
        lambda: len(uris) / seconds(lambda: fetch_ahead(uris)),
        lambda: len(uris) / seconds(lambda: [_sha256(data) for data in baselines.fetch_each(uris)]),
        settings.repeats,
    )
    yield row(
        "fetch",
        what,
        measured,
        unit="objects/s",
        ratio="ours/baseline",
        note=f"{len(uris)} objects",
        equal="bytes",
    )


def fetch_ahead(uris: Sequence[str]) -> list[bytes]:
    """Fetch objects as the worker does, and return their digests, in order."""

    def load(position: int) -> _Fetched:
        data = read_input(uris[position], 2**30)
        return _Fetched(_sha256(data), len(data))

    pool = Pool(FETCH_THREADS)
    items = prefetch(load, range(len(uris)), Stopwatch(), pool, ahead=2 * FETCH_THREADS)
    return [item.sha256 for item in items]


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def expect_equal(what: str, ours: object, baseline: object) -> None:
    """Raise RunError if the two sides' results differ."""
    if ours != baseline:
        raise RunError(f"bench: {what}: the two sides' results differ, so no ratio is given")
