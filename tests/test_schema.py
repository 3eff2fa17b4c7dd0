"""The tables: the contract's columns, types and nullability, with rows and without."""

import numpy as np
import pyarrow as pa
import pytest
from planted_images import random_instances

from maskrcnn.schema import (
    IMAGES,
    INSTANCES,
    INSTANCES_PER_IMAGE,
    ImageResult,
    detections_of,
    images_table,
    instances_table,
)
from maskrcnn.synthetic.planted import PLANTED_CATEGORIES, PlantedSegmenter, plant


def manifest_rows(n: int, **further: pa.Array) -> pa.Table:
    return pa.table(
        {"image_id": pa.array(range(n), pa.int64()), "name": [f"{i}.png" for i in range(n)], **further}
    )


def results(n: int) -> list[ImageResult]:
    rng = np.random.default_rng(7)
    found = []
    for row in range(n):
        pixels = plant((80, 96), random_instances(rng, 80, 96, row % 4))
        [detections] = PlantedSegmenter().segment([pixels])
        found.append(ImageResult(row, row + 100, f"{row}.png", f"/data/{row}.png", 9, None, detections))
    return found


def test_one_row_an_instance_with_ids_that_no_retry_changes() -> None:
    table = instances_table(results(8), PLANTED_CATEGORIES)
    table.validate(full=True)
    rows = table.to_pylist()
    assert len(rows) == sum(len(r.detections) for r in results(8) if r.detections)
    for row in rows:
        assert row["id"] == (row["image_id"] - 100) * INSTANCES_PER_IMAGE + row["instance"] + 1
        assert row["segmentation"]["size"] == [80, 96]
        assert row["category"] == {c.id: c.name for c in PLANTED_CATEGORIES}[row["category_id"]]
        assert row["frame"] is None
    assert len({row["id"] for row in rows}) == len(rows)


def test_a_slice_of_the_results_gives_the_same_slice_of_the_table() -> None:
    whole = instances_table(results(8), PLANTED_CATEGORIES)
    halves = [instances_table(results(8)[cut], PLANTED_CATEGORIES) for cut in (slice(0, 3), slice(3, 8))]
    assert pa.concat_tables(halves).equals(whole)


def test_no_instances_have_the_schema_of_some() -> None:
    empty = instances_table([], PLANTED_CATEGORIES)
    assert empty.num_rows == 0
    assert empty.schema.equals(INSTANCES, check_metadata=True)


def test_a_failed_image_keeps_its_row() -> None:
    failed = ImageResult(1, 5, "b", "/b", None, None, None, error="corrupt", message="bad block")
    row = images_table([results(1)[0], failed], manifest_rows(2)).to_pylist()[1]
    assert (row["status"], row["error"], row["n_instances"], row["width"]) == ("failed", "corrupt", 0, None)


def test_the_manifests_further_columns_are_carried_along() -> None:
    rows = manifest_rows(3, camera=pa.array(["a", None, "c"]), day=pa.array([1, 2, 3], pa.int16()))
    table = images_table(results(3), rows)
    assert table.schema.names == [*IMAGES.names, "camera", "day"]
    assert table["camera"].to_pylist() == ["a", None, "c"]


@pytest.mark.parametrize("name", ["image_id", "name", "uri", "status", "n_instances", "capped"])
def test_what_the_contract_does_not_mark_is_never_null(name: str) -> None:
    assert not IMAGES.field(name).nullable


def test_detections_come_back_from_the_tables_as_they_went_in() -> None:
    images, instances = (
        images_table(results(8), manifest_rows(8)),
        instances_table(results(8), PLANTED_CATEGORIES),
    )
    for result, image in zip(results(8), images.to_pylist(), strict=True):
        rows = instances.filter(np.equal(instances["image_id"].to_numpy(), image["image_id"]))
        before, after = result.detections, detections_of(image | {"height": 80, "width": 96}, rows)
        assert before is not None
        assert (after.masks, after.capped) == (before.masks, before.capped)
        for column in ("boxes", "labels", "scores", "areas", "touches_border"):
            np.testing.assert_array_equal(getattr(after, column), getattr(before, column))
