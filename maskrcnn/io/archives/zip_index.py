"""The members of a zip, from its central directory: one or two ranges at the end of the file (APPNOTE 6.3.10)."""

import itertools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from ..refusals import Refusal
from .member import Member
from .tar_index import DamagedArchiveError

_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")
_ENCRYPTED: Final = 1
_UTF8: Final = 0x800
_METHODS: Final = {
    1: "shrink",
    6: "implode",
    9: "Deflate64",
    12: "bzip2",
    14: "LZMA",
    20: "zstd",
    93: "zstd",
    95: "xz",
    96: "JPEG's own variant",
    98: "PPMd",
    99: "AES",
}


def zip_members(file: BinaryIO, size: int) -> Iterator[Member]:
    """Yield the files of a zip in the order of its directory; folders are left out.

    Raises:
        DamagedArchiveError: there is no directory, or it is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos, end = archive.infolist(), archive.start_dir
    except (
        zipfile.BadZipFile,
        struct.error,
        NotImplementedError,
        ValueError,
        OverflowError,
        EOFError,
    ) as error:
        refusal = Refusal.ARCHIVE_EMPTY if size == 0 else Refusal.ARCHIVE_TRUNCATED
        raise DamagedArchiveError(refusal, size) from error
    offsets = sorted({info.header_offset for info in infos} | {end})
    following = dict(itertools.pairwise(offsets))
    for info in infos:
        if info.is_dir():
            continue
        stored = following.get(info.header_offset, info.header_offset) - info.header_offset
        yield Member(
            info.filename,
            info.header_offset,
            stored,
            info.file_size,
            info.compress_size,
            info.compress_type,
            info.CRC,
            _refusal(info, stored),
        )


def _refusal(info: zipfile.ZipInfo, stored: int) -> Refusal | None:
    if info.flag_bits & _ENCRYPTED:
        return Refusal.MEMBER_ENCRYPTED
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Refusal.MEMBER_COMPRESSION
    if info.header_offset < 0 or info.compress_size + _LOCAL_HEADER.size > stored:
        return Refusal.MEMBER_OVERLAPS
    return None


def compression(method: int | None) -> str:
    """Return the name of a zip's compression.

    >>> compression(14), compression(77)
    ('LZMA', 'an unregistered compression (method 77)')
    """
    return _METHODS.get(method or 0, f"an unregistered compression (method {method})")


def unpacked(member: Member, data: bytes) -> bytes:
    """Return a member's file.

    Args:
        member: of a zip.
        data: its bytes in the archive, from its local header on.

    Raises:
        ItemError: `corrupt`, `truncated`, `changed`.
    """
    if len(data) < member.stored:
        raise Refusal.MEMBER_TRUNCATED.error()
    if len(data) < _LOCAL_HEADER.size or data[:4] != b"PK\3\4":
        raise Refusal.MEMBER_DAMAGED.error()
    *_, name_length, extra_length = _LOCAL_HEADER.unpack_from(data)
    begin = _LOCAL_HEADER.size + name_length + extra_length
    packed = data[begin : begin + (member.packed or 0)]
    if len(packed) != member.packed:
        raise Refusal.MEMBER_DAMAGED.error()
    if member.method == zipfile.ZIP_STORED:
        content = packed
    else:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One byte more than stated shows that there is more; a bomb is not unpacked further.
            content = inflate.decompress(packed, member.bytes + 1)
        except zlib.error as error:
            raise Refusal.MEMBER_DAMAGED.error() from error
    if len(content) != member.bytes or zlib.crc32(content) != member.crc32:
        raise Refusal.MEMBER_DAMAGED.error()
    return content
