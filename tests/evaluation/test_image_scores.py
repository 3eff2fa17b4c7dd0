"""Matching and averages against pycocotools: each of the twelve metrics, on a real network's results and on any."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn.evaluation.average_precision import Curves, average
from maskrcnn.evaluation.image_scores import Detected, Expected, Objects, ScoredImages, score_images
from maskrcnn.masks.rle import rle_areas

FIXTURE = Path(__file__).parents[3] / "shared" / "data" / "eval_fixture"
needs_fixture = pytest.mark.skipif(
    not FIXTURE.exists(), reason="needs the evaluation fixture, which is not ours"
)
SIDE = 160
Entries = list[dict[str, Any]]


# The oracle


def indexed(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def by_pycocotools(ground_truth: dict[str, Any], results: Entries, kind: str, max_dets: int) -> list[float]:
    """Return its twelve metrics at so many detections, from results with the one shape that is compared."""
    shape = {"segm": "segmentation", "bbox": "bbox"}[kind]
    kept = [{key: entry[key] for key in ("image_id", "category_id", "score", shape)} for entry in results]
    annotations = [a | {"id": number} for number, a in enumerate(ground_truth["annotations"], 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        expected = indexed(ground_truth | {"annotations": annotations})
        found = expected.loadRes(kept) if kept else indexed(ground_truth | {"annotations": []})
        evaluation = COCOeval(expected, found, kind)
        evaluation.params.maxDets = [1, 10, max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats: list[float] = evaluation.stats.tolist()
    if max_dets != 100:  # its first line asks for 100 detections, whatever there are
        stats[0] = mean(evaluation.eval["precision"][:, :, :, 0, -1])
    return stats


def mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(np.mean(known)) if known.size else -1.0


# Ours, from the same entries


def columns(
    entries: Entries, images: list[int], categories: list[int], sizes: dict[int, tuple[int, int]]
) -> Objects:
    def mask(entry: dict[str, Any]) -> dict[str, Any]:
        shape = entry["segmentation"]
        if isinstance(shape, list):
            return dict(coco_mask.merge(coco_mask.frPyObjects(shape, *sizes[entry["image_id"]])))
        return dict(
            coco_mask.frPyObjects(shape, *shape["size"]) if isinstance(shape["counts"], list) else shape
        )

    return Objects(
        np.array([images.index(entry["image_id"]) for entry in entries], np.int64),
        np.array([categories.index(entry["category_id"]) for entry in entries], np.int32),
        np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4),
        [mask(entry) for entry in entries],
    )


def by_us(
    ground_truth: dict[str, Any], results: Entries, max_dets: int, batches: int = 1, seed: int = 0
) -> tuple[dict[str, Curves], list[ScoredImages]]:
    """Evaluate images in so many batches, shuffled, as if they came from different parts of a run."""
    ids = np.random.default_rng(seed).permutation([image["id"] for image in ground_truth["images"]]).tolist()
    categories = sorted(category["id"] for category in ground_truth["categories"])
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    rank = {image: place for place, image in enumerate(sorted(ids))}
    evaluated = []
    for batch in (ids[start::batches] for start in range(batches)):
        there, here = (
            sorted((e for e in entries if e["image_id"] in batch), key=lambda e: batch.index(e["image_id"]))
            for entries in (ground_truth["annotations"], results)
        )
        found = columns(here, batch, categories, sizes)
        areas = rle_areas(found.masks)
        order = np.array([rank[image] for image in batch], np.int64)
        evaluated.append(
            score_images(
                Detected(found, np.array([e["score"] for e in here], np.float64), np.array(areas, np.int64)),
                Expected(
                    columns(there, batch, categories, sizes),
                    np.array([e["area"] for e in there], np.float64),
                    np.array([e["iscrowd"] for e in there], np.bool_),
                ),
                order,
                len(categories),
                max_dets,
            )
        )
    kinds = evaluated[0].tallies.keys()
    return {kind: average([w.tallies[kind] for w in evaluated], max_dets) for kind in kinds}, evaluated


@pytest.mark.slow
@needs_fixture
@pytest.mark.parametrize(("kind", "known"), [("bbox", 0.300), ("segm", 0.281)])
def test_a_real_networks_results_score_as_pycocotools_says(kind: str, known: float) -> None:
    ground_truth = json.loads((FIXTURE / "instances.json").read_text())
    boxes, masks = (json.loads((FIXTURE / f"results_{name}.json").read_text()) for name in ("bbox", "segm"))
    results = [box | mask for box, mask in zip(boxes, masks, strict=True)]
    curves, _ = by_us(ground_truth, results, 100, batches=3)
    assert round(curves[kind].stats()[0], 3) == known
    np.testing.assert_allclose(
        curves[kind].stats(), by_pycocotools(ground_truth, results, kind, 100), atol=1e-12, rtol=0
    )


# On any data


def shaped(x: int, y: int, width: int, height: int, bite: int) -> dict[str, Any]:
    """A rectangle without a corner, as JSON has it."""
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    mask[y : y + bite, x : x + bite] = 0
    encoded = coco_mask.encode(mask)
    return {"size": [SIDE, SIDE], "counts": encoded["counts"].decode()}


@st.composite
def entries(draw: st.DrawFn, images: int, categories: int, *, crowded: bool, most: int) -> Entries:
    """Objects that crowd at few places, so that they compete; scores of few values, so that they tie."""
    made = []
    for _ in range(draw(st.integers(0, most))):
        x, y = draw(st.integers(0, 3)) * 12, draw(st.integers(0, 3)) * 12
        width, height = (draw(st.sampled_from([5, 20, 24, 32, 40, 96, 110])) for _ in range(2))
        box = [x, y, width, height]
        made.append(
            {
                "image_id": draw(st.integers(0, images - 1)) * 7,
                "category_id": draw(st.integers(1, categories)) * 2,
                "bbox": [float(side) for side in box],
                "segmentation": shaped(*box, draw(st.integers(0, 4))),
                "score": draw(st.sampled_from([0.1, 0.5, 0.75, 0.9])),
                "area": float(draw(st.sampled_from([9, 1023, 1024, 1025, 9216, width * height]))),
                "iscrowd": int(crowded and draw(st.integers(0, 5)) == 0),
            }
        )
    return made


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Any], Entries, int]:
    images, categories = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    ground_truth = {
        "images": [{"id": 7 * k, "width": SIDE, "height": SIDE} for k in range(images)],
        "categories": [{"id": 2 * k, "name": str(k)} for k in range(1, categories + 2)],
        "annotations": draw(entries(images, categories, crowded=True, most=14)),
    }
    results = draw(entries(images, categories, crowded=False, most=40))
    return ground_truth, results, draw(st.sampled_from([11, 12, 100]))


@pytest.mark.slow
@settings(max_examples=75)
@given(problems(), st.integers(1, 3), st.integers(0, 3))
def test_each_of_the_twelve_metrics_is_that_of_pycocotools(
    problem: tuple[dict[str, Any], Entries, int], batches: int, seed: int
) -> None:
    ground_truth, results, max_dets = problem
    curves, _ = by_us(ground_truth, results, max_dets, batches, seed)
    for kind in ("bbox", "segm"):
        expected = by_pycocotools(ground_truth, results, kind, max_dets)
        np.testing.assert_allclose(curves[kind].stats(), expected, atol=1e-12, rtol=0, err_msg=kind)


@pytest.mark.slow
def test_more_objects_than_a_byte_counts_are_evaluated_alike() -> None:
    """Nuclei: some hundred objects of one category in one image, and as many detections."""
    rng = np.random.default_rng(0)

    def some(count: int, *, scored: bool) -> Entries:
        spots = np.random.default_rng(1).integers(0, SIDE - 14, (count, 2)) + rng.integers(0, 3, (count, 2))
        return [
            {
                "image_id": 0,
                "category_id": 2,
                "bbox": [float(x), float(y), 12.0, 12.0],
                "segmentation": shaped(int(x), int(y), 12, 12, 2),
                "area": 140.0,
                "iscrowd": 0,
                "score": float(rng.integers(1, 30)) / 30 if scored else 0.0,
            }
            for x, y in spots.tolist()
        ]

    ground_truth = {
        "images": [{"id": 0, "width": SIDE, "height": SIDE}],
        "categories": [{"id": 2, "name": "nucleus"}],
        "annotations": some(313, scored=False),
    }
    results = some(400, scored=True)
    for max_dets in (100, 400):
        curves, [evaluated] = by_us(ground_truth, results, max_dets)
        for kind in ("bbox", "segm"):
            expected = by_pycocotools(ground_truth, results, kind, max_dets)
            np.testing.assert_allclose(curves[kind].stats(), expected, atol=1e-12, rtol=0)
        assert evaluated.truncated.tolist() == [max_dets == 100]
