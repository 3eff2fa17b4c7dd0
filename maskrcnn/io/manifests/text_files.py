"""The text of a manifest, compressed or not, within bounds: a small gzip file may come to terabytes."""

import gzip
import zlib
from typing import BinaryIO, Final

from ...errors import UsageError
from .csv_manifest import check_utf8

GZIP: Final = ".gz"
_MOST_EXPANDED: Final = 1032
"""Bytes that one byte of a gzip file can come to."""
_BLOCK_BYTES: Final = 2**18


def read_text(source: str, file: BinaryIO, limit: int) -> bytes:
    """Return a text file's bytes, uncompressed if its name ends in `.gz`, without a byte order mark.

    Args:
        source: its name.
        file: open for random access.
        limit: bytes of text.

    Raises:
        UsageError: it is longer, is not UTF-8, or is damaged.
    """
    return check_utf8(source, read_bytes(source, file, limit))


def read_bytes(source: str, file: BinaryIO, limit: int) -> bytes:
    """Return a file's bytes, uncompressed if its name ends in `.gz`. Raises UsageError as `read_text`."""
    if not source.lower().endswith(GZIP):
        data = file.read(limit + 1)
        _check_length(source, len(data), limit)
        return data
    try:
        if file.seek(0, 2) > limit // _MOST_EXPANDED:
            _check_length(source, _expanded_bytes(file, limit), limit)
        file.seek(0)
        with gzip.GzipFile(fileobj=file, mode="rb") as stream:
            return stream.read()
    except gzip.BadGzipFile as error:
        file.seek(0)
        what = (
            "damaged: write or copy it again"
            if file.read(2) == b"\x1f\x8b"
            else "no gzip file: compress it, or take .gz off its name"
        )
        raise UsageError(f"{source}: it is {what}") from error
    except (EOFError, zlib.error) as error:
        raise UsageError(f"{source}: it is damaged or cut off: write or copy it again") from error


def _expanded_bytes(file: BinaryIO, limit: int) -> int:
    """Return the bytes that a gzip file comes to, or a number above the limit, without keeping them."""
    file.seek(0)
    size = 0
    with gzip.GzipFile(fileobj=file, mode="rb") as stream:
        while size <= limit and (block := stream.read(_BLOCK_BYTES)):
            size += len(block)
    return size


def _check_length(source: str, size: int, limit: int) -> None:
    if size > limit:
        raise UsageError(
            f"{source}: it has more than {limit / 2**30:.0f} GiB of text: convert it to Parquet, or divide it"
        )
