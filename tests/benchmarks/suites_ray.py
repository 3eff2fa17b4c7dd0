"""What `maskrcnn bench` measures on a Ray of its own: whole jobs, with a network and without one.

Each benchmark checks that both sides give the same before it gives a ratio.
"""

import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from maskrcnn.config import InferenceConfig, ResourceConfig
from maskrcnn.errors import RunError, UsageError
from maskrcnn.imaging.decode import Limits, decode_image
from maskrcnn.imaging.decode_pool import keep_freed_memory

if TYPE_CHECKING:
    from torch import Tensor

    from maskrcnn.models.segmenter import MaskRCNNSegmenter
    from maskrcnn.types import Detections

    from .measure import Row, Settings

log = logging.getLogger("maskrcnn")

DISTINCT_PHOTOS: Final = 64
"""Generated photos; a collection names them again and again."""
SLEEP_S: Final = 0.05
"""Of the segmenter that stands in for a network when scaling is measured."""
SCALED_ACTORS: Final = 8
MIN_MEMORY_BYTES: Final = 13 * 2**30
"""What torchvision takes to paste 100 masks of 12 megapixels, twice 4.8 GB, and some room."""

MAX_SWAPPED: Final = 0.2
"""Of the instances. A network with random weights rates neighbouring proposals nearly the same, and rounding decides
between them: in a generated 12-megapixel photo torchvision differs from itself in 6 instances of 100 with two threads
instead of one, in 11 with channels last."""

LIMITS: Final = Limits(10**9, 10**9, 1e9)


# --- a whole job ---


@dataclass(frozen=True, slots=True)
class MapRun:
    """One map stage, files to committed Parquet."""

    images: int
    start_s: float
    """From the map stage's start to the first shard's: Ray's workers, imports, the model."""
    work_s: float
    """From the first shard's begin to the last receipt."""
    cpu_s: float
    """Of the driver, Ray's daemons and the actors, from the first shard's begin on."""
    output: str


@dataclass(frozen=True, slots=True)
class Slope:
    """A job's cost in its steady state, from two runs."""

    wall_s: float
    """Seconds an image."""
    cpu_s: float
    """CPU seconds an image, of all processes."""
    start_s: float
    """Seconds until the first shard began, of the larger run."""
    output: str
    """Of the larger run."""


def map_once(
    source: Path, output: Path, compute: InferenceConfig, speed: ResourceConfig, shard_images: int | None
) -> MapRun:
    """Plan a collection and run its map stage on the Ray that is connected; planning is not timed."""
    from maskrcnn_jobs.driver.planning import Request, prepare
    from maskrcnn_jobs.driver.run import run_shards
    from maskrcnn_jobs.driver.scheduler import map_shards

    from .measure import CpuMeter

    request = Request(str(source), str(output), compute, shard_images)
    plan = prepare(request)
    began = time.time()
    with CpuMeter() as meter:
        run_shards(request, plan, speed, map_shards)
    spans = shard_spans(output)
    first = min(span.start for span in spans)
    log.debug("CPU seconds by process: %s", meter.by_process())
    return MapRun(
        plan.rows, first - began, max(s.stop for s in spans) - first, meter.since(first), str(output)
    )


def slope_of(small: MapRun, large: MapRun) -> Slope:
    """Return what an image costs between two sizes of a job."""
    further = large.images - small.images
    return Slope(
        (large.work_s - small.work_s) / further,
        (large.cpu_s - small.cpu_s) / further,
        large.start_s,
        large.output,
    )


@dataclass(frozen=True, slots=True)
class Span:
    """When an actor worked on a shard, seconds since the epoch."""

    actor: tuple[str, int]
    start: float
    stop: float
    images: int


def shard_spans(output: Path) -> list[Span]:
    """Return when each shard was worked on, from its receipt and the time of the receipt's file."""
    from maskrcnn.io.storage import Storage
    from maskrcnn.pipeline.receipts import complete_receipts, read_receipt

    storage = Storage(str(output))
    spans = []
    for path in complete_receipts(storage):
        receipt = read_receipt(storage, path)
        stop = (output / path).stat().st_mtime
        actor = (receipt.execution["node"], receipt.execution["pid"])
        spans.append(Span(actor, stop - receipt.timings["wall"], stop, receipt.stop - receipt.start))
    return spans


