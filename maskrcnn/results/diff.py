"""Compare two runs over the same images, instance by instance.

Both runs are read side by side in order, a few row groups of each at a time, in ranges of images that do not depend on
each other.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import UsageError, plural
from ..masks.rectangles import boxes_of, with_rectangles
from ..pipeline.setting_differences import RUNS_A_AND_B, differences
from ..pipeline.success import detects_masks
from ..stats import COCO_EDGES
from ..types import Detections
from .diff_matching import (
    APPEARED,
    KINDS,
    MOVED,
    RELABELLED,
    RESCORED,
    SAME,
    VANISHED,
    Pairs,
    Rules,
    compare_instances,
)
from .part_checks import unknown_category
from .reader import ImageRow, RunReader
from .run import Run

SIZES: Final = ("small", "medium", "large")
"""COCO's size ranges by mask area in pixels: below 32², below 96², and above."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ImageDiff:
    """One image in both runs, or in one of them."""

    a: ImageRow | None
    b: ImageRow | None
    status: str
    """`compared`; `only_a`, `only_b`; `failed`, in either run; `resized`, of different sizes."""
    found_a: Detections | None = None
    """Labels are indices in `Comparison.categories`; None if the image was not compared."""
    found_b: Detections | None = None
    pairs: Pairs | None = None
    kinds: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))
    """(K,) of the pairs, then of the unmatched instances of A, then of those of B."""
    rows_a: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """(K,) index in `found_a` for each of `kinds`; -1 for instances that only B has."""
    rows_b: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """(K,) likewise in `found_b`."""
    iou: Floats = field(default_factory=lambda: np.zeros(0))
    """(K,) mask IoU for each of `kinds`; 0 if there is no partner."""
    numbers_a: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Numbers of the instances in their image, which differ from indices if low scores are left out."""
    numbers_b: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def name(self) -> str:
        """Name in A, or in B if only B has the image."""
        image = self.a or self.b
        return "" if image is None else image.name

    @property
    def changed(self) -> NDArray[np.intp]:
        """Indices of `kinds` that are not `SAME`."""
        return np.flatnonzero(self.kinds != SAME)

    @property
    def status_changed(self) -> bool:
        """Whether both runs have the image, with different statuses."""
        return self.a is not None and self.b is not None and self.a.status != self.b.status

    @property
    def renamed(self) -> bool:
        """Whether the runs have other names for the image, besides the folder: it may not be the same image."""
        return self.a is not None and self.b is not None and _base(self.a.name) != _base(self.b.name)

    @property
    def weight(self) -> float:
        """Amount of difference, by which images are chosen for pictures."""
        if not len(self.changed):
            return 0.0
        moved = self.kinds == MOVED
        whole = np.isin(self.kinds, (RELABELLED, APPEARED, VANISHED)).sum()
        return float(whole + (1 - self.iou[moved]).sum() + 0.01 * (self.kinds == RESCORED).sum())


@dataclass(frozen=True, slots=True, eq=False)
class ImageRange:
    """Consecutive images of A, and the images of B to compare them with, both as rows of their manifests."""

    ours: range
    theirs: range
    """Rows of B between the same names; empty if there are `partners`."""
    partners: Ints | None = None
    """(len(ours),) the row of B of the same image, -1 if there is none; None if both are in the order of names."""
    only_theirs: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rows of B whose images A does not have."""


