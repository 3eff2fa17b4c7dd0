"""Arguments of a network of the user's own: JSON where it parses, else text; recorded, so without secrets."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.errors import UsageError
from maskrcnn.models.own.own_arguments import checked_arguments, parse_arguments

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab é"),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text("abé"), values, max_size=3),
    max_leaves=5,
)


@given(JSON)
def test_json_is_read_as_json(value):
    assert parse_arguments([f"x={json.dumps(value)}"]) == {"x": value}


@given(st.text("ab =[{é\\'", min_size=1))
def test_what_is_no_json_is_text(text):
    assert parse_arguments([f"x=a{text}"]) == {"x": f"a{text}"}


def test_numbers_that_json_lacks_are_text():
    assert parse_arguments(["a=NaN", "b=-Infinity", "c="]) == {"a": "NaN", "b": "-Infinity", "c": ""}


def test_the_path_of_a_file_becomes_absolute_and_a_word_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("w.pth", "word"):
        (tmp_path / name).write_bytes(b"")
    parsed = parse_arguments(["weights=w.pth", "kind=word", "missing=v.pth", "here=./word"])
    assert parsed == {
        "weights": str(tmp_path / "w.pth"), "kind": "word", "missing": "v.pth", "here": str(tmp_path / "word"),
    }  # fmt: skip


WRONG = {
    "no equals sign": ["weights"],
    "no name": ["=3"],
    "no word": ["two words=3"],
    "a keyword": ["class=3"],
    "twice": ["a=1", "a=2"],
    "no UTF-8": ["a=\udce4"],
    "no UTF-8 in JSON": ['a="\\udce4"'],
    "no UTF-8 in a name": ["a\udce4=1"],
    "a password": ["weights=s3://KEY:hush@bucket/w.pth"],
    "a token": ["weights=https://host/w.pth?token=hush"],
    "a token in a list": ['weights=["https://host/w.pth?token=hush"]'],
    "a token in a name": ['weights={"https://host/w.pth?token=hush": 1}'],
    "a token in a sentence": ["weights=see https://user:hush@host/w.pth now"],
    "a URL without a name": ["https://user:hush@host/w.pth"],
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_recorded_is_refused_without_repeating_it(case):
    with pytest.raises(UsageError) as caught:
        parse_arguments(WRONG[case])
    assert "hush" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize(
    "value", [object(), float("nan"), {1, 2}, b"x"], ids=["object", "NaN", "set", "bytes"]
)
def test_python_passes_only_what_json_can_hold(value):
    with pytest.raises(UsageError, match=r"--model-arg x: its value is not one that JSON can hold"):
        checked_arguments({"x": value})
