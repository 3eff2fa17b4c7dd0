"""A finished run evaluated against a COCO ground truth: COCO's twelve metrics, and the counts of each image.

Parts are evaluated separately (`evaluate_part`), here or by Ray tasks, and folded here. What is kept of a detection is
its score, its place and eighty bits, so memory follows the number of detections and not that of masks.
"""

import json
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import RunError, UsageError, plural
from ..formats.coco_findings import EXAMPLES, log_findings, summary_of_errors
from ..formats.coco_reader import CocoFile, CocoImages, read_coco
from ..io.parquet import Part, read_table, write_table
from ..io.storage import Storage
from ..io.temporary import Spilled
from ..pipeline.success import RunAll, detects_masks, parts_of, run_here
from ..results.part_checks import check_tables, reading
from ..results.run import Run, open_run
from .alignment import PairedCategories, PairedImages, pair_categories, pair_images
from .average_precision import STATS, Curves, average
from .evaluate_part import WORST, ImageOutcome, PartScore, Terms, score_part
from .ground_truth_shares import Shares, image_order
from .image_scores import COUNTED_SCORE, COUNTS, KINDS, Kind, worst_first

log = logging.getLogger("maskrcnn")

FOLDER: Final = "evaluation"
_LISTED: Final = ["image_id", "name", "status", "height", "width", "exif_orientation"]
MAX_DETS: Final = 100
IMAGES: Final = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        *[pa.field(name, pa.from_numpy_dtype(kind), nullable=False) for name, kind in COUNTS.items()],
    ]
)
"""Of `evaluation/images.parquet`; see `image_scores.Counts`."""


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """How a user wants a run to be evaluated."""

    max_dets: int = MAX_DETS
    """The maximum number of detections of a category in an image that count."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """The ground truth's name of a category by the run's."""
    only: tuple[str, ...] = ()
    """Names of the ground truth's categories; all, if empty."""
    class_agnostic: bool = False
    allow_missing: bool = False
    """Evaluate the images that are in both, where the run lacks some of the ground truth's."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of evaluating a run."""

    summary: dict[str, Any]
    """The content of `evaluation/summary.json`."""
    categories: tuple[str, ...]
    curves: Mapping[Kind, Curves]
    images: pa.Table
    """`IMAGES`, a row for each image that was evaluated."""
    places: NDArray[np.int64]
    """(N, 2) part, and row in the part, of each row of `images`."""
    confusion: NDArray[np.int64]
    """(K + 1, K + 1) as in `image_scores.ScoredImages`."""
    of_run: Mapping[int, int]
    """Place in `categories` by the run's category id."""
    worst: Mapping[int, ImageOutcome]
    """What was matched in the images with the lowest panoptic quality, by their row of `images`, in ascending order."""

    def __repr__(self) -> str:
        """Return the number of images, and AP; `summary` has the rest."""
        aps = [
            f"{word} AP {self.summary[kind][0]:.3f}"
            for kind, word in (("segm", "mask"), ("bbox", "box"))
            if self.summary[kind] and self.summary[kind][0] is not None
        ]
        return f"<Evaluation of {plural(len(self.images), 'image')}: {', '.join(aps) or 'no AP'}>"


