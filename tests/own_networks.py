"""Modules with networks of a user's own, without torch: they do what `--model planted` does, or something wrong."""

from pathlib import Path

PLANTED = """
import maskrcnn

print("imported")


def build(options, **arguments):
    print("built")
    return maskrcnn.PlantedSegmenter(
        min_score=options.min_score, max_detections=options.max_detections, keep=options.categories
    )
"""
"""The network of `--model planted`, which prints."""


def write_package(folder: Path) -> None:
    """Write a package `nets` whose module `pets` has `build`, and takes what it needs from another of its modules."""
    package = folder / "nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "planted.py").write_text(PLANTED)
    (package / "names.txt").write_text("plank\n")
    (package / "pets.py").write_text(
        "from pathlib import Path\n"
        "from .planted import build as build_planted\n"
        "assert Path(__file__).with_name('names.txt').read_text() == 'plank\\n'\n"
        "def build(options, *, depth=18, weights=None): return build_planted(options)\n"
    )


FAULTY = """
import itertools
import os
import time
from dataclasses import replace
import numpy as np
import maskrcnn

calls = itertools.count()


def moved(found, by):
    with np.errstate(invalid="ignore"):
        return maskrcnn.Detections.of_boxes(
            found.height, found.width, found.boxes + np.float32(by), found.labels, found.scores, capped=found.capped
        )


class Faulty(maskrcnn.PlantedSegmenter):
    fault = "none"
    batch_size = 8
    lanes = 2

    def outcomes(self, images):
        found = self.segment(images)
        if self.fault == "raises":
            raise KeyError("x")
        if self.fault == "raises in a batch" and len(images) > 1:
            raise KeyError(len(images))
        if self.fault == "raises in a batch of 8" and len(images) == 8:
            raise KeyError(len(images))
        if self.fault == "hangs":
            time.sleep(600)
        if self.fault == "hangs in C":
            sum(range(10**15))
        if self.fault == "ends":
            os.kill(os.getpid(), 9)
        return RESULTS.get(self.fault, lambda found: found)(found)


RESULTS = {
    "fewer": lambda found: [],
    "None": lambda found: None,
    "a dict": lambda found: [{}],
    "wide boxes": lambda found: [replace(each, boxes=each.boxes.astype(np.float64)) for each in found],
    "pixels as masks": lambda found: [
        replace(each, masks=np.zeros((len(each), each.height, each.width), bool)) for each in found
    ],
    "nan": lambda found: [moved(each, np.nan) for each in found],
    "outside": lambda found: [moved(each, 500) for each in found],
    "random": lambda found: [moved(each, next(calls)) for each in found],
    "batch": lambda found: [moved(each, len(found)) for each in found],
    "score": lambda found: [replace(each, scores=each.scores + 1) for each in found],
    "nothing": lambda found: [each.take(np.arange(0)) for each in found],
    "low scores": lambda found: [replace(each, scores=each.scores / 30) for each in found],
    "one instance": lambda found: [each.take(np.arange(len(each))[:1]) for each in found],
}


def build(options, *, fault, has_masks=False):
    kind = type("Faulty", (Faulty,), {"fault": fault})
    if fault == "hangs while it is built":
        time.sleep(600)
    if fault == "canvas":
        kind.canvas = lambda self, height, width: [height, width]
    if fault == "no key":
        kind.canvas = lambda self, height, width: object()
    if fault == "categories":  # another name in each process
        kind.categories = property(lambda self: (maskrcnn.Category(1, str(os.getpid())),))
    if fault == "one at a time":
        kind.batch_size = kind.lanes = 1
    if fault == "low scores" and options.min_score > 0.03:
        kind.fault = "nothing"
    if fault in ("limits", "low scores"):
        return kind(min_score=0.0, has_masks=has_masks)
    return kind(
        min_score=options.min_score,
        max_detections=options.max_detections,
        keep=options.categories,
        has_masks=has_masks,
    )
"""
"""Networks that do what `--model planted-boxes` does, but for one fault, which is their argument."""
