"""What a file is that was given as weights and is something else, by its first bytes; and what to do with it."""

import os
import struct
from typing import Final

DAMAGED: Final = "download or copy it again"
TORCH_MAGIC: Final = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The start of a file of `torch.save` before torch 1.6."""
HDF5: Final = b"\x89HDF\r\n\x1a\n"
ZIP: Final = b"PK"
TORCH_SUFFIXES: Final = (".pth", ".pt", ".ckpt", ".bin", ".tar")
_ARCHIVES: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    (b"Rar!", "RAR"),
)
_START: Final = 512
_SHORTEST_TEXT: Final = 6
_BLANKS: Final = b"\t\n\r\f"


def other_kind(uri: str, data: bytes) -> str | None:
    """Return what a file is instead of weights of the format that its name says, and what to do; None: perhaps weights.

    Args:
        uri: its name, by whose suffix its format is known.
        data: its bytes.
    """
    start = data[:_START].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not weights: fetch it with `git lfs pull`"
    if not any(data[:_START]):
        return f"has zeros where weights begin: it was not copied whole; {DAMAGED}"
    archive = next((name for magic, name in _ARCHIVES if data.startswith(magic)), None)
    if archive or data[257:262] == b"ustar":
        return f"is an archive of {archive or 'tar'}: unpack it, and give the file inside"
    suffix = os.path.splitext(uri)[1].lower()  # noqa: PTH122 may be a URL
    return _text(start, suffix) or _other_format(suffix, data)


def _text(start: bytes, suffix: str) -> str | None:
    if len(start) < _SHORTEST_TEXT or not all(byte >= 32 or byte in _BLANKS for byte in start):
        return None
    if start.startswith(b"<"):
        return "is a web page, not weights: was its URL that of a download?"
    if start.startswith(b"{"):
        return f"is JSON, not weights, perhaps the answer of a server: {DAMAGED}"
    if suffix == ".pkl" or not _is_utf8(start):  # the first protocol of pickle is text
        return None
    return f"is text, not weights, perhaps the answer of a server: {DAMAGED}"


def _is_utf8(start: bytes) -> bool:
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"  # a character is cut
    return True


def _other_format(suffix: str, data: bytes) -> str | None:
    """Return what the weights of a format are that have the suffix of another."""
    if suffix == ".safetensors" and data.startswith((ZIP, TORCH_MAGIC)):
        return "is a file of torch.save: rename it to end in .pth"
    if suffix in TORCH_SUFFIXES and data.startswith(HDF5):
        return "is an HDF5 file, as Keras writes: rename it to end in .h5, and use `maskrcnn convert`"
    if (
        suffix in TORCH_SUFFIXES
        and data[8:10] in (b'{"', b"{ ")
        and struct.unpack("<Q", data[:8])[0] < len(data)
    ):
        return "is a safetensors file: rename it to end in .safetensors"
    return None
