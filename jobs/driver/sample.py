"""A sample of a run: a small run over some of its inputs, for which the stages are measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.manifest_file import ManifestReader, current_rows, read_retired, write_manifest
from maskrcnn.pipeline.plan import Plan, Shard, read_plans, read_run, run_digest, write_run
from maskrcnn.pipeline.plan_windows import plan_windows

from .planning import Request

SHARDS_EACH: Final = 4
"""Shards of the sample for each actor, if their size allows it."""
RASTERS: Final = 12
"""Images of which a sample of windows is taken."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A small run over some inputs of another."""

    storage: Storage
    run: dict[str, Any]
    shards: Sequence[Shard]
    first_uri: str
    input_bytes: int | None
    """Of all inputs of the run; None if their sizes are not known."""

    @classmethod
    def of(
        cls, storage: Storage, request: Request, plan: Plan, url: str, count: int, actors: int
    ) -> "Sample":
        """Plan the sample of a run below another directory."""
        windowed = plan.grid_sha256 is not None
        with ManifestReader(storage, plan.manifest) as manifest:
            retired = read_retired(storage, read_plans(storage))
            table = manifest.take(current_rows(manifest.num_rows, retired))
        sizes = table["bytes"]
        input_bytes = None if sizes.null_count else int(pc.sum(sizes).as_py())
        table = table.take(sample_rows(table, min(count, RASTERS) if windowed else count))
        scratch = Storage(url)
        shard_images = max(min(count // (SHARDS_EACH * actors), plan.shard_images), 1)
        run = read_run(storage)
        settings = run["settings"] | {"shard_images": shard_images}
        run |= {"settings": settings, "digest": run_digest(settings, run["model"])}
        digest = write_manifest(scratch, table)
        small = Plan(1, len(table), shard_images, digest, run["digest"], plan.created)
        if windowed:
            small, _ = plan_windows(scratch, small, table["uri"].to_pylist(), request.inference)
        write_run(scratch, run, small)
        shards = list(small)
        wanted = math.ceil(count * len(shards) / small.rows)
        if wanted < len(shards):
            shards = [shards[int(at)] for at in _evenly(len(shards), wanted)]
        return cls(scratch, run, shards, table["uri"][0].as_py(), input_bytes)


def sample_rows(table: pa.Table, count: int) -> NDArray[np.int64]:
    """Return rows of a manifest, ascending, that represent it: evenly spaced in the order of format and size.

    Args:
        table: with columns `name` and `bytes`, which may be null.
        count: number of rows; all of them if there are no more.
    """
    suffixes = pc.utf8_lower(pc.struct_field(pc.extract_regex(table["name"], r"(?P<s>\.[^./]*)$"), "s"))
    keys = pa.table({"suffix": suffixes, "bytes": table["bytes"], "name": table["name"]})
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names]).to_numpy()
    return np.sort(order[_evenly(len(table), min(count, len(table)))]).astype(np.int64)


def _evenly(total: int, count: int) -> NDArray[np.int64]:
    """Return `count` of the numbers below `total`, in the middle of equal spans."""
    return ((np.arange(count) + 0.5) * total / count).astype(np.int64)
