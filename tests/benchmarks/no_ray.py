"""Time of `maskrcnn segment` from the prompt to `_SUCCESS`, in one process and on a Ray of this machine.

    python -m tests.benchmarks.no_ray [--images 6,25,50,100,200] [--repeats 3] [--model scenes] [--json PATH]

The sides alternate; their tables are compared. The limit `execution.MAX_ROWS` follows from where the two times meet.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from maskrcnn.synthetic.scenes import write_scenes

SEED: Final = 20_000_000
TABLES: Final = ("images", "instances")


def seconds(source: Path, output: Path, model: str, way: str) -> float:
    """Return the seconds that the command takes. Raises SystemExit if it fails."""
    command = [sys.executable, "-m", "maskrcnn_jobs", "-q", "segment", str(source), str(output)]
    started = time.monotonic()
    done = subprocess.run([*command, "--model", model, way], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{way}: {done.stderr}")
    return time.monotonic() - started


def tables(output: Path) -> list[bytes]:
    """Return the bytes of the users' tables."""
    return [path.read_bytes() for name in TABLES for path in sorted((output / name).iterdir())]


def main() -> None:
    """Measure, and print a line per number of images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", default="6,25,50,100,200")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory(prefix="no-ray-") as name:
        folder = Path(name)
        for count in map(int, options.images.split(",")):
            source = folder / f"scenes-{count}"
            write_scenes(source, count, seed=SEED)
            times: dict[str, list[float]] = {"--no-ray": [], "--ray": []}
            for repeat in range(options.repeats):
                for way, measured in times.items():
                    output = folder / f"{count}{way}{repeat}"
                    measured.append(seconds(source, output, options.model, way))
                if tables(folder / f"{count}--no-ray{repeat}") != tables(folder / f"{count}--ray{repeat}"):
                    sys.exit(f"the tables of {count} images differ")
            figures[count] = times
            here, on_ray = (
                f"{statistics.median(measured):.1f} s ({min(measured):.1f} to {max(measured):.1f})"
                for measured in times.values()
            )
            print(f"{count:4} images: one process {here}, on Ray {on_ray}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
