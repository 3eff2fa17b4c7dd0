"""The engine on an accelerator, without Ray: its network against stock torchvision, and its worker, files to parts.

    python -m tests.benchmarks.device [--images DIR] [--count N] [--weights FILE] [--device auto|cuda|cpu]
                                      [--batch-size N] [--repeats 5] [--quick] [--json PATH]

First the two sides' results are compared; where they differ, it exits with 1. Then rates are measured, in turns, with
the device idle whenever a clock is read; medians, with the smallest and the largest over the repeats:

- matrix products and copies: what the device reaches, in this run;
- stock torchvision, images on the device as floats, pasting included: the best of its precisions and batch sizes;
- the engine's preparation and network, images on the device as bytes, in each dtype, against that best;
- the worker, from files to parts, and the share of the time in which the device is busy.

Without images it draws photos of 640 x 480, a quarter of them upright; without weights it makes a ResNet-50-FPN at
random that finds some hundred instances in each. Random weights magnify rounding: what half precision costs a trained
model says `tests.benchmarks.precision`. On the CPU, with --quick, the figures mean little.
"""

import argparse
import copy
import functools
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from maskrcnn.config import InferenceConfig
from maskrcnn.imaging.decode import Limits, decode_image
from maskrcnn.io.storage import Storage
from maskrcnn.models.model import Model, load_model
from maskrcnn.models.segmenter import DTYPES, MaskRCNNSegmenter
from maskrcnn.pipeline.list_inputs import read_inputs
from maskrcnn.pipeline.manifest_file import write_manifest as freeze
from maskrcnn.pipeline.plan import Plan
from maskrcnn.pipeline.receipts import Receipt
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.types import Detections, Pixels

from . import baselines
from .inputs import COCO_SIZE, write_manifest, write_photos
from .measure import Pairs, Row, machine, number, rounds, row, seconds, table, to_json
from .precision import STRONG, moved

COMPUTE = InferenceConfig(model="coco")
"""A run's defaults."""
LIMITS = Limits(COMPUTE.max_pixels, COMPUTE.max_bytes, 1e9)

DISTINCT, COMPARED = 64, 8
"""Images on the device, and the number of them that both sides' results are compared on."""
SHARDS = 4
"""Of a pass of the worker."""
AT_LEAST_S = 1.0
SHORT_S = 0.2
"""Short passes, and products and copies, are repeated for so long, and their mean is taken."""
THIN_SHARE = 0.02
"""So many matched masks may have an IoU below `baselines.MASK_IOU`: of tiny ones, a pixel is more than that."""
MIN_RATIO, MIN_BUSY = 4, 0.9
"""What is to be reached: over stock torchvision, and of the worker's time."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured, and how."""

    model: Model
    device: torch.device
    pixels: tuple[Pixels, ...]
    """Of one canvas after the other."""
    manifest: Path
    """Of the worker's images."""
    count: int
    """Images in a pass of the worker."""
    folder: Path
    batch_size: int | None
    repeats: int
    quick: bool

    @property
    def cuda(self) -> bool:
        """Whether there is an accelerator."""
        return self.device.type == "cuda"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Those measured; few CPUs multiply in float16."""
        return DTYPES if self.cuda else ("float32", "bfloat16")

    @property
    def default_dtype(self) -> str:
        """The engine's own choice."""
        return "bfloat16" if self.cuda else "float32"

    def segmenter(self, dtype: str, kind: type[MaskRCNNSegmenter] = MaskRCNNSegmenter) -> Any:
        """Return the engine's segmenter, with a run's default limits."""
        return kind(
            self.model,
            min_score=COMPUTE.min_score,
            max_detections=COMPUTE.max_detections,
            device=str(self.device),
            batch_size=self.batch_size,
            dtype=dtype,
        )

    def rate(self, work: Callable[[], object], amount: float, at_least_s: float = AT_LEAST_S) -> float:
        """Return how much of some amount a second work does that does it all."""

        def whole() -> None:
            work()
            self.wait()

        self.wait()
        return amount / seconds(whole, 0.0 if self.quick else at_least_s)

    def wait(self) -> None:
        """Wait until the device is idle."""
        if self.cuda:
            torch.cuda.synchronize(self.device)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let float32 products of CUDA round their factors to TF32, or not; torch's own choice is a mixture."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# --- the two sides ---


