"""A local file is found under the names that Windows, Java and browsers give it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.io.stores.local_names import as_found
from maskrcnn.io.url import Url

NAME = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=8)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "my pics" / "größe 100%.png"
    path.parent.mkdir()
    path.write_bytes(b"x")
    return path


def test_a_name_that_leads_to_its_file_stays(picture: Path) -> None:
    for uri in (
        str(picture),
        picture.as_uri(),
        f"file:{picture}",
        f"file://{picture}",
        f"file://localhost{picture}",
    ):
        assert as_found(uri) == uri
        assert Url.parse(uri).local_path == picture


def test_backslashes_are_slashes_where_only_that_leads_to_a_file(tmp_path: Path, picture: Path) -> None:
    assert as_found(f"{tmp_path}/my pics\\größe 100%.png") == str(picture)
    assert as_found(f"{tmp_path}/.\\my pics\\größe 100%.png") == str(picture)
    assert as_found(f"file://{tmp_path}/my%20pics%5Cgr%C3%B6%C3%9Fe 100%25.png") == str(picture)
    for uri in (
        f"{tmp_path}/my pics\\other.png",
        "C:\\a.png",
        "s3://bucket/a\\b.png",
        "https://host/a\\b.png",
    ):
        assert as_found(uri) == uri
    literal = tmp_path / "my pics\\größe 100%.png"
    literal.write_bytes(b"y")
    assert as_found(str(literal)) == str(literal)


def test_a_percent_sign_in_a_name_is_one_where_the_decoded_name_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a%20b.png").write_bytes(b"x")
    assert as_found(f"file://{tmp_path}/a%20b.png") == f"{tmp_path}/a%20b.png"
    (tmp_path / "a b.png").write_bytes(b"x")
    assert as_found(f"file://{tmp_path}/a%20b.png") == f"file://{tmp_path}/a%20b.png"
    assert as_found(f"{tmp_path}/a%20b.png") == f"{tmp_path}/a%20b.png", "a path is not decoded"


@given(NAME)
@settings(max_examples=50)
def test_what_pathlib_calls_a_file_is_that_file(name: str) -> None:
    path = Path("/data") / name
    if name not in (".", ".."):
        assert Url.parse(path.as_uri()).local_path == path
