"""The requests to object stores that a run will make: for inputs as in a sample, the others by what is written.

Stores charge for them, by method.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

from maskrcnn.io.stores.request_count import LIST
from maskrcnn.pipeline.merge_generations import PART_BYTES
from maskrcnn.visualization.run_report import GALLERY_IMAGES

from .usage import Usage

GET, PUT = "GET", "PUT"
PER_SHARD: Final = {GET: 3, PUT: 3}
"""Its images, its instances and its receipt are written, and read when the tables are."""
PER_PART: Final = {PUT: 2}
"""Its images and its instances."""
PER_RUN: Final = {GET: 54, PUT: 10, LIST: 18}
"""Of plan, metadata, probes, statistics, report and COCO JSON: what a run in S3 of 48 images in 1 to 48 shards did
besides."""
LISTED: Final = 1000
"""Files on a page of a listing."""


def requests_to_come(
    usages: Sequence[Usage],
    sampled: int,
    rows: int,
    shards: int,
    table_bytes: float,
    to_start: int,
    *,
    in_store: bool,
) -> dict[str, int]:
    """Return the requests of a run by method: GET of inputs as in the sample, the others by what is written.

    Args:
        usages: of the sample.
        sampled: images or windows of the sample.
        rows: images or windows to come.
        shards: shards to come.
        table_bytes: size of the tables to come.
        to_start: requests by GET of each worker of the sample for other things than inputs.
        in_store: whether the output is in an object store.
    """
    reads: Counter[str] = Counter()
    for usage in usages:
        reads.update(usage.requests)
    of_inputs = max(reads[GET] - to_start * len({usage.worker for usage in usages}), 0)
    to_come = Counter({GET: round(of_inputs * rows / max(sampled, 1)), LIST: 0, PUT: 0})
    if of_inputs:
        to_come[GET] += min(GALLERY_IMAGES, rows)
    if in_store:
        parts = math.ceil(table_bytes / PART_BYTES)
        for count, each in ((shards, PER_SHARD), (parts, PER_PART), (1, PER_RUN)):
            to_come.update({method: count * number for method, number in each.items()})
        to_come[LIST] += math.ceil(shards / LISTED) + math.ceil(2 * shards / LISTED)
    return dict(to_come)
