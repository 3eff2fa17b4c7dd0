"""The text of a manifest: what a gzip file may come to is known before it is kept."""

import gzip
import io
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.errors import UsageError
from maskrcnn.io.manifests.text_files import read_bytes, read_text


@given(st.binary(max_size=2000), st.integers(0, 3))
@settings(max_examples=60)
def test_what_was_compressed_comes_out_whatever_the_limit_allows(data: bytes, members: int) -> None:
    packed = b"".join(gzip.compress(data) for _ in range(members))
    for limit in (len(data) * members, len(data) * members + 1, 2**20):
        assert read_bytes("m.csv.gz", io.BytesIO(packed), limit) == data * members
        assert read_bytes("m.csv", io.BytesIO(data * members), limit) == data * members


@pytest.mark.parametrize("name", ["m.csv", "m.csv.gz"])
def test_a_text_beyond_the_limit_is_refused_with_what_to_do(name: str) -> None:
    data = bytes(101)
    file = io.BytesIO(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(
        UsageError, match=f"{name}: it has more than 0 GiB of text: convert it to Parquet, or"
    ):
        read_bytes(name, file, 100)


def test_a_bomb_is_refused_in_little_memory() -> None:
    bomb = gzip.compress(bytes(2**26))
    tracemalloc.start()
    with pytest.raises(UsageError, match="of text"):
        read_bytes("m.csv.gz", io.BytesIO(bomb), 2**25)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


@given(st.data())
@settings(max_examples=60)
def test_damage_is_one_line_or_none(data: st.DataObject) -> None:
    """A bit that is flipped, or an end that is lost, is refused; gzip does not see a flip in its header's time."""
    text = b"uri\n" + b"\n".join(b"%d.jpg" % number for number in range(200))
    packed = bytearray(gzip.compress(text))
    if data.draw(st.booleans()):
        del packed[data.draw(st.integers(1, len(packed) - 1)) :]
    else:
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    said, found = "m.csv.gz: it is ", text
    try:
        found = read_text("m.csv.gz", io.BytesIO(packed), 2**20)
    except UsageError as error:
        said = str(error)
    assert found == text
    assert said.startswith("m.csv.gz: it is ")
    assert "\n" not in said
