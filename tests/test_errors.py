"""Counts in messages."""

import pytest

from maskrcnn.errors import plural


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2, "image", "2 images"),
        (1_000_000, "window", "1,000,000 windows"),
        (1, "category", "1 category"),
        (3, "category", "3 categories"),
        (2, "key", "2 keys"),
        (2, "box", "2 boxes"),
        (2, "batch", "2 batches"),
        (1, "label map", "1 label map"),
        (2, "label map", "2 label maps"),
    ],
)
def test_a_noun_agrees_with_its_number(count: int, noun: str, text: str) -> None:
    assert plural(count, noun) == text


def test_a_plural_may_be_given() -> None:
    assert plural(1, "kind of error", "kinds of errors") == "1 kind of error"
    assert plural(2, "kind of error", "kinds of errors") == "2 kinds of errors"
