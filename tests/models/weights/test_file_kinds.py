"""A file that is no weights is named by what it is, with what to do, in one line and without a library's own words."""

import gzip
import io
import json
import struct
import tarfile
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from maskrcnn.errors import UsageError
from maskrcnn.models.model import tensors_of
from maskrcnn.models.weights.checkpoint_files import read_checkpoint, read_weights
from maskrcnn.models.weights.file_kinds import DAMAGED, HDF5, other_kind

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".pth.tar", ".safetensors", ".pkl", ".h5", ".npz")
TENSORS = {"backbone.weight": torch.arange(4000.0)}


def saved(*, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("m.pth"))
    return buffer.getvalue()


NO_WEIGHTS = {
    "a pointer of Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "is a Git LFS pointer, not weights: fetch it with `git lfs pull`",
    ),
    "a web page": (
        b"<!DOCTYPE html><html><body>404</body></html>",
        "is a web page, not weights: was its URL",
    ),
    "a page behind a comment": (b"\n<!-- saved from -->\n<html></html>", "is a web page, not weights"),
    "a page with a byte order mark": (b"\xef\xbb\xbf<html></html>", "is a web page, not weights"),
    "a store's error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
    "a server's error": (b'{"error": "Repository not found"}', "is JSON, not weights"),
    "zeros": (bytes(5000), f"has zeros where weights begin: it was not copied whole; {DAMAGED}"),
    "gzip": (gzip.compress(saved()), "is an archive of gzip: unpack it, and give the file inside"),
    "tar": (tar(), "is an archive of tar: unpack it, and give the file inside"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("data", "says"), NO_WEIGHTS.values(), ids=NO_WEIGHTS.keys())
def test_what_is_no_weights_is_named_whatever_its_suffix(data, says, suffix, tmp_path):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(data)
    with pytest.raises(UsageError) as refused:
        read_weights(str(path))
    assert str(refused.value).startswith(f"{path} {says}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file_is_named(suffix, tmp_path):
    (tmp_path / f"m{suffix}").write_bytes(b"")
    with pytest.raises(UsageError, match="zero bytes: copy it again from its source"):
        read_weights(str(tmp_path / f"m{suffix}"))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("m.safetensors", saved(), "is a file of torch.save: rename it to end in .pth"),
        ("m.safetensors", saved(zipped=False), "is a file of torch.save: rename it to end in .pth"),
        ("m.pth", save(TENSORS), "is a safetensors file: rename it to end in .safetensors"),
        ("m.PT", HDF5 + bytes(600), "is an HDF5 file, as Keras writes: rename it to end in .h5"),
        ("m.pth", b"Access denied, \xc3\xbc", "is text, not weights"),
        ("m.pth", b"x" * 511 + "\u00fc".encode(), "is text, not weights"),  # the last character is cut
    ],
)
def test_weights_with_the_suffix_of_another_format_are_named(name, data, says):
    assert str(other_kind(name, data)).startswith(says)


def test_weights_of_each_format_are_no_other_kind():
    for name, data in (
        ("m.pth", saved()),
        ("m.ckpt", saved(zipped=False)),
        ("m.safetensors", save(TENSORS)),
        ("m.h5", HDF5 + bytes(600)),
        ("m.pkl", b"\x80\x04}."),
        ("m.pkl", b"(dp0\nS'model'\np1\n(dp2\ns."),  # protocol 0 is text
    ):
        assert other_kind(name, data) is None


@settings(max_examples=80)
@given(st.sampled_from(["zip", "legacy", "safetensors"]), st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_says_so_and_what_to_do_in_our_words(kind, share):
    whole = {"zip": saved(), "legacy": saved(zipped=False), "safetensors": save(TENSORS)}[kind]
    name = "m.safetensors" if kind == "safetensors" else "m.pth"
    with pytest.raises(UsageError) as refused:
        read_checkpoint(name, whole[: int(share * len(whole))])
    message = str(refused.value)
    assert message.startswith((f"{name} is truncated", f"{name} is damaged"))
    assert message.endswith(DAMAGED)
    assert "zip file" not in message
    assert "\n" not in message


def test_numbers_that_were_damaged_are_refused_when_they_are_read():
    whole = saved()
    place = whole.index(struct.pack("<4f", 100, 101, 102, 103))
    damaged = whole[:place] + bytes(8) + whole[place + 8 :]
    with pytest.raises(UsageError, match=rf"^m\.pth is truncated or damaged: {DAMAGED}$"):
        tensors_of("m.pth", read_checkpoint("m.pth", damaged), damaged)


@pytest.mark.parametrize("entries", [{}, {"readme.txt": "x"}, {"a/data.pkl": "x", "b/data.pkl": "x"}])
def test_another_zip_archive_is_named(entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(UsageError, match=r"^m\.pth is a zip archive, but not of torch\.save: "):
        read_checkpoint("m.pth", buffer.getvalue())


def test_the_header_of_a_safetensors_file_may_begin_like_text():
    # The length of a header of 60 bytes is written as `<` and seven zeros.
    header = json.dumps({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode().ljust(60)
    data = struct.pack("<Q", len(header)) + header + b"\1"
    assert data.startswith(b"<")
    assert other_kind("m.safetensors", data) is None
    assert read_checkpoint("m.safetensors", data).shapes == {"x": (1,)}
