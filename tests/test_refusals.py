"""The one table of what can be said about an image that is not read."""

import re
import string

import pytest

from maskrcnn.errors import ERROR_CODES
from maskrcnn.refusals import Refusal, tiff_compression


def test_no_two_answers_are_the_same() -> None:
    assert len({refusal.value for refusal in Refusal}) == len(Refusal.__members__)


@pytest.mark.parametrize("refusal", Refusal)
def test_an_answer_says_what_it_is_and_what_to_do_in_one_line(refusal: Refusal) -> None:
    fields = {name for _, name, _, _ in string.Formatter().parse(refusal.message) if name}
    values = {name: 7 if re.search(rf"{{{name}:[,g]", refusal.message) else "WORD" for name in fields}
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
