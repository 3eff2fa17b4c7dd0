"""A file object of ranges behaves as one of the standard library."""

import io

from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.imaging.gdal_source import Source
from maskrcnn.io.stores.remote_store import RangeReader

ACTS = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 30)),
    st.tuples(
        st.just("seek"), st.integers(-30, 30), st.sampled_from([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
    ),
)


@given(st.binary(max_size=20), st.lists(ACTS, max_size=8))
def test_positions_and_bytes_are_those_of_a_file_in_memory(
    data: bytes, acts: list[tuple[str, int] | tuple[str, int, int]]
) -> None:
    files = [RangeReader(lambda start, stop: data[start:stop], len(data)), Source(io.BytesIO(data)).open("")]
    expected = io.BytesIO(data)
    for name, *arguments in acts:
        if name == "read":
            found = expected.read(*arguments)
            assert [file.read(*arguments) for file in files] == [found] * 2
        else:
            base = {io.SEEK_SET: 0, io.SEEK_CUR: expected.tell(), io.SEEK_END: len(data)}[arguments[1]]
            position = expected.seek(max(base + arguments[0], 0))
            assert [file.seek(*arguments) for file in files] == [position] * 2
    rest = expected.read()
    assert files[0].readall() == rest == files[1].read()