@contextmanager
def evaluate_run(
    url: str, ground_truth: str, options: EvaluationOptions | None = None, run_all: RunAll = run_here
) -> Iterator[tuple[Evaluation, Shares]]:
    """Evaluate a finished run; yield the result, and the shares of the ground truth, which exist until the block ends.

    Annotations of the ground truth that cannot be used are left out, counted by kind in the log and in the summary.

    Args:
        url: the run's directory, local or remote.
        ground_truth: a COCO dataset, path or URL.
        options: how to evaluate; by default as COCO does.
        run_all: how the parts are distributed.

    Raises:
        UsageError: the run is not finished, its tables disagree, the ground truth is not a COCO dataset or none of its
            annotations can be used, or images or categories do not pair.
        RunError: something cannot be read or stored.
    """
    options = options or EvaluationOptions()
    run = open_run(url)
    check_tables(run.url, run.info, run.success)
    storage = Storage(run.url)
    file = read_coco(ground_truth)
    log_findings(ground_truth, file.findings.listed())
    parts = parts_of(run.success)
    listed = _listed(storage, parts)
    ids_given = bool(run.info.get("inputs", {}).get("ids_given"))
    paired = pair_images(
        file.images, listed["image_id"].to_pylist(), listed["name"].to_pylist(), ids_given=ids_given
    )
    _check_missing(file.images, paired, options)
    has_masks = file.has_masks and detects_masks(run.info)
    annotations, used = _annotations(file, _sizes(file.images, paired, listed), masks=has_masks)
    categories = pair_categories(
        file.categories,
        used,
        run.categories,
        rename=options.rename,
        only=options.only,
        class_agnostic=options.class_agnostic,
    )
    terms = Terms(categories.of_run, len(categories.names), options.max_dets, has_masks)
    if not has_masks:
        lacking = "the model detects no masks" if file.has_masks else "the ground truth has no segmentations"
        log.warning("%s: only boxes are evaluated", lacking)
    _log_differences(file, paired, listed)
    order = image_order(file.images, parts, paired)
    shares = Shares(storage, f"{FOLDER}/ground-truth-{uuid.uuid4().hex}", order)
    try:
        count = shares.write(annotations, paired, categories)
        facts = _facts(file, paired, categories, listed)
        log.info("evaluating %s against %s", plural(len(parts), "part"), plural(count, "annotation"))
        del file, annotations
        scores = run_all(partial(score_part, run.url, terms), shares.tasks)
        yield _folded(run, scores, terms, categories, listed, facts), shares
    finally:
        storage.remove_tree(shares.folder)


def _annotations(
    file: CocoFile, sizes: NDArray[np.int64], *, masks: bool
) -> tuple[Spilled[pa.Table], set[int]]:
    """Return the annotations that can be used, and the places of their categories; log what is wrong with others."""
    before = {finding.kind for finding in file.findings.listed()}
    annotations, used = Spilled[pa.Table](), set[int]()
    for table in file.annotation_tables(sizes, masks=masks):
        if masks:
            empty = table["number"].filter(pc.equal(table["mask_area"], 0))
            for number in empty.to_pylist():
                file.findings.warning("empty mask, which no detection can match", f"annotation no. {number}")
        if len(table):
            used.update(np.unique(table["category"].to_numpy()).tolist())
            annotations.append(table)
    findings = file.findings.listed()
    new = [finding for finding in findings if finding.kind not in before]
    count = file.n_annotations
    if count and not len(annotations) and (why := summary_of_errors(new) or summary_of_errors(findings)):
        raise UsageError(f"none of the {plural(count, 'annotation')} of {file.source} can be used: {why}")
    log_findings(file.source, new)
    return annotations, used


def _listed(storage: Storage, parts: Sequence[Part]) -> pa.Table:
    """Return what the evaluation needs of the run's images, part by part."""
    with reading(storage, *(part.images for part in parts)):
        return pa.concat_tables([read_table(storage, part.images, _LISTED) for part in parts])


def _sizes(images: CocoImages, paired: PairedImages, listed: pa.Table) -> NDArray[np.int64]:
    """Return (N, 2) height and width of the ground truth's images: as the run has them, else as stated, else zeros."""
    sizes = images.sizes.copy()
    rows = np.flatnonzero(paired.ground_truth >= 0)
    at = paired.ground_truth[rows]
    seen = np.stack([listed[side].fill_null(0).to_numpy() for side in ("height", "width")], axis=1)[rows]
    sizes[at] = np.where(seen > 0, seen, sizes[at])
    return sizes


def _check_missing(images: CocoImages, paired: PairedImages, options: EvaluationOptions) -> None:
    if not len(paired.missing) or options.allow_missing:
        return
    some = [images.names[at] or images.ids[at] for at in paired.missing[:3].tolist()]
    doubt = (
        f"; {plural(paired.renamed, 'image')} in both under another name: is it the right ground truth?"
        if paired.renamed
        else ""
    )
    raise UsageError(
        f"the run lacks {len(paired.missing):,} of the ground truth's {plural(len(images), 'image')} "
        f"({', '.join(map(repr, some))}{', …' if len(paired.missing) > 3 else ''}; images were matched by "
        f"{paired.by}{doubt}); --allow-missing evaluates the images that are in both"
    )