class Comparison:
    """Two finished runs side by side.

    Args:
        a: reader of one run.
        b: reader of the other run.
        rules: when instances are the same.
    """

    def __init__(self, a: RunReader, b: RunReader, rules: Rules) -> None:
        self._a, self._b = a, b
        self.rules: Final = rules
        given = [bool(reader.run.info.get("inputs", {}).get("ids_given")) for reader in (a, b)]
        self.matched_by: Final[Literal["image_id", "name"]] = "image_id" if all(given) else "name"
        names = [category.name for reader in (a, b) for category in reader.run.categories]
        self.categories: Final = tuple(dict.fromkeys(names))
        """Names in either run; categories with the same name are the same, whatever their ids."""
        code = {name: number for number, name in enumerate(self.categories)}
        self._codes = [{c.id: code[c.name] for c in reader.run.categories} for reader in (a, b)]
        masks = all(detects_masks(reader.run.info) for reader in (a, b))
        self.shapes: Final[Literal["masks", "boxes"]] = "masks" if masks else "boxes"
        """By which instances are compared: boxes if the model of a run detects nothing else."""

    @property
    def runs(self) -> tuple[Run, Run]:
        """Both runs, without the list of their receipts, which grows with them and is not needed."""
        of_a, of_b = (
            Run(
                reader.storage.url,  # absolute, for tasks that work in other folders
                reader.run.info,
                {name: value for name, value in reader.run.success.items() if name != "receipts"},
            )
            for reader in (self._a, self._b)
        )
        return of_a, of_b

    @property
    def settings(self) -> list[str]:
        """The settings in which the runs differ, as text."""
        infos = [reader.run.info for reader in (self._a, self._b)]
        facts = [info["settings"] | {"weights": info["model"].get("sha256", "")[:12]} for info in infos]
        return differences(facts[0], facts[1], RUNS_A_AND_B)

    def check_related(self, ranges: Sequence[ImageRange]) -> None:
        """Look for an image that both runs have, and that did not fail in both.

        Args:
            ranges: all of them.

        Raises:
            UsageError: there is none; if none is in both, the message says what the images were matched by, and gives
                an example of each.
        """
        common = 0
        for a, b in itertools.chain.from_iterable(map(self._aligned, ranges)):
            if a is not None and b is not None:
                if not a.status == b.status == "failed":
                    return
                common += 1
        if common:
            raise UsageError(
                f"{self._a.run.url} and {self._b.run.url} cannot be compared: of {plural(common, 'image')} in common "
                "none was segmented in either run; the column `error` of images/ gives the reasons"
            )
        first = [
            getattr(next(reader.images(), None), self.matched_by, "none") for reader in (self._a, self._b)
        ]
        raise UsageError(
            f"{self._a.run.url} and {self._b.run.url} have no image in common: compare two runs over the same images "
            f"(matched by {self.matched_by}; the first are {first[0]!r} and {first[1]!r})"
        )

    def ranges(self, images: int) -> list[ImageRange]:
        """Divide the images of both runs into ranges of `images` images of A, in order; each image is in one of them.

        Raises:
            UsageError: the tables of a run disagree.
            RunError: a part cannot be read.
        """
        cuts = [*range(0, max(self._a.n_images, 1), images), self._a.n_images]
        if self.matched_by == "image_id" or not (_in_order(self._a) and _in_order(self._b)):
            partners, only_theirs = self._partners()
            found = [
                ImageRange(range(*cut), range(0), partners[slice(*cut)]) for cut in itertools.pairwise(cuts)
            ]
            return [*found[:-1], replace(found[-1], only_theirs=only_theirs)]
        names = [self._a.image(row).name for row in cuts[1:-1]]
        bounds = [0, *_places(self._b, names), self._b.n_images]
        both = zip(itertools.pairwise(cuts), itertools.pairwise(bounds), strict=True)
        return [ImageRange(range(*ours), range(*theirs)) for ours, theirs in both]

    def images(self, within: ImageRange) -> Iterator[ImageDiff]:
        """Yield every image of either run in a range, in the order of names or of A.

        Raises:
            UsageError: the tables of a run disagree.
            RunError: a part cannot be read.
        """
        for a, b in self._aligned(within):
            yield self.image(a, b)

    def _aligned(self, within: ImageRange) -> Iterator[tuple[ImageRow | None, ImageRow | None]]:
        if within.partners is None:
            return self._by_name(within)
        return self._in_order_of_a(within, within.partners)

    def image(self, a: ImageRow | None, b: ImageRow | None) -> ImageDiff:
        """Compare one image."""
        if a is None or b is None:
            return ImageDiff(a, b, "only_b" if a is None else "only_a")
        if "failed" in (a.status, b.status):
            return ImageDiff(a, b, "failed")
        if (a.height, a.width) != (b.height, b.width):
            return ImageDiff(a, b, "resized")
        found_a, numbers_a = self._found(self._a, a, 0)
        found_b, numbers_b = self._found(self._b, b, 1)
        pairs, kinds = compare_instances(found_a, found_b, self.rules)
        vanished, appeared = _others(len(found_a), pairs.a), _others(len(found_b), pairs.b)
        none_a, none_b = np.full(len(vanished), -1, np.int64), np.full(len(appeared), -1, np.int64)
        rest = np.repeat(np.array([VANISHED, APPEARED], np.int8), [len(vanished), len(appeared)])
        return ImageDiff(
            a,
            b,
            "compared",
            found_a,
            found_b,
            pairs,
            np.concatenate([kinds, rest]),
            np.concatenate([pairs.a, vanished, none_b]),
            np.concatenate([pairs.b, none_a, appeared]),
            np.concatenate([pairs.iou, np.zeros(len(rest))]),
            numbers_a,
            numbers_b,
        )

    def _found(self, reader: RunReader, image: ImageRow, side: int) -> tuple[Detections, Ints]:
        found = reader.detections(image)
        found = found if self.shapes == "masks" else with_rectangles(boxes_of(found))
        keep = np.flatnonzero(found.scores >= np.float32(self.rules.min_score))
        some = found if len(keep) == len(found) else found.take(keep)
        codes = self._codes[side]
        if unknown := sorted(set(some.labels.tolist()) - set(codes)):
            raise unknown_category(reader.run.url, unknown[0])
        labels = np.array([codes[label] for label in some.labels.tolist()], np.int32)
        return replace(some, labels=labels), keep

    def _by_name(self, within: ImageRange) -> Iterator[tuple[ImageRow | None, ImageRow | None]]:
        """Yield images with the same name together; both runs are in the order of names, as UTF-8 bytes."""
        ours, theirs = map(self._a.image, within.ours), map(self._b.image, within.theirs)
        a, b = next(ours, None), next(theirs, None)
        while a is not None or b is not None:
            if b is None or (a is not None and a.name.encode() < b.name.encode()):
                yield a, None
                a = next(ours, None)
            elif a is None or b.name.encode() < a.name.encode():
                yield None, b
                b = next(theirs, None)
            else:
                yield a, b
                a, b = next(ours, None), next(theirs, None)

    def _in_order_of_a(
        self, within: ImageRange, partners: Ints
    ) -> Iterator[tuple[ImageRow | None, ImageRow | None]]:
        """Yield partners together: images of A in order, then those that only B has."""
        for row, other in zip(within.ours, partners.tolist(), strict=True):
            yield self._a.image(row), self._b.image(other) if other >= 0 else None
        for row in within.only_theirs.tolist():
            yield None, self._b.image(row)

    def _partners(self) -> tuple[Ints, Ints]:
        """Return for each row of A the row of B of the same image, or -1; and the rows of B that A does not have."""
        ours, theirs = (
            pa.chunked_array(list(reader.column(self.matched_by))) for reader in (self._a, self._b)
        )
        partners = pc.fill_null(pc.index_in(ours, value_set=theirs), -1).to_numpy().astype(np.int64)
        known = pc.is_in(theirs, value_set=ours).to_numpy()
        return partners, np.flatnonzero(~known)


