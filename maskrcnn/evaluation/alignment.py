"""Pair the images and categories of a run with those of a ground truth; where that is ambiguous, raise an error.

Images are paired by id only where the run took its ids from the user; else by name, then by the last part of the name
where that is unique. Categories are paired by name, whatever their ids.
"""

import difflib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, plural
from ..formats.coco_reader import CocoCategory, CocoImages
from ..types import Category

_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True)
class PairedImages:
    """The images that are in both."""

    ground_truth: NDArray[np.int64]
    """(N,) for each image of the run its place in the ground truth; -1: the ground truth does not have it."""
    by: str
    """How: `id`, `name`, `base name` or `name and base name`."""
    missing: NDArray[np.int64]
    """Places in the ground truth of images that the run does not have."""
    renamed: int
    """The number of images with the same id whose names end differently."""


def pair_images(
    ground_truth: CocoImages, image_ids: Sequence[int], names: Sequence[str], *, ids_given: bool
) -> PairedImages:
    """Find each image of a run in the ground truth.

    Args:
        ground_truth: the ground truth's images.
        image_ids: of the run's images.
        names: of the run's images, without repetition.
        ids_given: whether the ids are the user's, and not numbers assigned by the run.

    Raises:
        UsageError: no image is in both, or the pairing is ambiguous.
    """
    place = np.full(len(image_ids), -1, np.int64)
    if ids_given:
        known = {value: at for at, value in enumerate(ground_truth.ids)}
        place[:] = [known.get(value, -1) for value in image_ids]
        if (place >= 0).any():
            pairs = (
                (names[row], ground_truth.names[place[row]]) for row in np.flatnonzero(place >= 0).tolist()
            )
            renamed = sum(their is not None and _base(our) != _base(their) for our, their in pairs)
            return PairedImages(place, "id", _without(ground_truth, place), renamed)
    by_name = _unique(ground_truth.names)
    by_name = {_slashed(name): at for name, at in by_name.items()} | by_name
    place[:] = [by_name.get(name, by_name.get(_slashed(name), -1)) for name in names]
    named = int((place >= 0).sum())
    _pair_bases(ground_truth, names, place)
    if not (place >= 0).any():
        _refuse_strangers(ground_truth, image_ids, names, ids_given=ids_given)
    together = int((place >= 0).sum())
    by = "name" if named == together else "name and base name" if named else "base name"
    return PairedImages(place, by, _without(ground_truth, place), 0)