def steady_rate(spans: Sequence[Span]) -> float:
    """Return images/s while all actors were at work: from the last one's first shard to the first one's last.

    >>> steady_rate([Span(("n", 1), 0, 2, 10), Span(("n", 1), 2, 4, 10), Span(("n", 2), 1, 5, 40)])
    15.0
    """
    actors = {span.actor for span in spans}
    begin = max(min(s.start for s in spans if s.actor == actor) for actor in actors)
    end = min(max(s.stop for s in spans if s.actor == actor) for actor in actors)
    done = sum(
        s.images * max(min(s.stop, end) - max(s.start, begin), 0.0) / (s.stop - s.start) for s in spans
    )
    if end <= begin:
        raise RunError("bench: the actors were never at work at once; more images are needed")
    return done / (end - begin)


def run_job(
    settings: "Settings",
    images: Sequence[Path],
    count: int,
    compute: InferenceConfig,
    shard_images: int | None,
) -> Slope:
    """Run the job on `count` and on three times as many images, on a Ray of its own."""
    from maskrcnn_jobs.driver.cluster import connected

    from .inputs import write_manifest

    folder = Path(tempfile.mkdtemp(dir=settings.folder))
    mapped = []
    with connected("local", ResourceConfig(device="cpu")) as speed:
        for rows in (count, 3 * count):
            manifest = write_manifest(folder / f"{rows}.csv", images, rows)
            mapped.append(map_once(manifest, folder / f"out-{rows}", compute, speed, shard_images))
    return slope_of(*mapped)