def _in_order(reader: RunReader) -> bool:
    """Return whether images are in the order of their names, which an update does not keep."""
    last = ""
    for column in reader.column("name"):
        names = column.combine_chunks()
        if len(names):
            ascending = pc.all(pc.less_equal(names.slice(0, len(names) - 1), names.slice(1))).as_py()
            if ascending is False or names[0].as_py().encode() < last.encode():
                return False
            last = names[-1].as_py()
    return True


def _places(reader: RunReader, names: Sequence[str]) -> list[int]:
    """Return for each of some names, ascending as UTF-8 bytes, the number of images with lower names."""
    places: list[int] = []
    first = 0
    for column in reader.column("name"):
        while len(places) < len(names):
            wanted = names[len(places)].encode()
            at = bisect.bisect_left(range(len(column)), wanted, key=lambda row: column[row].as_py().encode())
            if at == len(column):
                break
            places.append(first + at)
        first += len(column)
    return places + [first] * (len(names) - len(places))


def _others(count: int, taken: Ints) -> Ints:
    """Return the numbers below `count` that are not taken, ascending."""
    free = np.ones(count, np.bool_)
    free[taken] = False
    return np.flatnonzero(free)


def _base(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


# Totals


class Tally:
    """Counts of differences, added image by image."""

    def __init__(self, categories: tuple[str, ...]) -> None:
        self._categories = categories
        self.counts = np.zeros((len(KINDS), len(categories), len(SIZES)), np.int64)
        """By kind, by category and by size in A or, for instances that appeared, in B."""
        self.relabelled = np.zeros((len(categories), len(categories)), np.int64)
        self.images = dict.fromkeys(
            ("compared", "only_a", "only_b", "failed", "resized", "changed", "status_changed", "renamed"), 0
        )

    def add(self, image: ImageDiff) -> None:
        """Add an image."""
        self.images[image.status] += 1
        self.images["status_changed"] += image.status_changed
        self.images["renamed"] += image.renamed
        self.images["changed"] += len(image.changed) > 0
        a, b = image.found_a, image.found_b
        if a is None or b is None:
            return
        ours = image.rows_a >= 0
        labels, areas = np.zeros(len(ours), np.int64), np.zeros(len(ours), np.int64)
        for rows, found, mask in ((image.rows_a, a, ours), (image.rows_b, b, ~ours)):
            labels[mask], areas[mask] = found.labels[rows[mask]], found.areas[rows[mask]]
        np.add.at(self.counts, (image.kinds, labels, sizes_of(areas)), 1)
        changed = image.kinds == RELABELLED
        both = (a.labels[image.rows_a[changed]], b.labels[image.rows_b[changed]])
        np.add.at(self.relabelled, both, 1)

    def add_all(self, other: "Tally") -> None:
        """Add the images of another tally, of the same runs."""
        self.counts += other.counts
        self.relabelled += other.relabelled
        self.images = {name: count + other.images[name] for name, count in self.images.items()}

    @property
    def equal(self) -> bool:
        """Whether there are no differences."""
        others = ("only_a", "only_b", "resized", "changed", "status_changed")
        return not any(self.images[name] for name in others)

    def to_json(self) -> dict[str, Any]:
        """Return the counts: of images, of instances by kind, by category and by size."""
        pairs = np.argwhere(self.relabelled)
        relabelled = [
            (int(self.relabelled[i, j]), self._categories[i], self._categories[j]) for i, j in pairs
        ]
        relabelled.sort(key=lambda entry: (-entry[0], *entry[1:]))
        return {
            "images": dict(self.images),
            "instances": _by_kind(self.counts.sum(axis=(1, 2))),
            "by_category": {
                name: _by_kind(self.counts[:, code].sum(axis=1))
                for code, name in enumerate(self._categories)
                if self.counts[:, code].any()
            },
            "by_size": {name: _by_kind(self.counts[:, :, k].sum(axis=1)) for k, name in enumerate(SIZES)},
            "relabelled": [{"from": a, "to": b, "count": count} for count, a, b in relabelled],
        }


def sizes_of(areas: Ints) -> Ints:
    """Return the indices in `SIZES` of mask areas."""
    return np.searchsorted(np.array(COCO_EDGES[1:3]), areas, side="right").astype(np.int64)


def _by_kind(counts: Ints) -> dict[str, int]:
    return dict(zip(KINDS, counts.tolist(), strict=True))
