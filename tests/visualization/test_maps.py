"""The maps of a report place rasters and objects as PROJ does, and count each object once."""

import importlib
import math
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from maskrcnn.errors import ItemError
from maskrcnn.imaging.geometry import ImageHeader
from maskrcnn.io.parquet import write_table
from maskrcnn.io.storage import Storage
from maskrcnn.stats import Stats
from maskrcnn.tiling.index import Cutting, WindowIndex, number_windows
from maskrcnn.types import Category
from maskrcnn.visualization import maps as maps_module
from maskrcnn.visualization.basemap import SIDE, Frame, World, cut_of, places_of, ticks, transformer, world_of
from maskrcnn.visualization.maps import DOTS, Map, Maps, draw_maps
from maskrcnn.visualization.run_report import render_report

pyproj = pytest.importorskip("pyproj")

CATEGORIES = tuple(Category(k, f"kind {k}") for k in range(1, 9))
CUTTING = Cutting(1024, 128)
UTM = "EPSG:32636"


def raster(
    crs: str,
    transform: tuple[float, ...],
    width: int = 4000,
    height: int = 3000,
    error: ItemError | None = None,
) -> ImageHeader:
    return ImageHeader(height, width, (512, 512), pyproj.CRS(crs).to_wkt("WKT2_2019"), transform, error)


def utm(x: float, y: float, pixel: float = 0.25) -> ImageHeader:
    return raster(UTM, (pixel, 0, x, 0, -pixel, y))


def items_of(images: list[ImageHeader]) -> WindowIndex:
    table, cuts = number_windows(images, CUTTING, 16)
    return WindowIndex(table, CUTTING, cuts[-1])


def world(*images: ImageHeader) -> World:
    found = world_of(items_of(list(images)))
    assert found is not None
    return found


class Collection:
    """The part of a run that maps use: rasters, and the centers of objects in pixels."""

    def __init__(
        self, folder: Path, images: list[ImageHeader], objects: list[int], failed: set[int] = frozenset()
    ):
        from maskrcnn.formats.geoparquet import GEO, write_geoparquet

        self.storage, self.items, rng = Storage(str(folder)), items_of(images), np.random.default_rng(0)
        self.lonlat, self.labels, self.scores = [], [], []
        tables: dict[str, list[pa.Table]] = {}
        for number, (image, n) in enumerate(zip(images, objects, strict=True)):
            if image.crs_wkt is None:
                continue
            column, row = rng.random(n) * image.width, rng.random(n) * image.height
            a, b, c, d, e, f = image.transform
            x, y = a * column + b * row + c, d * column + e * row + f
            labels, scores = rng.integers(1, 4, n).astype(np.int32), rng.random(n).astype(np.float32)
            to_lonlat = pyproj.Transformer.from_crs(image.crs_wkt, "EPSG:4326", always_xy=True)
            self.lonlat.append(np.stack(to_lonlat.transform(x, y), axis=1))
            self.labels.append(labels)
            self.scores.append(scores)
            half = rng.random(n)
            sides = [pa.array(side) for side in (x - half, y - half, x + half, y + half)]
            columns = {
                "image_id": pa.array(np.full(n, number + 1)),
                "instance": pa.array(np.arange(n, dtype=np.int32)),
                "category_id": pa.array(labels),
                "category": pa.array([f"kind {label}" for label in labels]),
                "score": pa.array(scores),
                "area_m2": pa.array(np.ones(n)),
                "geometry": pa.array([b"\x01\x03\x00\x00\x00"] * n, pa.binary()),
                "bbox": pa.StructArray.from_arrays(sides, fields=list(GEO.field("bbox").type)),
            }
            tables.setdefault(image.crs_wkt, []).append(pa.table(columns, schema=GEO))
        self.geo = [f"geo/part-1-{number}.parquet" for number in range(len(tables))]
        for path, (crs_wkt, of_crs) in zip(self.geo, tables.items(), strict=True):
            write_geoparquet(self.storage, path, pa.concat_tables(of_crs), crs_wkt)
        status = ["failed" if number in failed else "ok" for number in range(len(images))]
        outcomes = pa.table({"n_instances": pa.array(objects, pa.int32()), "status": status})
        write_table(self.storage, "images/a.parquet", outcomes)

    @property
    def stats(self) -> Stats:
        content = Stats.zero(CATEGORIES).to_json()
        for row in content["categories"]:
            own = np.concatenate(self.scores)[np.concatenate(self.labels) == row["id"]]
            row |= {"instances": len(own), "images": min(len(own), 1)}
            row["score_histogram"] = np.histogram(own, 20, (0, 1))[0].tolist()
        return Stats.from_json(content)

    def draw(self) -> Maps:
        drawn = draw_maps(self.storage, self.items, ["images/a.parquet"], self.geo, self.stats)
        assert drawn is not None
        return drawn