def photos_of(settings: "Settings", size: tuple[int, int], count: int) -> list[Path]:
    """Return the user's photos, at most `count`, or generated ones of (height, width)."""
    from .inputs import write_photos

    if settings.images is None:
        log.info("generating %s photos of %s x %s", count, size[1], size[0])
        return write_photos(settings.folder / f"photos-{size[1]}", count, size)
    found = sorted(p for p in settings.images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise UsageError(f"--images {settings.images} holds no .jpg, .jpeg or .png")
    return found[:count]


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- without a network ---


@dataclass(frozen=True, slots=True)
class Decoded:
    """What decoding alone takes, on all cores at once."""

    cpu_s: float
    """CPU seconds an image."""
    wall_s: float
    """Seconds an image, all cores together."""


def decode_files(paths: Sequence[str]) -> tuple[float, float]:
    """Decode files one after the other; return wall and CPU seconds, without the time to read them."""
    wall_s = cpu_s = 0.0
    for path in paths:
        data = Path(path).read_bytes()
        wall, cpu = time.perf_counter(), time.thread_time()
        decode_image(data, LIMITS)
        wall_s += time.perf_counter() - wall
        cpu_s += time.thread_time() - cpu
    return wall_s, cpu_s


def decode_alone(pool: ProcessPoolExecutor, images: Sequence[Path], count: int) -> Decoded:
    """Decode `count` files on each core at once."""
    paths = [str(images[index % len(images)]) for index in range(count)]
    taken = list(pool.map(decode_files, [paths] * cores()))
    wall_s = 1 / sum(count / wall for wall, _ in taken)
    return Decoded(sum(cpu for _, cpu in taken) / (count * cores()), wall_s)


def plain_ray_data(images: Sequence[Path], count: int, folder: Path, batch_size: int) -> float:
    """Return seconds an image of `read_images -> map_batches(nothing) -> write_parquet`, by the slope.

    Raises:
        RunError: the files do not hold one row of the right size an image.
    """
    import pyarrow.parquet as pq
    import ray

    sizes = sizes_in(images)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        taken = []
        for rows in (2 * cores(), count, 3 * count):  # the first starts the workers
            paths = [str(images[index % len(images)].absolute()) for index in range(rows)]
            target = folder / f"ray-data-{rows}-{time.monotonic_ns()}"
            started = time.perf_counter()
            data = ray.data.read_images(paths, include_paths=True, mode="RGB")
            data.map_batches(sizes_of, batch_size=batch_size).write_parquet(str(target))
            taken.append(time.perf_counter() - started)
            written = pq.read_table(target, columns=["height", "width"])
            found = zip(written["height"].to_pylist(), written["width"].to_pylist(), strict=True)
            check_sizes("Ray Data", found, sizes, rows)
    finally:
        ray.shutdown()
    return (taken[2] - taken[1]) / (2 * count)


def sizes_of(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a row an image, as a segmenter that finds nothing would."""
    shapes = np.array([image.shape[:2] for image in batch["image"]])
    return {"path": batch["path"], "height": shapes[:, 0], "width": shapes[:, 1]}


def pipeline(settings: "Settings") -> Iterator["Row"]:
    """Measure the whole job with a segmenter that finds nothing, against decoding alone and plain Ray Data."""
    from .inputs import COCO_SIZE
    from .measure import Pairs, rounds, row

    count, distinct = (100, 8) if settings.quick else (2000, DISTINCT_PHOTOS)
    images = photos_of(settings, COCO_SIZE, distinct)
    compute = InferenceConfig(model="planted")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores(), spawn, initializer=keep_freed_memory) as pool:
        decode_alone(pool, images, 2)  # imports
        measured = rounds(
            {
                "job": lambda: run_job(settings, images, count, compute, None),
                "decode": lambda: decode_alone(pool, images, count),
                "ray data": lambda: plain_ray_data(images, count, settings.folder, 32),
            },
            settings.repeats,
        )
    jobs: list[Slope] = measured["job"]
    decodes: list[Decoded] = measured["decode"]
    plain: list[float] = measured["ray data"]
    for done in jobs:
        check_all_images(Path(done.output), sizes_in(images), 3 * count)
    start = f"start-up {statistics.median(job.start_s for job in jobs):.1f} s apart"
    size = f"{count} to {3 * count} images"
    yield row(
        "pipeline", "CPU time of the job without model, over decoding alone (lower is better)",
        Pairs(tuple(1e3 * job.cpu_s for job in jobs), tuple(1e3 * d.cpu_s for d in decodes)),
        unit="ms/image", ratio="ours/baseline", note=f"{size}; {start}", equal="sizes",
    )  # fmt: skip
    rates = tuple(1 / job.wall_s for job in jobs)
    yield row(
        "pipeline", f"images/s of the job without model, over decoding alone on {cores()} cores",
        Pairs(rates, tuple(1 / d.wall_s for d in decodes)),
        unit="images/s", ratio="ours/baseline", note=size, equal="sizes",
    )  # fmt: skip
    yield row(
        "pipeline", "images/s of the job without model, over plain Ray Data",
        Pairs(rates, tuple(1 / wall_s for wall_s in plain)),
        unit="images/s", ratio="ours/baseline", note="read_images, map_batches, write_parquet", equal="sizes",
    )  # fmt: skip


def sizes_in(images: Sequence[Path]) -> list[tuple[int, int]]:
    """Return height and width of each image, decoded."""
    return [decode_image(path.read_bytes(), LIMITS).pixels.shape[:2] for path in images]


def check_sizes(
    what: str, found: Iterable[tuple[int, int]], sizes: Sequence[tuple[int, int]], count: int
) -> None:
    """Raise RunError unless these are the sizes of `count` images that are taken in turns."""
    expected = Counter(sizes[index % len(sizes)] for index in range(count))
    if Counter(found) != expected:
        raise RunError(f"bench: {what} did not bring {count} images through, of the sizes that they have")


def check_all_images(output: Path, sizes: Sequence[tuple[int, int]], count: int) -> None:
    """Raise RunError unless a run has a row of the right size for each image, none failed."""
    from maskrcnn.io.parquet import read_checked
    from maskrcnn.io.storage import Storage
    from maskrcnn.pipeline.receipts import complete_receipts, read_receipt

    storage = Storage(str(output))
    tables = [
        read_checked(storage, read_receipt(storage, path).images) for path in complete_receipts(storage)
    ]
    rows = [row for table in tables for row in table.select(["status", "height", "width"]).to_pylist()]
    good = [(row["height"], row["width"]) for row in rows if row["status"] != "failed"]
    check_sizes("the job", good, sizes, count)


# --- scaling ---


def scaling(settings: "Settings") -> Iterator["Row"]:
    """Measure weak scaling from one actor to many, with a segmenter that sleeps."""
    import ray

    from .inputs import COCO_SIZE, write_manifest
    from .measure import alternate, row

    actors, each = (2, 32) if settings.quick else (SCALED_ACTORS, 480)
    images = photos_of(settings, COCO_SIZE, 8 if settings.quick else DISTINCT_PHOTOS)

    sizes = sizes_in(images)

    def rate(n: int) -> float:
        folder = Path(tempfile.mkdtemp(dir=settings.folder))
        manifest = write_manifest(folder / "images.csv", images, n * each)
        speed = ResourceConfig(device="cpu", actors=n)
        compute = InferenceConfig(model=f"planted:{SLEEP_S}")
        mapped = map_once(manifest, folder / "out", compute, speed, 16)
        check_all_images(Path(mapped.output), sizes, n * each)
        return steady_rate(shard_spans(Path(mapped.output)))

    # More CPUs than there are: the actors sleep most of the time.
    ray.init(
        address="local", num_cpus=actors, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR, object_store_memory=128 * 2**20, _node_ip_address="127.0.0.1",
    )  # fmt: skip
    try:
        pairs = alternate(lambda: rate(actors), lambda: actors * rate(1), settings.repeats)
    finally:
        ray.shutdown()
    yield row(
        "scaling", f"images/s of {actors} actors, over {actors} times those of one", pairs,
        unit="images/s", ratio="ours/baseline", equal="sizes",
        note=f"{each} images an actor; {SLEEP_S * 1e3:.0f} ms of sleep an image; {cores()} cores",
    )  # fmt: skip


# --- with a network ---


def bare_forward(segmenter: "MaskRCNNSegmenter", batches: Sequence[tuple["Tensor", "Tensor"]]) -> None:
    """Run the engine's network alone on resized images, one after the other."""
    for batch, sizes in batches:
        segmenter.forward(batch, sizes)


class ForwardActor:
    """Holds a segmenter and resized images, and times the network alone."""

    def __init__(self, compute: InferenceConfig, speed: ResourceConfig, paths: Sequence[str]) -> None:
        from maskrcnn_jobs.driver.node_worker import WorkerSpec, build_segmenter

        keep_freed_memory()
        self._segmenter = cast(
            "MaskRCNNSegmenter", build_segmenter(WorkerSpec("", card_sha256(compute.model), compute, speed))
        )
        images = [decode_image(Path(path).read_bytes(), LIMITS).pixels for path in paths]
        self._batches = [self._segmenter.batch_of([image]) for image in images]
        bare_forward(self._segmenter, self._batches[:1])

    def run(self) -> float:
        """Return images/s."""
        started = time.perf_counter()
        bare_forward(self._segmenter, self._batches)
        return len(self._batches) / (time.perf_counter() - started)


def card_sha256(model: str) -> str:
    """Return the digest of a model's weights."""
    from maskrcnn.models.registry import describe_model

    return describe_model(model).sha256


def forward_alone(compute: InferenceConfig, images: Sequence[Path], count: int) -> float:
    """Return seconds an image of the bare network, on as many actors and threads as the job has."""
    import ray
    from maskrcnn_jobs.driver.cluster import connected

    paths = [str(images[index % len(images)].absolute()) for index in range(count)]
    with connected("local", ResourceConfig(device="cpu")) as speed:
        actor_class: Any = ray.remote(num_cpus=speed.threads or 1)(ForwardActor)
        actors: list[Any] = [actor_class.remote(compute, speed, paths) for _ in range(speed.actors or 1)]
        ray.get([actor.__ray_ready__.remote() for actor in actors])
        rates: list[float] = ray.get([actor.run.remote() for actor in actors])
        return 1 / sum(rates)


def job(settings: "Settings") -> Iterator["Row"]:
    """Measure the whole job with a network, against stock torchvision in a loop and against its own network."""
    from .inputs import COCO_SIZE, PHOTO_SIZE

    for size in (COCO_SIZE, PHOTO_SIZE):
        yield from _job_rows(settings, (240, 320) if settings.quick else size)
        if settings.quick or settings.images is not None:
            return


def _job_rows(settings: "Settings", size: tuple[int, int]) -> Iterator["Row"]:
    import psutil  # type: ignore[import-untyped]
    import torch

    from maskrcnn.models.model import load_model

    from . import baselines
    from .measure import Pairs, Row, rounds, row

    distinct, count, shard_images = (2, 2, 1) if settings.quick else (5, 10 * cores(), 10)
    images = photos_of(settings, size, distinct)
    name = settings.model or str(_random_model(settings, images[0]))
    compute = InferenceConfig(model=name)
    what = f"{size[1]}x{size[0]}" if settings.images is None else settings.images.name
    largest = max(height * width for height, width in sizes_in(images))
    if largest > 2**22 and psutil.virtual_memory().available < MIN_MEMORY_BYTES:
        yield Row(
            "job",
            f"whole job, {what}",
            note=f"needs {MIN_MEMORY_BYTES >> 30} GiB of free memory for the baseline",
        )
        return
    keep_freed_memory()
    torch.set_num_threads(cores())
    model = load_model(name)
    model.module.roi_heads.score_thresh = compute.min_score
    model.module.roi_heads.detections_per_img = compute.max_detections
    baselines.stock_predict(model, decode_image(images[0].read_bytes(), LIMITS).pixels)  # warms up
    found: list[Detections] = []

    def stock() -> float:
        started = time.perf_counter()
        found[:] = baselines.stock_job(model, images, settings.folder / "stock.parquet")
        return (time.perf_counter() - started) / len(images)

    measured = rounds(
        {
            "job": lambda: run_job(settings, images, count, compute, shard_images),
            "stock": stock,
            "forward": lambda: forward_alone(compute, images, count // cores()),
        },
        settings.repeats,
    )
    jobs: list[Slope] = measured["job"]
    agreed = _agreement(Path(jobs[-1].output), found, compute.min_score)
    equal = (
        f"{agreed.instances} instances, {agreed.ties} ties, {agreed.swaps} swaps, "
        f"{agreed.thin} masks below IoU {baselines.MASK_IOU}"
    )
    ours = tuple(job.wall_s for job in jobs)
    start = (
        f"{count} to {3 * count} images; start-up {statistics.median(j.start_s for j in jobs):.1f} s apart"
    )
    mean = agreed.instances / len(images)
    yield row(
        "job", f"whole job, {what}, {mean:.0f} instances each, against stock torchvision in a loop",
        Pairs(ours, tuple(measured["stock"])), unit="s/image", equal=equal,
        note=f"{cores()} actors of 1 thread, stock {cores()} threads; {start}",
    )  # fmt: skip
    yield row(
        "job", f"images/s of the whole job, {what}, over the engine's network alone",
        Pairs(tuple(1 / s for s in ours), tuple(1 / s for s in measured["forward"])),
        unit="images/s", ratio="ours/baseline", note="forward pass on resized images in memory, same actors, threads",
        equal=equal,
    )  # fmt: skip


def _random_model(settings: "Settings", image: Path) -> Path:
    from .baselines import write_random_model

    path = settings.folder / "random.safetensors"
    if not path.exists():
        log.info("making a network with random weights")
        small = {"architecture": "maskrcnn_efficientnet_lite0_fpn", "min_size": 128, "max_size": 192}
        pixels = decode_image(image.read_bytes(), LIMITS).pixels
        write_random_model(path, [pixels], **(small if settings.quick else {}))  # type: ignore[arg-type]
    return path


def _agreement(output: Path, stock: Sequence["Detections"], min_score: float) -> Any:
    """Compare what the job and the stock loop found in the first images.

    Raises:
        RunError: they differ by more than ties.
    """
    from .baselines import Agreement, agreement

    total = Agreement(0, 0, 0, ())
    for ours, baseline in zip(first_detections(output, len(stock)), stock, strict=True):
        total += agreement(ours, baseline, min_score)
    if total.problems or total.thin > total.instances // 50 or total.swaps > total.instances * MAX_SWAPPED:
        shown = (
            "; ".join(total.problems[:3]) or f"{total.thin} masks, {total.swaps} swaps of {total.instances}"
        )
        raise RunError(f"bench: the job and stock torchvision differ, so no ratio is given: {shown}")
    return total


def first_detections(output: Path, count: int) -> list["Detections"]:
    """Return what a run found in its first `count` images."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from maskrcnn.io.parquet import read_checked
    from maskrcnn.io.storage import Storage
    from maskrcnn.pipeline.receipts import complete_receipts, read_receipt
    from maskrcnn.schema import detections_of

    storage = Storage(str(output))
    receipts = sorted(
        (read_receipt(storage, path) for path in complete_receipts(storage)), key=lambda r: r.start
    )
    chosen = [receipt for receipt in receipts if receipt.start < count]
    images = pa.concat_tables([read_checked(storage, receipt.images) for receipt in chosen])
    instances = pa.concat_tables([read_checked(storage, receipt.instances) for receipt in chosen])
    rows = images.slice(0, count).to_pylist()
    return [detections_of(r, instances.filter(pc.equal(instances["image_id"], r["image_id"]))) for r in rows]
