"""Forecast five collections by `maskrcnn plan --measure`, run them, and print both times.

    python -m tests.benchmarks.forecast [--only mixed] [--scale 1.0]

Small photos, 12-megapixel photos, a raster in windows, planted images of a network that sleeps, on Ray, and photos of
both sizes with PNGs among them. `--scale` multiplies the number of images.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from planted_images import write_planted

from maskrcnn.synthetic.scenes import write_mosaic

from .inputs import COCO_SIZE, PHOTO_SIZE, photo, write_photos


class Collection(NamedTuple):
    """Inputs to forecast."""

    write: Callable[[Path, float], None]
    sample: int
    options: tuple[str, ...]


def write_mixed(folder: Path, scale: float) -> None:
    """Write photos of two sizes, and every tenth small one again as a PNG."""
    write_photos(folder / "small", round(100 * scale), COCO_SIZE)
    write_photos(folder / "large", round(20 * scale), PHOTO_SIZE)
    for number in range(round(10 * scale)):
        Image.fromarray(photo(*COCO_SIZE, seed=1000 + number)).save(folder / f"{number}.png")


HERE = ("--model", "scenes", "--no-ray")
COLLECTIONS = {
    "small photos": Collection(
        lambda folder, scale: write_photos(folder, round(160 * scale), COCO_SIZE) and None, 32, HERE
    ),
    "12 megapixels": Collection(
        lambda folder, scale: write_photos(folder, round(60 * scale), PHOTO_SIZE) and None, 16, HERE
    ),
    "raster": Collection(
        lambda folder, scale: write_mosaic(folder, round(10 * scale), 10, seed=1),
        24,
        (*HERE, "--window", "512"),
    ),
    "planted, asleep": Collection(
        lambda folder, scale: write_planted(folder, round(600 * scale), seed=1),
        120,
        ("--model", "planted:0.2", "--ray", "--actors", "2"),
    ),
    "mixed": Collection(write_mixed, 32, HERE),
}


def command(*arguments: str) -> tuple[float, str]:
    """Run a command; return its seconds and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "maskrcnn_jobs", "--quiet", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return time.perf_counter() - started, done.stdout


def main() -> None:
    """Print a line for each collection: forecast, time, and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=COLLECTIONS)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    for name, collection in COLLECTIONS.items():
        if options.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            source, output = f"{scratch}/in", f"{scratch}/out"
            collection.write(Path(source), options.scale)
            if name == "raster":
                Path(source, "instances.json").unlink()
            run = (source, output, *collection.options)
            measuring, printed = command("plan", *run, "--measure", str(collection.sample), "--json")
            forecast = json.loads(printed)["forecast"]
            seconds, _ = command("segment", *run)
        print(
            f"{name}: forecast {forecast['eta_s']:.0f} s, took {seconds:.0f} s: {forecast['eta_s'] / seconds:.2f} "
            f"(measured {forecast['sampled']} in {measuring:.0f} s, limited by the {forecast['bottleneck']})",
            flush=True,
        )


if __name__ == "__main__":
    main()
