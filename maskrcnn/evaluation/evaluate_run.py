"""A finished run weighed against a COCO ground truth: COCO's twelve numbers, and what became of each image.

Parts are weighed on their own (`partscore`), here or by Ray tasks, and folded here. What is kept of a detection is
its score, its place and eighty bits, so memory follows the number of detections and not that of masks.
"""

import json
import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import RunError, UsageError
from ..formats.coco_reader import GroundTruth, read_ground_truth
from ..io.parquet import Part, write_table
from ..io.storage import Storage
from ..pipeline.success import RunAll, parts_of, run_here
from ..results.run import Run, open_run
from .alignment import PairedCategories, PairedImages, pair_categories, pair_images
from .average_precision import STATS, Curves, average
from .evaluate_part import SHARE, WORST, ImageOutcome, PartScore, Task, Terms, score_part
from .image_scores import KINDS, SURE, Kind, worst_first

log = logging.getLogger("maskrcnn")

FOLDER: Final = "evaluation"
MAX_DETS: Final = 100
IMAGES: Final = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        *[
            pa.field(name, pa.int32(), nullable=False)
            for name in ("n_truth", "n_found", "matched", "missed", "spurious")
        ],
        pa.field("quality", pa.float32(), nullable=False),
    ]
)
"""Of `evaluation/images.parquet`; see `scoring.Counts`."""


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """How a user wants a run to be weighed."""

    max_dets: int = MAX_DETS
    """The most detections of a category in an image that count."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """The truth's category by one of the run."""
    only: tuple[str, ...] = ()
    """Names of the truth's categories; all, if empty."""
    class_agnostic: bool = False
    allow_missing: bool = False
    """Weigh the images that both have, where the run lacks some of the truth."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is known of a run by its ground truth."""

    summary: dict[str, Any]
    """The content of `evaluation/summary.json`."""
    categories: tuple[str, ...]
    curves: Mapping[Kind, Curves]
    images: pa.Table
    """`IMAGES`, a row for each image that was weighed."""
    places: NDArray[np.int64]
    """(N, 2) part, and row in the part, of each row of `images`."""
    confusion: NDArray[np.int64]
    """(K + 1, K + 1) as in `scoring.ScoredImages`."""
    of_run: Mapping[int, int]
    """Place in `categories` by the run's category id."""
    worst: Mapping[int, ImageOutcome]
    """What was matched in the images with the lowest quality, by their row of `images`, the lowest first."""


@contextmanager
def evaluate_run(
    url: str, truth_source: str, asked: EvaluationOptions | None = None, run_all: RunAll = run_here
) -> Iterator[tuple[Evaluation, "Shares"]]:
    """Weigh a finished run; give what is known, and the truth's shares, which are there until the block ends.

    Args:
        url: the run's directory, local or remote.
        truth_source: a COCO dataset, path or url.
        asked: how to weigh; by default as COCO does.
        run_all: how the parts are spread.

    Raises:
        UsageError: the run is not finished, the truth is none, or images or categories do not pair.
        RunError: something cannot be read or stored.
    """
    asked = asked or EvaluationOptions()
    run = open_run(url)
    storage = Storage(run.url)
    truth = read_ground_truth(truth_source)
    parts = parts_of(run.success)
    listed = _listed(storage, parts)
    ids_given = bool(run.info.get("inputs", {}).get("ids_given"))
    paired = pair_images(
        truth, listed["image_id"].to_pylist(), listed["name"].to_pylist(), ids_given=ids_given
    )
    _check_missing(truth, paired, asked)
    used = set(np.unique(truth.annotations["category"].to_numpy()).tolist())
    categories = pair_categories(
        truth.categories,
        used,
        run.categories,
        rename=asked.rename,
        only=asked.only,
        class_agnostic=asked.class_agnostic,
    )
    terms = Terms(categories.of_run, len(categories.names), asked.max_dets, truth.has_masks)
    _tell(truth, paired, listed)
    shares = Shares(storage, f"{FOLDER}/truth-{uuid.uuid4().hex}", _tasks(truth, parts, paired))
    try:
        shares.write(truth, paired, categories)
        n_objects = len(truth.annotations)
        truth_facts = _facts(truth, truth_source, paired, categories, listed)
        del truth
        log.info("weighing %s parts against %s objects", f"{len(parts):,}", f"{n_objects:,}")
        scores = run_all(partial(score_part, run.url, terms), shares.tasks)
        yield _folded(run, scores, terms, categories, listed, truth_facts), shares
    finally:
        storage.remove_tree(shares.folder)


