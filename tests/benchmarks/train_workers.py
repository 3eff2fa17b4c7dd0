"""Two workers of one thread against one of one thread: the time of an epoch, and its losses.

    python -m tests.benchmarks.train_workers --repeats 3

Trains the embedded model on generated scenes by `maskrcnn train`, both by turns, with the same global batch, and
compares the second epoch's time and every epoch's mean losses. Then the same of convolutions that share nothing, which
is what this machine has to give.
"""

import argparse
import csv
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from labelled import write_labels

from maskrcnn.training.config import LOSSES

FIRST = 50_000_000


def train(labels, output, workers, side):
    options = ["--model", "scenes", "--epochs", 2, "--batch-size", 4, "--crop", side, "--min-size", side]
    options += [
        "--max-size",
        side,
        "--val-share",
        0.1,
        "--workers",
        workers,
        "--threads",
        1,
        "--address",
        "local",
    ]
    command = [sys.executable, "-m", "maskrcnn_jobs", "-q", "train", labels, output, *options]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    with (output / "log.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def convolve(steps):
    """Return the seconds that so many steps take."""
    import torch

    torch.set_num_threads(1)
    layers = torch.nn.Sequential(*(torch.nn.Conv2d(64, 64, 3, padding=1) for _ in range(6)))
    images = torch.randn(1, 64, 128, 128)
    start = time.monotonic()
    for _ in range(steps):
        layers(images).sum().backward()
    return time.monotonic() - start


def machine(repeats):
    """Return the time of two processes with half the work each over that of one with all."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(convolve, [2, 2], chunksize=1)
        pairs = [
            (max(pool.map(convolve, [50, 50], chunksize=1)), pool.apply(convolve, (100,)))
            for _ in range(repeats)
        ]
    return [two / one for two, one in pairs]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--side", type=int, default=512, help="of the scenes, pixels")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    ratios, differences = [], []
    with tempfile.TemporaryDirectory() as scratch:
        labels = write_labels(Path(scratch), range(FIRST, FIRST + options.images), options.side)
        for repeat in range(options.repeats):
            logs = {}
            for workers in ((1, 2), (2, 1))[repeat % 2]:
                logs[workers] = train(labels, Path(scratch) / f"{repeat}-{workers}", workers, options.side)
            ratios.append(logs[2][1]["seconds"] / logs[1][1]["seconds"])
            differences += [
                abs(two[name] / one[name] - 1)
                for one, two in zip(logs[1], logs[2], strict=True)
                for name in LOSSES
            ]
            print(
                f"an epoch: {logs[2][1]['seconds']:.1f} s by two, {logs[1][1]['seconds']:.1f} s by one",
                flush=True,
            )
    print(
        f"time of two workers over one: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    shared = machine(3)
    print(
        f"of work that shares nothing: {statistics.median(shared):.2f} ({min(shared):.2f} to {max(shared):.2f})"
    )
    print(f"largest difference of an epoch's mean loss: {max(differences):.2%}")


if __name__ == "__main__":
    main()
