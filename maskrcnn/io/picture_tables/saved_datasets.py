"""Data sets that are folders: which of the files there are theirs.

`save_to_disk` of Hugging Face's `datasets` writes `data-00000-of-00002.arrow`, …, and beside them `dataset_info.json`
and `state.json`, which names them. What `map` and `filter` computed lies there too, as `cache-….arrow`. The splits of a
`DatasetDict` are such folders in one, which has a `dataset_dict.json`.

Those of Lance are read as a whole: a folder `NAME.lance` with `_versions` and further folders.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import ItemError, UsageError
from ..inputs import INPUTS
from ..url import Url
from .picture_table import PictureTable
from .picture_uri import ARROW_SUFFIXES, split_version

_STATE: Final = "state.json"
_BESIDE: Final = ("dataset_info.json", "dataset_dict.json")
_LANCE_VERSION: Final = r"(?is)^(?P<dataset>.*?\.lance)/_versions/[^/]+\.manifest$"
_CACHE: Final = re.compile(r"(^|/)cache-[^/]*\.arrow$")
_INDICES: Final = ("_indices_files", "_indices_data_files")


def data_files(found: pa.Table, read: Callable[[str], bytes]) -> pa.Table:
    """Return a listing with the files of its data sets, without those that only describe them or were computed of them.

    A file that a data set names and that was not found is added: it will fail when it is read.

    Args:
        found: of `inputs.INPUTS`.
        read: returns the content of a small file.

    Raises:
        UsageError: a data set is a selection of rows that was not written out.
    """
    names = found["name"]
    states = found.filter(pc.match_substring_regex(names, rf"(?:^|/){_STATE}$"))
    left_out: set[str] = set()
    missing: list[dict[str, Any]] = []
    for state in states.sort_by("name").to_pylist():
        folder = state["name"].removesuffix(_STATE)
        named = _data_files(state["uri"], read)
        beside = set(_in_folder(names, folder))
        if named is None:  # then names alone say what was computed
            left_out |= {name for name in beside if _CACHE.search(name)}
            continue
        wanted = {folder + name for name in named}
        described = {folder + _STATE, *(folder + name for name in _BESIDE)} & beside
        tables = {name for name in beside if name.lower().endswith(ARROW_SUFFIXES)}
        left_out |= described | (tables - wanted)
        if folder:
            left_out.add(f"{folder.rstrip('/').rpartition('/')[0]}/{_BESIDE[1]}".lstrip("/"))
        at = state["uri"].removesuffix(_STATE)
        missing += [
            {"name": folder + name, "uri": at + name, "bytes": None, "etag": None}
            for name in named
            if folder + name not in beside
        ]
    if not left_out and not missing:
        return found
    kept = found.filter(pc.invert(pc.is_in(names, pa.array(sorted(left_out), pa.string()))))
    return pa.concat_tables([kept, pa.Table.from_pylist(missing, INPUTS)])


def lance_datasets(found: pa.Table, source: str, open_table: Callable[[Url], PictureTable]) -> pa.Table:
    """Return a listing with a row for each Lance data set in place of its files.

    A data set is at the version that the source names, or at its latest; one that cannot be read has none. Without the
    package, data sets stay what they are: files that are skipped.

    Args:
        found: of `inputs.INPUTS`.
        source: the input that was listed.
        open_table: opens a data set, at its latest version or at one.
    """
    matches = pc.extract_regex(found["uri"], _LANCE_VERSION)
    datasets = pc.unique(pc.struct_field(matches, "dataset").drop_null()).to_pylist()
    if not datasets or importlib.util.find_spec("lance") is None:
        return found
    root, version = split_version(source.rstrip("/"))
    rows = []
    for dataset in sorted(datasets):
        of_dataset = pc.starts_with(found["uri"], f"{dataset}/")
        first = found.filter(of_dataset).slice(0, 1).to_pylist()[0]
        name = first["name"].removesuffix(first["uri"][len(dataset) + 1 :]).rstrip("/")
        row = {"name": name or root.rpartition("/")[2], "uri": dataset, "bytes": None, "etag": None}
        try:
            table = open_table(Url.parse(f"{dataset}@{version}" if version and dataset == root else dataset))
            row |= {"uri": table.url.text, "etag": table.etag}
        except ItemError:  # it will be a row that fails with it
            pass
        rows.append(row)
        found = found.filter(pc.invert(of_dataset))
    return pa.concat_tables([found, pa.Table.from_pylist(rows, INPUTS)])


def _in_folder(names: pa.ChunkedArray, folder: str) -> Iterator[str]:
    for name in names.filter(pc.starts_with(names, folder)).to_pylist():
        if "/" not in name[len(folder) :]:
            yield name


def _data_files(uri: str, read: Callable[[str], bytes]) -> list[str] | None:
    """Return the names of the files of a data set; None for a `state.json` that is not one's."""
    try:
        state = json.loads(read(uri))
        files = [str(file["filename"]) for file in state["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if any(state.get(key) for key in _INDICES):
        folder = uri.removesuffix(f"/{_STATE}")
        raise UsageError(
            f"{folder}: the data set is a selection of rows that was not written out (its {_STATE} names a file of "
            "indices): write it with `ds.flatten_indices().save_to_disk(…)`"
        )
    return [file for file in files if "/" not in file and file not in ("", ".", "..")]
