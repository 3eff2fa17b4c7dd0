"""Which image of a run is which of a ground truth, and which category which; where it is not sure, an error that says.

Images go by id only where the run took its ids from the user; else by name, then by the last part of the name where
that is unique. Categories go by name, whatever their ids.
"""

import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..formats.coco_reader import CocoCategory, CocoImages
from ..types import Category

_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True)
class PairedImages:
    """The images that both have."""

    truth: NDArray[np.int64]
    """(N,) for each image of the run its place in the truth; -1: the truth does not have it."""
    by: str
    """How: `id`, `name`, `base name` or `name and base name`."""
    missing: NDArray[np.int64]
    """Places in the truth of images that the run does not have."""
    renamed: int
    """Images of one id whose names end differently."""


def pair_images(
    truth: CocoImages, image_ids: Sequence[int], names: Sequence[str], *, ids_given: bool
) -> PairedImages:
    """Find each image of a run in the truth.

    Args:
        truth: the ground truth.
        image_ids: of the run's images.
        names: of the run's images, each once.
        ids_given: whether the ids are the user's, and not counted by the run.

    Raises:
        UsageError: no image is in both, or it is not clear which is which.
    """
    place = np.full(len(image_ids), -1, np.int64)
    if ids_given:
        known = {value: at for at, value in enumerate(truth.ids)}
        place[:] = [known.get(value, -1) for value in image_ids]
        if (place >= 0).any():
            pairs = ((names[row], truth.names[place[row]]) for row in np.flatnonzero(place >= 0).tolist())
            renamed = sum(their is not None and _base(our) != _base(their) for our, their in pairs)
            return PairedImages(place, "id", _without(truth, place), renamed)
    by_name = _unique(truth.names)
    place[:] = [by_name.get(name, -1) for name in names]
    named = int((place >= 0).sum())
    _pair_bases(truth, names, place)
    if not (place >= 0).any():
        _refuse_strangers(truth, image_ids, names, ids_given=ids_given)
    together = int((place >= 0).sum())
    by = "name" if named == together else "name and base name" if named else "base name"
    return PairedImages(place, by, _without(truth, place), 0)


