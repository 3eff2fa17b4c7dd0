"""What an archive says of one of its files, a member, and how its URL is written.

`s3://bucket/photos.tar!/a/00017.jpg` is the member `a/00017.jpg` of an archive, as in the URLs of Java's `jar:` and of
Apache Commons VFS. fsspec's `tar://a/00017.jpg::s3://bucket/photos.tar` names the member first, so that neither a sort
nor a prefix keeps the members of an archive together, and its suffix is the archive's; GDAL's `/vsitar/…` is no URL.
"""

import re
from dataclasses import dataclass
from typing import Final

from ..refusals import Refusal

SUFFIXES: Final = (".tar", ".tar.gz", ".tgz", ".zip")
"""Of archives whose members are inputs, in lower case."""
SOLID_SUFFIXES: Final = (".tar.gz", ".tgz")
"""Of those that are compressed as a whole, and can only be read from their beginning."""
_ARCHIVE: Final = re.compile(rf"(?i)({'|'.join(map(re.escape, SUFFIXES))})$")
_MEMBER: Final = re.compile(rf"(?is)(.*?(?:{'|'.join(map(re.escape, SUFFIXES))}))!/(.*)")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive."""

    name: str
    """Its path in the archive; of a name that occurs again, with `#2`, `#3`, … in the order of the archive."""
    offset: int
    """Where its bytes begin in the archive, or in the stream that a `.tar.gz` contains; of a zip: its local header."""
    stored: int
    """Length of these bytes; of a zip with all that belongs to the member."""
    bytes: int
    """Size of the file, uncompressed."""
    packed: int | None = None
    """Of a zip: the compressed size."""
    method: int | None = None
    """Of a zip: the number of the compression."""
    crc32: int | None = None
    """Of a zip: of the uncompressed bytes."""
    refusal: Refusal | None = None
    """Why it cannot be read, as far as the archive's index says."""


def is_archive(name: str) -> bool:
    """Return whether a file is an archive, by its suffix.

    >>> [is_archive(name) for name in ("a.tar", "b.TGZ", "c.tar.gz", "d.zip", "e.gz", "f.tar!/a.jpg")]
    [True, True, True, True, False, False]
    """
    return _ARCHIVE.search(name) is not None


def split_member(uri: str) -> tuple[str, str] | None:
    """Return the URL of the archive and the name of the member; None for a URL that names no member.

    >>> split_member("s3://bucket/photos.tar!/a/00017.jpg")
    ('s3://bucket/photos.tar', 'a/00017.jpg')
    >>> split_member("s3://bucket/photos.tar")
    """
    match = _MEMBER.fullmatch(uri) if "!/" in uri else None
    return (match[1], match[2]) if match else None


def member_uri(archive: str, name: str) -> str:
    """Return the URL of a member.

    >>> member_uri("/data/photos.zip", "a.jpg")
    '/data/photos.zip!/a.jpg'
    """
    return f"{archive}!/{name}"
