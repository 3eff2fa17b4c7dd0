"""Runs to evaluate: a segmenter that makes known mistakes, and what finishes a run of it."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
from maskrcnn_jobs.driver.planning import Request, prepare

from maskrcnn.config import InferenceConfig
from maskrcnn.imaging.decode import Limits
from maskrcnn.io.storage import Storage
from maskrcnn.masks.rle import crop_to_rle
from maskrcnn.pipeline.merge_generations import group_shards
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.pipeline.worker import ShardWorker
from maskrcnn.synthetic.planted import PLANTED_CATEGORIES, PlantedSegmenter, best_of, planted_instances
from maskrcnn.types import Detections, Pixels
from maskrcnn.visualization.run_report import write_report

IDS = [category.id for category in PLANTED_CATEGORIES]


class CarelessSegmenter(PlantedSegmenter):
    """Moves what it finds, takes some for another category, misses some, sees some twice; its scores tie."""

    def _segment(self, image: Pixels) -> Detections:
        height, width = image.shape[:2]
        rng = np.random.default_rng(int(image.astype(np.int64).sum()))
        seen = []
        for instance in planted_instances(image):
            for _ in range(int(rng.choice([0, 1, 1, 1, 2]))):
                category = int(rng.choice([instance.category_id] * 4 + IDS))
                x, y = (float(at + rng.normal(0, 1.5)) for at in (instance.x, instance.y))
                score = float(rng.integers(2, 10)) / 10
                moved = dataclasses.replace(instance, category_id=category, x=x, y=y, score=score)
                if moved.crop(height, width)[0].any():
                    seen.append(moved)
        masks = [crop_to_rle(*one.crop(height, width), height, width) for one in seen]
        labels = np.array([one.category_id for one in seen], np.int32)
        scores = np.array([one.score for one in seen], np.float32)

        def off(boxes: np.ndarray) -> np.ndarray:
            return (boxes + rng.normal(0, 0.4, boxes.shape)).astype(np.float32)

        return best_of(masks, labels, scores, height, width, 100, off)


def finish(output: Path, source: str, segmenter: PlantedSegmenter) -> None:
    """Run what is planned, and write tables in several parts."""
    plan = prepare(Request(source, str(output), InferenceConfig("planted"), shard_images=6))
    worker = ShardWorker(Storage(str(output)), segmenter, Limits(10**7, 10**7, 1333.0), {"node": "here"})
    for shard in plan:
        worker.run_shard(shard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maskrcnn.pipeline.reduce.group_shards", functools.partial(group_shards, part_bytes=1))
        reduce_run(str(output), write_report=write_report)
