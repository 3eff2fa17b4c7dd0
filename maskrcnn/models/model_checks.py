"""Checks of a model on generated images, in about a minute: whether its results are sound, and what a batch costs."""

import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import psutil

from ..errors import ItemError, MaskrcnnError, UsageError, plural
from ..synthetic.planted import PlantedInstance, plant
from ..synthetic.scenes import render_scene
from ..types import Category, Detections, Pixels, Segmenter
from .factory import build_segmenter
from .own.own_segmenter import OwnSegmenter, is_finite, problem_of, shown_box
from .registry import ModelCard, describe_model

__all__ = ["Check", "Cost", "ModelReport", "check_model"]

log = logging.getLogger("maskrcnn")

BATCH_SIZES: Final = (1, 2, 4, 8)
_BOX_PX: Final = 0.05
"""Boxes that differ by less, and scores that differ by less than …"""
_SCORE: Final = 1e-3
"""… are equal but for rounding; scores this close to the limit may be on either side of it."""
_LONG_S: Final = 3.0
"""A batch that takes longer is measured once."""
_SAMPLE_S: Final = 0.01
"""How often the memory of the process is read."""

Outcome = Detections | ItemError
Build = Callable[..., Segmenter]


@dataclass(frozen=True, slots=True)
class Check:
    """One property of a model."""

    name: str
    passed: bool | None
    """None: it could not be checked."""
    line: str
    """What was found, for a person."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a batch costs."""

    batch_size: int
    seconds_per_image: float
    peak_bytes: int
    """The highest memory of the process, or on CUDA that torch allocated on the GPU."""


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
        return all(check.passed is not False for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {"execution": dict(self.execution), "sound": self.sound}


def check_model(
    name: str,
    labels: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    dtype: str | None = None,
    seconds: float = 60.0,
) -> ModelReport:
    """Check a model of any kind on generated images.

    Args:
        name: as of `registry.resolve`.
        labels: as of `registry.describe_model`.
        arguments: of the factory of a network of the user's own.
        device: `cpu`, `cuda` or `auto`.
        threads: of torch on the CPU.
        dtype: of the convolutions.
        seconds: no larger batch is measured once this time has passed.

    Raises:
        UsageError: there is no such model, or it cannot be built.
        RunError: the store of its file cannot be read.
    """
    ends = time.monotonic() + seconds
    card = describe_model(name, labels, arguments)

    def build(**limits: Any) -> Segmenter:
        segmenter = build_segmenter(
            name,
            labels,
            arguments=arguments,
            device=device,
            threads=threads,
            dtype=dtype,
            batch_size=max(BATCH_SIZES),
            lanes=2,
            expected_sha256=card.sha256,
            **limits,
        )
        return _unchecked(segmenter, card, images) if isinstance(segmenter, OwnSegmenter) else segmenter

    images = sample_images()
    segmenter = build()
    run = _Run(card, segmenter, images)
    checks: list[Check] = []
    try:
        checks += run.results()
        checks += run.repeated()
        checks += _limits(card, build, images, run.alone)
    except UsageError as error:  # of a network of the user's own: it returned what is no result
        checks.append(Check("results", passed=False, line=str(error)))
    except MaskrcnnError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 a network may raise anything, which is what the check reports
        checks.append(
            Check("results", passed=False, line=f"the network raised {type(error).__name__}: {error}")
        )
    sound = all(check.passed is not False for check in checks)
    costs = tuple(_costs(segmenter, images[: max(BATCH_SIZES)], ends)) if sound else ()
    return ModelReport(
        name, card.sha256, card.categories, card.has_masks, segmenter.execution, tuple(checks), costs
    )


def _unchecked(segmenter: OwnSegmenter, card: ModelCard, images: Sequence[Pixels]) -> Segmenter:
    """Return the user's segmenter itself. Raises UsageError for what would end a run before its first result."""
    if segmenter.categories != card.categories:  # those of a set, say; the card was made in another process
        raise UsageError(
            f"--model {card.name}: its categories differ from process to process: give them in a fixed order"
        )
    for image in images:
        segmenter.canvas(*image.shape[:2])
    return segmenter.unchecked


@functools.cache
def sample_images() -> tuple[Pixels, ...]:
    """Return generated images: three of one size, then others of several shapes, noise, and one colour."""
    scenes = [render_scene(seed, 640).image for seed in (30_000_001, 30_000_002)]
    random = np.random.default_rng(0)
    shapes: tuple[Literal["rectangle", "ellipse"], ...] = ("rectangle", "ellipse")
    objects = [
        PlantedInstance(
            shapes[n % 2], (1, 2, 5)[n % 3], 0.5 + n / 20, 90.0 + 165 * (n // 3), 70.0 + 165 * (n % 3), 70, 50
        )
        for n in range(9)
    ]
    planted = plant((480, 640), objects)
    return (
        *(scene[:480] for scene in scenes),
        planted,
        scenes[0][:, :480],
        scenes[1][100:196, 200:328],
        scenes[1][:400, 300:348],
        random.integers(0, 256, (256, 320, 3), np.uint8),
        np.full((200, 200, 3), 128, np.uint8),
    )


class _Run:
    """The results of a model for images alone, and what repeating shows."""

    def __init__(self, card: ModelCard, segmenter: Segmenter, images: Sequence[Pixels]) -> None:
        self._card = card
        self._segmenter = segmenter
        self._images = images
        self.alone: list[Outcome] = []

    def results(self) -> list[Check]:
        """Compute each image alone; check that results are well formed, finite and within their images."""
        log.info("computing %s, each alone", plural(len(self._images), "image"))
        self.alone = [self._one(image) for image in self._images]
        ids = {category.id for category in self._card.categories}
        wrong, infinite, outside = [], 0, []
        for found, image in zip(self.alone, self._images, strict=True):
            if isinstance(found, ItemError):
                infinite += found.code == "not_finite"
                wrong += [f"an image failed with {found}"] if found.code != "not_finite" else []
                continue
            height, width = image.shape[:2]
            problem = problem_of(found, height, width, ids, has_masks=self._card.has_masks)
            wrong += [f"it {problem}"] if problem else []
            if problem is None and not is_finite(found):
                infinite += 1
            elif problem is None:
                beyond = (found.boxes < 0).any(1) | (found.boxes > (width, height, width, height)).any(1)
                outside += [f"{shown_box(box)} in {height} x {width}" for box in found.boxes[beyond]]
        instances = sum(len(found) for found in self.alone if isinstance(found, Detections))
        what = f"{plural(instances, 'instance')} in {plural(len(self._images), 'image')} of several sizes"
        return [
            Check("well formed", not wrong, wrong[0] if wrong else what),
            Check(
                "finite",
                not infinite,
                f"NaN or infinity in {plural(infinite, 'image')}" if infinite else "all",
            ),
            Check(
                "within the image", not outside, f"the box {outside[0]} pixels" if outside else "all boxes"
            ),
        ]

    def repeated(self) -> list[Check]:
        """Compute images again: alone, in a batch, and in two threads at once if the model allows."""
        log.info("computing images again, and in batches")
        first = self._images[:2]
        again = [self._one(image) for image in first]
        together = self._all(self._images[:3])
        checks = [
            _compared("deterministic", "twice the same", self.alone, again),
            _compared("independent of the batch", "alone and in a batch", self.alone, together),
        ]
        if self._segmenter.lanes > 1:
            with ThreadPoolExecutor(2) as threads:
                at_once = list(threads.map(self._one, first))
            checks.append(
                _compared("from two threads", "one after the other and at once", self.alone, at_once)
            )
        return checks

    def _one(self, image: Pixels) -> Outcome:
        return self._all([image])[0]

    def _all(self, images: Sequence[Pixels]) -> list[Outcome]:
        found: Any = self._segmenter.outcomes(images)
        if not isinstance(found, list | tuple) or len(found) != len(images):
            what = plural(len(found), "result") if isinstance(found, list | tuple) else type(found).__name__
            raise UsageError(f"it returned {what} for {plural(len(images), 'image')}")
        return list(found)


def _compared(name: str, what: str, before: Sequence[Outcome], after: Sequence[Outcome]) -> Check:
    """Compare the results of the same images; `before` may have more."""
    boxes = scores = 0.0
    exact = True
    for number, (one, other) in enumerate(zip(before, after, strict=False)):
        if isinstance(one, ItemError) or isinstance(other, ItemError):
            if type(one) is not type(other):
                return Check(name, passed=False, line=f"{what}: image {number} fails in one of the two")
            continue
        difference = differences(one, other)
        if difference is None:
            return Check(name, passed=False, line=f"{what}: other instances in image {number}")
        boxes, scores = max(boxes, difference[0]), max(scores, difference[1])
        exact = exact and _equal(one, other)
    if exact:
        return Check(name, passed=True, line=f"{what}: identical")
    return Check(name, passed=True, line=f"{what}: boxes differ by {boxes:.2g} px, scores by {scores:.2g}")


def _equal(one: Detections, other: Detections) -> bool:
    columns = ("boxes", "labels", "scores", "areas", "mask_boxes")
    same = len(one) == len(other) and one.masks == other.masks
    return same and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)


def differences(one: Detections, other: Detections) -> tuple[float, float] | None:
    """Return the largest difference of boxes in pixels and of scores; None if instances differ by more than rounding.

    Instances whose scores are close to the lowest of a full result may be missing in the other.
    """
    boxes = scores = 0.0
    for a, b in ((one, other), (other, one)):
        lowest = min((float(each.scores.min()) for each in (a, b) if len(each)), default=0.0)
        for box, label, score in zip(a.boxes, a.labels, a.scores, strict=True):
            if score <= lowest + _SCORE and len(a) != len(b):
                continue
            near = np.flatnonzero((b.labels == label) & (np.abs(b.scores - score) <= _SCORE))
            apart = np.abs(b.boxes[near] - box).max(axis=1) if len(near) else np.array([np.inf])
            best = int(apart.argmin())
            if apart[best] > _BOX_PX:
                if score <= lowest + _SCORE:
                    continue
                return None
            boxes = max(boxes, float(apart[best]))
            scores = max(scores, float(abs(b.scores[near[best]] - score)))
    return boxes, scores


def _limits(card: ModelCard, build: Build, images: Sequence[Pixels], seen: Sequence[Outcome]) -> list[Check]:
    """Build the model with a higher lowest score, few detections and one category, and look whether it obeys."""
    names = ("--min-score", "--max-detections", "--categories")
    counts = [len(outcome) if isinstance(outcome, Detections) else 0 for outcome in seen]
    number = int(np.argmax(counts))
    found = seen[number]
    if isinstance(found, ItemError) or len(found) == 0:
        return [
            Check(name, passed=None, line="nothing was detected in the generated images") for name in names
        ]
    log.info("computing an image with other limits")
    lowest = float(np.median(found.scores)) - 1e-6
    label = int(np.bincount(found.labels).argmax())
    category = next(category for category in card.categories if category.id == label)
    most = max(1, len(found) // 4)

    def limited(**limits: Any) -> Detections:
        (outcome,) = build(**limits).outcomes([images[number]])
        if isinstance(outcome, ItemError):
            raise outcome
        return outcome

    above = limited(min_score=max(lowest, 0.0))
    few = limited(max_detections=most)
    one = limited(categories=(category.name,))
    below, others = (
        int((above.scores <= np.float32(max(lowest, 0.0))).sum()),
        int((one.labels != label).sum()),
    )
    ignored = "the program applies it to what the network returns"
    return [
        Check(names[0], passed=True, line=f"{lowest:.3g}: obeyed" if not below else f"not obeyed: {ignored}"),
        Check(
            names[1], passed=True, line=f"{most}: obeyed" if len(few) <= most else f"not obeyed: {ignored}"
        ),
        Check(
            names[2], passed=True, line=f"{category.name}: obeyed" if not others else f"not obeyed: {ignored}"
        ),
    ]


def _costs(segmenter: Segmenter, images: Sequence[Pixels], ends: float) -> Iterator[Cost]:
    """Measure batches of one size, until the time is over; a short one twice, of which the faster counts."""
    shape = images[0].shape
    equal = [image for image in images if image.shape == shape]
    for size in BATCH_SIZES:
        batch = list(itertools.islice(itertools.cycle(equal), size))
        taken = []
        with _Memory(cuda=segmenter.execution.get("device", "cpu") != "cpu") as memory:
            for _ in range(2):
                started = time.monotonic()
                segmenter.outcomes(batch)
                taken.append(time.monotonic() - started)
                if taken[-1] > _LONG_S or time.monotonic() > ends:
                    break
        yield Cost(size, min(taken) / size, memory.peak)
        if time.monotonic() + 2 * min(taken) > ends:
            log.info(
                "batches larger than %d are left out: they would take longer than the time allowed", size
            )
            return


class _Memory:
    """The highest memory of this process, or of its part of the GPU, during a block, in bytes."""

    def __init__(self, *, cuda: bool) -> None:
        self._cuda = cuda
        self._process = psutil.Process()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = 0

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self._process.memory_info().rss)
            if self._ended.wait(_SAMPLE_S):
                return

    def __enter__(self) -> "_Memory":
        if self._cuda:
            import torch  # noqa: PLC0415 only where a model computes on a GPU

            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            import torch  # noqa: PLC0415 only where a model computes on a GPU

            self.peak = torch.cuda.max_memory_allocated()
            return
        self._ended.set()
        self._thread.join()
