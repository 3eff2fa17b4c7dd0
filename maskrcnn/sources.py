"""What a user may point at, read as it stands: columns of text and numbers, not yet a manifest.

A list of uris, a CSV, a Parquet file, a COCO JSON, or the images that a listing finds.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from .errors import RunError, UsageError
from .storage import Storage, is_remote, list_inputs

MANIFEST_SUFFIXES: Final = (".txt", ".csv", ".parquet", ".json")
_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_IS_IMAGE: Final = r"(?i)\.(jpe?g|png|webp|bmp|gif|tiff?)$"
_LARGEST_CSV_BYTES: Final = 2**30


def source_of(source: str) -> tuple[str, str | None]:
    """Return what identifies an input: its whole url or path, and the sha256 of the file where it is a manifest.

    Raises:
        UsageError: it cannot be read, or is on the web.
    """
    if re.match(r"(?i)https?://", source):
        raise UsageError(f"{source}: inputs are read from local paths, s3:// and gs://, not from the web")
    whole = source if is_remote(source) else str(Path(source.removeprefix("file://")).absolute())
    if not is_manifest(source):
        return whole, None
    digest = hashlib.sha256()
    with usage_errors(source), _open(whole) as file:
        for piece in iter(lambda: file.read(2**23), b""):
            digest.update(piece)
    return whole, digest.hexdigest()


def is_manifest(source: str) -> bool:
    """Return whether a source lists its inputs, by its suffix; others are listed."""
    return Path(source).suffix.lower() in MANIFEST_SUFFIXES


def folder_of(source: str) -> str:
    """Return the folder of a file."""
    folder, slash, _ = source.rpartition("/")
    return folder + slash if folder + slash else "."


@contextlib.contextmanager
def usage_errors(source: str) -> Iterator[None]:
    """Turn what goes wrong with a user's input collection into one clear line."""
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"{source}: {error.strerror or 'it does not exist'}") from error
    except (RunError, pa.ArrowException, UnicodeDecodeError, json.JSONDecodeError, OSError) as error:
        raise UsageError(f"{source}: {' '.join(str(error).split())[:300]}") from error


# Listings


def read_listing(source: str) -> tuple[pa.Table, dict[str, int]]:
    """Return the images that are there, by their suffix, and the other files counted by suffix.

    Raises:
        UsageError: there are none.
    """
    with usage_errors(source):
        found = list_inputs(source)
    known = pc.match_substring_regex(found["name"], _IS_IMAGE)
    others = found["name"].filter(pc.invert(known))
    suffixes = pc.fill_null(pc.struct_field(pc.extract_regex(others, r"(?P<suffix>\.[^./]*)$"), "suffix"), "")
    counts = pc.value_counts(pc.utf8_lower(suffixes)).to_pylist()
    skipped = {row["values"]: row["counts"] for row in sorted(counts, key=lambda row: row["values"])}
    images = found.filter(known)
    if not images.num_rows:
        what = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in skipped.items()) or "no files"
        ends = f"images end in {' '.join(_SUFFIXES)}, lists of them in {' '.join(MANIFEST_SUFFIXES)}"
        raise UsageError(f"{source}: no images; found {what}; {ends}")
    return images, skipped


# Manifests


def _open(source: str) -> BinaryIO:
    return Storage(folder_of(source)).open(source.rpartition("/")[2])


def _read_txt(source: str) -> pa.Table:
    with _open(source) as file:
        data = file.read().removeprefix(b"\xef\xbb\xbf")
    # Lines are the spans between line ends, which `rtrim` then takes off: no loop, one copy.
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    offsets = np.concatenate([[0], ends, [len(data)] if not data.endswith(b"\n") else []]).astype(np.int64)
    spans = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    lines = pc.ascii_rtrim(spans.cast(pa.large_string()), characters="\r\n").cast(pa.string())
    return pa.table({"uri": lines.filter(pc.not_equal(pc.utf8_trim_whitespace(lines), ""))})


def _read_csv(source: str) -> pa.Table:
    with _open(source) as file:
        data = file.read(_LARGEST_CSV_BYTES + 1)
    if len(data) > _LARGEST_CSV_BYTES:
        raise UsageError(f"{source}: a CSV of more than 1 GiB; make it a Parquet file")
    # One block, so that a column's type is decided by all of its rows.
    return csv.read_csv(
        pa.BufferReader(data),
        read_options=csv.ReadOptions(block_size=max(len(data), 1)),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(("uri", "name", "etag"), pa.string()), strings_can_be_null=False
        ),
    )


def _read_parquet(source: str) -> pa.Table:
    with _open(source) as file:
        return pq.ParquetFile(file).read()


def _read_coco(source: str) -> pa.Table:
    with _open(source) as file:
        content = json.loads(file.read())
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise UsageError(f"{source}: not a COCO JSON: it has no list `images`")
    if any(not isinstance(image.get("file_name"), str) for image in images):
        raise UsageError(f"{source}: a COCO image without `file_name`")
    names = [image["file_name"] for image in images]
    keys = dict.fromkeys(key for image in images for key in image)
    further = {f"input_{key}" if key in ("uri", "name", "image_id") else key: key for key in keys}
    columns = {"uri": pa.array(names, pa.string()), "name": pa.array(names, pa.string())}
    for column, key in further.items():
        if key != "file_name":
            columns["image_id" if key == "id" else column] = _array([image.get(key) for image in images])
    return pa.table(columns)


def _array(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except pa.ArrowException:
        # A column of several types is carried as the JSON that it was.
        return pa.array([json.dumps(value) for value in values], pa.string())


def read_manifest(source: str) -> pa.Table:
    """Return the rows of a manifest with the columns that it has; of a COCO JSON, one row an image.

    Raises:
        UsageError: it cannot be read.
    """
    with usage_errors(source):
        return _READERS[Path(source).suffix.lower()](source)


_READERS: Final = {".txt": _read_txt, ".csv": _read_csv, ".parquet": _read_parquet, ".json": _read_coco}