def points(path: str) -> NDArray[np.float64]:
    return np.array([text.split() for text in re.findall(r"[ML]([-0-9.]+ [-0-9.]+)", path)], np.float64)


def counted(drawn: Map) -> int:
    said = int(re.findall(r"([\d,]+) object", drawn.note)[0].replace(",", ""))
    assert not drawn.dots or len(points(drawn.dots)) == said
    return said


def within(text: str) -> tuple[int, int]:
    """Return the minimum and maximum of a density class."""
    low, _, high = text.replace(",", "").partition(" to ")
    return int(low), int(high or low)


# Where rasters lie


@pytest.mark.parametrize(
    "image",
    [
        utm(450_000, 36_000),
        raster(UTM, (0.4, 0.2, 450_000, 0.2, -0.4, 36_000)),
        raster("EPSG:4326", (1e-4, 0, 30, 0, 1e-4, -2)),
        raster("EPSG:3857", (10, 0, 3_600_000, 0, -10, 40_000)),
    ],
    ids=["utm", "rotated", "south-up degrees", "mercator"],
)
def test_an_outline_goes_through_the_corners_that_proj_gives(image: ImageHeader) -> None:
    outline = world(image).outline(0)
    a, b, c, d, e, f = image.transform or ()
    to_lonlat = pyproj.Transformer.from_crs(image.crs_wkt, "EPSG:4326", always_xy=True)
    for column, row in [(0, 0), (4000, 0), (4000, 3000), (0, 3000)]:
        corner = to_lonlat.transform(a * column + b * row + c, d * column + e * row + f)
        assert np.abs(outline - corner).max(axis=1).min() < 1e-9
    assert (outline[0] == outline[-1]).all()


def test_rasters_on_both_sides_of_180_degrees_are_one_group() -> None:
    west = raster("EPSG:32660", (10, 0, 700_000, 0, -10, 8_000_000), 20_000, 20_000)
    east = raster("EPSG:32601", (10, 0, 200_000, 0, -10, 8_000_000), 20_000, 20_000)
    across = raster("EPSG:4326", (1e-3, 0, 179, 0, -1e-3, 70), 2000, 1000)
    beyond = raster("EPSG:4326", (1e-3, 0, -181, 0, -1e-3, 71), 2000, 1000)
    found = world(west, east, across, beyond)
    assert found.box[2] - found.box[0] < 15
    assert np.allclose(found.boxes[2, [0, 2]], found.boxes[3, [0, 2]])
    assert abs(found.cut) < 10


def test_a_raster_around_a_pole_reaches_it() -> None:
    found = world(raster("EPSG:3031", (1000, 0, -2_000_000, 0, -1000, 2_000_000), 4000, 4000))
    assert found.box[2] - found.box[0] == pytest.approx(360)
    assert found.box[1] == -90


def test_images_without_georeferencing_are_left_out() -> None:
    nowhere = [
        ImageHeader(100, 100),
        ImageHeader(error=ItemError("corrupt", "it is")),
        ImageHeader(9, 9, (9, 9), "nonsense", (1,) * 6),
    ]
    found = world(nowhere[0], utm(450_000, 36_000), *nowhere[1:])
    assert found.rows.tolist() == [1]
    assert world_of(items_of(nowhere)) is None
    assert world_of(items_of([ImageHeader(100, 100)])) is None


@given(st.lists(st.tuples(st.floats(-400, 400), st.floats(0, 200)), min_size=1, max_size=12))
def test_the_world_is_cut_where_there_are_no_rasters(spans: list[tuple[float, float]]) -> None:
    west = np.array([span[0] for span in spans])
    east = west + [span[1] for span in spans]
    cut = cut_of(west, east)
    inside = (cut - west) % 360 < east - west - 1e-6
    everywhere = all(
        ((at - west) % 360 <= east - west + 1e-6).any() for at in np.append(west - 1e-4, east + 1e-4)
    )
    assert everywhere or not inside.any()


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 100), st.floats(0.1, 20), st.floats(0.1, 20)),
        min_size=1,
        max_size=20,
    )
)
def test_rasters_that_overlap_are_in_one_place(rects: list[tuple[float, float, float, float]]) -> None:
    boxes = np.array([[x, y - 50, x + w, y + h - 50] for x, y, w, h in rects])
    found = places_of(World([], np.arange(len(boxes)), boxes, 0.0))
    assert sorted(np.concatenate([place.members for place in found]).tolist()) == list(range(len(boxes)))
    of = {member: number for number, place in enumerate(found) for member in place.members.tolist()}
    for i, one in enumerate(boxes):
        for j, other in enumerate(boxes):
            if (one[:2] <= other[2:]).all() and (other[:2] <= one[2:]).all():
                assert of[i] == of[j]
    for place in found:
        assert (place.box[:2] == boxes[place.members, :2].min(axis=0)).all()
        assert (place.box[2:] == boxes[place.members, 2:].max(axis=0)).all()


