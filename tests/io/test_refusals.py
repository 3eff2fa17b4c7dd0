"""The one table of what can be said about an image that is not read."""

import ast
import re
import string
from pathlib import Path

import pytest

import maskrcnn
from maskrcnn.errors import ERROR_CODES
from maskrcnn.imaging.formats.tiff_compressions import tiff_compression
from maskrcnn.io.refusals import Refusal


def test_no_two_answers_are_the_same() -> None:
    assert len({refusal.value for refusal in Refusal}) == len(Refusal.__members__)


@pytest.mark.parametrize("refusal", Refusal)
def test_an_answer_says_what_it_is_and_what_to_do_in_one_line(refusal: Refusal) -> None:
    fields = {name for _, name, _, _ in string.Formatter().parse(refusal.message) if name}
    values = {name: 7 if re.search(rf"{{{name}:[.,\dg]", refusal.message) else "WORD" for name in fields}
    error = refusal.error(size=(4, 3), **values)
    assert error.code == refusal.code in ERROR_CODES
    assert (error.width, error.height) == (4, 3)
    assert error.message == refusal.message.format(**values), "longer than what a row holds, or not one line"
    assert re.search(r"(: |; |, and )\S", error.message), "no part that says what to do"
    assert not error.message.endswith(".")


def test_a_compression_has_a_name() -> None:
    assert tiff_compression(34712) == "JPEG 2000"
    assert tiff_compression(34887) == "LERC"
    assert tiff_compression(12345) == "an unregistered compression (tag 259 is 12345)"


PACKAGE = Path(maskrcnn.__file__).parent
SOURCES = {path.relative_to(PACKAGE): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_answer_is_given_somewhere() -> None:
    text = "".join(text for path, text in SOURCES.items() if path.name != "refusals.py")
    assert [name for name in Refusal.__members__ if f"Refusal.{name}" not in text] == []


@pytest.mark.parametrize("room", ["imaging", "io", "pipeline", "tiling", "visualization"])
def test_what_reads_an_image_answers_from_the_table(room: str) -> None:
    """An `ItemError` is built elsewhere only from the code and the message of another."""
    found = [
        f"{path}: {node.args[0].value}"
        for path, text in SOURCES.items()
        if path.parts[0] == room
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "ItemError"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ]
    assert found == []
