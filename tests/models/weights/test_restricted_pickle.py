"""A pickle costs what its bytes are worth: files that unfold to many times their size are refused, at once."""

import io
import struct
import zipfile

import pytest

from maskrcnn.errors import UsageError
from maskrcnn.models.conversion.pickle_reader import arrays_in_pickle
from maskrcnn.models.weights.torch_files import read_torch_file

REPEATS = 20_000


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def archive(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", content)
    return buffer.getvalue()


PAIRS = b"](" + b"".join(text(f"{n:06}") + b"N\x86" for n in range(3_000)) + b"e"
"""A list of 3,000 pairs."""
NUMBERS = b"](" + b"K\x01" * 3_000 + b"e\x85R"
LONG = text("x" * 30_000)
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\nq\x01"
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQq\x02"

UNFOLDING = {
    "a dictionary of the same pairs again and again": (
        b"\x80\x02" + PAIRS + b"q\x00ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * REPEATS + b"."
    ),
    "a state that is set again and again": (
        b"\x80\x02ccollections\nOrderedDict\n" + PAIRS + b"\x85Rq\x00cargparse\nNamespace\n)\x81"
        + b"h\x00b" * REPEATS + b"."
    ),
    "a shape of many sides, again and again": (
        b"\x80\x02" + TENSOR + STORAGE + b"(" + b"K\x01" * 3_000 + b"tq\x03"
        + b"h\x01(h\x02K\x00h\x03h\x03\x89}tR" * REPEATS + b"."
    ),
    "a text that is encoded again and again": (
        b"\x80\x02c_codecs\nencode\nq\x01" + LONG + b"q\x02" + text("latin1") + b"q\x03"
        + b"h\x01h\x02h\x03\x86R" * REPEATS + b"."
    ),
}  # fmt: skip


@pytest.mark.parametrize("content", UNFOLDING.values(), ids=UNFOLDING.keys())
def test_a_pickle_that_unfolds_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(
        UsageError, match="would unfold to many times its size, which no weights need"
    ) as refused:
        read_torch_file("m.pth", archive(content))
    assert "\n" not in str(refused.value)


def test_so_is_one_of_detectron2() -> None:
    for name in ("a dictionary of the same pairs again and again", "a text that is encoded again and again"):
        with pytest.raises(UsageError, match="would unfold"):
            arrays_in_pickle("m.pkl", UNFOLDING[name])


def test_a_deep_stack_is_not_copied() -> None:
    # 200,000 items below, while 200,000 operations each take one from the top: copied, that is 40 billion items.
    content = b"\x80\x02(" + b"N" * 200_000 + b"N\x85" * 100_000 + b"t."
    assert len(read_torch_file("m.pth", archive(content)).content) == 300_000


def test_keys_of_one_hash_are_no_keys() -> None:
    modulus = 2**61 - 1  # of Python's hashes of integers
    keys = b"".join(b"\x8a\x0a" + (k * modulus).to_bytes(10, "little") + b"N" for k in range(1, 20_000))
    content = b"\x80\x02}(" + text("kept") + b"K\x01K\x05N" + keys + b"u."
    assert read_torch_file("m.pth", archive(content)).content == {"kept": 1, 5: None}


def test_a_name_that_is_no_text_is_refused_without_writing_it_out() -> None:
    # A list of twice the same list, sixty deep: its text would have 2^60 characters.
    nested = b"]" + b"".join(b"q%c]h%ca h%ca".replace(b" ", b"") % (i, i, i) for i in range(60))
    for content in (
        b"\x80\x04" + nested + nested + b"\x93.",
        b"\x80\x02cnumpy\ndtype\n" + nested + b"\x85R.",
    ):
        with pytest.raises(UsageError, match=r"m\.pkl is truncated, or not a pickle of weights"):
            arrays_in_pickle("m.pkl", content)


def test_an_array_under_many_names_is_one() -> None:
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01K\x64\x85cnumpy\ndtype\n"
        + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89C\x64"
        + bytes(100) + b"tbq\x00"
    )  # fmt: skip
    content = b"\x80\x03}" + text("model") + b"}(" + text("first") + array
    content += b"".join(text(f"{n}") + b"h\x00" for n in range(1_000)) + b"us."
    arrays, _ = arrays_in_pickle("m.pkl", content)
    assert len(arrays) == 1_001
    assert arrays["999"] is arrays["first"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "torchvision.models.detection.mask_rcnn\nMaskRCNN",
            r"class '.*MaskRCNN', as a module saved whole does",
        ),
        (
            "detectron2.modeling.meta_arch.rcnn\nGeneralizedRCNN",
            r"torch\.save\(model\.state_dict\(\), FILE\)",
        ),
        ("__main__\nNet", "objects of the class '__main__.Net'"),
        ("__torch__.torchvision.models\nNet", "is a TorchScript archive"),
        (
            "ultralytics.nn.tasks\nSegmentationModel",
            "is a YOLO model of Ultralytics .* which is not supported",
        ),
        ("models.yolo\nModel", "is a YOLO model of Ultralytics"),
        ("posix\nsystem", "names 'posix.system', which could run any code when it is loaded"),
    ],
)
def test_what_is_not_weights_is_refused_by_its_name(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        read_torch_file("m.pth", archive(b"\x80\x02c" + name.encode() + b"\n)\x81."))
    assert "\n" not in str(refused.value)
