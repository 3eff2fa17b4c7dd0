"""The input that a user names: what it is, by its name and its first bytes.

It is a manifest, which `read_manifest` reads, or a folder, a glob, a prefix or an inventory, which `listings` lists.
"""

import contextlib
import hashlib
import os.path
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import RunError, UsageError
from ..archives.member import split_member
from ..inputs import check_exists, pin
from ..picture_tables.picture_table import picture_columns
from ..picture_tables.picture_uri import PARQUET, split_picture, split_version
from ..refusals import Refusal
from ..schemes import STORES_IN_WORDS, is_supported, unsupported
from ..storage import Storage
from ..url import Url, has_user, is_folder, is_there, redact
from .s3_inventory import HEAD_BYTES, begins_as_inventory
from .text_files import GZIP

_TEXT_SUFFIXES: Final = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson")
MANIFEST_SUFFIXES: Final = (*_TEXT_SUFFIXES, PARQUET, ".json")
"""Those of text may be followed by `.gz`."""
ALL_SUFFIXES: Final = frozenset((*MANIFEST_SUFFIXES, *(f"{suffix}{GZIP}" for suffix in _TEXT_SUFFIXES)))
_WILDCARD: Final = re.compile(r"[*?\[]")


def refuse_user(url: str, what: str) -> None:
    """Raise UsageError if a URL has a user or a password in it, without repeating it."""
    if not has_user(url):
        return
    parsed = Url.parse(url)
    if not is_supported(parsed):
        raise UsageError(f"{what}: {unsupported(parsed.scheme)}")
    raise UsageError(f"{what}: a url takes no user and password; credentials come from the environment")


def refuse_query(url: str, what: str) -> None:
    """Raise UsageError if an address on the web has a query or a fragment, without repeating it: it may be a token."""
    if redact(url) != url:
        raise UsageError(
            f"{what}: leave out what follows the `?` or `#` of {redact(url)}, which may be a token and would be "
            "recorded: put complete uris into a manifest"
        )


def source_of(source: str, image_column: str | None = None) -> tuple[str, str | None]:
    """Return the identity of an input: its whole URL or path, and the sha256 of the file if it is a manifest.

    A local path becomes absolute and loses its `..`; links stay as they are.

    Args:
        source: as the user named it.
        image_column: see `is_manifest`.

    Raises:
        UsageError: it is empty, has a password, is on the web, or cannot be read.
    """
    whole = _whole(source)
    if not is_manifest(source, image_column):
        return whole, None
    digest = hashlib.sha256()
    with usage_errors(source), open_source(whole) as file:
        for piece in iter(lambda: file.read(2**23), b""):
            digest.update(piece)
    return whole, digest.hexdigest()


def pinned(whole: str) -> str:
    """Return an input's URL as one whose content never changes, if its store has those.

    Raises:
        UsageError: it does not exist, or the store failed.
    """
    with usage_errors(whole):
        return pin(whole)


def check_source(source: str) -> None:
    """Look whether an input exists, by a few requests, without listing or reading it.

    Raises:
        UsageError: it does not, or its name is wrong.
    """
    whole = _whole(source)
    with usage_errors(source):
        if _is_named_as_manifest(source):
            url = Url.parse(whole)
            Storage(url.folder.text).size(url.name)
        else:
            picture = split_picture(whole)
            archive, _ = split_member(whole) or (picture[0] if picture else whole, "")
            check_exists(split_version(archive)[0])


def _whole(source: str) -> str:
    """Return the whole URL or path of an input; see `source_of`."""
    url = Url.parse(source)
    if not url.path.strip(" " if url.is_local else " /"):
        raise UsageError(
            f"{source!r} names no input (a variable that is not set?): name a folder or a manifest"
        )
    refuse_user(source, "the input")
    if url.is_web:
        raise UsageError(
            f"{redact(source)}: the web cannot be listed: list its uris in a manifest on a local path, "
            f"{STORES_IN_WORDS}, and add --allow-http"
        )
    if source.encode(errors="replace").decode() != source:
        raise UsageError(f"{source!a}: the name is not UTF-8: rename it")
    return os.path.normpath(url.local_path.absolute()) if url.is_local else source