def _log_differences(file: CocoFile, paired: PairedImages, listed: pa.Table) -> None:
    """Log what does not stop an evaluation, and may not be intended."""
    if missing := len(paired.missing):
        log.warning("%s of the ground truth left out: not in the run", plural(missing, "image"))
    if not_expected := int((paired.ground_truth < 0).sum()):
        log.info("%s of the run left out: not in the ground truth", plural(not_expected, "image"))
    if paired.renamed:
        log.warning(
            "%s with the same id but another name: is it the right ground truth?",
            plural(paired.renamed, "image"),
        )
    other = _other_sizes(file.images, paired, listed)
    if len(other):
        some = "; ".join(_difference(file.images, paired, listed, row) for row in other[:EXAMPLES].tolist())
        log.warning(
            "%s with another size (height x width) in the ground truth than in the run, which is used: %s%s",
            plural(len(other), "image"),
            some,
            "; …" if len(other) > EXAMPLES else "",
        )


def _other_sizes(images: CocoImages, paired: PairedImages, listed: pa.Table) -> NDArray[np.int64]:
    """Return the rows of the run's images that have another size in the ground truth; unknown sizes do not count."""
    ours = np.stack([listed[side].fill_null(0).to_numpy() for side in ("height", "width")], axis=1)
    theirs = images.sizes[paired.ground_truth]
    known = (paired.ground_truth >= 0) & ((ours > 0) & (theirs > 0)).all(axis=1)
    return np.flatnonzero(known & (ours != theirs).any(axis=1))


def _difference(images: CocoImages, paired: PairedImages, listed: pa.Table, row: int) -> str:
    """Return in words how the size of an image differs, and whether EXIF explains it."""
    image = listed.slice(row, 1).to_pylist()[0]
    ours = image["height"], image["width"]
    theirs = tuple(images.sizes[paired.ground_truth[row]].tolist())
    turned = (image["exif_orientation"] or 1) > 4 and theirs == ours[::-1]
    why = f": EXIF orientation {image['exif_orientation']} turns the file" if turned else ""
    return f"{image['name']}, {theirs[0]} x {theirs[1]} instead of {ours[0]} x {ours[1]}{why}"


# The fold


def _facts(
    file: CocoFile, paired: PairedImages, categories: PairedCategories, listed: pa.Table
) -> dict[str, Any]:
    evaluated = paired.ground_truth >= 0
    failed = np.array(listed["status"].to_pylist()) == "failed"
    return {
        "ground_truth": file.source,
        "findings": [str(finding) for finding in file.findings.listed()],
        "images": {
            "evaluated": int(evaluated.sum()),
            "failed": int((failed & evaluated).sum()),
            "missing_in_run": len(paired.missing),
            "missing_in_ground_truth": int((~evaluated).sum()),
            "other_size": len(_other_sizes(file.images, paired, listed)),
            "matched_by": paired.by,
        },
        "categories": {"evaluated": len(categories.names), "matched_by": categories.by},
    }