def _listed(storage: Storage, parts: Sequence[Part]) -> pa.Table:
    """Return what is to be known of the run's images, part by part."""
    tables = []
    for part in parts:
        with storage.open(part.images) as file:
            tables.append(pq.read_table(file, columns=["image_id", "name", "status", "height", "width"]))
    return pa.concat_tables(tables)


def _check_missing(truth: GroundTruth, paired: PairedImages, asked: EvaluationOptions) -> None:
    if not len(paired.missing) or asked.allow_missing:
        return
    some = [truth.names[at] or truth.image_ids[at] for at in paired.missing[:3].tolist()]
    doubt = (
        f"; {paired.renamed:,} of those it has bear other names: is it the right truth?"
        if paired.renamed
        else ""
    )
    raise UsageError(
        f"{len(paired.missing):,} of the truth's {len(truth.image_ids):,} images are not in the run "
        f"({', '.join(map(repr, some))}{', …' if len(paired.missing) > 3 else ''}; images were matched by "
        f"{paired.by}{doubt}); --allow-missing weighs those that both have"
    )


def _tell(truth: GroundTruth, paired: PairedImages, listed: pa.Table) -> None:
    """Say what does not stop an evaluation, and may be meant otherwise."""
    if len(paired.missing):
        log.warning("%s images of the truth are not in the run, and are left out", f"{len(paired.missing):,}")
    if strangers := int((paired.truth < 0).sum()):
        log.info("%s images of the run are not in the truth, and are left out", f"{strangers:,}")
    if paired.renamed:
        log.warning("%s images of one id have different names; is it the right truth?", f"{paired.renamed:,}")
    if other := _other_size(truth, paired, listed):
        log.warning("%s images have another size in the truth; no mask of theirs can match", f"{other:,}")
    if not truth.has_masks:
        log.warning("the truth has no segmentations: only boxes are weighed")


def _other_size(truth: GroundTruth, paired: PairedImages, listed: pa.Table) -> int:
    both = paired.truth >= 0
    ours = np.stack([listed[side].fill_null(0).to_numpy() for side in ("height", "width")], axis=1)[both]
    theirs = truth.sizes[paired.truth[both]]
    return int(((ours != theirs) & (ours > 0) & (theirs > 0)).any(axis=1).sum())


# The truth, cut by parts


def _tasks(
    truth: GroundTruth, parts: Sequence[Part], paired: PairedImages
) -> list[tuple[Part, NDArray[np.int64]]]:
    """Return each part with the place of its images in the order of the truth's ids, by which COCO orders them."""
    rank = np.empty(len(truth.image_ids), np.int64)
    rank[sorted(range(len(rank)), key=lambda at: truth.image_ids[at])] = np.arange(len(rank))
    order = np.where(paired.truth >= 0, rank[paired.truth], -1)
    bounds = np.cumsum([part.n_images for part in parts])[:-1]
    return list(zip(parts, np.split(order, bounds), strict=True))


