"""Files that a listing found and that are no inputs."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ...schema import SKIPPED


def skipped_files(files: pa.Table, kinds: pa.ChunkedArray | Sequence[str]) -> pa.Table:
    """Return files as rows of `schema.SKIPPED`.

    Args:
        files: with columns `name`, `uri` and `bytes`.
        kinds: for each, by what it is no input: a suffix, or a phrase.
    """
    if not isinstance(kinds, pa.ChunkedArray):
        kinds = pa.chunked_array([kinds], pa.string())
    return pa.table([files["name"], files["uri"], files["bytes"], kinds], schema=SKIPPED)


def counts_of(skipped: pa.Table) -> dict[str, int]:
    """Return the number of skipped files of each kind."""
    return {row["values"]: row["counts"] for row in pc.value_counts(skipped["kind"]).to_pylist()}
