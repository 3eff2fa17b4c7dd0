"""The arguments of a user's own network, `--model-arg NAME=VALUE`: read, checked, and recorded in `run.json`."""

import json
import keyword
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...io.manifests.sources import refuse_query, refuse_user
from ...io.url import is_file, redact_all

__all__ = ["checked_arguments", "parse_arguments"]


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Return the arguments that texts of the form `NAME=VALUE` state; a VALUE is JSON where it parses, else text.

    >>> parse_arguments(["depth=50", "boxes=true", "name=a b", "sizes=[1, 2]", 'text="50"'])
    {'depth': 50, 'boxes': True, 'name': 'a b', 'sizes': [1, 2], 'text': '50'}

    Raises:
        UsageError: a text has another form, names an argument again, or has a secret in it.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--model-arg {redact_all(text)!a} has no `=`: it is NAME=VALUE")
        if name in arguments:
            raise UsageError(f"--model-arg {name} is given twice")
        arguments[name] = _value(value)
    return checked_arguments(arguments)


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=lambda _: text)
    except (ValueError, RecursionError):  # not JSON, so it is text
        return text


def checked_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments that JSON can hold and that have no secret in them; paths of existing files become absolute.

    A path is a text with a slash or a suffix: workers have other working directories.

    Raises:
        UsageError: an argument has no name that Python can use, is no JSON value, or has a secret in it.
    """
    checked = {}
    for name, value in arguments.items():
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise UsageError(f"--model-arg {str(name)[:100]!a}: the name of an argument is one word")
        try:
            copy = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(
                f"--model-arg {name}: its value is not one that JSON can hold: {error}"
            ) from error
        for text in _texts(copy):
            if text.encode(errors="replace").decode() != text:
                raise UsageError(f"--model-arg {name}: {text[:100]!a} is not UTF-8")
            refuse_user(text, f"--model-arg {name}")
            refuse_query(text, f"--model-arg {name}")
            if redact_all(text) != text:
                raise UsageError(
                    f"--model-arg {name}: it has a URL with a password or a token, which is recorded"
                )
        if isinstance(copy, str) and ("/" in copy or Path(copy).suffix) and is_file(copy):
            copy = os.path.abspath(copy)  # noqa: PTH100 (without `..`)
        checked[name] = copy
    return dict(sorted(checked.items()))


def _texts(value: Any) -> Iterator[str]:
    """Yield each text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from _texts(each)
