"""Average precision against a COCO ground truth, by pycocotools.

`COCOeval` is the reference; this module avoids three of its defects. `loadRes` takes the area of a result from its box
where it has one, which changes the mask AP of small objects; an annotation with the id 0 counts as unmatched; an empty
list of results crashes. See https://github.com/cocodataset/cocoapi, PythonAPI.
"""

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import UsageError
from ..formats.coco_writer import IouType

_SHAPE: Final[Mapping[IouType, str]] = MappingProxyType({"bbox": "bbox", "segm": "segmentation"})


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """COCO's numbers, in [0, 1]; -1 where the ground truth has no object of that kind."""

    ap: float
    """Over IoU 0.50, 0.55, … 0.95, all sizes, at most 100 detections per image."""
    ap50: float
    ap75: float
    small: float
    """Objects below 32² pixels."""
    medium: float
    large: float
    """Objects above 96² pixels."""
    per_category: Mapping[str, float]
    """`ap` of each category with objects in the ground truth, by name; their mean is `ap`."""
    stats: tuple[float, ...]
    """The twelve metrics of `COCOeval.summarize`, in its order: six of precision, six of recall."""


def average_precision(
    ground_truth: Path | dict[str, Any],
    results: Path | list[dict[str, Any]],
    iou_type: IouType,
    max_detections: int = 100,
) -> AveragePrecision:
    """Score results against a ground truth.

    Args:
        ground_truth: in COCO dataset form, or the path of such a file.
        results: in COCO results form, or the path of such a file. An image of the ground truth without
            results has no detections.
        iou_type: `segm` compares masks and takes an object's size from its mask, `bbox` boxes.
        max_detections: the maximum number that counts in an image, above 10; COCO's own numbers are those at 100.

    Raises:
        UsageError: a file is not JSON of that form, or the two do not have the same images or categories.
    """
    dataset = _checked_ground_truth(ground_truth, iou_type)
    kept = _checked_results(results, dataset, iou_type)

    # pycocotools reports on stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        expected = _indexed(dataset)
        found = expected.loadRes(kept) if kept else _indexed({**dataset, "annotations": []})
        evaluation = COCOeval(expected, found, iou_type)
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        # Its first number is at 100 detections, whatever `maxDets` is.
        evaluation.stats[0] = _mean(evaluation.eval["precision"][:, :, :, 0, -1])

    stats = tuple(float(number) for number in evaluation.stats)
    precision = evaluation.eval["precision"][
        :, :, :, 0, -1
    ]  # (IoUs, recalls, categories): all sizes, maximum number of detections
    names = {category["id"]: category["name"] for category in dataset["categories"]}
    per_category = {
        names[category_id]: float(np.mean(precision[:, :, position]))
        for position, category_id in enumerate(evaluation.params.catIds)
        if precision[0, 0, position] > -1
    }
    ap, ap50, ap75, small, medium, large = stats[:6]
    return AveragePrecision(ap, ap50, ap75, small, medium, large, MappingProxyType(per_category), stats)


def _mean(numbers: NDArray[np.float64]) -> float:
    known = numbers[numbers > -1]
    return float(np.mean(known)) if known.size else -1.0


def _indexed(dataset: dict[str, Any]) -> COCO:
    index = COCO()
    index.dataset = dataset
    index.createIndex()
    return index


def _checked_ground_truth(ground_truth: Path | dict[str, Any], iou_type: IouType) -> dict[str, Any]:
    """Return the ground truth with annotations numbered from 1; the caller's entries are not changed."""
    dataset = _load(ground_truth) if isinstance(ground_truth, Path) else ground_truth
    absent = {"images", "annotations", "categories"}.difference(dataset if isinstance(dataset, dict) else ())
    if absent:
        raise UsageError(f"the ground truth is not a COCO dataset: {', '.join(sorted(absent))} missing")
    names = [category["name"] for category in dataset["categories"]]
    if len(set(names)) != len(names):
        raise UsageError("the ground truth has two categories with the same name: rename one")

    images = {image["id"] for image in dataset["images"]}
    required = {"image_id", "category_id", "area", _SHAPE[iou_type]}
    annotations = []
    for number, annotation in enumerate(dataset["annotations"], start=1):
        if absent := required.difference(annotation):
            at = annotation.get("id", number)
            raise UsageError(f"annotation {at} of the ground truth lacks {', '.join(sorted(absent))}")
        if annotation["image_id"] not in images:
            raise UsageError(
                f"the ground truth annotates image {annotation['image_id']}, which it does not list"
            )
        annotations.append({"iscrowd": 0, **annotation, "id": number})
    return {**dataset, "annotations": annotations}


def _checked_results(
    results: Path | list[dict[str, Any]], dataset: dict[str, Any], iou_type: IouType
) -> list[dict[str, Any]]:
    """Return the results with the one shape, box or mask, that is compared."""
    entries = _load(results) if isinstance(results, Path) else results
    if not isinstance(entries, list):
        raise UsageError("results are a bare JSON list, and not a COCO dataset: give the list")
    columns = ("image_id", "category_id", "score", _SHAPE[iou_type])
    try:
        kept = [{column: entry[column] for column in columns} for entry in entries]
    except (KeyError, TypeError) as error:
        raise UsageError(f"a result lacks {error}; {iou_type} needs {', '.join(columns)}") from error

    images = {image["id"] for image in dataset["images"]}
    strange = next((entry["image_id"] for entry in kept if entry["image_id"] not in images), None)
    if strange is not None:
        raise UsageError(f"the results contain image {strange}, which is not in the ground truth")
    known = {category["id"] for category in dataset["categories"]}
    if kept and known.isdisjoint(entry["category_id"] for entry in kept):
        raise UsageError(
            "no result has a category id of the ground truth: give the categories the same ids in both"
        )
    return kept


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist") from error
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise UsageError(f"{path} is not JSON: {error}") from error