class Shares:
    """The truth cut by the run's parts, in files that tasks anywhere can read."""

    def __init__(
        self, storage: Storage, folder: str, parts: Iterable[tuple[Part, NDArray[np.int64]]]
    ) -> None:
        self._storage = storage
        self.folder = folder
        self.tasks = [
            Task(part, f"{folder}/{number:05d}.parquet", order) for number, (part, order) in enumerate(parts)
        ]

    def write(self, truth: GroundTruth, paired: PairedImages, categories: PairedCategories) -> None:
        """Write all files, one at a time."""
        row_of = np.full(len(truth.image_ids), -1, np.int64)
        weighed = np.flatnonzero(paired.truth >= 0)
        row_of[paired.truth[weighed]] = weighed
        rows = row_of[truth.annotations["image"].to_numpy()]
        category = categories.of_truth[truth.annotations["category"].to_numpy()]
        rows[category < 0] = -1
        by_row = np.argsort(rows, kind="stable")  # of an image in the order of the file
        first = 0
        for task in self.tasks:
            stop = first + task.part.n_images
            chosen = by_row[slice(*np.searchsorted(rows, [first, stop], sorter=by_row))]
            mine = truth.annotations.take(pa.array(chosen))
            sizes = truth.sizes[mine["image"].to_numpy()]
            own = {
                "row": pa.array(rows[chosen] - first),
                "image_height": pa.array(sizes[:, 0]),
                "image_width": pa.array(sizes[:, 1]),
                "category": pa.array(category[chosen]),
            }
            columns = [
                own.get(name, mine[name] if name in mine.column_names else None) for name in SHARE.names
            ]
            write_table(self._storage, task.share, pa.table(columns, schema=SHARE))
            first = stop

    def read(self, number: int, row: int) -> pa.Table:
        """Return the rows of one image of a part, `SHARE`."""
        with self._storage.open(self.tasks[number].share) as file:
            return pq.read_table(file, filters=[("row", "=", row)])


# The fold


def _facts(
    truth: GroundTruth, source: str, paired: PairedImages, categories: PairedCategories, listed: pa.Table
) -> dict[str, Any]:
    weighed = paired.truth >= 0
    failed = np.array(listed["status"].to_pylist()) == "failed"
    return {
        "truth": source,
        "images": {
            "weighed": int(weighed.sum()),
            "failed": int((failed & weighed).sum()),
            "missing_in_run": len(paired.missing),
            "missing_in_truth": int((~weighed).sum()),
            "other_size": _other_size(truth, paired, listed),
            "matched_by": paired.by,
        },
        "categories": {"weighed": len(categories.names), "matched_by": categories.by},
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
        raise RunError("no image was weighed")
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
            "%s images have more than %s detections of a category, of which the weakest do not count; "
            "raise --max-dets to weigh all",
            f"{truncated:,}",
            f"{terms.max_dets:,}",
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
    faults = images["missed"].to_numpy() + images["spurious"].to_numpy()
    kept = {(number, image.row): image for number, score in enumerate(scores) for image in score.worst}
    rows = worst_first(images["quality"].to_numpy(), faults, WORST).tolist()
    return {at: kept[number, row] for at, (number, row) in zip(rows, places[rows].tolist(), strict=True)}


def _at_half(images: pa.Table) -> dict[str, Any]:
    """Return the counts of all images at a score of `SURE` and an IoU of 0.5."""
    names = ("n_truth", "n_found", "matched", "missed", "spurious")
    sums = {name: int(images[name].to_numpy().astype(np.int64).sum()) for name in names}
    return {
        "score": SURE,
        **sums,
        "precision": sums["matched"] / max(sums["matched"] + sums["spurious"], 1),
        "recall": sums["matched"] / max(sums["n_truth"], 1),
        "mean_quality": float(images["quality"].to_numpy().astype(np.float64).mean()),
    }


def _per_category(
    names: Sequence[str], curves: Mapping[Kind, Curves], positives: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """Return the twelve numbers of each category that has objects, by name."""
    return {
        name: {"objects": int(positives[k, 0])} | {kind: of.of_category(k) for kind, of in curves.items()}
        for k, name in enumerate(names)
        if positives[k, 0]
    }


# Files


def write_evaluation(storage: Storage, evaluation: Evaluation) -> None:
    """Store the tables and numbers below `evaluation/`; nothing that `maskrcnn verify` looks at."""
    write_table(storage, f"{FOLDER}/images.parquet", evaluation.images)
    write_table(storage, f"{FOLDER}/per_category.parquet", per_category_table(evaluation))
    text = json.dumps(evaluation.summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    storage.write(f"{FOLDER}/summary.json", text.encode())


def per_category_table(evaluation: Evaluation) -> pa.Table:
    """Return a row a category that has objects: category, objects, and the twelve numbers of each kind."""
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
