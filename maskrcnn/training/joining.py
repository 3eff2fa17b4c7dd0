"""Several datasets as one, and a validation set beside them: categories are the same if their names are.

What is wrong with datasets together is added to the findings of each; see `dataset`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from ..errors import UsageError, plural
from ..formats.coco_findings import Finding, Findings
from ..formats.coco_reader import folded_name
from ..types import Category
from .dataset import SCHEMA, Dataset

_SAME_IMAGE = (
    "image of several datasets (each would teach that the others' objects are background: list it in one, with all its "
    "annotations)"
)
_FOREIGN = "category of another dataset alone (its objects in these images are trained on as background)"
_ALIKE = "category name that differs from another dataset's in case or blanks alone"
_ALIKE_IN_VALIDATION = (
    "category name that differs from the training set's in case or blanks alone (write both the same)"
)


def join_datasets(parts: Sequence[Dataset]) -> tuple[list[Dataset], Dataset]:
    """Join datasets: the categories of all, by name, and the images of all.

    The first dataset's categories keep their ids; those that others add are numbered after them, in the order of the
    datasets and of their ids. With several datasets, image ids are numbered from 1, in the order of the datasets and of
    their ids. An image of several datasets is left out of all: files of the same content, unless neither has an object.

    Returns:
        The datasets, with what was found by comparing them; and the one that they make, without findings of its own.
    """
    if len(parts) == 1:
        return list(parts), replace(parts[0], findings=())
    categories = list(parts[0].categories)
    names = {category.name for category in categories}
    number = max(category.id for category in categories)
    for category in (category for part in parts[1:] for category in part.categories):
        if category.name not in names:
            number += 1
            names.add(category.name)
            categories.append(Category(number, category.name))
    parts = _without_images_of_several(parts)
    parts = [replace(part, findings=_with(part, _findings_of_categories(part, parts))) for part in parts]
    labels = {category.name: label for label, category in enumerate(categories, start=1)}
    images = pa.concat_tables([_relabelled(part, labels).images for part in parts])
    numbers = pa.array(range(1, images.num_rows + 1), pa.int64())
    images = images.set_column(0, SCHEMA.field("image_id"), numbers)
    sources = ", ".join(part.source for part in parts)
    listed = sum(part.n_listed[0] for part in parts), sum(part.n_listed[1] for part in parts)
    return list(parts), Dataset(sources, images, tuple(categories), (), listed)


def match_validation(validation: Dataset, training: Dataset) -> Dataset:
    """Return a validation set with the categories of a training set, by name.

    Objects and crowds of other categories are left out. Categories that the validation set lacks have no object in it,
    and so no part in its average precision.

    Raises:
        UsageError: none of its categories is the training set's.
    """
    names = [category.name for category in training.categories]
    own = {category.name for category in validation.categories}
    alike = {folded_name(name): name for name in names if name not in own}
    if own.isdisjoint(names):
        raise UsageError(_no_common_category(validation, training, alike))
    found = Findings()
    counts = _counts(validation)
    for category in validation.categories:
        if category.name in names:
            continue
        objects = plural(counts.get(category.name, 0), "object")
        if (other := alike.get(folded_name(category.name))) is not None:
            found.error(_ALIKE_IN_VALIDATION, f"{category.name!r} ({objects}), in training {other!r}")
        else:
            found.warning(
                "category that is not trained on, left out of the validation", f"{category.name} ({objects})"
            )
    for name in names:
        if name not in own:
            found.warning("category of the training set alone, left out of the average precision", name)
    trained = dict(
        zip(training.images["sha256"].to_pylist(), training.images["name"].to_pylist(), strict=True)
    )
    for name, digest in zip(*(validation.images[key].to_pylist() for key in ("name", "sha256")), strict=True):
        if digest in trained:
            found.warning("image that is also trained on, whose precision is not that of new images", name)
    matched = _relabelled(validation, {name: label for label, name in enumerate(names, start=1)})
    return replace(matched, categories=training.categories, findings=_with(validation, found))


def _no_common_category(validation: Dataset, training: Dataset, names: Mapping[str, str]) -> str:
    """Return a message for a validation set without a category of the training set, whose names are by folded name."""
    similar = [
        f"{category.name!r} there, {names[folded_name(category.name)]!r} in training"
        for category in validation.categories
        if folded_name(category.name) in names
    ]
    if similar:
        shown = ", ".join(similar[:3]) + (", …" if len(similar) > 3 else "")
        why = f"names differ in case or blanks alone ({shown}): write both the same"
    else:
        why = (
            f"it has {_listed(validation.categories)}, and the training set {_listed(training.categories)}: name the "
            "categories as in training"
        )
    return f"{validation.source} has no category of the training set; {why}"


def _listed(categories: Sequence[Category]) -> str:
    shown = ", ".join(category.name for category in categories[:8])
    return shown + (", …" if len(categories) > 8 else "")


def _with(dataset: Dataset, more: Findings) -> tuple[Finding, ...]:
    """Return the findings of a dataset and more, errors first."""
    return tuple(sorted((*dataset.findings, *more.listed()), key=lambda finding: not finding.error))


def _counts(dataset: Dataset) -> Mapping[str, int]:
    """Return the number of objects of each category that has any, by name."""
    labels = pa.compute.value_counts(pa.compute.list_flatten(dataset.images["labels"])).to_pylist()
    return {dataset.categories[entry["values"] - 1].name: entry["counts"] for entry in labels}


def _relabelled(dataset: Dataset, labels: Mapping[str, int]) -> Dataset:
    """Return a dataset with labels by the names of categories; what has a category of another name is left out."""
    new = [0, *(labels.get(category.name, 0) for category in dataset.categories)]
    images = dataset.images
    for name, shapes in (("labels", ("masks", "boxes")), ("crowd_labels", ("crowds",))):
        rows = images[name].to_pylist()
        if not all(new[1:]):
            for shape in shapes:
                kept = [
                    [entry for entry, label in zip(entries, old, strict=True) if new[label]]
                    if entries
                    else []
                    for entries, old in zip(images[shape].to_pylist(), rows, strict=True)
                ]
                images = _replaced(images, shape, kept)
        images = _replaced(images, name, [[new[label] for label in row if new[label]] for row in rows])
    return replace(dataset, images=images)


def _replaced(images: pa.Table, name: str, values: Sequence[object]) -> pa.Table:
    field = SCHEMA.field(name)
    return images.set_column(images.schema.get_field_index(name), field, pa.array(values, field.type))


def _without_images_of_several(parts: Sequence[Dataset]) -> list[Dataset]:
    """Return datasets without the images that several have, which are found in each."""
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for at, part in enumerate(parts):
        for row, digest in enumerate(part.images["sha256"].to_pylist()):
            places[digest].append((at, row))
    found = [Findings() for _ in parts]
    kept = [[True] * part.images.num_rows for part in parts]
    shared = [same for same in places.values() if len({at for at, _ in same}) > 1]
    names = [part.images["name"].to_pylist() if shared else [] for part in parts]
    objects = [part.images["labels"].to_pylist() if shared else [] for part in parts]
    for same in shared:
        if any(objects[at][row] for at, row in same):
            for at, row in same:
                other, there = next(place for place in same if place[0] != at)
                kept[at][row] = False
                found[at].error(
                    _SAME_IMAGE, f"{names[at][row]} ({names[other][there]} of {parts[other].source})"
                )
    return [
        replace(part, images=part.images.filter(pa.array(keep, pa.bool_())), findings=_with(part, more))
        for part, keep, more in zip(parts, kept, found, strict=True)
    ]


def _findings_of_categories(part: Dataset, parts: Sequence[Dataset]) -> Findings:
    """Return what is odd about the categories of a dataset beside those of others."""
    found = Findings()
    own = {category.name for category in part.categories}
    alike = {folded_name(name): name for name in own}
    others = [(other.source, category.name) for other in parts for category in other.categories]
    for name, source in {name: source for source, name in reversed(others) if name not in own}.items():
        found.warning(_FOREIGN, name)
        if (mine := alike.get(folded_name(name))) is not None:
            found.warning(_ALIKE, f"{mine!r}, in {source} {name!r}")
    return found