class Resident(MaskRCNNSegmenter):
    """The engine's segmenter for images that are on the device already, (height, width, 3) uint8."""

    def _upload(self, images: Any) -> Any:
        return images

    def instances(self, images: Sequence[Tensor]) -> int:
        """Prepare the images and run the network; return the number of instances found. Nothing is encoded."""
        batches = self._batches(images)  # type: ignore[arg-type]
        return sum(len(self._transfer([images[i] for i in batch])[0]) for batch in batches)  # type: ignore[misc]


class Stock(nn.Module):
    """torchvision's own network on a device; takes images from anywhere and answers on the host."""

    def __init__(self, network: MaskRCNN, device: torch.device) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).to(device).eval()
        self.roi_heads = self.network.roi_heads
        self.roi_heads.score_thresh, self.roi_heads.detections_per_img = (
            COMPUTE.min_score,
            COMPUTE.max_detections,
        )
        self.device = device

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = self.network([image.to(self.device) for image in images])
        return [{name: column.cpu() for name, column in one.items()} for one in found]


@dataclass(frozen=True, slots=True)
class Mode:
    """How stock torchvision computes."""

    name: str
    tf32: bool = False
    amp: torch.dtype | None = None


MODES = (
    Mode("fp32"),
    Mode("TF32", tf32=True),
    Mode("AMP float16", tf32=True, amp=torch.float16),
    Mode("AMP bfloat16", tf32=True, amp=torch.bfloat16),
)
CPU_MODES = (Mode("fp32"), Mode("AMP bfloat16", amp=torch.bfloat16))


@torch.inference_mode()
def stock_pass(case: Case, network: nn.Module, images: Sequence[Tensor], mode: Mode, batch: int) -> None:
    """Run torchvision's `MaskRCNN.forward` over images on the device, masks pasted; its results stay there."""
    amp = torch.autocast(case.device.type, mode.amp, enabled=mode.amp is not None)
    with tf32(mode.tf32), amp:
        for start in range(0, len(images), batch):
            network(list(images[start : start + batch]))


# --- equality ---


def check_equal(case: Case, found: Sequence[Detections], expected: Sequence[Detections]) -> Row:
    """Return what was compared; the float32 path against stock.

    Raises:
        SystemExit: they differ by more than ties.
    """
    total = baselines.Agreement(0, 0, 0, ())
    for ours, theirs in zip(found, expected, strict=True):
        total += baselines.agreement(ours, theirs, COMPUTE.min_score)
    if total.problems or max(total.thin, total.swaps) > max(1, THIN_SHARE * total.instances):
        for problem in total.problems[:10]:
            print(problem, file=sys.stderr)
        sys.exit(f"stock torchvision finds something else: {len(total.problems)} problems, {total.thin} of "
                 f"{total.instances} masks below an IoU of {baselines.MASK_IOU}")  # fmt: skip
    boxes = f"labels equal, boxes within {baselines.BOX_TOLERANCE_PX} px"
    return Row(
        "equality",
        f"float32 against stock, {len(found)} images",
        "instances",
        ours=float(sum(map(len, found))),
        baseline=float(sum(map(len, expected))),
        equal=f"{total.instances} matched, {boxes}; {total.ties} ties",
        note=f"{total.thin} masks below an IoU of {baselines.MASK_IOU}",
    )


