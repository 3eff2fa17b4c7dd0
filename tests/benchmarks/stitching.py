"""Whether the time of stitching is proportional to the number of windows, and whether its objects are the planted ones.

    python -m tests.benchmarks.stitching [--rows 24] [--columns 12] [--repeats 5]
    python -m tests.benchmarks.stitching --offsets 16

The first merges what a segmenter whose masks are off by up to two pixels finds in rows times columns windows of 1024
pixels that share 256, and in ten times as many rows. The small one is merged ten times for each time the large one
is, in turns: a shared machine is quiet for a second more often than for half a minute, which made the ratio of single
merges a matter of chance. Printed are seconds of CPU, and the ratio's median, minimum and maximum. Border windows have
fewer neighbours, which shows where rows are few.

The second plants mosaics of 4500 x 4096 pixels under so many places of the grid, for overlaps of 128 and 256 pixels,
with and without jitter, and prints what is lost, doubled or split; it fails if anything is.
"""

import argparse
import gc
import statistics
import time

import numpy as np
from tiling.test_stitching import GroundTruth, is_about, is_exactly, mosaic, offsets, segmented, tight

from maskrcnn.synthetic.planted import PlantedInstance
from maskrcnn.tiling.grid import Grid
from maskrcnn.tiling.stitching import WindowDetections, stitch

OBJECTS_A_WINDOW = 30
WINDOW, OVERLAP = 1024, 256


def planted(grid: Grid, seed: int) -> list[GroundTruth]:
    """Return ellipses of 16 to 600 pixels, small ones more often, some of them over each other."""
    rng = np.random.default_rng(seed)
    ground_truth = []
    for _ in range(OBJECTS_A_WINDOW * len(grid)):
        width, height = np.exp(rng.uniform(np.log(16), np.log(600), 2) * rng.uniform(0.7, 1))
        x, y = rng.uniform(0, grid.width), rng.uniform(0, grid.height)
        shape = PlantedInstance("ellipse", 1, 0.5, x, y, width, height, rng.uniform(0, 180))
        crop, left, top = shape.crop(grid.height, grid.width)
        instance = tight(crop, left, top, int(rng.integers(1, 21)), round(float(rng.uniform(0.1, 1)), 3))
        ground_truth += [instance] if instance else []
    return ground_truth


def found_in(rows: int, columns: int) -> tuple[Grid, WindowDetections]:
    """Return a grid of so many windows, and what is found in them."""
    stride = WINDOW - OVERLAP
    grid = Grid(stride * rows + OVERLAP, stride * columns + OVERLAP, WINDOW, OVERLAP)
    return grid, segmented(grid, planted(grid, seed=rows), seed=rows)[0]


def seconds(grid: Grid, pieces: WindowDetections) -> float:
    """Return the CPU seconds of a merge."""
    start = time.process_time()
    stitch(grid, pieces, capped=False)
    return time.process_time() - start


def ratio(rows: int, columns: int, repeats: int) -> float:
    """Print what a merge of so many windows takes, and of ten times as many; return the median of the ratios."""
    one, ten = found_in(rows, columns), found_in(10 * rows, columns)
    gc.collect()
    gc.freeze()  # else a collection, on whichever side it falls, walks through all that was imported
    pairs = [(statistics.fmean(seconds(*one) for _ in range(10)), seconds(*ten)) for _ in range(repeats)]
    for (grid, pieces), times in zip((one, ten), zip(*pairs, strict=True), strict=True):
        median = statistics.median(times)
        each = f"{median / len(pieces.masks) * 1e6:.0f} us each"
        print(
            f"{len(grid):,} windows, {len(pieces.masks):,} pieces: {median:.2f} s of CPU, {each}", flush=True
        )
    ratios = [many / few for few, many in pairs]
    median = statistics.median(ratios)
    print(f"ratio {median:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {repeats} pairs")
    return median


def wrong(overlap: int, jitter: bool, count: int) -> int:
    """Print and return the number of places of the grid at which anything is lost, doubled, split or off."""
    faults = objects = 0
    for seed, offset in enumerate(offsets(WINDOW, overlap, count, overlap)):
        grid = Grid(4096, 4500, WINDOW, overlap, offset)
        ground_truth = mosaic(grid, seed, 500, 16 if jitter else 3)
        pieces, of = segmented(grid, ground_truth, seed if jitter else None)
        merged = stitch(grid, pieces, capped=False)
        objects += len(ground_truth)
        try:
            if jitter:
                is_about(merged, ground_truth)
            else:
                is_exactly(merged, ground_truth, of)
        except AssertionError as error:
            faults += 1
            print(f"offset {offset}: {len(ground_truth)} planted, {len(merged.masks)} found: {error}")
    kind = "masks off by up to 2 px" if jitter else "exact masks"
    print(
        f"overlap {overlap}, {kind}: {objects} objects under {count} offsets, wrong under {faults}",
        flush=True,
    )
    return faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--columns", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--offsets", type=int, help="check the objects under so many places of the grid instead"
    )
    options = parser.parse_args()
    if options.offsets:
        cases = [(overlap, jitter) for overlap in (128, 256) for jitter in (False, True)]
        if sum(wrong(*case, options.offsets) for case in cases):
            raise SystemExit("not what was planted")
    else:
        ratio(options.rows, options.columns, options.repeats)
