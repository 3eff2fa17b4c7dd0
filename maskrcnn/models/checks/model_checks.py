"""Checks of a model on generated images, in about a minute: whether its results are sound, and what a batch costs."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np

from ...errors import ItemError, MaskrcnnError, OwnNetworkError, UsageError, plural
from ...types import Category, Detections, Pixels, Segmenter
from ..factory import build_segmenter
from ..own.own_code import raised
from ..own.own_segmenter import OwnSegmenter, Planned, check_planned, is_finite, problem_of, shown_box
from .batch_costs import BATCH_SIZES, Cost, measured
from .differences import differences, equal
from .sample_images import sample_images

__all__ = ["Check", "ModelReport", "Subject", "run_checks"]

log = logging.getLogger("maskrcnn")

_AT_LEAST: Final = 3
"""Images that are computed however long it takes; they have one size, and are compared."""

Outcome = Detections | ItemError
Build = Callable[..., Segmenter]
Begin = Callable[[str], None]
"""Announces the next step, as `own_process.Begin`."""
Status = Literal["ok", "failed", "not_checked"]


@dataclass(frozen=True, slots=True)
class Check:
    """One property of a model."""

    name: str
    status: Status
    line: str
    """What was found, or why it was not checked, for a person."""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What was found out about a model."""

    model: str
    sha256: str
    categories: tuple[Category, ...]
    has_masks: bool
    execution: Mapping[str, Any]
    checks: tuple[Check, ...]
    costs: tuple[Cost, ...]

    @property
    def sound(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "failed" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {"execution": dict(self.execution), "sound": self.sound}

    @classmethod
    def from_json(cls, report: Mapping[str, Any]) -> "ModelReport":
        """Return the report that `to_json` returned."""
        return cls(
            report["model"],
            report["sha256"],
            tuple(Category(**category) for category in report["categories"]),
            report["has_masks"],
            report["execution"],
            tuple(Check(**check) for check in report["checks"]),
            tuple(Cost(**cost) for cost in report["costs"]),
        )


@dataclass(frozen=True, slots=True)
class Subject:
    """The model to be checked, and how it is to be executed."""

    name: str
    """As of `registry.resolve`."""
    sha256: str
    """As of its description; other weights or code are refused."""
    planned: Planned
    """As of its description."""
    labels: str | None = None
    arguments: Mapping[str, Any] | None = None
    """Of the factory of a network of the user's own."""
    device: str = "auto"
    threads: int | None = None
    dtype: str | None = None

    def build(self, **limits: Any) -> Segmenter:
        """Build the model.

        Raises:
            UsageError: as `factory.build_segmenter`, or a run would end before its first result.
        """
        segmenter = build_segmenter(
            self.name,
            self.labels,
            arguments=self.arguments,
            device=self.device,
            threads=self.threads,
            dtype=self.dtype,
            batch_size=max(BATCH_SIZES),
            lanes=2,
            expected_sha256=self.sha256,
            **limits,
        )
        if isinstance(segmenter, OwnSegmenter):
            check_planned(self.name, self.planned, Planned(segmenter.categories, segmenter.has_masks))
        return segmenter


def run_checks(subject: Subject, begin: Begin = lambda _: None, seconds: float = 60.0) -> ModelReport:
    """Check a model of any kind on generated images, in this process.

    Args:
        subject: the model.
        begin: is called before each step that may hang.
        seconds: once this time has passed, images and checks that need not be are left out, and larger batches.

    Raises:
        UsageError: the model cannot be built, or a run would end before its first result.
        RunError: the store of its file cannot be read.
    """
    begin("building it")
    segmenter = subject.build()
    images = sample_images()
    begin("its `canvas`")
    canvases = [segmenter.canvas(*image.shape[:2]) for image in images]
    run = _Run(subject, segmenter, images, begin, time.monotonic() + seconds)
    checks = run.results()
    if any(check.status == "failed" for check in checks[:1]):
        checks += [_not_checked(name, "results are not well formed") for name in (*REPEATED, *LIMITS)]
    else:
        checks += [*run.repeated(canvases), *run.limits()]
    costs: list[Cost] = []
    if all(check.status != "failed" for check in checks):
        checks += run.cost(costs)
    return ModelReport(
        subject.name,
        subject.sha256,
        subject.planned.categories,
        subject.planned.has_masks,
        segmenter.execution,
        tuple(checks),
        tuple(costs),
    )


class _Fault(Exception):  # noqa: N818 (no error of the program's)
    """What the model raised, or why what it returned is no result; for the line of a check."""


RESULTS: Final = ("well formed", "masks", "finite", "within the image")
REPEATED: Final = ("deterministic", "independent of the batch", "from two threads")
LIMITS: Final = ("--min-score", "--max-detections", "--categories")
_NOTHING: Final = "nothing was detected in the generated images"
_LATE: Final = "there was no time left: give more --seconds"


def _ok(name: str, line: str) -> Check:
    return Check(name, "ok", line)


def _failed(name: str, line: str) -> Check:
    return Check(name, "failed", line)


def _not_checked(name: str, why: str) -> Check:
    return Check(name, "not_checked", why)


def _tried(
    compute: Callable[[Sequence[Pixels]], Sequence[Outcome]], images: Sequence[Pixels]
) -> list[Outcome]:
    """Compute images; what the model raises becomes a fault."""
    try:
        return list(compute(images))
    except OwnNetworkError as error:
        raise _Fault(error.what) from error
    except MaskrcnnError:
        raise
    except (Exception, SystemExit) as error:  # a network may raise anything, which is what the check reports
        raise _Fault(f"the network raised {raised(error)}") from error


class _Run:
    """The results of a model for images alone, and what repeating shows."""

    def __init__(
        self, subject: Subject, segmenter: Segmenter, images: Sequence[Pixels], begin: Begin, ends: float
    ) -> None:
        self._subject = subject
        self._segmenter = segmenter
        self._images = images
        self._begin = begin
        self._ends = ends
        self._alone: list[Outcome] = []

    def _compute(self, images: Sequence[Pixels]) -> list[Outcome]:
        """Compute a batch by the network itself, of which the program's own limits would hide faults."""
        height, width = images[0].shape[:2]
        what = "1 image" if len(images) == 1 else f"a batch of {plural(len(images), 'image')}"
        self._begin(f"running {what} of {height} x {width} pixels")
        return _tried(_raw(self._segmenter), images)

    # Results

    def results(self) -> list[Check]:
        """Compute each image alone; check that results are well formed, finite and within their images."""
        log.info("computing up to %s, each alone", plural(len(self._images), "image"))
        wrong: list[str] = []
        for image in self._images:
            if len(self._alone) >= _AT_LEAST and time.monotonic() > self._ends:
                break
            try:
                self._alone += self._compute([image])
            except _Fault as fault:
                wrong.append(str(fault))
                break
        wrong += self._problems()
        found = [each for each in self._alone if isinstance(each, Detections)]
        instances = sum(map(len, found))
        if wrong:
            return [
                _failed(RESULTS[0], wrong[0]),
                *(_not_checked(name, "results are not well formed") for name in RESULTS[1:]),
            ]
        infinite = sum(isinstance(each, ItemError) or not is_finite(each) for each in self._alone)
        outside = self._outside()
        seen = f"{plural(instances, 'instance')} in {plural(len(self._alone), 'image')}"
        if len(self._alone) < len(self._images):
            seen += f"; {plural(len(self._images) - len(self._alone), 'image')} left out: {_LATE}"
        checks = {
            RESULTS[0]: _ok(RESULTS[0], seen),
            RESULTS[1]: _ok(RESULTS[1], "run lengths of the whole image, with the areas and boxes stated")
            if self._segmenter.has_masks
            else _not_checked(RESULTS[1], "it detects boxes only"),
            RESULTS[2]: _failed(RESULTS[2], f"NaN or infinity in {plural(infinite, 'image')}")
            if infinite
            else _ok(RESULTS[2], "all boxes and scores"),
            RESULTS[3]: _failed(RESULTS[3], f"the box {outside[0]} pixels")
            if outside
            else _ok(RESULTS[3], "all boxes"),
        }
        if not instances:
            for name, check in checks.items():
                if check.status == "ok":
                    checks[name] = _not_checked(name, _NOTHING)
        return list(checks.values())

    def _problems(self) -> Iterator[str]:
        """Yield in what results are not well formed, or why images failed."""
        ids = {category.id for category in self._subject.planned.categories}
        for found, image in zip(self._alone, self._images, strict=False):
            if isinstance(found, ItemError):
                if found.code != "not_finite":
                    yield f"an image failed with {found}"
                continue
            height, width = image.shape[:2]
            problem = problem_of(found, height, width, ids, has_masks=self._segmenter.has_masks)
            if problem is not None:
                yield problem

    def _outside(self) -> list[str]:
        """Return the boxes that reach beyond their image, each with its image's size."""
        outside = []
        for found, image in zip(self._alone, self._images, strict=False):
            if isinstance(found, Detections) and is_finite(found):
                height, width = image.shape[:2]
                beyond = (found.boxes < 0).any(1) | (found.boxes > (width, height, width, height)).any(1)
                outside += [f"{shown_box(box)} in {height} x {width}" for box in found.boxes[beyond]]
        return outside

    # Repeated

    def repeated(self, canvases: Sequence[object]) -> list[Check]:
        """Compute images again: alone, in a batch, and in two threads at once if the model allows."""
        log.info("computing images again, and in batches")
        first = self._images[:2]
        together = min(_AT_LEAST, self._segmenter.batch_size)
        checks = [self._again(REPEATED[0], "twice the same", lambda: [*map(self._one, first)])]
        if together == 1:
            why = "its batch_size is 1: a run calls it with one image at a time"
            checks.append(_not_checked(REPEATED[1], why))
        elif len(set(canvases[:together])) > 1:
            why = "its canvas differs for images of one size: a run never has two in a batch"
            checks.append(_not_checked(REPEATED[1], why))
        else:
            batch = self._images[:together]
            checks.append(self._again(REPEATED[1], "alone and in a batch", lambda: self._compute(batch)))
        if self._segmenter.lanes == 1:
            why = "its lanes are 1: a run calls it from one thread"
            checks.append(_not_checked(REPEATED[2], why))
        else:
            what = "one after the other and at once"
            checks.append(self._again(REPEATED[2], what, lambda: self._at_once(first)))
        return checks

    def _one(self, image: Pixels) -> Outcome:
        return self._compute([image])[0]

    def _at_once(self, images: Sequence[Pixels]) -> list[Outcome]:
        self._begin("running two images at once in two threads")
        with ThreadPoolExecutor(len(images)) as threads:
            found = threads.map(lambda image: _tried(_raw(self._segmenter), [image]), images)
            return [outcome for (outcome,) in found]

    def _again(self, name: str, what: str, compute: Callable[[], Sequence[Outcome]]) -> Check:
        try:
            return _compared(name, what, self._alone, compute())
        except _Fault as fault:
            return _failed(name, f"{what}: {fault}")

    # Limits

    def limits(self) -> list[Check]:
        """Build the model with a higher lowest score, few detections and one category, and look whether it obeys."""
        counts = [len(outcome) if isinstance(outcome, Detections) else 0 for outcome in self._alone]
        number = int(np.argmax(counts))
        found = self._alone[number]
        if isinstance(found, ItemError) or len(found) == 0:
            return [_not_checked(name, _NOTHING) for name in LIMITS]
        log.info("computing an image with other limits")
        lowest = max(float(np.median(found.scores)) - 1e-6, 0.0)
        label = int(np.bincount(found.labels).argmax())
        category = next(each.name for each in self._subject.planned.categories if each.id == label)
        most = max(1, len(found) // 4)
        image = self._images[number]
        return [
            _not_checked(LIMITS[0], "no scores that differ were detected")
            if (found.scores > np.float32(lowest)).all()
            else self._limit(
                LIMITS[0],
                f"{lowest:.3g}",
                image,
                lambda few: few.scores > np.float32(lowest),
                min_score=lowest,
            ),
            _not_checked(LIMITS[1], "no image has more than one detection")
            if len(found) <= most
            else self._limit(
                LIMITS[1], str(most), image, lambda few: np.arange(len(few)) < most, max_detections=most
            ),
            _not_checked(LIMITS[2], "one category alone was detected")
            if (found.labels == label).all()
            else self._limit(
                LIMITS[2], category, image, lambda few: few.labels == label, categories=(category,)
            ),
        ]

    def _limit(
        self, name: str, shown: str, image: Pixels, obeyed: Callable[[Detections], Any], **limits: Any
    ) -> Check:
        """Build the model with one limit, and look whether all its detections obey it."""
        if time.monotonic() > self._ends:
            return _not_checked(name, _LATE)
        try:
            self._begin(f"building it with {name} {shown}")
            segmenter = self._subject.build(**limits)
            self._begin(f"running 1 image with {name} {shown}")
            (outcome,) = _tried(_raw(segmenter), [image])
        except (_Fault, UsageError) as error:
            return _failed(name, f"{shown}: {error}")
        if isinstance(outcome, ItemError):
            return _failed(name, f"{shown}: the image failed with {outcome}")
        if np.all(obeyed(outcome)):
            return _ok(name, f"{shown}: obeyed")
        if isinstance(segmenter, OwnSegmenter):
            return _ok(name, f"{shown}: the program applies it, since the network does not")
        return _failed(name, f"{shown}: not obeyed")

    # Costs

    def cost(self, costs: list[Cost]) -> list[Check]:
        """Add what batches cost to a list; return a failed check if a batch is not computed."""
        cuda = self._segmenter.execution.get("device", "cpu") != "cpu"
        largest = self._segmenter.batch_size
        try:
            costs.extend(measured(self._compute, self._images, largest, self._ends, cuda=cuda))
        except (_Fault, ItemError) as error:
            return [_failed("batches", f"a larger batch than {len(costs)}: {error}")]
        return []


def _raw(segmenter: Segmenter) -> Callable[[Sequence[Pixels]], Sequence[Outcome]]:
    return segmenter.raw_outcomes if isinstance(segmenter, OwnSegmenter) else segmenter.outcomes


def _compared(name: str, what: str, before: Sequence[Outcome], after: Sequence[Outcome]) -> Check:
    """Compare the results of the same images; `before` may have more."""
    boxes = scores = 0.0
    compared, exact = 0, True
    for number, (one, other) in enumerate(zip(before, after, strict=False)):
        if isinstance(one, ItemError) or isinstance(other, ItemError):
            if type(one) is not type(other):
                return _failed(name, f"{what}: image {number} fails in one of the two")
            continue
        difference = differences(one, other)
        if difference is None:
            return _failed(name, f"{what}: other instances in image {number}")
        compared += len(one)
        boxes, scores = max(boxes, difference[0]), max(scores, difference[1])
        exact = exact and equal(one, other)
    if not compared:
        return _not_checked(
            name, f"nothing was detected in the {plural(len(after), 'image')} that were compared"
        )
    if exact:
        return _ok(name, f"{what}: {plural(compared, 'instance')} identical")
    return _ok(name, f"{what}: boxes differ by {boxes:.2g} px, scores by {scores:.2g}")
