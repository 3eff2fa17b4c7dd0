"""The members of a tar: POSIX ustar and pax, GNU, and the older ones that Python's `tarfile` reads.

A tar has no index. Its headers, which lie between the files, are read one after the other; where the files are large,
what lies between is not read.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from ..refusals import Refusal
from .member import Member

_BLOCK: Final = 512
DAMAGED: Final = (tarfile.TarError, EOFError, ValueError, OverflowError, zlib.error, gzip.BadGzipFile)
"""What is raised while a damaged tar is read."""
_REGULAR: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class DamagedArchiveError(Exception):
    """The rest of an archive cannot be read.

    Attributes:
        refusal: of the archive.
        offset: of the first byte that is not understood.
    """

    def __init__(self, refusal: Refusal, offset: int) -> None:
        super().__init__(refusal.name, offset)
        self.refusal = refusal
        self.offset = offset


def tar_members(file: BinaryIO, size: int | None) -> Iterator[Member]:
    """Yield the files of a tar in its order; folders are left out, and links lead to the file they name.

    Devices and pipes are members that cannot be read.

    Of tars that were written one behind the other (`cat a.tar b.tar`) the files of all are yielded.

    Args:
        file: the tar, open for random access, or the uncompressed stream of a `.tar.gz`.
        size: of the tar in bytes; None: not known, as of a stream.

    Raises:
        DamagedArchiveError: after the members before the damage.
    """
    begin: int | None = 0
    while begin is not None:
        try:
            file.seek(begin)
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 the file is the caller's
        except DAMAGED as error:
            refusal = Refusal.ARCHIVE_EMPTY if size == 0 else Refusal.ARCHIVE_DAMAGED
            raise DamagedArchiveError(refusal, begin) from error
        places: dict[str, Member] = {}
        while True:
            try:
                info = archive.next()
            except DAMAGED as error:
                raise DamagedArchiveError(Refusal.ARCHIVE_TRUNCATED, archive.offset) from error
            if info is None:
                break
            archive.members.clear()  # type: ignore[attr-defined] # it remembers all of them
            member = _member(info, places, size)
            if member is not None:
                places[member.name] = member
                yield member
        begin = _next_begin(file, archive.offset)


def _member(info: tarfile.TarInfo, places: dict[str, Member], size: int | None) -> Member | None:
    name = _plain(info.name)
    if info.issparse():
        return Member(name, info.offset_data, 0, 0, refusal=Refusal.MEMBER_SPARSE)
    if info.issym() or info.islnk():
        found = places.get(_target(info))
        if found is None:
            return Member(name, info.offset_data, 0, 0, refusal=Refusal.MEMBER_LINK)
        return Member(name, found.offset, found.stored, found.bytes, refusal=found.refusal)
    if info.isdev():
        return Member(name, info.offset_data, 0, 0, refusal=Refusal.MEMBER_SPECIAL)
    if info.type not in _REGULAR:
        return None
    beyond = size is not None and info.offset_data + info.size > size
    return Member(
        name, info.offset_data, info.size, info.size, refusal=Refusal.MEMBER_TRUNCATED if beyond else None
    )


def _plain(name: str) -> str:
    """Return a name without the `./` that `tar -C FOLDER .` writes before it."""
    return name.removeprefix("./") or name


def _target(info: tarfile.TarInfo) -> str:
    """Return the name of the file that a link leads to: of a hard link in the archive, of a symbolic one beside it."""
    if info.islnk():
        return _plain(info.linkname)
    parts = _plain(info.name).split("/")[:-1]
    for part in info.linkname.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _next_begin(file: BinaryIO, offset: int) -> int | None:
    """Return where the next of several tars begins, behind the zeros that end one; None where none follows.

    Raises:
        DamagedArchiveError: no zeros are there.
    """
    try:
        file.seek(offset)
        block = file.read(_BLOCK)
        if not block:
            raise DamagedArchiveError(Refusal.ARCHIVE_TRUNCATED, offset)
        if block.strip(b"\0"):
            raise DamagedArchiveError(Refusal.ARCHIVE_DAMAGED, offset)
        while block and not block.strip(b"\0"):
            offset += _BLOCK
            block = file.read(_BLOCK)
    except DAMAGED as error:
        raise DamagedArchiveError(Refusal.ARCHIVE_TRUNCATED, offset) from error
    return offset if block else None
