"""What must be true of an output: invariants that hold at any moment, and invariants of a finished run.

Written against the contract and not against the code that fulfils it: files are read by pyarrow and json, and
compared with a run that nothing disturbed. `maskrcnn verify` is asked too; the two must agree.

The invariants, by the numbers of `reliability.md`, section 6:

    I1  every input that counts has exactly one row of `images`, in the manifest's order
    I2  no instance is there twice
    I3  what a receipt or `_SUCCESS` lists is there, with its digest, size and count; nothing else is in the tables
    I4  tables, statistics and COCO are those of the undisturbed run, byte for byte
    I5  `_SUCCESS` stands only when every shard is committed and all of the above is true
    I6  after `gc` nothing of any attempt is left, nor an open upload, nor a temporary file
    I7  the statistics recomputed from Parquet, and COCO JSON, are those that stand

While the tables of a later generation are written, its files stand beside those of the one before, and statistics and
COCO JSON, which have the same names, are those of the one or the other.

A local file in the making stands beside its target, under a name that neither globs nor readers of folders see. One
that a dead process left there breaks no invariant before `gc`.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskrcnn.io.schemes import store_of
from maskrcnn.io.storage import Storage
from maskrcnn.io.stores.s3_store import S3Store
from maskrcnn.io.url import Url
from maskrcnn.results.verify import verify_run
from maskrcnn.stats import Stats
from maskrcnn.types import Category

TABLES = ("images", "instances")


class BrokenError(AssertionError):
    """An invariant does not hold; the message begins with its number."""


@dataclass(frozen=True)
class GroundTruth:
    """What an undisturbed run wrote."""

    tables: dict[str, str]
    """sha256 by path; of several generations, those of each."""
    final: frozenset[str]
    """The paths that `_SUCCESS` lists at the end."""
    shards: dict[str, tuple[str, str]]
    """sha256 of a shard's images and instances, by the shard's name."""
    others: dict[str, str]
    """sha256 of statistics and COCO JSON, without times."""


def invariant(number: str, holds: bool, what: object) -> None:
    """Raise BrokenError unless an invariant holds."""
    if not holds:
        raise BrokenError(f"{number}: {what}")


def ground_truth_of(url: str, earlier: GroundTruth | None = None) -> GroundTruth:
    """Return what an undisturbed run wrote, and what the generation before it did."""
    storage = Storage(url)
    listed = [entry["path"] for name in TABLES for entry in _success(storage)["parts"][name]]
    return GroundTruth(
        tables=(earlier.tables if earlier else {}) | {path: _digest(storage, path) for path in listed},
        final=frozenset(listed),
        shards={shard: digests for shard, digests, _ in _receipts(storage)},
        others=_others(storage),
    )


def check_promises(
    url: str, ground_truth: GroundTruth, *, attempts_kept: bool = True, prove: bool = True
) -> None:
    """Check what must hold at any moment, in mid-run and after any crash.

    Args:
        url: the output.
        ground_truth: of the undisturbed run.
        attempts_kept: `gc` has not begun, so that what receipts list must be there.
        prove: `verify` is asked too, where `_SUCCESS` stands.
    """
    storage = Storage(url)
    for shard, digests, files in _receipts(storage):
        invariant(
            "I4", digests == ground_truth.shards.get(shard), f"the receipt of shard {shard} is of other rows"
        )
        for file in files if attempts_kept else []:
            _check_file(storage, file)
    for path in [path for name in TABLES for path in raw_files(url, name) if not is_temporary(path)]:
        invariant(
            "I4", _digest(storage, path) == ground_truth.tables.get(path), f"{path} is not what it will be"
        )
    whole = {digest for digests in ground_truth.shards.values() for digest in digests}
    for path in storage.list("shards"):
        invariant("I4", _digest(storage, path) in whole, f"{path} is a part of a file")
    if storage.exists("_SUCCESS"):
        check_finished(url, ground_truth, attempts_kept=attempts_kept, alone=False)
        verification = verify_run(url) if prove else None
        seen = verification is None or verification.proven or verification.unfinished is not None
        # Killed before it removed the files of the generation before, it is not proven.
        seen |= verification is not None and {found.check for found in verification.findings} == {"listing"}
        invariant("verify", seen, verification and verification.findings[:3])


def check_finished(
    url: str, ground_truth: GroundTruth, *, attempts_kept: bool = True, alone: bool = True
) -> None:
    """Check what must hold of a finished run.

    Args:
        url: the output.
        ground_truth: of the undisturbed run.
        attempts_kept: `gc` has not begun, so that what receipts list must be there.
        alone: there is nothing of another generation.
    """
    storage = Storage(url)
    invariant("I5", storage.exists("_SUCCESS"), "no _SUCCESS")
    success = _success(storage)
    listed = {name: success["parts"][name] for name in TABLES}
    for file in [file for name in TABLES for file in listed[name]]:
        _check_file(storage, file)
    if alone:
        _check_nothing_else(url, {file["path"] for name in TABLES for file in listed[name]})
    images, instances = (_table(storage, listed[name]) for name in TABLES)
    _check_rows(_inputs(storage, success["generation"]), images, instances)
    _check_committed(storage, success, attempts_kept=attempts_kept)
    of_next = {path for path, digest in _others(storage).items() if ground_truth.others.get(path) == digest}
    _check_figures(storage, success, images, instances, set() if alone else of_next)
    tables = {path: _digest(storage, path) for path in (file["path"] for n in TABLES for file in listed[n])}
    invariant(
        "I4", all(ground_truth.tables.get(path) == digest for path, digest in tables.items()), "other tables"
    )
    if frozenset(tables) == ground_truth.final:
        invariant("I4", _others(storage) == ground_truth.others, "other statistics or COCO JSON")


def check_is_final(url: str, ground_truth: GroundTruth) -> None:
    """Check that a finished run is the one that was asked for, and not the generation before it."""
    check_finished(url, ground_truth)
    listed = [file["path"] for name in TABLES for file in _success(Storage(url))["parts"][name]]
    invariant("I4", frozenset(listed) == ground_truth.final, f"finished with the parts {listed}")
    verification = verify_run(url)
    invariant("verify", verification.proven, verification.unfinished or verification.findings[:3])


def check_collected(url: str, ground_truth: GroundTruth) -> None:
    """Check what must hold after `gc`."""
    check_finished(url, ground_truth, attempts_kept=False)
    left = raw_files(url, "shards")
    invariant("I6", not left, f"gc left {left[:3]}")
    temporary = [path for path in raw_files(url, "") if is_temporary(path)]
    invariant("I6", not temporary, f"gc left {temporary[:3]}")
    invariant("I6", not open_uploads(url), f"gc left {open_uploads(url)[:3]} open")


def is_temporary(path: str) -> bool:
    """Return whether a local file is one in the making."""
    return Path(path).name.startswith(".") and path.endswith(".tmp")


def raw_files(url: str, folder: str) -> list[str]:
    """Return the files of a folder, or all; temporary ones too, which `Storage.list` passes over."""
    if not Url.parse(url).is_local:
        return Storage(url).list(folder)
    return sorted(str(path.relative_to(url)) for path in Path(url, folder).rglob("*") if path.is_file())


def open_uploads(url: str) -> list[str]:
    """Return the keys below an S3 url whose uploads nobody completed; none elsewhere."""
    place = Url.parse(url)
    store = store_of(place)
    if not isinstance(store, S3Store):
        return []
    answer = store.client().call_s3("list_multipart_uploads", Bucket=place.bucket, Prefix=f"{place.key}/")
    return [upload["Key"] for upload in answer.get("Uploads", [])]


def _check_file(storage: Storage, file: dict[str, Any]) -> None:
    invariant("I3", storage.exists(file["path"]), f"{file['path']} is missing")
    data = storage.read(file["path"])
    found = (hashlib.sha256(data).hexdigest(), len(data))
    invariant("I3", found == (file["sha256"], file["bytes"]), f"{file['path']} has another content")
    rows = pq.read_metadata(io.BytesIO(data)).num_rows
    invariant("I3", rows == file["rows"], f"{file['path']} has {rows} rows, not {file['rows']}")


def _check_nothing_else(url: str, listed: set[str]) -> None:
    found = {path for name in TABLES for path in raw_files(url, name) if not is_temporary(path)}
    invariant("I3", found <= listed, f"{sorted(found - listed)} is in no list")


def _inputs(storage: Storage, generation: int) -> pa.Table:
    """Return the rows of the manifest that count in a generation, as its plan names the files."""
    manifest, retired = "manifest.parquet", set[int]()
    for number in range(2, generation + 1):
        plan = json.loads(storage.read(f"plan-{number}.json"))
        manifest = plan["manifest"]
        if plan["update"] is not None:
            path = f"retired-{number}-{plan['update']['retired_sha256'][:16]}.parquet"
            retired = set(pq.read_table(io.BytesIO(storage.read(path)))["row"].to_pylist())
    rows = pq.read_table(io.BytesIO(storage.read(manifest)))
    return rows.take([row for row in range(len(rows)) if row not in retired])


def _check_rows(manifest: pa.Table, images: pa.Table, instances: pa.Table) -> None:
    for column in ("image_id", "name", "uri"):
        same = manifest[column].to_pylist() == images[column].to_pylist()
        invariant("I1", same, f"the column {column} of images is not the manifest's")
    ids = instances["id"].to_pylist()
    pairs = list(zip(instances["image_id"].to_pylist(), instances["instance"].to_pylist(), strict=True))
    invariant("I2", len(set(ids)) == len(ids), f"{len(ids) - len(set(ids))} ids are there twice")
    invariant("I2", len(set(pairs)) == len(pairs), "an instance is there twice")
    counted = Counter(instances["image_id"].to_pylist())
    for row in images.to_pylist():
        found, said = counted.pop(row["image_id"], 0), row["n_instances"]
        invariant("I2", found == said, f"image {row['image_id']} has {found} instances, and says {said}")
        right = {"ok": said > 0, "empty": said == 0, "failed": said == 0 and row["error"] is not None}
        invariant(
            "I1", right[row["status"]], f"image {row['image_id']} is {row['status']} with {said} instances"
        )
    invariant("I2", not counted, f"instances of no image: {sorted(counted)[:3]}")


def _check_committed(storage: Storage, success: dict[str, Any], *, attempts_kept: bool) -> None:
    receipts = {f"receipts/{name}.json" for name in success["receipts"]}
    missing = receipts - set(storage.list("receipts"))
    invariant("I5", not missing, f"_SUCCESS names receipts that are not there: {sorted(missing)[:3]}")
    if not attempts_kept:
        return
    for path in sorted(receipts):
        receipt = json.loads(storage.read(path))
        for name in TABLES:
            _check_file(storage, receipt[name])


def _check_figures(
    storage: Storage, success: dict[str, Any], images: pa.Table, instances: pa.Table, of_next: set[str]
) -> None:
    """Check statistics, counts and COCO JSON against the tables, but for files of the next generation."""
    stats = json.loads(storage.read("stats.json"))
    entries = json.loads(storage.read("run.json"))["model"]["categories"]
    categories = [Category(entry["id"], entry["name"]) for entry in entries]
    invariant(
        "I7",
        "stats.json" in of_next or Stats.of_tables(images, instances, categories).to_json() == stats,
        "stats.json is not of the tables",
    )
    status = Counter(images["status"].to_pylist())
    counts = {name: status.get(name, 0) for name in ("ok", "empty", "failed")}
    counts |= {"images": len(images), "instances": len(instances)}
    said = {name: success["counts"].get(name) for name in counts}
    invariant("I7", said == counts, f"_SUCCESS counts {said}, there are {counts}")
    if any("instances" in path for path in of_next):
        return
    dataset = [json.loads(storage.read(path)) for path in success["coco"] if "instances" in path]
    annotations = [a["id"] for one in dataset for a in one["annotations"]]
    invariant("I7", sorted(annotations) == sorted(instances["id"].to_pylist()), "COCO has other annotations")
    seen = [row["image_id"] for row in images.to_pylist() if row["status"] != "failed"]
    invariant("I7", [i["id"] for one in dataset for i in one["images"]] == seen, "COCO has other images")


def _others(storage: Storage) -> dict[str, str]:
    found = {}
    for path in ["stats.json", *storage.list("coco")]:
        content = json.loads(storage.read(path))
        if isinstance(content, dict):
            content.pop("info", None)
        found[path] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return found


def _receipts(storage: Storage) -> Iterator[tuple[str, tuple[str, str], list[dict[str, Any]]]]:
    for path in storage.list("receipts"):
        receipt = json.loads(storage.read(path))
        files = [receipt[name] for name in TABLES]
        yield receipt["shard"], (files[0]["sha256"], files[1]["sha256"]), files


def _success(storage: Storage) -> dict[str, Any]:
    success: dict[str, Any] = json.loads(storage.read("_SUCCESS"))
    return success


def _table(storage: Storage, files: list[dict[str, Any]]) -> pa.Table:
    return pa.concat_tables([pq.read_table(io.BytesIO(storage.read(file["path"]))) for file in files])


def _digest(storage: Storage, path: str) -> str:
    return hashlib.sha256(storage.read(path)).hexdigest()
