"""What differs between two runs is shown as a user would give it, whatever the values are."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.pipeline.setting_differences import RUNS_A_AND_B, differences

VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(0, 9), st.floats(0, 1), st.lists(st.sampled_from("abc"), max_size=3)
)
SETTINGS = st.dictionaries(st.sampled_from(["limit", "min_score", "model_args", "tta"]), VALUES)


def test_names_and_values_are_those_of_the_command_line() -> None:
    planned = {"a_b": 1, "c": 2, "flag": False, "names": ["x", "y"]}
    assert differences(planned, {"a_b": 1, "c": 3, "d": 4, "flag": True, "names": []}) == [
        "c: planned 2, now 3",
        "d: planned without it, now 4",
        "flag: planned without it, now with it",
        "names: planned x,y, now without it",
    ]


def test_two_finished_runs_are_a_and_b() -> None:
    assert differences({"limit": 5, "tta": "flip"}, {"limit": None, "ray": True}, RUNS_A_AND_B) == [
        "limit: 5 in A, not given in B",
        "ray: not given in A, given in B",
        "tta: flip in A, not given in B",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (50, "50"),
        ("a b", "a b"),
        ("50", '"50"'),
        (True, "true"),
        (None, "null"),
        ([1, "é"], '[1, "é"]'),
        (0, "0"),
    ],
)
def test_an_argument_of_a_factory_is_shown_as_it_is_given(value: Any, text: str) -> None:
    changed = differences({"model_args": {"x": value}}, {"model_args": {"x": "another"}})
    assert changed == [f"model-arg x: planned {text}, now another"]


def test_of_long_lists_the_part_that_differs_is_shown() -> None:
    names = [f"n{number}" for number in range(80)]
    changed = differences({"categories": names}, {"categories": [*names[:40], "x", *names[41:]]})
    assert changed == ["categories: planned …,n40,n41,n42,n43,n44,… (80), now …,x,n41,n42,n43,n44,… (80)"]
    assert differences({"categories": names}, {"categories": names[:40]})[0].endswith("now …,n39 (40)")


@given(SETTINGS, SETTINGS)
def test_no_value_is_shown_as_python_writes_it_and_equal_settings_differ_in_nothing(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    changed = differences(one, other)
    assert not re.search(r"None|True|False|[\[\]{}']", " ".join(changed))
    assert differences(one, one) == []
    assert len(differences(other, one)) == len(changed)
    given = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    assert {phrase.split(":")[0].replace("-", "_") for phrase in changed} <= given