def equality(case: Case) -> Iterator[Row]:
    """Compare each dtype with stock torchvision in float32."""
    pixels = case.pixels[:: max(1, len(case.pixels) // COMPARED)][:COMPARED]
    with tf32(False):
        stock = Model(Stock(case.model.module, case.device), case.model.card)  # type: ignore[arg-type]
        expected = [baselines.stock_predict(stock, image) for image in pixels]
        for dtype in case.dtypes:
            found = case.segmenter(dtype).segment(pixels)
            if dtype == "float32":
                yield check_equal(case, found, expected)
                continue
            change = moved(found, expected)
            note = f"their boxes {number(change.mean_px)} px apart, at most {number(change.farthest_px)} px"
            what = f"share of stock's {change.strong} with a score above {STRONG} that {dtype} finds"
            yield Row("equality", what, ours=change.share if change.strong else None, note=note)


# --- the roofline ---


@dataclass(frozen=True, slots=True)
class Layers:
    """What a part of a ResNet-50-FPN (v1) costs an image of 800 x 1344, with 1000 proposals and 100 detections.

    Counted layer by layer, batch norms and activations in the same pass as their convolution.
    """

    gmac: float
    megabytes: float
    """Read and written at two bytes a number, without the weights."""
    grows_with: str
    """`canvas`, `proposals` or `detections`."""


PARTS = {
    "backbone": Layers(87.6, 1213, "canvas"),
    "pyramid": Layers(60.9, 213, "canvas"),
    "proposals": Layers(53.1, 140, "canvas"),
    "box head": Layers(14.4, 34, "proposals"),
    "mask head": Layers(53.2, 185, "detections"),
}
REFERENCE = {"canvas": 800.0 * 1344.0, "proposals": 1000.0, "detections": 100.0}


def costs(canvas_px: float, proposals: float, detections: float) -> list[tuple[float, float]]:
    """Return FLOP, and bytes at two a number, of each part for one image.

    >>> round(sum(flop for flop, _ in costs(800 * 1344, 1000, 100)) / 1e9)
    538
    """
    actual = {"canvas": canvas_px, "proposals": proposals, "detections": detections}
    shares = {
        part.grows_with: actual[part.grows_with] / REFERENCE[part.grows_with] for part in PARTS.values()
    }
    return [
        (2e9 * part.gmac * shares[part.grows_with], 1e6 * part.megabytes * shares[part.grows_with])
        for part in PARTS.values()
    ]


@dataclass(frozen=True, slots=True)
class Peaks:
    """What the device reaches."""

    flops: dict[str, float]
    """FLOP/s of matrix products, by dtype."""
    copied: float
    """Bytes/s of a copy, read and written."""

    def bounds(self, dtype: str, parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
        """Return the images/s that products alone allow, and what products or copies, part by part, allow."""
        wide = 2 if dtype == "float32" else 1
        products = [flop / self.flops[dtype] for flop, _ in parts]
        both = [max(s, wide * size / self.copied) for s, (_, size) in zip(products, parts, strict=True)]
        return 1 / sum(products), 1 / sum(both)


def peaks(case: Case) -> tuple[Peaks, list[Row]]:
    """Measure matrix products, the best of a few shapes, and copies on the device."""
    if case.cuda:
        shapes, size = [(8192, 8192, 8192), (16384, 8192, 8192), (4096, 4096, 4096)], 2**30
    else:
        shapes, size = [(512, 512, 512)] if case.quick else [(2048, 2048, 2048), (4096, 2048, 2048)], 2**26
    rows, flops = [], {}
    for dtype in case.dtypes:
        best: tuple[list[float], tuple[int, ...]] = ([0.0], ())
        for shape in shapes:
            rates = sorted(product_rate(case, dtype, *shape) for _ in range(case.repeats))
            best = max(best, (rates, shape), key=lambda pair: statistics.median(pair[0]))
        flops[dtype] = statistics.median(best[0])
        note = f"{' x '.join(map(str, best[1]))}" + ("; TF32 not allowed" if dtype == "float32" else "")
        rows.append(one_sided(f"matrix product, {dtype}", [x / 1e12 for x in best[0]], "TFLOP/s", note))
    source = torch.zeros(size, dtype=torch.uint8, device=case.device)
    target = torch.empty_like(source)
    target.copy_(source)
    copies = [case.rate(lambda: target.copy_(source), 2.0 * size, SHORT_S) for _ in range(case.repeats)]
    rows.append(one_sided("copy on the device", [x / 1e9 for x in copies], "GB/s", "read and written"))
    return Peaks(flops, statistics.median(copies)), rows


def product_rate(case: Case, dtype: str, m: int, n: int, k: int) -> float:
    """Return the FLOP/s of one matrix product, random factors; on the CPU by the library of the convolutions."""
    kind: dict[str, Any] = {"device": case.device, "dtype": getattr(torch, dtype)}
    product: Callable[[], object]
    if case.cuda:
        a, b, out = torch.randn(m, k, **kind), torch.randn(k, n, **kind), torch.empty(m, n, **kind)
        product = functools.partial(torch.mm, a, b, out=out)
    else:
        image = torch.randn(1, k, m // 64, 64, **kind).contiguous(memory_format=torch.channels_last)
        product = functools.partial(torch.conv2d, image, torch.randn(n, k, 1, 1, **kind))
    with tf32(False):
        product()
        return case.rate(product, 2.0 * m * n * k, SHORT_S)


def one_sided(what: str, values: Sequence[float], unit: str, note: str, section: str = "roofline") -> Row:
    """Return the line of figures without a baseline; its range is theirs."""
    middle = statistics.median(values)
    return Row(section, what, unit, ours=middle, min=min(values), max=max(values), note=note)


# --- the network ---


def best_stock(case: Case, network: nn.Module, images: Sequence[Tensor]) -> tuple[Mode, int, list[Row]]:
    """Return the fastest mode and batch size of stock torchvision, and a line each."""
    modes, sizes = (MODES, (1, 2, 4, 8, 16)) if case.cuda else (CPU_MODES, (2,) if case.quick else (1, 2, 4))
    rates: dict[tuple[Mode, int], float] = {}
    rows = []
    for mode in modes:
        for size in sizes:
            what = f"{mode.name}, batch {size}"
            try:
                for some in (images[:size], images[-size:]):  # of both canvases
                    stock_pass(case, network, some, mode, size)
                rate = case.rate(
                    lambda mode=mode, size=size: stock_pass(case, network, images, mode, size),  # type: ignore[misc]
                    len(images),
                )
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                rows.append(Row("stock", what, note="out of memory"))
                continue
            rates[mode, size] = rate
            rows.append(Row("stock", what, "images/s", baseline=rate, note="once"))
    mode, size = max(rates, key=lambda key: rates[key])
    return mode, size, rows


def network(
    case: Case, reached: Peaks, as_bytes: Sequence[Tensor], residents: dict[str, Resident]
) -> Iterator[Row]:
    """Measure the engine's network in each dtype against the best of stock torchvision."""
    as_floats = [image.permute(2, 0, 1).float().div_(255).contiguous() for image in as_bytes]
    stock = Stock(case.model.module, case.device).network
    mode, size, rows = best_stock(case, stock, as_floats)
    yield from rows
    found = {}
    with tf32(False):
        for dtype, resident in residents.items():
            for _ in range(1 if case.quick else 3):
                found[dtype] = resident.instances(as_bytes) / len(as_bytes)
        sides: dict[str, Callable[[], float]] = {
            dtype: functools.partial(
                case.rate, functools.partial(one.instances, as_bytes), float(len(as_bytes))
            )
            for dtype, one in residents.items()
        }
        sides["stock"] = functools.partial(
            case.rate,
            functools.partial(stock_pass, case, stock, as_floats, mode, size),
            float(len(as_floats)),
        )
        measured = rounds(sides, case.repeats)
    canvases = [residents["float32"].canvas(*image.shape[:2]) for image in case.pixels]
    canvas_px = statistics.fmean(height * width for height, width in canvases)
    for dtype in case.dtypes:
        note = f"batch {residents[dtype].batch_size}, {found[dtype]:.0f} instances an image"
        if case.model.card.architecture == "maskrcnn_resnet50_fpn":
            parts = costs(canvas_px, 1000, found[dtype])
            rate = statistics.median(measured[dtype])
            products, both = reached.bounds(dtype, parts)
            note += (
                f"; {sum(flop for flop, _ in parts) / 1e9:.0f} GFLOP an image: {rate / products:.1%} of the FLOP "
                f"roofline, {rate / both:.1%} of that of FLOPs and bytes"
            )
        if dtype == case.default_dtype:
            note += f"; at least {MIN_RATIO}x is asked for"
        pairs = Pairs(tuple(measured[dtype]), tuple(measured["stock"]))
        what = f"network, {dtype}, against stock's best: {mode.name}, batch {size}"
        yield row("network", what, pairs, unit="images/s", ratio="ours/baseline", note=note)


# --- the worker ---


def worker(case: Case, as_bytes: Sequence[Tensor], resident: Resident) -> Iterator[Row]:
    """Measure the worker from files to parts, and how busy the device is meanwhile."""
    storage = Storage(str(case.folder / "run"))
    freeze(storage, read_inputs(str(case.manifest), images_root=None, limit=None).table)
    threads = min(8, machine()["cores"])
    pa.set_cpu_count(threads)
    segmenter = case.segmenter(case.default_dtype)
    worker = ShardWorker(storage, segmenter, LIMITS, {}, threads)
    passes: list[list[Receipt]] = []

    def job() -> float:
        """Return the seconds of a pass, two shards under way as in a run's actor."""
        plan = Plan(1, case.count, -(-case.count // SHARDS), "", "", "")
        case.wait()
        started = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            passes.append([finished.receipt for finished in pool.map(worker.run_shard, plan)])
        return time.perf_counter() - started

    def alone() -> float:
        return case.rate(lambda: resident.instances(as_bytes), len(as_bytes))

    job()
    measured = rounds({"job": job, "alone": alone}, case.repeats)
    walls = measured["job"]
    counts = [receipt.counts for receipts in passes for receipt in receipts]
    if failed := sum(count["failed"] for count in counts):
        sys.exit(f"{failed} images failed")
    found = sum(count["instances"] for count in counts) / (len(passes) * case.count)
    yield row(
        "worker",
        f"files to parts, {case.default_dtype}, over the network alone, {found:.0f} instances an image",
        Pairs(tuple(case.count / wall for wall in walls), tuple(measured["alone"])),
        unit="images/s",
        ratio="ours/baseline",
        note=f"{case.count} images in {len(passes[0])} shards, {threads} threads",
    )
    if case.cuda:
        busy, how = [busy_share(job, case.folder / "trace.json")], "kernels and copies, traced, one pass"
    else:
        model_s = [sum(receipt.timings["model"] for receipt in receipts) for receipts in passes[1:]]
        busy = [s / wall for s, wall in zip(model_s, walls, strict=True)]
        how = "no accelerator: the stage `model` of the receipts"
    note = f"{how}; at least {MIN_BUSY} is asked for"
    yield one_sided("share of the worker's time in which the device is busy", busy, "", note, "worker")


def busy_share(job: Callable[[], float], trace: Path) -> float:
    """Return the share of a pass's time in which the device computes or copies. Tracing slows the host down."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        wall_s = job()
        torch.cuda.synchronize()
    profile.export_chrome_trace(str(trace))
    spans = device_spans(json.loads(trace.read_text(encoding="utf-8"))["traceEvents"])
    return union(spans) / 1e6 / wall_s


def device_spans(events: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Return begin and end in microseconds of what ran on the device, from a trace in Chrome's form."""
    on_device = ("kernel", "gpu_memcpy", "gpu_memset")
    return [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") in on_device]


def union(spans: Sequence[tuple[float, float]]) -> float:
    """Return the length that spans cover together.

    >>> union([(5, 6), (0, 2), (1, 3), (1, 2)])
    4.0
    """
    covered, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered


# --- the command ---


def prepare(options: argparse.Namespace, folder: Path) -> Case:
    """Draw the images and make the weights that are not given; load them."""
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    distinct = options.distinct or (2 if options.quick else DISTINCT if device.type == "cuda" else 8)
    height, width = (120, 160) if options.quick else COCO_SIZE
    if options.images:
        listed = read_inputs(str(options.images), images_root=None, limit=distinct).table
        files = [Path(uri) for uri in listed["uri"].to_pylist()]
    else:
        upright = -(-distinct // 4)
        files = write_photos(folder / "photos", distinct - upright, (height, width))
        files += write_photos(folder / "upright", upright, (width, height), seed=distinct)
    pixels = [decode_image(file.read_bytes(), LIMITS).pixels for file in files]
    weights = options.weights
    if weights is None:
        weights = str(folder / "random.safetensors")
        small = {"min_size": 160, "max_size": 256} if options.quick else {}
        baselines.write_random_model(Path(weights), pixels[:2], **small)
    model = load_model(weights)
    canvas = MaskRCNNSegmenter(model).canvas
    count = options.count or (2000 if device.type == "cuda" else len(files))
    return Case(
        model,
        device,
        tuple(sorted(pixels, key=lambda image: canvas(*image.shape[:2]))),
        write_manifest(folder / "images.csv", files, count),
        count,
        folder,
        options.batch_size,
        options.repeats,
        options.quick,
    )


def measure(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Measure everything in an empty folder; print each line's name as it comes."""
    rows: list[Row] = []

    def collect(lines: Sequence[Row] | Iterator[Row]) -> None:
        for line in lines:
            rows.append(line)
            print(f"{line.section}: {line.what}", file=sys.stderr, flush=True)

    case = prepare(options, folder)
    collect(equality(case))
    reached, lines = peaks(case)
    collect(lines)
    as_bytes = [torch.from_numpy(image.copy()).to(case.device) for image in case.pixels]
    residents: dict[str, Resident] = {dtype: case.segmenter(dtype, Resident) for dtype in case.dtypes}
    collect(network(case, reached, as_bytes, residents))
    collect(worker(case, as_bytes, residents[case.default_dtype]))
    return rows


def facts(device: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return what the figures depend on."""
    known = machine() | {"command": f"python -m tests.benchmarks.device {shlex.join(arguments)}".strip()}
    if device != "cpu" and torch.cuda.is_available():
        known["device"] = torch.cuda.get_device_name()
        known["cuda"], known["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    return known


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of photos")
    parser.add_argument("--count", type=int, help="images in a pass of the worker; they repeat")
    parser.add_argument("--distinct", type=int, help="different images")
    parser.add_argument("--weights", help="a file, or the name of a model")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--batch-size", type=int, help="of the engine")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small images, to see that everything runs")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Print the table, and write JSON."""
    options = parsed(arguments)
    with tempfile.TemporaryDirectory(prefix="device-") as folder:
        rows = measure(options, Path(folder))
    known = facts(options.device, arguments)
    print(table(rows))
    print("\n".join(f"{name}: {value}" for name, value in known.items()))
    if options.json:
        settings = {"repeats": options.repeats, "quick": options.quick}
        options.json.write_text(to_json(rows, known, settings), encoding="utf-8")


if __name__ == "__main__":
    # Where the project is not installed, its folder has another name.
    try:
        from maskrcnn.imaging.decode_pool import keep_freed_memory
    except ImportError:
        from jobs.actor import keep_freed_memory
    keep_freed_memory()  # as a run's actors do
    main(sys.argv[1:])
