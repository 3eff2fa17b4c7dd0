"""Checks of a model on generated images, in about a minute: whether its results are sound, and what a batch costs."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ...errors import ItemError, MaskrcnnError, OwnNetworkError, UsageError, plural
from ...types import Detections, Pixels, Segmenter
from ..factory import build_segmenter
from ..own.own_code import raised
from ..own.own_process import Begin
from ..own.own_segmenter import OwnSegmenter, Planned, check_planned, is_finite, problem_of, shown_box
from .batch_costs import BATCH_SIZES, Cost, measured
from .differences import differences, equal
from .report import Check, ModelReport, failed, not_checked, ok
from .sample_images import sample_images

__all__ = ["Subject", "run_checks"]

log = logging.getLogger("maskrcnn")

_AT_LEAST: Final = 3
"""Images that are computed however long it takes; they have one size, and are compared."""

Outcome = Detections | ItemError
Build = Callable[..., Segmenter]


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


def run_checks(subject: Subject, begin: Begin = lambda *_: None, seconds: float = 60.0) -> ModelReport:
    """Check a model of any kind on generated images, in this process.

    Args:
        subject: the model.
        begin: is called before each step that may hang.
        seconds: once this time has passed, images and checks that need not be are left out, and larger batches.

    Raises:
        UsageError: the model cannot be built, or a run would end before its first result.
        RunError: the store of its file cannot be read.
    """
    begin("building it", 1)
    segmenter = subject.build()
    images = sample_images()
    begin("its `canvas`", 1)
    canvases = [segmenter.canvas(*image.shape[:2]) for image in images]
    ends = time.monotonic() + seconds
    run = _Run(subject, segmenter, images, begin, ends)
    checks = run.results()
    if run.found_nothing:
        log.info("nothing was detected: trying with --min-score 0")
        begin("building it with --min-score 0", 1)
        run = _Run(subject, subject.build(min_score=0.0), images, begin, ends, min_score=0.0)
        checks = run.results()
    if any(check.status == "failed" for check in checks[:1]):
        checks += [not_checked(name, "results are not well formed") for name in (*REPEATED, *LIMITS)]
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
        self,
        subject: Subject,
        segmenter: Segmenter,
        images: Sequence[Pixels],
        begin: Begin,
        ends: float,
        **limits: float,
    ) -> None:
        self._limits = limits
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
        self._begin(f"running {what} of {height} x {width} pixels", len(images))
        return _tried(_raw(self._segmenter), images)

    @property
    def found_nothing(self) -> bool:
        """Whether all images have results, of which none has an instance."""
        return all(isinstance(each, Detections) and len(each) == 0 for each in self._alone)

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
                failed(RESULTS[0], wrong[0]),
                *(not_checked(name, "results are not well formed") for name in RESULTS[1:]),
            ]
        infinite = sum(isinstance(each, ItemError) or not is_finite(each) for each in self._alone)
        outside = self._outside()
        seen = f"{plural(instances, 'instance')} in {plural(len(self._alone), 'image')}"
        if len(self._alone) < len(self._images):
            seen += f"; {plural(len(self._images) - len(self._alone), 'image')} left out: {_LATE}"
        checks = {
            RESULTS[0]: ok(RESULTS[0], seen),
            RESULTS[1]: ok(RESULTS[1], "run lengths of the whole image, with the areas and boxes stated")
            if self._segmenter.has_masks
            else not_checked(RESULTS[1], "it detects boxes only"),
            RESULTS[2]: failed(RESULTS[2], f"NaN or infinity in {plural(infinite, 'image')}")
            if infinite
            else ok(RESULTS[2], "all boxes and scores"),
            RESULTS[3]: failed(RESULTS[3], f"the box {outside[0]} pixels")
            if outside
            else ok(RESULTS[3], "all boxes"),
        }
        if not instances:
            for name, check in checks.items():
                if check.status == "ok":
                    checks[name] = not_checked(name, _NOTHING)
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
        order = sorted(
            range(len(self._alone)), key=lambda number: -self._count(number)
        )  # what has instances first
        first = [self._images[number] for number in order[:2]]
        alone = [self._alone[number] for number in order[:2]]
        checks = [self._again(REPEATED[0], "twice the same", alone, lambda: [*map(self._one, first)])]
        checks.append(self._batched(order, canvases))
        if self._segmenter.lanes == 1:
            why = "its lanes are 1: a run calls it from one thread"
            checks.append(not_checked(REPEATED[2], why))
        else:
            what = "one after the other and at once"
            checks.append(self._again(REPEATED[2], what, alone, lambda: self._at_once(first)))
        return checks

    def _batched(self, order: Sequence[int], canvases: Sequence[object]) -> Check:
        """Compute the first of some images in a batch with others of its size, and its mirror images."""
        name, together = REPEATED[1], min(_AT_LEAST, self._segmenter.batch_size)
        first = self._images[order[0]]
        equal = [number for number in order if self._images[number].shape == first.shape][:together]
        if together == 1:
            return not_checked(name, "its batch_size is 1: a run calls it with one image at a time")
        if len({canvases[number] for number in equal}) > 1:
            return not_checked(
                name, "its canvas differs for images of one size: a run never has two in a batch"
            )
        batch = [
            *(self._images[number] for number in equal),
            *map(np.ascontiguousarray, (first[:, ::-1], first[::-1])),
        ]
        alone = [self._alone[number] for number in equal]
        return self._again(name, "alone and in a batch", alone, lambda: self._compute(batch[:together]))

    def _count(self, number: int) -> int:
        found = self._alone[number]
        return len(found) if isinstance(found, Detections) else 0

    def _one(self, image: Pixels) -> Outcome:
        return self._compute([image])[0]

    def _at_once(self, images: Sequence[Pixels]) -> list[Outcome]:
        self._begin("running 2 images at once in 2 threads", len(images))
        with ThreadPoolExecutor(len(images)) as threads:
            found = threads.map(lambda image: _tried(_raw(self._segmenter), [image]), images)
            return [outcome for (outcome,) in found]

    def _again(
        self, name: str, what: str, alone: Sequence[Outcome], compute: Callable[[], Sequence[Outcome]]
    ) -> Check:
        try:
            return _compared(name, what, alone, compute())
        except _Fault as fault:
            return failed(name, f"{what}: {fault}")

    # Limits

    def limits(self) -> list[Check]:
        """Build the model with a higher lowest score, few detections and one category, and look whether it obeys."""
        number = max(range(len(self._alone)), key=self._count)
        found = self._alone[number]
        if isinstance(found, ItemError) or len(found) == 0:
            return [not_checked(name, _NOTHING) for name in LIMITS]
        log.info("computing an image with other limits")
        lowest = max(float(np.median(found.scores)) - 1e-6, 0.0)
        label = int(np.bincount(found.labels).argmax())
        category = next(each.name for each in self._subject.planned.categories if each.id == label)
        most = max(1, len(found) // 4)
        image = self._images[number]
        return [
            not_checked(LIMITS[0], "no scores that differ were detected")
            if (found.scores > np.float32(lowest)).all()
            else self._limit(
                LIMITS[0],
                f"{lowest:.3g}",
                image,
                lambda few: few.scores > np.float32(lowest),
                min_score=lowest,
            ),
            not_checked(LIMITS[1], "no image has more than one detection")
            if len(found) <= most
            else self._limit(
                LIMITS[1], str(most), image, lambda few: np.arange(len(few)) < most, max_detections=most
            ),
            not_checked(LIMITS[2], f"no category but {category} was detected")
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
            return not_checked(name, _LATE)
        try:
            self._begin(f"building it with {name} {shown}", 1)
            segmenter = self._subject.build(**self._limits | limits)
            self._begin(f"running 1 image with {name} {shown}", 1)
            (outcome,) = _tried(_raw(segmenter), [image])
        except (_Fault, UsageError) as error:
            return failed(name, f"{shown}: {error}")
        if isinstance(outcome, ItemError):
            return failed(name, f"{shown}: the image failed with {outcome}")
        if len(outcome) == 0:
            return not_checked(name, f"{shown}: nothing was detected")
        if np.all(obeyed(outcome)):
            return ok(name, f"{shown}: obeyed")
        applied = isinstance(segmenter, OwnSegmenter)
        line = "the program applies it, since the network does not" if applied else "not obeyed"
        return Check(name, "ok" if applied else "failed", f"{shown}: {line}")

    # Costs

    def cost(self, costs: list[Cost]) -> list[Check]:
        """Add what batches cost to a list; return a failed check if a batch is not computed."""
        cuda = self._segmenter.execution.get("device", "cpu") != "cpu"
        largest = self._segmenter.batch_size
        try:
            costs.extend(measured(self._compute, self._images, largest, self._ends, cuda=cuda))
        except (_Fault, ItemError) as error:
            return [failed("batches", f"a larger batch than {len(costs)}: {error}")]
        return []


def _raw(segmenter: Segmenter) -> Callable[[Sequence[Pixels]], Sequence[Outcome]]:
    return segmenter.raw_outcomes if isinstance(segmenter, OwnSegmenter) else segmenter.outcomes


def _compared(name: str, what: str, before: Sequence[Outcome], after: Sequence[Outcome]) -> Check:
    """Compare the results of the same images; `after` may have more."""
    boxes = scores = 0.0
    compared, exact = 0, True
    for one, other in zip(before, after, strict=False):
        if isinstance(one, ItemError) or isinstance(other, ItemError):
            if type(one) is not type(other):
                return failed(name, f"{what}: an image fails in one of the two")
            continue
        difference = differences(one, other)
        if difference is None:
            return failed(name, f"{what}: other instances in an image of {one.height} x {one.width} pixels")
        compared += len(one)
        boxes, scores = max(boxes, difference[0]), max(scores, difference[1])
        exact = exact and equal(one, other)
    if not compared:
        return not_checked(name, _NOTHING)
    if exact:
        return ok(name, f"{what}: {plural(compared, 'instance')} identical")
    return ok(name, f"{what}: boxes differ by {boxes:.2g} px, scores by {scores:.2g}")
