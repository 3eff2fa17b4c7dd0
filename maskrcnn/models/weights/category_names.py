"""Categories by their names, and the most similar name for one that does not exist."""

import difflib
from collections.abc import Collection, Sequence

from ...errors import UsageError
from ...types import Category

__all__ = ["category_ids_named", "near"]


def category_ids_named(categories: Sequence[Category], names: Collection[str]) -> frozenset[int]:
    """Return the ids of the categories of these names.

    Raises:
        UsageError: a name is not among the categories.
    """
    ids = {category.name: category.id for category in categories}
    for name in names:
        if name not in ids:
            listed = ", ".join(list(ids)[:100])
            raise UsageError(f"the model has no category {name!r}{near(name, ids)} It has: {listed}")
    return frozenset(ids[name] for name in names)


def near(name: str, known: Collection[str]) -> str:
    """Return a question for a message after an unknown name, whether the most similar one was meant; else "."."""
    spelled = {word.lower(): word for word in known}
    match = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.5)
    return f"; did you mean {spelled[match[0]]!r}?" if match else "."