def _without(truth: CocoImages, place: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.setdiff1d(np.arange(len(truth.ids)), place)


def _base(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _unique(names: Sequence[str | None]) -> dict[str, int]:
    """Return the place of each name. Raises UsageError where a name stands twice."""
    places = {name: at for at, name in enumerate(names) if name is not None}
    if len(places) < sum(name is not None for name in names):
        again = [name for name, count in Counter(names).items() if count > 1 and name is not None]
        raise UsageError(f"the truth has two images of one file_name: {_some(again)}")
    return places


def _pair_bases(truth: CocoImages, names: Sequence[str], place: NDArray[np.int64]) -> None:
    """Pair what is left by the last part of its name. Raises UsageError where that is not unique."""
    left = set(_without(truth, place).tolist())
    if not left:
        return
    ours: dict[str, list[int]] = {}
    theirs: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        ours.setdefault(_base(name), []).append(row)
    for at, named in enumerate(truth.names):
        if named is not None:
            theirs.setdefault(_base(named), []).append(at)
    for base, places in theirs.items():
        rows = ours.get(base, [])
        if not rows or left.isdisjoint(places):
            continue
        if len(rows) > 1 or len(places) > 1:
            both = [names[row] for row in rows[:2]] + [str(truth.names[at]) for at in places[:2]]
            raise UsageError(
                f"it is not clear which image is {base!r}: the run has {len(rows)} and the truth {len(places)} "
                f"of that name in different folders ({_some(both, 4)}); give the truth the run's names"
            )
        place[rows[0]] = places[0]


def _refuse_strangers(
    truth: CocoImages, image_ids: Sequence[int], names: Sequence[str], *, ids_given: bool
) -> None:
    ours = f"{_some(names)}" + (f" (ids {_some(image_ids)})" if ids_given else "")
    theirs = _some([name for name in truth.names if name is not None]) or "no names"
    raise UsageError(
        f"the run and the truth have no image in common: the run has {ours}; the truth has {theirs} "
        f"(ids {_some(truth.ids)})"
    )


def _some(values: Sequence[Any], most: int = _EXAMPLES) -> str:
    shown = ", ".join(repr(value) for value in values[:most])
    return shown + (", …" if len(values) > most else "")


# Categories


@dataclass(frozen=True, slots=True)
class PairedCategories:
    """The categories that are weighed, in the order of the truth's ids."""

    names: tuple[str, ...]
    of_truth: NDArray[np.int32]
    """(N,) for each category of the truth its place in `names`; -1: not weighed."""
    of_run: Mapping[int, int]
    """Place in `names` by the run's category id; those that are missing are not weighed."""
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
    """Find each category of the truth in the run.

    Args:
        categories: of the truth.
        used: places of those that have annotations; others need no partner.
        run: what the run's model could find.
        rename: the truth's name by a name of the run.
        only: names of the truth's categories to weigh; all, if empty.
        class_agnostic: take all categories as one.

    Raises:
        UsageError: a category that is used has no partner, or a name is unknown; with the nearest names.
    """
    if class_agnostic:
        if rename or only:
            raise UsageError("--class-agnostic takes all categories as one; leave out --map and --categories")
        ones = np.zeros(len(categories), np.int32)
        return PairedCategories(("object",), ones, {category.id: 0 for category in run}, "agnostic")
    order = sorted(range(len(categories)), key=lambda at: categories[at].id)
    names, by = _names(categories, run)
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise UsageError(f"the truth has two categories of the name {_some(doubled)}")
    if unknown := sorted(set(only) - set(names)):
        raise UsageError(
            f"--categories: the truth has no category {_some(unknown)}{_nearest(unknown, names)}"
        )
    ours = _renamed(run, rename or {}, names)
    kept = [at for at in order if not only or names[at] in only]
    strangers = [names[at] for at in kept if at in used and names[at] not in ours.values()]
    if strangers:
        left = sorted(set(ours.values()) - set(names))
        raise UsageError(
            f"{len(strangers)} of the truth's categories with annotations are none of the run's: "
            f"{_some(strangers)}{_suggestion(strangers, left or sorted(set(ours.values())))}; rename with --map "
            "RUN=TRUTH, weigh some with --categories, or all as one with --class-agnostic"
        )
    of_truth = np.full(len(categories), -1, np.int32)
    of_truth[kept] = np.arange(len(kept))
    place = {names[at]: k for k, at in enumerate(kept)}
    of_run = {id_: place[name] for id_, name in ours.items() if name in place}
    return PairedCategories(tuple(names[at] for at in kept), of_truth, of_run, by)


def _names(categories: Sequence[CocoCategory], run: Sequence[Category]) -> tuple[list[str], str]:
    """Return the truth's names, of those that it only numbers the run's; and how they were found."""
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
    ):  # as YOLO's files, and many conversions
        return [in_order[category.id - ids[0]] for category in categories], "order"
    if set(named) <= set(known.values()):
        return [str(name) for name in named], "name"
    raise UsageError(
        f"the truth's categories have no names, and their ids ({_some(ids)}) are neither those of the run "
        f"({_some(list(known))}) nor as many in a row; give them names"
    )


def _renamed(run: Sequence[Category], rename: Mapping[str, str], names: Sequence[str]) -> dict[int, str]:
    known = [category.name for category in run]
    for old, new in rename.items():
        if old not in known:
            raise UsageError(f"--map {old}={new}: the run has no category {old!r}{_nearest([old], known)}")
        if new not in names:
            raise UsageError(f"--map {old}={new}: the truth has no category {new!r}{_nearest([new], names)}")
    return {category.id: rename.get(category.name, category.name) for category in run}


def _nearest(wanted: Sequence[str], names: Sequence[str]) -> str:
    near = [close for name in wanted for close in difflib.get_close_matches(name, names, 1)]
    return f"; is it {near[0]!r}?" if near else f"; it has {_some(names, 8)}"


def _suggestion(strangers: Sequence[str], ours: Sequence[str]) -> str:
    lowered = {name.lower(): name for name in reversed(ours)}
    for name in strangers:
        if near := difflib.get_close_matches(name.lower(), lowered, 1):
            old = lowered[near[0]]
            argument = f"--map {old}={name}"
            return f"; is it {old!r}? Then add {_quoted(argument)}"
    return f"; the run's are {_some(ours, 8)}"


def _quoted(argument: str) -> str:
    option, _, value = argument.partition(" ")
    return f'{option} "{value}"' if " " in value else argument