def is_manifest(source: str, image_column: str | None = None) -> bool:
    """Return whether a source is a manifest in one file, by its suffix; folders of such names, and globs, are listed.

    A Parquet file is one unless it has no column `uri`, and has one that may hold pictures.

    Args:
        source: as the user named it.
        image_column: the column with the pictures of Parquet files, none of which is a manifest then.

    Raises:
        UsageError: the store failed, or a Parquet file does not exist.
    """
    if not _is_named_as_manifest(source):
        return False
    is_parquet = manifest_suffix(source) == PARQUET
    return not (is_parquet and (image_column is not None or _holds_pictures(source)))


def _holds_pictures(source: str) -> bool:
    """Return whether a Parquet file has a column that may hold pictures, and no column `uri`."""
    with usage_errors(source):
        schema = schema_of(source)
    # One that cannot be read is refused, with the reason, when it is read as a manifest.
    return schema is not None and "uri" not in schema.names and bool(picture_columns(schema))


def schema_of(source: str) -> pa.Schema | None:
    """Return the columns of a Parquet file; None if it is not sound."""
    with open_source(source) as file:
        try:
            return pq.ParquetFile(file, pre_buffer=False).schema_arrow
        except (pa.ArrowException, OSError):
            return None


def _is_named_as_manifest(source: str) -> bool:
    url = Url.parse(source)
    folder = is_folder(url.local_path) if url.is_local else source.endswith("/")
    named = manifest_suffix(source) in ALL_SUFFIXES and split_member(source) is None
    return named and not folder and not is_glob(url)


def is_glob(url: Url) -> bool:
    """Return whether a name with a wildcard is no file's."""
    if not _WILDCARD.search(url.key):
        return False
    if url.is_local:
        return not is_there(url.local_path)
    with usage_errors(url.text):
        return not Storage(url.folder.text).exists(url.name)


def manifest_suffix(name: str) -> str:
    """Return the suffix by which a manifest is known, in lower case: the last, or the last two if that is `.gz`.

    >>> [manifest_suffix(name) for name in ("a.CSV", "s3://b/a.csv.gz", "a.tar.gz", "a", ".csv")]
    ['.csv', '.csv.gz', '.tar.gz', '', '']
    """
    path = Path(name)
    last = path.suffix.lower()
    return Path(path.stem).suffix.lower() + last if last == GZIP else last


@contextlib.contextmanager
def usage_errors(source: str) -> Iterator[None]:
    """Convert failures to read a user's input to UsageErrors of one line."""
    try:
        yield
    except FileNotFoundError as error:
        why = error.strerror or Refusal.MISSING.text()
        url = Url.parse(source)
        if why == Refusal.MISSING.text():
            if url.is_local and not url.local_path.is_absolute():
                why = f"it does not exist in {Path.cwd()}; check its name"
            elif not url.is_local and manifest_suffix(source) in ALL_SUFFIXES and not source.endswith("/"):
                why += "; if it is a folder, end its name with /"
        raise UsageError(f"{redact(source)}: {why}") from error
    except UnicodeEncodeError as error:
        raise UsageError(f"{redact(source)}: {error.object!a} is not valid text: rename it") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{redact(source)}: it is not UTF-8 ({error.reason}): save it as UTF-8") from error
    # ValueError: invalid JSON, a number of thousands of digits.
    except (RunError, pa.ArrowException, ValueError, RecursionError, OSError) as error:
        why = " ".join(str(error).split())[:300]
        # A store's failure names its URL.
        named = isinstance(error, RunError) and redact(source) in why
        raise UsageError(why if named else f"{redact(source)}: {why}") from error


# Files


def open_source(source: str) -> BinaryIO:
    """Open a user's file for random access. Raises FileNotFoundError, RunError."""
    url = Url.parse(source)
    return Storage(url.folder.text).open(url.name)


def is_inventory(source: str) -> bool:
    """Return whether a source is the `manifest.json` of an S3 Inventory.

    Raises:
        FileNotFoundError: it does not exist.
        RunError: the store failed.
    """
    if not is_manifest(source) or manifest_suffix(source) != ".json":
        return False
    with open_source(source) as file:
        return begins_as_inventory(file.read(HEAD_BYTES))
