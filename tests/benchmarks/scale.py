"""The whole chain over planted images, by size: CPU seconds and peak memory of each stage, and how they grow.

    python -m tests.benchmarks.scale [--sizes 10000 100000] [--stages plan map …] [--folder DIR] [--lines FILE]
    make scale

A collection is a manifest that names 500 small planted images repeatedly; every hundredth row names one that is broken
until `retry`. Each stage is a process of its own, mostly the command itself. The map stage, and the commands that use
Ray for a large run, start one. From `--planted-from` images on, `map` is replaced by `plant`: an actor's worker, in
one process without Ray, which reads every file, but decodes and segments the 500 only once.

Of each stage: wall seconds, CPU seconds of all its processes, and the peak resident memory of the command's process
(`driver`) and of the largest process that works for it (`task`), without Ray's own. Written as JSON lines as the stages
end; at the end as a table, with the growth from each size to the next.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from planted_images import write_planted

from maskrcnn.config import InferenceConfig, ResourceConfig
from maskrcnn.formats import coco_writer
from maskrcnn.imaging.decode import DecodedImage, Limits, decode_image
from maskrcnn.io.parquet import INSTANCES, parquet_options
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.plan import read_plan, read_plans, read_run
from maskrcnn.pipeline.receipts import complete_receipts
from maskrcnn.pipeline.success import categories_of, coco_info, parts_of, read_success
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.synthetic.planted import PlantedSegmenter
from maskrcnn.types import Detections, Pixels
from maskrcnn.visualization.run_report import write_report

from .measure import machine, number

DISTINCT: Final = 500
BROKEN_EVERY: Final = 100
TICK_S: Final = 0.1
ROOT: Final = Path(__file__).parent.parent.parent
LIMITS: Final = Limits(10**8, 10**8, 1333.0)


@dataclass(frozen=True)
class Sample:
    """The files of one size."""

    folder: Path
    images: int

    @property
    def manifest(self) -> Path:
        """The rows of the collection."""
        return self.folder / "collection.csv"

    @property
    def run(self) -> Path:
        """The run."""
        return self.folder / "run"

    @property
    def ground_truth(self) -> Path:
        """The ground truth of all rows, COCO JSON."""
        return self.folder / "ground_truth.json"

    def name(self, row: int) -> str:
        """Return the name of a row."""
        return f"{row:010d}.png"

    def __str__(self) -> str:
        """Return its size."""
        return f"{self.images:,}"


def write_sample(pool: Path, sample: Sample) -> None:
    """Write the manifest and the ground truth of a collection."""
    sample.folder.mkdir()
    files = sorted(path for path in pool.glob("planted-*.png"))
    ground_truth = json.loads((pool / "instances.json").read_text())
    by_image: list[list[dict[str, Any]]] = [[] for _ in files]
    for annotation in ground_truth["annotations"]:
        by_image[annotation["image_id"] - 1].append(annotation)
    with sample.manifest.open("w") as rows, sample.ground_truth.open("w") as out:
        rows.write("uri,name\n")
        out.write(f'{{"categories": {json.dumps(ground_truth["categories"])}, "images": [')
        for row in range(sample.images):
            broken = row % BROKEN_EVERY == BROKEN_EVERY - 1
            place = pool / "broken.png" if broken else files[row % DISTINCT]
            rows.write(f"{place},{sample.name(row)}\n")
            entry = ground_truth["images"][row % DISTINCT] | {"id": row + 1, "file_name": sample.name(row)}
            out.write(("," if row else "") + json.dumps(entry))
        out.write('], "annotations": [')
        number = 0
        for row in range(sample.images):
            for annotation in by_image[row % DISTINCT]:
                number += 1
                entry = annotation | {"id": number, "image_id": row + 1}
                out.write(("," if number > 1 else "") + json.dumps(entry))
        out.write("]}")


# Stages that are not commands


def run_map(manifest: str, output: str) -> None:
    """Run the map stage of a planned run on a Ray of this machine."""
    from maskrcnn_jobs.driver.cluster import connected
    from maskrcnn_jobs.driver.planning import Request, prepare
    from maskrcnn_jobs.driver.run import run_shards
    from maskrcnn_jobs.driver.scheduler import map_shards

    request = Request(manifest, output, InferenceConfig("planted"))
    plan = prepare(request)
    with connected("local", ResourceConfig(device="cpu")) as resources:
        run_shards(request, plan, resources, map_shards)


def plant(output: str) -> None:
    """Process the shards of a planned run in this process; decode and segment equal files once."""
    storage = Storage(output)
    plan = read_plan(storage)
    if plan is None:
        raise SystemExit(f"{output} is not planned")
    decoded: dict[bytes, DecodedImage] = {}

    def decode(data: bytes, limits: Limits) -> DecodedImage:
        if data not in decoded:
            decoded[data] = decode_image(data, limits)  # a broken file raises each time, as it should
        return decoded[data]

    worker = ShardWorker(storage, _SegmentsOnce(), LIMITS, {"node": "here"}, decode=decode)
    for shard in plan.pending(complete_receipts(storage)):
        worker.run_shard(shard)
    worker.stop()


class _SegmentsOnce(PlantedSegmenter):
    """Keeps what was found in an array of pixels, which must live as long as itself."""

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[int, Detections] = {}

    def _segment(self, image: Pixels) -> Detections:
        if id(image) not in self._found:
            self._found[id(image)] = super()._segment(image)
        return self._found[id(image)]


def write_coco(output: str) -> None:
    """Write the COCO JSON of a finished run again, in this process."""
    storage = Storage(output)
    run, [first, *_] = read_run(storage), read_plans(storage)
    success = read_success(storage) or {}
    for file in coco_writer.plan_files(parts_of(success), "auto"):
        target = file.dataset_target
        coco_writer.write_dataset(storage, file.parts, categories_of(run), target, coco_info(run, first))
        for kind in file.iou_types:
            coco_writer.write_results(storage, file.parts, file.results_target(kind), kind)


def report(output: str) -> None:
    """Write the report of a finished run again, in this process."""
    storage = Storage(output)
    stats, timings = (json.loads(storage.read(name)) for name in ("stats.json", "timings.json"))
    write_report(output, (read_run(storage), stats, timings, read_success(storage) or {}))


# Between the stages


def copy_of(run: Path, name: str) -> Path:
    """Return a copy of what `diff` reads of a run, made of links."""
    copy = run.with_name(name)
    shutil.copytree(
        run, copy, copy_function=os.link, ignore=shutil.ignore_patterns("shards", "receipts", "coco")
    )
    return copy


def rescore(run: Path) -> None:
    """Give each instance of a run another score, so that all of them differ."""
    for path in (run / INSTANCES).iterdir():
        changed = path.with_suffix(".changed")
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            with pq.ParquetWriter(changed, schema, **parquet_options(schema)) as writer:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group)
                    scores = pc.multiply(table["score"], pa.scalar(0.99, pa.float32()))
                    writer.write_table(
                        table.set_column(schema.get_field_index("score"), "score", scores).cast(schema)
                    )
        changed.replace(path)


# Measuring


@dataclass
class _Process:
    role: str
    cpu_s: float = 0.0
    peak_mb: float = 0.0


def measure(command: Sequence[str], expected: Sequence[int] = (0,)) -> dict[str, Any]:
    """Run a command; return its seconds, CPU seconds and peak memory by role, and the size of what it printed.

    The last 0.1 s of a process that ends before the command are not seen.
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = psutil.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        seen: dict[int, _Process] = {}
        try:
            while _running(process):
                _look(process, seen)
                time.sleep(TICK_S)
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            raise
        code = os.waitstatus_to_exitcode(status)
        if code not in expected:
            out.seek(0)
            sys.stderr.write(out.read().decode(errors="replace")[-3000:])
            raise SystemExit(f"{' '.join(command)} ended with {code}")
    own = seen.pop(process.pid, _Process("driver"))
    others = sum(one.cpu_s for one in seen.values())
    return {
        "wall_s": round(time.perf_counter() - began, 2),
        # Of children that were waited for, the system has the exact figure.
        "cpu_s": round(max(usage.ru_utime + usage.ru_stime, own.cpu_s + others), 2),
        "driver_mb": round(own.peak_mb),
        "task_mb": round(max((one.peak_mb for one in seen.values() if one.role == "task"), default=0)),
    }


