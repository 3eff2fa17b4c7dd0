"""Masks of random instances against torchvision's paste and pycocotools' encoder, byte for byte.

    python -m tests.benchmarks.equality [--instances 100000] [--seed 0]

The instances are those of the tests: smooth, saturated, noisy, and of values at the threshold; boxes inside, across
and outside of the image, thin, of one pixel, of no size. Prints one JSON object; exits with 1 at the first mask that
differs.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch
from masks.test_encode import disagreements, random_boxes, random_probabilities

SIZES = ((97, 61), (160, 210), (40, 30), (480, 640), (1, 97), (213, 320))

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instances", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(options.seed)
    started = time.perf_counter()
    compared = filled = 0
    while compared < options.instances:
        height, width = SIZES[compared // 100 % len(SIZES)]
        boxes, probabilities = random_boxes(rng, 100, height, width), random_probabilities(rng, 100)
        differing, found = disagreements(boxes, probabilities, height, width)
        if differing:
            sys.exit(f"{differing} masks differ at {height} x {width}, after {compared} instances")
        compared += 100
        filled += int(np.count_nonzero(found.areas))
    seconds = round(time.perf_counter() - started, 1)
    print(json.dumps({"instances": compared, "not empty": filled, "differing": 0, "seconds": seconds}))
