"""Arrays survive a pickle unchanged; other content is refused or ignored, and no code is run."""

import contextlib
import io
import os
import pickle
import pickletools
import struct
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from maskrcnn.errors import UsageError
from maskrcnn.models.conversion.pickle_reader import arrays_in_pickle
from maskrcnn.models.weights import restricted_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
numbers = st.sampled_from(["<f2", "<f4", ">f4", "<f8", "i1", "<i4", ">i8", "u1", "<u4", "?"])


def dumped(model, protocol=2, **beside):
    return pickle.dumps({"model": model} | beside, protocol)


@settings(max_examples=60)
@given(
    array=numbers.flatmap(lambda kind: st_numpy.arrays(kind, st_numpy.array_shapes(min_dims=0, min_side=0))),
    columns_first=st.booleans(),
    protocol=st.sampled_from(PROTOCOLS),
)
def test_an_array_is_read_for_every_protocol_and_memory_order(array, columns_first, protocol):
    array = np.asfortranarray(array) if columns_first else array
    arrays, beside = arrays_in_pickle("m.pkl", dumped({"x": array}, protocol, __author__="me"))
    assert beside == {"__author__": "me"}
    assert arrays["x"].dtype == array.dtype.newbyteorder("=")
    assert arrays["x"].flags.c_contiguous
    np.testing.assert_array_equal(arrays["x"], array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_ordered_dict_and_a_number_of_numpy_are_understood(protocol):
    model = OrderedDict(a=np.arange(3.0), b=np.float32(2.5))
    arrays, _ = arrays_in_pickle("m.pkl", dumped(model, protocol))
    assert list(arrays) == ["a", "b"]
    assert arrays["b"].shape == ()
    assert float(arrays["b"]) == 2.5


class Owner:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_that_would_run_code_is_refused_by_name_and_does_not(protocol, tmp_path):
    data = dumped({"x": np.zeros(2), "y": Owner(tmp_path / "owned")}, protocol)
    with pytest.raises(UsageError, match=r"its pickle names '(posix|nt)\.mkdir', which could run any code"):
        arrays_in_pickle("m.pkl", data)
    assert not (tmp_path / "owned").exists()


WHOLE = dumped({"a": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.zeros(2)})


@settings(max_examples=80)
@given(length=st.integers(0, len(WHOLE) - 1))
def test_every_truncated_file_is_refused(length):
    with pytest.raises(UsageError, match=r"m\.pkl is"):
        arrays_in_pickle("m.pkl", WHOLE[:length])


@settings(max_examples=150)
@given(at=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_changes_only_values(at, value):
    changed = WHOLE[:at] + bytes([value]) + WHOLE[at + 1 :]
    with contextlib.suppress(UsageError):
        arrays, _ = arrays_in_pickle("m.pkl", changed)
        assert sum(array.nbytes for array in arrays.values()) <= len(WHOLE)


def lying(shape):
    """The pickle of an array with a wrong shape in its state."""

    class Liar:
        def __reduce__(self):
            function, arguments, state = np.zeros(4, "<f4").__reduce__()
            return function, arguments, (state[0], shape, *state[2:])

    return dumped({"x": Liar()})


DOUBLED = b"\x80\x02}X\x05\x00\x00\x00model}" + b")" + b"2\x86" * 60


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (lying((10**12,)), r"the tensor x has 16 bytes, which do not fit its shape \(1000000000000,\)"),
        (lying((-1,)), "the tensor x has no shape"),
        (dumped({"x": np.array([None, 1])}), "the tensor x has the type O8, which is not numeric"),
        (dumped({"x": np.array([(1, 2.0)], "i4,f4")}), "an array has a structured type"),
        (dumped({"x": np.array(["a"])}), "the tensor x has the type U1"),
        (dumped({"x": [1, 2]}), "contains a list at 'x', not an array"),
        (dumped({3: np.zeros(1)}), "contains a array at 3, not an array"),
        (pickle.dumps([1]), r"not a model of detectron2, which has a dict at 'model' \(this contains list\)"),
        (pickle.dumps({"conv1_w": 1, "blobs": 2}), r"\(this contains conv1_w, blobs\): files of Caffe2"),
        (b"<html>", "is truncated, or not a pickle of weights"),
        (DOUBLED + b".", "uses the pickle operation DUP"),
        (b"\x80\x02" + b"r" + struct.pack("<I", 2**32 - 1) + b".", "is truncated, or not a pickle"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "uses the pickle operation NEWOBJ"),
        (b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", r"it calls numpy\.ndarray"),
    ],
)
def test_an_invalid_weights_file_is_refused_in_one_line(data, complaint):
    with pytest.raises(UsageError, match=complaint) as caught:
        arrays_in_pickle("m.pkl", data)
    assert "\n" not in str(caught.value)


def test_a_key_whose_hash_would_never_end_is_not_hashed():
    # A tuple of twice the same tuple, forty deep: 2^40 steps for Python's own unpickler.
    key = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(1, 41))
    data = b"\x80\x02}X\x05\x00\x00\x00model}" + key + b"K\x01ss."
    pickletools.dis(data, out=io.StringIO())  # checks that it is well formed
    assert arrays_in_pickle("m.pkl", data) == ({}, {})


def test_a_pickle_of_endless_operations_is_refused(monkeypatch):
    monkeypatch.setattr(restricted_pickle, "MAX_OPERATIONS", 10)
    with pytest.raises(UsageError, match="has more than 10 operations"):
        arrays_in_pickle("m.pkl", WHOLE)
