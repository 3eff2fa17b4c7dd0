"""A URL is parsed into its parts and back, and joined with names, without touching any store."""

import pickle
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from maskrcnn.io.url import AZURE_ACCOUNT_PATTERN, USER_PATTERN, Url, has_user, redact, redact_all

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


# Secrets


WORD = st.text("abcXYZ0189-_.", min_size=1, max_size=6)
PASSWORD = st.text("abcXYZ019+=/:?#", min_size=1, max_size=8).map(lambda text: f"{text}hush")


@given(st.sampled_from(["s3", "gs", "https", "abfs", "ray"]), WORD, PASSWORD, WORD)
def test_no_password_is_repeated(scheme: str, user: str, password: str, host: str) -> None:
    """It may contain slashes, as the secret keys of S3 do."""
    assume(not re.match(r"[0-9]*/", password))  # a port
    url = f"{scheme}://{user}:{password}@{host}/a.jpg"
    assert re.match(USER_PATTERN, url)
    assert pc.match_substring_regex(pa.array([url]), USER_PATTERN).to_pylist() == [True]
    assert "hush" not in redact(url)
    assert "hush" not in redact_all(f"cannot read '{url}': refused by {url}.")


@given(st.sampled_from(["abfs", "abfss", "az", "ABFS"]), st.sampled_from(["dfs", "blob"]), WORD, WORD)
def test_a_container_before_its_account_is_no_user(scheme: str, service: str, account: str, key: str) -> None:
    url = f"{scheme}://photos@{account}.{service}.core.windows.net/{key}"
    named = re.fullmatch("[a-z0-9]+", account) is not None
    assert bool(re.match(AZURE_ACCOUNT_PATTERN, url)) is named
    assert pc.match_substring_regex(pa.array([url]), AZURE_ACCOUNT_PATTERN).to_pylist() == [named]
    assert has_user(url) is not named
    assert (redact(url) == url) is named


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a:b@c.jpg",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/photos/a@b.jpg",
        "hdfs://host:8020/a@b.jpg",
        "ray://host:10001",
        "/data/a:b/c@d.jpg",
        "photos/x@y",
    ],
)
def test_what_is_no_password_stays(url: str) -> None:
    assert redact(url) == redact_all(url) == url
    assert not re.match(USER_PATTERN, url)
    assert pc.match_substring_regex(pa.array([url]), USER_PATTERN).to_pylist() == [False]


@given(WORD, st.text("abc=&?/;:.XYZ", max_size=8), st.sampled_from(["", ".", ":", "'", ": x", ", y"]))
def test_no_query_of_the_web_is_repeated(path: str, query: str, after: str) -> None:
    text = f"see https://host/{path}?{query}hush{after}"
    assert redact_all(text) == f"see https://host/{path}{after}"
