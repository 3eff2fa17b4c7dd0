"""Statistics form a commutative monoid of integers, and say what the tables say."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn import schema
from maskrcnn.errors import RunError
from maskrcnn.schema import ImageResult
from maskrcnn.stats import (
    AREA_EDGES,
    COUNT_EDGES,
    HALF,
    POSITION_BINS,
    RELATIVE_EDGES,
    SCORE_EDGES,
    SIZE_EDGES,
    Stats,
    quantiles,
    summary,
)
from maskrcnn.types import Category, Detections

CATEGORIES = (Category(1, "person"), Category(3, "car"), Category(90, "toothbrush"))
IDS = [category.id for category in CATEGORIES]


# Small collections, as tables


def _detections(width: int, height: int, objects: list[tuple[int, float, float, float, int]]) -> Detections:
    """Objects are (category id, score, x and y of the box's centre in the image, mask pixels)."""
    n = len(objects)
    boxes = np.array(
        [[x * width, y * height, x * width, y * height] for _, _, x, y, _ in objects], np.float32
    )
    return Detections(
        height=height,
        width=width,
        boxes=boxes.reshape(n, 4),
        labels=np.array([c for c, *_ in objects], np.int32),
        scores=np.array([s for _, s, *_ in objects], np.float32),
        masks=(b"0",) * n,
        areas=np.array([min(a, width * height) for *_, a in objects], np.int64),
        mask_boxes=np.zeros((n, 4), np.int32),
        capped=False,
    )


def _result(row: int, detections: Detections | None, error: str | None = None) -> ImageResult:
    size = (None, None) if detections is None else (detections.width, detections.height)
    return ImageResult(
        row=row, image_id=1000 - row, name=f"{row}.jpg", uri=f"{row}.jpg", bytes=1, etag="e",
        detections=detections, error=error, message=error, width=size[0], height=size[1],
    )  # fmt: skip


def _tables(results: list[ImageResult]) -> tuple[pa.Table, pa.Table]:
    return schema.images_table(results, schema.MANIFEST.empty_table()), schema.instances_table(
        results, CATEGORIES
    )


fractions = st.floats(0, 1, width=32)
objects = st.tuples(st.sampled_from(IDS), fractions, fractions, fractions, st.integers(0, 10**6))
detections = st.builds(_detections, st.integers(1, 5000), st.integers(1, 5000), st.lists(objects, max_size=6))
outcomes = st.one_of(
    st.tuples(detections, st.sampled_from([None, None, "partial"])),
    st.tuples(st.none(), st.sampled_from(["corrupt", "not_found"])),
)


@st.composite
def collections(draw: st.DrawFn) -> list[ImageResult]:
    return [_result(row, *outcome) for row, outcome in enumerate(draw(st.lists(outcomes, max_size=8)))]


def _stats(results: list[ImageResult]) -> Stats:
    return Stats.of_tables(*_tables(results), CATEGORIES)


stats_values = collections().map(_stats)


# The invariants


@pytest.mark.slow
@given(stats_values, stats_values, stats_values)
@settings(max_examples=40)
def test_addition_is_associative_and_commutative_with_zero(a: Stats, b: Stats, c: Stats):
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + Stats.zero(CATEGORIES) == a == Stats.zero(CATEGORIES) + a


@given(stats_values)
@settings(max_examples=50)
def test_json_is_lossless_and_strict(a: Stats):
    text = json.dumps(a.to_json(), allow_nan=False)
    assert Stats.from_json(json.loads(text)) == a
    assert json.dumps(Stats.from_json(json.loads(text)).to_json()) == text


@given(collections(), st.data())
@settings(max_examples=50)
def test_statistics_of_a_whole_are_the_sum_over_its_parts(results: list[ImageResult], data: st.DataObject):
    cut = data.draw(st.integers(0, len(results)))
    assert _stats(results[:cut]) + _stats(results[cut:]) == _stats(results)


@pytest.mark.slow
@given(collections(), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_the_order_of_rows_does_not_matter(results: list[ImageResult], random):
    images, instances = _tables(results)
    shuffled = []
    for table in (images, instances):
        order = random.sample(range(len(table)), len(table))
        shuffled.append(table.take(pa.array(order, pa.int64())))
    assert Stats.of_tables(*shuffled, reversed(CATEGORIES)) == _stats(results)


@given(collections())
@settings(max_examples=50)
def test_every_histogram_counts_everything_once(results: list[ImageResult]):
    stats = _stats(results)
    n = stats.instances
    assert n == sum(len(result.detections or ()) for result in results)
    for name in ("category_scores", "area_px", "area_relative", "area_coco", "position"):
        assert getattr(stats, name).sum() == n, name
    succeeded = sum(result.detections is not None for result in results)
    assert stats.instances_per_image.sum() == stats.image_size.sum() == succeeded
    assert stats.status.sum() == len(results)


@pytest.mark.slow
@given(collections())
@settings(max_examples=50)
def test_cooccurrence_agrees_with_sets(results: list[ImageResult]):
    expected = np.zeros((3, 3), np.int64)
    for result in results:
        present = set() if result.detections is None else set(result.detections.labels.tolist())
        for i, first in enumerate(IDS):
            for j, second in enumerate(IDS):
                expected[i, j] += {first, second} <= present
    stats = _stats(results)
    assert np.array_equal(stats.cooccurrence(range(3)), expected)
    assert np.array_equal(stats.cooccurrence([2, 0]), expected[np.ix_([2, 0], [2, 0])])
    assert np.array_equal(stats.category_images, np.diagonal(expected))


# The bins


def _bin_of(counts: np.ndarray) -> int:
    assert counts.sum() == 1
    return int(np.flatnonzero(counts)[0])


def _one(
    *, score: float = 0.9, x: float = 0.5, y: float = 0.5, area: int = 10, width: int = 640, height: int = 480
):
    return _stats([_result(0, _detections(width, height, [(3, score, x, y, area)]))])


@pytest.mark.parametrize("k", range(21))
def test_a_score_on_an_edge_belongs_above_it(k: int):
    stored = float(np.float32(k / 20))
    assert _bin_of(_one(score=stored).category_scores[1]) == min(k, 19)
    if k:
        below = float(np.nextafter(SCORE_EDGES[k], np.float32(0)))
        assert _bin_of(_one(score=below).category_scores[1]) == k - 1


def test_scores_of_a_half_and_more_can_be_read_off():
    objects = [(1, score, 0.5, 0.5, 4) for score in (0.05, 0.4999999, 0.5, 0.7, 1.0)]
    stats = _stats([_result(0, _detections(64, 64, objects))])
    assert stats.category_scores[0, HALF:].sum() == 3
    assert summary(stats)["instances_at_half"] == 3


@pytest.mark.parametrize(("area", "size"), [(0, 0), (1023, 0), (1024, 1), (9215, 1), (9216, 2), (300000, 2)])
def test_cocos_sizes_count_an_area_once(area: int, size: int):
    assert _bin_of(_one(area=area).area_coco) == size


@given(st.integers(0, 2**33), st.integers(1, 2**17), st.integers(1, 2**17))
@settings(max_examples=100)
def test_areas_fall_into_the_bins_that_the_edges_say(area: int, width: int, height: int):
    stats = _one(area=area, width=width, height=height)
    area = min(area, width * height)
    low, high = (AREA_EDGES[_bin_of(stats.area_px) + i] for i in (0, 1))
    assert low is not None
    assert low <= area
    assert high is None or area < high

    # In whole numbers, since the quotient of floats may round across an edge.
    low, high = (round(RELATIVE_EDGES[_bin_of(stats.area_relative) + i] * 10**7) for i in (0, 1))
    assert low * width * height <= area * 10**7
    assert area * 10**7 < high * width * height or high == 10**7


def test_position_is_a_map_of_box_centres():
    assert np.argwhere(_one(x=0.0, y=0.0).position).tolist() == [[0, 0]]
    assert np.argwhere(_one(x=1.0, y=0.0).position).tolist() == [[0, POSITION_BINS - 1]]
    assert np.argwhere(_one(x=0.51, y=0.26).position).tolist() == [[8, 16]]


def test_image_size_has_height_in_rows():
    [[row, column]] = np.argwhere(_one(width=640, height=480).image_size).tolist()
    assert (SIZE_EDGES[row], SIZE_EDGES[column]) == (384, 512)


@pytest.mark.parametrize(
    ("n", "low"), [(0, 0), (1, 1), (100, 100), (101, 101), (127, 101), (128, 128), (5000, 4096)]
)
def test_instances_per_image(n: int, low: int):
    stats = _stats([_result(0, _detections(64, 64, [(1, 0.5, 0.5, 0.5, 1)] * n))])
    assert COUNT_EDGES[_bin_of(stats.instances_per_image)] == low


def test_edges_ascend_and_json_writes_infinity_as_null():
    content = _one().to_json()
    for name in ("instances_per_image", "area_px", "area_relative", "area_coco", "position", "image_size"):
        edges = content[name]["edges"]
        finite = [edge for edge in edges if edge is not None]
        assert finite == sorted(set(finite)), name
        assert edges[: len(finite)] == finite
        assert len(content[name]["counts"]) == len(edges) - 1
    assert content["area_px"]["edges"][-1] is None


@given(collections())
def test_a_matrix_as_version_1_wrote_it_is_read(results: list[ImageResult]):
    stats = _stats(results)
    matrix = {"edges": IDS, "counts": stats.cooccurrence(range(3)).tolist()}
    assert Stats.from_json(stats.to_json() | {"schema_version": 1, "cooccurrence": matrix}) == stats


# Faults


def test_a_failed_image_counts_in_status_and_error_only():
    failed = replace(_result(0, None, "truncated"), width=640, height=480)
    stats = _stats([failed])
    expected = replace(Stats.zero(CATEGORIES), status=np.array([0, 0, 1]), error=(("truncated", 1),))
    assert stats == expected


def test_only_statistics_over_equal_categories_add_up():
    with pytest.raises(ValueError, match="different categories"):
        Stats.zero(CATEGORIES) + Stats.zero(CATEGORIES[:2])


def test_instances_must_belong_to_the_images_and_categories():
    images, instances = _tables([_result(0, _detections(64, 64, [(1, 0.5, 0.5, 0.5, 1)]))])
    with pytest.raises(ValueError, match="image that does not exist: 1000"):
        Stats.of_tables(images[:0], instances, CATEGORIES)
    with pytest.raises(ValueError, match="unknown category: 1"):
        Stats.of_tables(images, instances, CATEGORIES[1:])


def test_statistics_of_another_version_are_refused():
    content = Stats.zero(CATEGORIES).to_json()
    with pytest.raises(RunError, match="schema version 3"):
        Stats.from_json(content | {"schema_version": 3})
    with pytest.raises(RunError, match="other bins of area_coco"):
        Stats.from_json(content | {"area_coco": {"edges": [0, 32, None], "counts": [0, 0]}})


def test_values_are_checked_and_cannot_be_changed():
    zero = Stats.zero(CATEGORIES)
    with pytest.raises(ValueError, match="status: int64"):
        replace(zero, status=np.zeros(4, np.int64))
    with pytest.raises(ValueError, match="sorted by id"):
        replace(zero, categories=CATEGORIES[::-1])
    with pytest.raises(ValueError, match="read-only"):
        zero.status[0] = 1


# Summary


def test_summary_derives_means_and_names_the_bins_of_quantiles():
    results = [
        _result(0, _detections(100, 100, [(1, 0.9, 0.5, 0.5, 100), (3, 0.2, 0.5, 0.5, 5000)])),
        _result(1, _detections(100, 100, [(1, 0.9, 0.5, 0.5, 900)])),
        _result(2, _detections(100, 100, [])),
        _result(3, None, "corrupt"),
    ]
    found = summary(_stats(results))
    assert found["images"] == {"ok": 2, "empty": 1, "failed": 1, "total": 4}
    assert found["failure_rate"] == 0.25
    assert found["categories"] == {"known": 3, "found": 2}
    assert found["instances_per_image"] == {"mean": 1.0, "p10": [0, 1], "p50": [1, 2], "p90": [2, 3]}
    assert found["area_px"] == {"mean": 2000.0, "p10": [96, 128], "p50": [768, 1024], "p90": [4096, 6144]}
    assert found["area_coco"] == {"small": 2, "medium": 1, "large": 0}
    assert found["score"]["p50"] == [0.9, 0.95]


def test_summary_of_nothing_is_null_and_strict_json():
    found = summary(Stats.zero(()))
    assert found["area_px"] == {"mean": None, "p10": None, "p50": None, "p90": None}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@given(st.lists(st.integers(0, 300), min_size=1, max_size=50))
def test_a_quantile_lies_in_its_bin(values: list[int]):
    counts = np.histogram(values, [*range(102), 301])[0]
    exact = sorted(values)[(len(values) * 50 + 99) // 100 - 1]
    low, high = quantiles(counts, (*COUNT_EDGES[:102], 301))["p50"] or (0, 0)
    assert low <= exact < high