def _folded(
    run: Run,
    scores: Sequence[PartScore],
    terms: Terms,
    categories: PairedCategories,
    listed: pa.Table,
    facts: dict[str, Any],
) -> Evaluation:
    kinds = [kind for kind in KINDS if any(score.tallies.get(kind) for score in scores)]
    tallies = {kind: [t for score in scores for t in score.tallies.get(kind, ())] for kind in kinds}
    if not kinds:
        raise RunError("no image was evaluated: the run has no part with images of the ground truth")
    positives = np.sum([tally.positives for tally in tallies[kinds[0]]], axis=0)
    curves: dict[Kind, Curves] = {}
    for kind in kinds:
        curves[kind] = average(tallies.pop(kind), terms.max_dets)
    n_images = [len(score.counts) for score in scores]
    part = np.repeat(np.arange(len(scores)), n_images)
    row = np.concatenate([score.counts["row"].to_numpy() for score in scores])
    firsts = np.cumsum([0, *(p["rows"] for p in run.success["parts"]["images"])])
    names = listed.select(["image_id", "name"]).take(pa.array(firsts[part] + row))
    counts = pa.concat_tables([score.counts for score in scores]).drop_columns("row")
    images = pa.table([*names.columns, *counts.columns], schema=IMAGES)
    truncated = sum(score.truncated for score in scores)
    if truncated:
        log.warning(
            "%s with more than %s of a category, of which those of the lowest scores do not count: raise --max-dets "
            "to count all",
            plural(truncated, "image"),
            plural(terms.max_dets, "detection"),
        )
    facts["images"]["truncated"] = truncated
    summary = {
        "bbox": curves["bbox"].stats(),
        "segm": curves["segm"].stats() if "segm" in curves else None,
        "stats": list(STATS),
        "max_dets": terms.max_dets,
        "run": run.url,
        **facts,
        "detections": sum(score.detections for score in scores),
        "objects": int(positives[:, 0].sum()),
        "at_half": _at_half(images),
        "per_category": _per_category(categories.names, curves, positives),
        "of": run.success.get("created"),
    }
    confusion = sum(score.confusion for score in scores)
    places = np.stack([part, row], axis=1)
    return Evaluation(
        summary,
        categories.names,
        curves,
        images,
        places,
        np.asarray(confusion),
        categories.of_run,
        _worst(images, places, scores),
    )


def _worst(
    images: pa.Table, places: NDArray[np.int64], scores: Sequence[PartScore]
) -> dict[int, ImageOutcome]:
    """Return the outcomes of the worst images; each part kept those of its own worst ones."""
    faults = images["false_negatives"].to_numpy() + images["false_positives"].to_numpy()
    kept = {(number, image.row): image for number, score in enumerate(scores) for image in score.worst}
    rows = worst_first(images["pq"].to_numpy(), faults, WORST).tolist()
    return {at: kept[number, row] for at, (number, row) in zip(rows, places[rows].tolist(), strict=True)}


def _at_half(images: pa.Table) -> dict[str, Any]:
    """Return the counts of all images at a score of `COUNTED_SCORE` and an IoU of 0.5."""
    counts = [name for name in COUNTS if name != "pq"]
    sums = {name: int(images[name].to_numpy().astype(np.int64).sum()) for name in counts}
    return {
        "score": COUNTED_SCORE,
        **sums,
        "precision": sums["true_positives"] / max(sums["true_positives"] + sums["false_positives"], 1),
        "recall": sums["true_positives"] / max(sums["n_ground_truth"], 1),
        "mean_pq": float(images["pq"].to_numpy().astype(np.float64).mean()),
    }


def _per_category(
    names: Sequence[str], curves: Mapping[Kind, Curves], positives: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """Return the twelve metrics of each category that has objects, by name."""
    return {
        name: {"objects": int(positives[k, 0])} | {kind: of.of_category(k) for kind, of in curves.items()}
        for k, name in enumerate(names)
        if positives[k, 0]
    }


# Files


def write_evaluation(storage: Storage, evaluation: Evaluation) -> None:
    """Store the tables and numbers below `evaluation/`, which `maskrcnn verify` does not check."""
    write_table(storage, f"{FOLDER}/images.parquet", evaluation.images)
    write_table(storage, f"{FOLDER}/per_category.parquet", per_category_table(evaluation))
    text = json.dumps(evaluation.summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    storage.write(f"{FOLDER}/summary.json", text.encode())


def per_category_table(evaluation: Evaluation) -> pa.Table:
    """Return one row per category that has objects: category, objects, and the twelve metrics of each kind."""
    rows = evaluation.summary["per_category"]
    columns: dict[str, Any] = {
        "category": pa.array(rows, pa.string()),
        "objects": pa.array([row["objects"] for row in rows.values()], pa.int64()),
    }
    for kind in evaluation.curves:
        for number, name in enumerate(STATS):
            column = f"{kind}_{name.lower().replace(' ', '_')}"
            columns[column] = pa.array([row[kind][number] for row in rows.values()], pa.float64())
    return pa.table(columns)
