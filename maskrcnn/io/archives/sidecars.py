"""Files beside the pictures of an archive that describe them: of one sample, in the words of WebDataset.

`00017.jpg`, `00017.cls` and `00017.json` are one sample: their names are equal up to the first dot of the last part.
What is in the files of the suffixes that a user asks for becomes columns, each called by its suffix.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ...errors import UsageError
from ...schema import MANIFEST, PLACE

MAX_BYTES: Final = 2**20
"""Larger files are not read."""
_TAKEN: Final = {*MANIFEST.names, PLACE.name}


def check_suffixes(suffixes: Sequence[str]) -> tuple[str, ...]:
    """Return suffixes in lower case and without a leading dot, each once.

    Raises:
        UsageError: one of them cannot be the name of a column.

    >>> check_suffixes([".JSON", "cls", "seg.txt", "json"])
    ('json', 'cls', 'seg.txt')
    """
    plain = tuple(dict.fromkeys(suffix.strip().lower().removeprefix(".") for suffix in suffixes))
    for suffix in plain:
        if not suffix or "/" in suffix:
            raise UsageError(f"--sidecars takes suffixes such as json,cls,txt, not {suffix!r}")
        if suffix in _TAKEN:
            raise UsageError(
                f"--sidecars {suffix}: the tables have a column of this name; rename these files"
            )
    return plain


def sample_of(name: str) -> tuple[str, str]:
    """Return the sample that a file belongs to, and its suffix in lower case.

    >>> sample_of("a.b/00017.seg.TXT"), sample_of("a/README")
    (('a.b/00017', 'seg.txt'), ('a/README', ''))
    """
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return folder + slash + stem, suffix.lower()


def texts_beside(
    names: Sequence[str], contents: Mapping[int, bytes | None], suffixes: Iterable[str]
) -> tuple[dict[str, list[str | None]], set[int]]:
    """Return what is beside each file of an archive.

    Args:
        names: of its files.
        contents: of the sidecars, by their positions in `names`; None for one that cannot be read.
        suffixes: of which there is a column each.

    Returns:
        By suffix the text of each file's sidecar, without white space around it, or None; and the positions of the
        sidecars that are no file's, or cannot be read. Of several sidecars of one name the first counts.
    """
    texts: dict[tuple[str, str], tuple[int, str]] = {}
    for position, content in contents.items():
        if content is not None:
            with contextlib.suppress(UnicodeDecodeError):
                texts.setdefault(sample_of(names[position]), (position, content.decode("utf-8-sig").strip()))
    pictures = [None if position in contents else sample_of(name)[0] for position, name in enumerate(names)]
    columns: dict[str, list[str | None]] = {}
    unused = set(contents)
    for suffix in suffixes:
        found = [None if key is None else texts.get((key, suffix)) for key in pictures]
        columns[suffix] = [one and one[1] for one in found]
        unused.difference_update(one[0] for one in found if one)
    return columns, unused