# Maps


def test_a_frame_is_true_to_scale_along_its_middle() -> None:
    frame = Frame.of(np.array([10.0, 59.9, 10.2, 60.1]))
    geod = pyproj.Geod(ellps="WGS84")
    middle = (frame.south + frame.north) / 2
    across = geod.line_length([frame.west, frame.east], [middle, middle])
    down = geod.line_length([10.1, 10.1], [frame.south, frame.north])
    assert SIDE / frame.height == pytest.approx(across / down, rel=0.01)
    bar = maps_module._scale(frame)
    assert bar is not None
    metres = float(bar.text.split()[0]) * (1000 if bar.text.endswith("km") else 1)
    assert bar.at * across == pytest.approx(metres, rel=0.01)
    assert 0.05 < bar.at <= 0.2


@given(st.floats(-179, 170), st.floats(1e-5, 300))
def test_ticks_are_round_few_and_where_they_say(low: float, span: float) -> None:
    marks = ticks(low, low + span, math.inf, "EW")
    assert 1 <= len(marks) <= 9
    for at, text in marks:
        value = float(text.strip("°EW")) * (-1 if text.endswith("W") else 1)
        assert abs((low + at * span - value + 180) % 360 - 180) <= 1e-6
    assert len({text for _, text in marks}) == len(marks)


def test_few_objects_are_dots_at_the_positions_given_by_proj(tmp_path: Path) -> None:
    tilted = raster(UTM, (0.2, 0.1, 451_100, 0.1, -0.2, 36_000))
    collection = Collection(tmp_path, [utm(450_000, 36_000), tilted], [600, 300])
    drawn = collection.draw()
    strong = np.concatenate(collection.scores) >= 0.5
    frame = Frame.of(world_of(collection.items).box)
    expected = frame.place(np.concatenate(collection.lonlat)[strong])
    found = points(drawn.main.dots)
    assert len(found) == len(expected)
    assert np.abs(found[:, None] - expected).max(axis=2).min(axis=1).max() < 0.06
    assert f"{strong.sum()} objects" in drawn.main.note
    counts = [counted(each) for each in drawn.categories]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == strong.sum()


def test_many_objects_are_counted_in_cells_once_each(tmp_path: Path) -> None:
    collection = Collection(tmp_path, [utm(450_000, 36_000), utm(451_000, 36_000)], [9000, 5000])
    drawn = collection.draw()
    strong = np.concatenate(collection.scores) >= 0.5
    assert drawn.main.dots == ""
    assert f"{strong.sum():,} objects" in drawn.main.note
    frame = Frame.of(world_of(collection.items).box)
    at = frame.place(np.concatenate(collection.lonlat)[strong])
    cell = SIDE / maps_module.COLUMNS
    counts = np.zeros((math.ceil(frame.height / cell) + 1, maps_module.COLUMNS), int)
    np.add.at(counts, ((at[:, 1] / cell).astype(int), (at[:, 0] / cell).astype(int)), 1)
    area = 0.0
    for density in drawn.main.densities:
        low, high = within(density.text)
        rectangles = re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)H", density.path)
        shown = sum((float(r) - float(x)) * (float(b) - float(y)) for x, y, r, b in rectangles)
        area += shown
        assert shown / cell**2 == pytest.approx(((counts >= low) & (counts <= high)).sum(), rel=0.02)
    assert area / cell**2 == pytest.approx((counts > 0).sum(), rel=0.01)
    assert f"at most {counts.max()} per cell" in drawn.main.note