def _running(process: psutil.Process) -> bool:
    return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE


def _look(root: psutil.Process, seen: dict[int, _Process]) -> None:
    for process in [root, *root.children(recursive=True)]:
        try:
            if process.pid not in seen:
                seen[process.pid] = _Process(_role(process, root))
            one = seen[process.pid]
            times = process.cpu_times()
            one.cpu_s = times.user + times.system
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            [peak] = [line for line in lines if line.startswith("VmHWM")] or ["VmHWM: 0 kB"]
            one.peak_mb = max(one.peak_mb, int(peak.split()[1]) / 1024)
            if process.pid != root.pid:
                one.role = _role(process, root)  # Ray's workers change their titles
        except (psutil.Error, OSError):
            pass


def _role(process: psutil.Process, root: psutil.Process) -> str:
    if process.pid == root.pid:
        return "driver"
    title = " ".join(process.cmdline())
    if title.startswith("ray::"):
        return "ray" if "Agent" in title else "task"
    return "ray" if "/ray/" in title or process.name() in ("raylet", "gcs_server") else "task"


def stages_of(sample: Sample, pool: Path, *, planted: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what measures each stage of a size, in their order."""
    run, before, rescored = (str(sample.folder / name) for name in ("run", "before", "rescored"))

    def cli(*arguments: str, expected: Sequence[int] = (0,)) -> dict[str, Any]:
        return measure([sys.executable, "-m", "maskrcnn_jobs", *arguments], expected)

    def here(function: str, *arguments: str) -> dict[str, Any]:
        code = f"import sys; from tests.benchmarks.scale import {function}; {function}(*sys.argv[1:])"
        return measure([sys.executable, "-c", code, *arguments])

    def diff_before() -> dict[str, Any]:
        return cli("diff", before, run, expected=(1,))

    def diff_all() -> dict[str, Any]:
        rescore(copy_of(sample.run, "rescored"))
        return cli("diff", rescored, run, "--output", str(sample.folder / "diff"), expected=(1,))

    def retry() -> dict[str, Any]:
        copy_of(sample.run, "before")
        shutil.copyfile(pool / "planted-000000.png", pool / "broken.png")
        return cli("retry", run, "--no-ray")

    def plan() -> dict[str, Any]:
        (pool / "broken.png").write_bytes(BROKEN)
        return cli("plan", str(sample.manifest), run, "--model", "planted")

    one_of_the_last = f"name = '{sample.name(sample.images - 2)}'"
    picture = str(sample.folder / "picture.png")
    return {
        "plan": plan,
        **(
            {"plant": lambda: here("plant", run)}
            if planted
            else {"map": lambda: here("run_map", str(sample.manifest), run)}
        ),
        "reduce": lambda: cli("reduce", run),
        "of which COCO": lambda: here("write_coco", run),
        "of which report": lambda: here("report", run),
        "status": lambda: cli("status", run),
        "verify": lambda: cli("verify", run),
        "retry": retry,
        "evaluate": lambda: cli("evaluate", run, "--truth", str(sample.ground_truth)),
        "diff, 1 % changed": diff_before,
        "diff, all changed": diff_all,
        "show --where": lambda: cli("show", run, "--where", one_of_the_last, "--output", picture),
        "gc": lambda: cli("gc", run),
    }


BROKEN: Final = b"\x89PNG\r\n\x1a\n" + b"cut short"


def table(lines: Sequence[dict[str, Any]], sizes: Sequence[int]) -> str:
    """Return the figures by stage, and the growth from each size to the next."""
    by_stage: dict[str, dict[int, dict[str, Any]]] = {}
    for line in lines:
        by_stage.setdefault(line["stage"], {})[line["images"]] = line
    heads = ("CPU s", "wall s", "driver MB", "task MB")
    keys = ("cpu_s", "wall_s", "driver_mb", "task_mb")
    rows = [["stage", "images", *heads, "CPU grows", "driver MB grows"]]
    for stage, by_size in by_stage.items():
        for place, size in enumerate(sizes):
            if size not in by_size:
                continue
            now, last = by_size[size], by_size.get(sizes[place - 1]) if place else None
            grows = [
                f"{now[key] / last[key]:.2f}" if last and last[key] else "" for key in ("cpu_s", "driver_mb")
            ]
            rows.append([stage, f"{size:,}", *(number(now[key]) for key in keys), *grows])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main() -> None:
    """Measure the sizes one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], metavar="N")
    parser.add_argument("--stages", nargs="+", metavar="STAGE", help="only these, on a run that --folder has")
    parser.add_argument("--planted-from", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--folder", type=Path, help="keep everything there; with --stages, its runs are used")
    parser.add_argument(
        "--lines", type=Path, help="append the JSON lines to this file; by default they are printed"
    )
    options = parser.parse_args()
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="scale-") as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        pool = folder / "images"
        if not pool.exists():
            write_planted(pool, DISTINCT, seed=0)
        for size in options.sizes:
            sample = Sample(folder / str(size), size)
            if not sample.folder.exists():
                write_sample(pool, sample)
            for stage, run in stages_of(sample, pool, planted=size >= options.planted_from).items():
                if options.stages and stage not in options.stages:
                    continue
                line = {"images": size, "stage": stage, **run()}
                lines.append(line)
                text = json.dumps(line)
                if options.lines is None:
                    print(text, flush=True)
                else:
                    with options.lines.open("a") as out:
                        out.write(text + "\n")
            if options.folder is None:
                shutil.rmtree(sample.folder)
    print(table(lines, sorted(options.sizes)))
    print("  ".join(f"{name} {value}" for name, value in machine().items()))


if __name__ == "__main__":
    main()
