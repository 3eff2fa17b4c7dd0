"""The shares of the ground truth hold the annotations of their part, whatever the order and the batches."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.evaluation.alignment import PairedCategories, PairedImages
from maskrcnn.evaluation.evaluate_part import SHARE
from maskrcnn.evaluation.ground_truth_shares import Shares
from maskrcnn.formats.coco_checks import ANNOTATIONS
from maskrcnn.io.parquet import Part, read_table
from maskrcnn.io.storage import Storage

IMAGES = 6


def annotations_of(images: list[int]) -> pa.Table:
    """Return one annotation for each of the images, with its number, which is its mask too."""
    columns = {
        "number": range(1, len(images) + 1),
        "image": images,
        "counts": [str(number).encode() for number in range(1, len(images) + 1)],
    }
    rows = [columns.get(name, [0] * len(images)) for name in ANNOTATIONS.names]
    return pa.table(
        [pa.array(row).cast(f.type) for row, f in zip(rows, ANNOTATIONS, strict=True)], ANNOTATIONS
    )


@settings(max_examples=20)
@given(
    images=st.lists(st.integers(0, IMAGES - 1), min_size=1, max_size=20),
    in_run=st.permutations(range(IMAGES)),
    cuts=st.lists(st.integers(0, 20), max_size=3),
    batch_rows=st.sampled_from([1, 3, 100]),
)
def test_each_part_gets_its_annotations_in_the_order_of_its_images_and_of_the_file(
    images: list[int],
    in_run: list[int],
    cuts: list[int],
    batch_rows: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    whole = annotations_of(images)
    bounds = [0, *sorted(min(cut, len(images)) for cut in cuts), len(images)]
    batches = [whole.slice(low, high - low) for low, high in itertools.pairwise(bounds)]
    paired = PairedImages(np.array(in_run), "name", np.zeros(0, np.int64), 0)
    categories = PairedCategories(("leaf",), np.zeros(1, np.int32), {1: 0}, "name")
    parts = [(Part(f"{number}", "", 2, 0), np.arange(2)) for number in range(IMAGES // 2)]
    shares = Shares(Storage(tmp_path_factory.mktemp("run")), "shares", parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maskrcnn.evaluation.ground_truth_shares.BATCH_ROWS", batch_rows)
        assert shares.write(batches, paired, categories) == len(images)
    for number, task in enumerate(shares.tasks):
        share = read_table(shares._storage, task.share)
        assert share.schema.equals(SHARE)
        rows = [2 * number, 2 * number + 1]
        expected = [
            (row - rows[0], place + 1, str(place + 1).encode())
            for row in rows
            for place, image in enumerate(images)
            if image == in_run[row]
        ]
        found = zip(*(share[name].to_pylist() for name in ("row", "number", "counts")), strict=True)
        assert list(found) == expected
