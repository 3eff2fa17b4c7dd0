"""A URL is parsed into its parts and back, and joined with names, without touching any store."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.io.url import Url

SEGMENT = st.text(st.characters(exclude_characters="/", codec="utf-8"), min_size=1, max_size=6)


@given(
    st.sampled_from(["", "s3", "gs", "memory", "https"]), SEGMENT, st.lists(SEGMENT, min_size=1, max_size=3)
)
def test_text_and_parts_round_trip(scheme: str, bucket: str, names: list[str]) -> None:
    url = Url(scheme, bucket, "/".join(names)) if scheme else Url("", "", "/" + "/".join(names))
    assert Url.parse(url.text) == url
    assert url.folder.join(url.name) == url
    assert pickle.loads(pickle.dumps(url)) == url


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("S3A://Bucket/Key", ("s3a", "Bucket", "Key")),
        ("s3://bucket", ("s3", "bucket", "")),
        ("s3://bucket//key/", ("s3", "bucket", "/key/")),
        ("memory:///out", ("memory", "", "out")),
        ("file:///data/a b.jpg", ("", "", "/data/a b.jpg")),
        ("file:///data/a%20b%C3%A9.jpg", ("", "", "/data/a bé.jpg")),
        ("file:///data/100%.jpg", ("", "", "/data/100%.jpg")),
        ("file:///data/%FF.jpg", ("", "", "/data/%FF.jpg")),
        ("file:///data/a%00.jpg", ("", "", "/data/a%00.jpg")),
        ("file:/data/a%20b.jpg", ("", "", "/data/a b.jpg")),
        ("FILE://localhost/data/a.jpg", ("", "", "/data/a.jpg")),
        ("file://localhost", ("", "", "localhost")),
        ("file:a.jpg", ("", "", "file:a.jpg")),
        ("local://a%20b.jpg", ("", "", "a%20b.jpg")),
        ("local://a.jpg", ("", "", "a.jpg")),
        ("c:\\a.jpg", ("", "", "c:\\a.jpg")),
        ("https://host/a?b=c/d#e", ("https", "host", "a?b=c/d#e")),
    ],
)
def test_parts(text: str, parts: tuple[str, str, str]) -> None:
    url = Url.parse(text)
    assert (url.scheme, url.bucket, url.key) == parts


def test_a_path_object_is_a_local_path(tmp_path: Path) -> None:
    assert Url.parse(tmp_path / "a") == Url.parse(str(tmp_path / "a"))