def test_memory_does_not_grow_with_the_number_of_objects() -> None:
    sheet = maps_module._Sheet(Frame(0, 0, 1, 0.6), [1, 2])
    rng = np.random.default_rng(0)
    for _ in range(50):
        sheet.add(rng.random((2000, 2)), rng.integers(1, 3, 2000).astype(np.int32))
    assert not any(sheet.dots)
    assert sheet.counts[0].sum() == sheet.counts[1:].sum()
    assert sheet.counts[0].sum() > DOTS


def test_rasters_far_apart_have_their_own_maps(tmp_path: Path) -> None:
    places = [
        (450_000, 36_000),
        (300_000, 250_000),
        (600_000, 400_000),
        (640_000, -50_000),
        (200_000, -200_000),
    ]
    images = [utm(x, y) for x, y in places] + [utm(451_100, 36_000)]
    collection = Collection(tmp_path, images, [100, 50, 800, 10, 0, 400])
    drawn = collection.draw()
    assert [spot.number for spot in drawn.main.spots] == ["1", "2", "3", "4", ""]
    assert [spot.title for spot in drawn.main.spots] == [
        "1 raster, 800 objects", "2 rasters, 500 objects", "1 raster, 50 objects", "1 raster, 10 objects",
        "1 raster, 0 objects",
    ]  # fmt: skip
    strong = [(scores >= 0.5).sum() for scores in collection.scores]
    assert [counted(each) for each in drawn.places] == [
        strong[2],
        strong[0] + strong[5],
        strong[1],
        strong[3],
    ]
    assert sum(counted(each) for each in drawn.categories) == strong[2]
    assert "place 1" in drawn.categories[0].title


def test_failed_rasters_are_drawn_separately_and_images_without_georeferencing_are_counted(
    tmp_path: Path,
) -> None:
    images = [utm(450_000, 36_000), utm(451_000, 36_000), ImageHeader(100, 100)]
    drawn = Collection(tmp_path, images, [30, 0, 0], failed={1}).draw()
    assert drawn.main.rasters.count("M") == drawn.main.failed.count("M") == 1
    assert points(drawn.main.failed)[:, 0].min() >= points(drawn.main.rasters)[:, 0].max() - 0.2
    assert "1 image without georeferencing" in drawn.note


def test_low_scores_are_shown_if_there_are_no_others(tmp_path: Path) -> None:
    collection = Collection(tmp_path, [utm(450_000, 36_000)], [40])
    collection.scores = [scores / 3 for scores in collection.scores]
    drawn = draw_maps(
        collection.storage, collection.items, ["images/a.parquet"], collection.geo, collection.stats
    )
    assert drawn is not None
    assert "0.5" not in drawn.note
    assert counted(drawn.main) == 40


def test_many_rasters_are_drawn_in_part_and_the_map_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps_module, "OUTLINES", 5)
    images = [utm(450_000 + 1000 * k, 36_000) for k in range(12)]
    drawn = Collection(tmp_path, images, [5] * 12).draw()
    assert drawn.main.rasters.count("M") == 4
    assert "12 rasters, of which 4 are drawn" in drawn.main.note


def test_without_the_extra_or_georeferencing_there_is_no_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = Collection(tmp_path, [utm(450_000, 36_000)], [10])
    nowhere = items_of([ImageHeader(100, 100)])
    assert draw_maps(collection.storage, nowhere, ["images/a.parquet"], [], collection.stats) is None
    transformer.cache_clear()
    monkeypatch.setitem(sys.modules, "pyproj", None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pyproj")
    assert (
        draw_maps(
            collection.storage, collection.items, ["images/a.parquet"], collection.geo, collection.stats
        )
        is None
    )


def test_the_page_contains_the_maps_and_is_deterministic(tmp_path: Path) -> None:
    collection = Collection(tmp_path, [utm(450_000, 36_000), utm(800_000, 600_000)], [3000, 100])
    stats = collection.stats.to_json()
    windows = {"ok": 7, "skipped": 2, "failed": 1, "pieces": 1234}
    pages = [render_report({}, stats, {}, [], collection.draw(), windows) for _ in range(2)]
    assert pages[0] == pages[1]
    text = " ".join(re.sub(r"<[^>]+>", " ", pages[0].split("</style>")[1]).split())
    assert "Maps 2 rasters in WGS 84 / UTM zone 36N" in text
    assert (
        "7 with instances 0 empty 2 skipped, without a valid pixel 1 failed 1,234 window detections merged"
        in text
    )
    assert "windows per second" in text
    plain = render_report({}, stats, {}, [])
    assert "<h2>Maps</h2>" in pages[0]
    assert "<h2>Maps</h2>" not in plain
    assert "windows per second" not in plain
