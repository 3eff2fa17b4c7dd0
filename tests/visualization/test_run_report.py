"""The report is self-contained, agrees with the statistics, and escapes names."""

import base64
import json
import re
from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import pytest

from maskrcnn.errors import RunError
from maskrcnn.stats import Stats
from maskrcnn.types import Category
from maskrcnn.visualization.gallery import GalleryItem
from maskrcnn.visualization.run_report import render_report

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}&amp;"
VOID = {"meta", "img", "br"}
RUN = {
    "schema_version": 1,
    "created": "2026-03-02T10:15:00Z",
    "settings": {"model": "coco", "min_score": 0.05, "categories": [], "limit": None},
    "digest": "9f2c" * 16,
    "model": {"name": "coco", "sha256": "73cbd019" * 8, "architecture": "maskrcnn_resnet50_fpn_v2"},
    "inputs": {"source": "s3://aerial/flights/", "rows": 1234, "ids_given": False, "skipped": {".txt": 3}},
    "versions": {"torch": "2.13.0"},
}
TIMINGS = {
    "wall_s": 100.0,
    "images": 1234,
    "images_per_s": 12.34,
    "stages_s": {"write": 10.0, "model": 60.0, "fetch": 20.0, "decode": 10.0},
    "actors": 2,
    "shards": 25,
    "execution": [{"device": "cpu", "dtype": "float32", "shards": 25}],
}


def _stats(k: int, *, found: bool = True, name: str = "category") -> Stats:
    """Statistics of `k` categories, every second one detected."""
    zero = Stats.zero(Category(i + 1, f"{name} {i}") for i in range(k))
    content = zero.to_json()
    rng = np.random.default_rng(k)
    if found:
        content["images"] = {
            "status": {"ok": 1000, "empty": 200, "failed": 34},
            "error": {"corrupt": 30, "not_found": 4},
        }
        for row in content["categories"][::2]:
            scores = rng.integers(0, 50, 20)
            row |= {"instances": int(scores.sum()), "images": 10, "area_sum": int(scores.sum()) * 50}
            row["score_histogram"] = scores.tolist()
        n = sum(row["instances"] for row in content["categories"])
        content["instances"] = n
        for histogram in ("area_px", "area_relative"):
            content[histogram]["counts"][12] = n
        content["area_coco"]["counts"] = [n, 0, 0]
        content["instances_per_image"]["counts"][0:2] = [200, 1000]
        content["position"]["counts"][4][5] = n
        content["image_size"]["counts"][10][11] = 1200
        ids = [row["id"] for row in content["categories"][::2]]
        first, second = map(list, zip(*combinations(ids, 2), strict=True)) if len(ids) > 1 else ([], [])
        content["cooccurrence"] = {"first": first, "second": second, "images": [10] * len(first)}
    return Stats.from_json(content)


class Page(HTMLParser):
    """Checks that tags match, and collects tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += f"{data} "


def _page(stats: Stats, *, run=RUN, timings=TIMINGS, gallery=()) -> Page:
    return Page(render_report(run, json.loads(json.dumps(stats.to_json())), timings, gallery))


@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize("k", [0, 1, 2, 80, 1000])
def test_the_page_is_self_contained_for_any_number_of_categories(k: int, found: bool):
    jpeg = GalleryItem("a.jpg", "cat 0.90", b"\xff\xd8jpeg")
    page = _page(_stats(k, found=found and k > 0), gallery=[jpeg])
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert "href" not in attributes
        assert (attributes.get("src") or "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_no_name_becomes_markup():
    hostile_run = {
        key: dict.fromkeys([*value, EVIL], EVIL) if isinstance(value, dict) else EVIL
        for key, value in RUN.items()
    }
    timings = TIMINGS | {"stages_s": {EVIL: 1.0}, "execution": [{EVIL: EVIL}, {EVIL: [EVIL, {EVIL: EVIL}]}]}
    gallery = [GalleryItem(EVIL, EVIL, b"x"), GalleryItem(EVIL, EVIL, None, EVIL)]
    stats = _stats(30, name=EVIL)
    page = _page(stats, run=hostile_run, timings=timings, gallery=gallery)
    plain = _page(_stats(30))
    extra = {tag for tag, _ in page.tags} - {tag for tag, _ in plain.tags}
    assert extra <= {"img"}
    assert [tag for tag, _ in page.tags].count("img") == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert EVIL in page.text
    assert "49" not in re.findall(r"alert\(2\)>(.{2})", page.text)


def test_the_headline_numbers_are_those_of_the_statistics():
    stats = _stats(80)
    page = _page(stats)
    text = " ".join(page.text.split())
    assert f"{stats.instances:,} instances in 1,234 images" in text
    assert f"{int(stats.category_scores[:, 10:].sum()):,} with score ≥ 0.5" in text
    assert "40 of 80 categories detected" in text
    assert "12.3 images per second" in text
    assert "34 images failed (2.76%)" in text
    assert "corrupt the file cannot be decoded 30 2.43%" in text
    assert "fetch 20.0 s, 20%" in text
    assert "73cbd019" * 8 in text
    assert ".txt: 3" in text


def test_each_detected_category_has_a_row_by_number_of_instances():
    stats = _stats(80)
    page = _page(stats)
    rows = [
        attributes["title"]
        for tag, attributes in page.tags
        if tag == "td" and attributes.get("class") == "name"
    ]
    counts = {
        f"{c.name} (id {c.id})": n
        for c, n in zip(stats.categories, stats.category_instances.tolist(), strict=True)
        if n
    }
    assert set(rows) == set(counts)
    assert [counts[row or ""] for row in rows] == sorted(counts.values(), reverse=True)
    assert "15 more categories" in page.text
    assert "40 categories without detections" in page.text


def test_pictures_are_in_the_page_or_a_note_says_why_not():
    gallery = [
        GalleryItem("a.jpg", "cat 0.90", b"\xff\xd8jpeg"),
        GalleryItem("b.jpg", "dog", None, "It is gone."),
    ]
    page = _page(_stats(2), gallery=gallery)
    [image] = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image["src"] == "data:image/jpeg;base64," + base64.b64encode(b"\xff\xd8jpeg").decode()
    assert "It is gone." in page.text


def test_retried_requests_are_counted():
    page = _page(_stats(2), timings=TIMINGS | {"storage_retries": 12345})
    assert re.search(r"retried storage requests\s*12,345", page.text)


@pytest.mark.parametrize(
    "timings", [{}, {"wall_s": None, "images_per_s": None, "stages_s": {}}, {"stages_s": {"model": 0.0}}]
)
def test_missing_timings_are_left_out(timings):
    assert "repeated" not in _page(_stats(2), timings=timings).text
    assert "not known" in _page(_stats(2), timings=timings).text


def test_a_run_without_images_or_detections():
    page = _page(Stats.zero(()), run={}, timings={})
    assert "There were no images." in page.text
    nothing = _stats(3, found=False).to_json()
    nothing["images"]["status"]["empty"] = 5
    assert "No instance was detected in 5 processed images" in " ".join(
        _page(Stats.from_json(nothing)).text.split()
    )


def test_statistics_of_another_version_are_refused():
    with pytest.raises(RunError, match="schema version"):
        render_report(RUN, _stats(1).to_json() | {"schema_version": 0}, {}, [])


def test_the_same_run_gives_the_same_page():
    stats = _stats(80).to_json()
    assert render_report(RUN, stats, TIMINGS, []) == render_report(RUN, stats, TIMINGS, [])
