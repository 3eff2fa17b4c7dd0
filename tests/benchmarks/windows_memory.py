"""Peak memory of an actor on a large raster, against one on a raster a tenth of its side.

    python -m tests.benchmarks.windows_memory [RASTER] [--model scenes]

Without a raster one of 36,000 x 18,000 pixels is generated. Each is run by a process of its own: the code of an actor
without Ray, with the process that decodes. Prints the peak of both together, and the ratio.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

WIDTH, HEIGHT = 36_000, 18_000


def generate(path: Path, width: int, height: int) -> None:
    """Write a raster of noise and shapes, strip by strip."""
    from maskrcnn.imaging.geotiff import need_rasterio

    rasterio = need_rasterio()
    rng = np.random.default_rng(0)
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=3, dtype="uint8", tiled=True, blockxsize=512,
        blockysize=512, compress="deflate", crs="EPSG:4326", transform=rasterio.Affine(0.01, 0, -180, 0, -0.01, 90),
    ) as file:  # fmt: skip
        for top in range(0, height, 512):
            rows = min(512, height - top)
            coarse = rng.integers(0, 255, (3, -(-rows // 32), -(-width // 32)), np.uint8)
            strip = coarse.repeat(32, axis=1).repeat(32, axis=2)[:, :rows, :width]
            file.write(strip, window=((top, top + rows), (0, width)))


def shrink(source: Path, target: Path) -> None:
    """Write a raster at a tenth of its side."""
    from maskrcnn.imaging.geotiff import need_rasterio

    rasterio = need_rasterio()
    with rasterio.open(source) as file:
        width, height = file.width // 10, file.height // 10
        profile = file.profile | {"width": width, "height": height}
        profile["transform"] = file.transform * file.transform.scale(10, 10)
        with rasterio.open(target, "w", **profile) as small:
            small.write(file.read(out_shape=(file.count, height, width)))


def run(raster: str, model: str) -> None:
    """Run a raster in windows, and print the peak of this process and its children as JSON."""
    from maskrcnn_jobs.driver.node_worker import WorkerSpec, build_segmenter
    from maskrcnn_jobs.driver.planning import Request, prepare

    from maskrcnn.config import InferenceConfig, ResourceConfig
    from maskrcnn.imaging.decode import Limits
    from maskrcnn.imaging.decode_pool import Decoders, RasterSource, keep_freed_memory
    from maskrcnn.imaging.radiometry import Radiometry
    from maskrcnn.io.storage import Storage
    from maskrcnn.pipeline.plan import read_plans
    from maskrcnn.pipeline.worker import ShardWorker

    keep_freed_memory()
    compute = InferenceConfig(model=model, window=1024, overlap=256)
    watch = Watch()
    with tempfile.TemporaryDirectory() as output:
        prepare(Request(raster, output, compute))
        storage = Storage(output)
        segmenter = build_segmenter(WorkerSpec(output, "", compute, ResourceConfig(device="cpu", threads=1)))
        with Decoders(1) as decoders:
            worker = ShardWorker(
                storage,
                segmenter,
                Limits(compute.max_pixels, compute.max_bytes, 1e9),
                {},
                decode=decoders.decode,
                read_region=lambda entry, rect: decoders.read_region(
                    RasterSource(entry["uri"], entry["etag"], Radiometry()), rect
                ),
            )
            started, n_windows = time.perf_counter(), 0
            for shard in read_plans(storage)[0]:
                n_windows += sum(worker.run_shard(shard).receipt.counts.values())
            wall_s = time.perf_counter() - started
    print(json.dumps({"peak": watch.stop(), "windows": n_windows, "wall_s": wall_s}))


class Watch:
    """Looks every 10 ms at the memory of this process and its children."""

    def __init__(self) -> None:
        self._peak, self._stopped = 0, False
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        own = psutil.Process(os.getpid())
        while not self._stopped:
            total = own.memory_info().rss
            for child in own.children():
                try:
                    total += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self._peak = max(self._peak, total)
            time.sleep(0.01)

    def stop(self) -> int:
        """Return the peak, bytes."""
        self._stopped = True
        self._thread.join()
        return self._peak


def measured(raster: Path, model: str) -> dict[str, Any]:
    """Return what a process of its own says of a run."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.windows_memory",
        str(raster),
        "--run",
        "--model",
        model,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both, and print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("raster", nargs="?", help="a GeoTIFF of bytes; by default one is generated")
    parser.add_argument("--model", default="planted", help="planted (the default), or scenes")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run:
        run(options.raster, options.model)
        return
    with tempfile.TemporaryDirectory() as name:
        large, small = Path(options.raster or Path(name, "large.tif")), Path(name, "small.tif")
        if not options.raster:
            generate(large, WIDTH, HEIGHT)
        shrink(large, small)
        found = [measured(path, options.model) for path in (large, small)]
    for what, one in zip(("large", "a tenth"), found, strict=True):
        print(f"{what}: peak {one['peak'] / 1e6:.0f} MB, {one['windows']} windows in {one['wall_s']:.1f} s")
    print(f"ratio {found[0]['peak'] / found[1]['peak']:.3f}")


if __name__ == "__main__":
    main()