def _without(ground_truth: CocoImages, place: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.setdiff1d(np.arange(len(ground_truth.ids)), place)


def _slashed(name: str) -> str:
    """Return a name with `/` between folders, where it may have been written in Windows, and without a `./`."""
    return _undotted(name.replace("\\", "/"))


def _undotted(name: str) -> str:
    """Return a name without `./`, which is the folder that it is in.

    >>> [_undotted(name) for name in ("./a.png", "a/./b.png", "../a.png", "a./b.png")]
    ['a.png', 'a/b.png', '../a.png', 'a./b.png']
    """
    return re.sub(r"(^|(?<=/))(\./+)+", "", name)


def _base(name: str) -> str:
    return _slashed(name).rpartition("/")[2]


def _unique(names: Sequence[str | None]) -> dict[str, int]:
    """Return the place of each name. Raises UsageError where a name occurs twice."""
    places = {name: at for at, name in enumerate(names) if name is not None}
    counts = Counter(_undotted(name) for name in names if name is not None)
    if again := [name for name, count in counts.items() if count > 1]:
        raise UsageError(
            f"the ground truth has two images with the same file_name: {_some(again)}: give each its own"
        )
    return places


def _pair_bases(ground_truth: CocoImages, names: Sequence[str], place: NDArray[np.int64]) -> None:
    """Pair the rest by the last part of the name. Raises UsageError where that is not unique."""
    left = set(_without(ground_truth, place).tolist())
    if not left:
        return
    ours: dict[str, list[int]] = {}
    theirs: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        ours.setdefault(_base(name), []).append(row)
    for at, named in enumerate(ground_truth.names):
        if named is not None:
            theirs.setdefault(_base(named), []).append(at)
    for base, places in theirs.items():
        rows = ours.get(base, [])
        if not rows or left.isdisjoint(places):
            continue
        if len(rows) > 1 or len(places) > 1:
            both = [names[row] for row in rows[:2]] + [str(ground_truth.names[at]) for at in places[:2]]
            raise UsageError(
                f"it is ambiguous which image is {base!r}: the run has {len(rows)} and the ground truth {len(places)} "
                f"with that name in different folders ({_some(both, 4)}): give the ground truth the run's names"
            )
        place[rows[0]] = places[0]


def _refuse_strangers(
    ground_truth: CocoImages, image_ids: Sequence[int], names: Sequence[str], *, ids_given: bool
) -> None:
    ours = f"{_some(names)}" + (f" (ids {_some(image_ids)})" if ids_given else "")
    theirs = _some([name for name in ground_truth.names if name is not None]) or "no names"
    raise UsageError(
        f"the run and the ground truth have no image in common: the run has {ours}; the ground truth has {theirs} "
        f"(ids {_some(ground_truth.ids)}): evaluate against the dataset of these images"
    )


def _some(values: Sequence[Any], most: int = _EXAMPLES) -> str:
    shown = ", ".join(repr(value) for value in values[:most])
    return shown + (", …" if len(values) > most else "")


# Categories


@dataclass(frozen=True, slots=True)
class PairedCategories:
    """The categories that are evaluated, in the order of the ground truth's ids."""

    names: tuple[str, ...]
    of_ground_truth: NDArray[np.int32]
    """(N,) for each category of the ground truth its place in `names`; -1: not evaluated."""
    of_run: Mapping[int, int]
    """Place in `names` by the run's category id; those that are missing are not evaluated."""
    by: str
    """How: `name`, `id`, `order`, or `agnostic`."""


def pair_categories(
    categories: Sequence[CocoCategory],
    used: Collection[int],
    run: Sequence[Category],
    *,
    rename: Mapping[str, str] | None = None,
    only: Collection[str] = (),
    class_agnostic: bool = False,
) -> PairedCategories:
    """Find each category of the ground truth in the run.

    Args:
        categories: of the ground truth.
        used: places of those that have annotations; others need no counterpart.
        run: the categories of the run's model.
        rename: the ground truth's name by a name of the run.
        only: names of the ground truth's categories to evaluate; all, if empty.
        class_agnostic: treat all categories as one.

    Raises:
        UsageError: a category that is used has no counterpart, or a name is unknown; with the nearest names.
    """
    if class_agnostic:
        if rename or only:
            raise UsageError(
                "--class-agnostic treats all categories as one: leave out --map and --categories"
            )
        ones = np.zeros(len(categories), np.int32)
        return PairedCategories(("object",), ones, {category.id: 0 for category in run}, "agnostic")
    order = sorted(range(len(categories)), key=lambda at: categories[at].id)
    names, by = _names(categories, run)
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise UsageError(f"the ground truth has two categories with the name {_some(doubled)}: rename one")
    if unknown := sorted(set(only) - set(names)):
        raise UsageError(
            f"--categories: the ground truth has no category {_some(unknown)}{_nearest(unknown, names)}"
        )
    ours = _renamed(run, rename or {}, names)
    kept = [at for at in order if not only or names[at] in only]
    unpaired = [names[at] for at in kept if at in used and names[at] not in ours.values()]
    if unpaired:
        left = sorted(set(ours.values()) - set(names))
        raise UsageError(
            f"the run has no counterpart of {plural(len(unpaired), 'category')} with annotations in the ground truth: "
            f"{_some(unpaired)}{_suggestion(unpaired, left or sorted(set(ours.values())))}; rename with --map "
            "RUN=TRUTH, evaluate some with --categories, or all as one with --class-agnostic"
        )
    of_ground_truth = np.full(len(categories), -1, np.int32)
    of_ground_truth[kept] = np.arange(len(kept))
    place = {names[at]: k for k, at in enumerate(kept)}
    of_run = {id_: place[name] for id_, name in ours.items() if name in place}
    return PairedCategories(tuple(names[at] for at in kept), of_ground_truth, of_run, by)


def _names(categories: Sequence[CocoCategory], run: Sequence[Category]) -> tuple[list[str], str]:
    """Return the ground truth's names, or the run's where it has only numbers; and how they were paired."""
    named = [category.name for category in categories]
    if any(name is not None and not name.strip().isdecimal() for name in named):
        return [name or f"#{category.id}" for name, category in zip(named, categories, strict=True)], "name"
    ids = sorted(category.id for category in categories)
    known = {category.id: category.name for category in sorted(run, key=lambda c: c.id)}
    gapless = list(known) == list(range(1, len(known) + 1))
    if all(id_ in known for id_ in ids) and (gapless or len(ids) == len(known) or ids[-1] > len(known)):
        return [known[category.id] for category in categories], "id"
    in_order = list(known.values())
    if ids in (
        list(range(len(known))),
        list(range(1, len(known) + 1)),
    ):  # as in YOLO's files and many conversions
        return [in_order[category.id - ids[0]] for category in categories], "order"
    if set(named) <= set(known.values()):
        return [str(name) for name in named], "name"
    raise UsageError(
        f"the ground truth's categories have no names, and their ids ({_some(ids)}) are neither those of the run "
        f"({_some(list(known))}) nor as many consecutive ones: give them names"
    )


def _renamed(run: Sequence[Category], rename: Mapping[str, str], names: Sequence[str]) -> dict[int, str]:
    known = [category.name for category in run]
    for old, new in rename.items():
        if old not in known:
            raise UsageError(f"--map {old}={new}: the run has no category {old!r}{_nearest([old], known)}")
        if new not in names:
            raise UsageError(
                f"--map {old}={new}: the ground truth has no category {new!r}{_nearest([new], names)}"
            )
    return {category.id: rename.get(category.name, category.name) for category in run}


def _nearest(wanted: Sequence[str], names: Sequence[str]) -> str:
    near = [close for name in wanted for close in difflib.get_close_matches(name, names, 1)]
    return f"; is it {near[0]!r}?" if near else f"; it has {_some(names, 8)}"


def _suggestion(unpaired: Sequence[str], ours: Sequence[str]) -> str:
    lowered = {name.lower(): name for name in reversed(ours)}
    for name in unpaired:
        if near := difflib.get_close_matches(name.lower(), lowered, 1):
            old = lowered[near[0]]
            argument = f"--map {old}={name}"
            return f"; is it {old!r}? Then add {_quoted(argument)}"
    return f"; the run's are {_some(ours, 8)}"


def _quoted(argument: str) -> str:
    option, _, value = argument.partition(" ")
    return f'{option} "{value}"' if " " in value else argument
