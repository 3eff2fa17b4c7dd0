"""How the URL of a picture in a table is written.

`s3://bucket/train.parquet!/image/17` is row 17, from 0, of the column `image`: written as a member of an archive is.
"""

import re
from typing import Final

PARQUET: Final = ".parquet"
ARROW_SUFFIXES: Final = (".arrow", ".arrows", ".feather", ".ipc")
SUFFIXES: Final = (PARQUET, *ARROW_SUFFIXES)
"""Of tables whose pictures are inputs, in lower case."""
IS_TABLE: Final = rf"(?i)({'|'.join(map(re.escape, SUFFIXES))}|\.lance@[0-9]+)$"
"""Matches the URL of a table."""
IS_DATASET: Final = r"(?i)\.lance$"
"""Matches the URL of a Lance data set without its version."""
_LANCE: Final = r"\.lance(?:@[0-9]+)?"
"""A Lance data set, which is a folder, and its version."""
_TABLE: Final = "|".join((*map(re.escape, SUFFIXES), _LANCE))
_PICTURE: Final = re.compile(rf"(?is)(.*?(?:{_TABLE}))!/(.+)/([0-9]{{1,18}})")


def is_table(name: str) -> bool:
    """Return whether a file is a table, by its suffix.

    >>> is_table("train.PARQUET"), is_table("train.parquet!/image/0")
    (True, False)
    """
    return name.lower().endswith(SUFFIXES) or is_lance(name)


def is_lance(name: str) -> bool:
    """Return whether a name is that of a Lance data set, or of a version of one.

    >>> is_lance("photos.lance"), is_lance("photos.lance@3"), is_lance("photos.lance/data/0.parquet")
    (True, True, False)
    """
    return re.search(rf"(?i){_LANCE}$", name) is not None


def split_version(table: str) -> tuple[str, int | None]:
    """Return the URL of a Lance data set, and its version; None: the latest.

    >>> split_version("s3://bucket/photos.lance@3"), split_version("photos.lance")
    (('s3://bucket/photos.lance', 3), ('photos.lance', None))
    """
    match = re.fullmatch(r"(?is)(.*\.lance)@([0-9]{1,18})", table)
    return (match[1], int(match[2])) if match else (table, None)


def split_picture(uri: str) -> tuple[str, str, int] | None:
    """Return the URL of the table, the name of the column, and the row; None for a URL that names no picture in one.

    >>> split_picture("s3://bucket/train.parquet!/image/17")
    ('s3://bucket/train.parquet', 'image', 17)
    >>> split_picture("s3://bucket/train.parquet")
    """
    match = _PICTURE.fullmatch(uri) if "!/" in uri else None
    return (match[1], match[2], int(match[3])) if match else None


def picture_uri(table: str, column: str, row: int) -> str:
    """Return the URL of a picture.

    >>> picture_uri("/data/train.parquet", "image", 17)
    '/data/train.parquet!/image/17'
    """
    return f"{table}!/{column}/{row}"
