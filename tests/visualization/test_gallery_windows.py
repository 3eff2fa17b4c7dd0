"""Pictures of a run of windows show the surroundings of an instance, without reading whole large images."""

import io
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from windowed import compute_of, mosaic, run_windows, write_geotiff

from maskrcnn import schema
from maskrcnn.imaging.geometry import Rect
from maskrcnn.io.parquet import Part, write_table
from maskrcnn.io.storage import Storage
from maskrcnn.masks.crop import crop_detections
from maskrcnn.masks.rle import crop_to_rle
from maskrcnn.pipeline.plan import read_run
from maskrcnn.pipeline.success import parts_of
from maskrcnn.schema import ImageResult
from maskrcnn.synthetic.planted import PLANTED_CATEGORIES, PlantedInstance, png
from maskrcnn.synthetic.planted_mosaic import color_of, ground, objects_in, paint
from maskrcnn.types import Category, Detections, Pixels
from maskrcnn.visualization import gallery_windows
from maskrcnn.visualization.gallery_windows import draw_window_gallery, look_around, pick_foci, region_around
from maskrcnn.visualization.run_pixels import RunPixels

pytestmark = pytest.mark.slow

pytest.importorskip("rasterio")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Pixels], list[Part]]:
    """A run of a raster and of a picture."""
    folder = tmp_path_factory.mktemp("gallery")
    images = {"a.tif": mosaic(900, 1200, 120, 1), "b.png": mosaic(500, 600, 30, 2)}
    write_geotiff(folder / "in" / "a.tif", images["a.tif"])
    (folder / "in" / "b.png").write_bytes(png(images["b.png"]))
    success = run_windows(folder / "in", folder / "out", compute_of(256, 64))
    return folder / "out", images, parts_of(success)


def drawn(output: Path, parts: list[Part], count: int = 12) -> list[Any]:
    storage = Storage(str(output))
    with RunPixels(storage, read_run(storage)) as pixels:
        assert pixels.windows is not None
        return draw_window_gallery(storage, pixels, parts, PLANTED_CATEGORIES, count)


def test_masks_of_a_region_match_its_pixels(run: tuple[Path, dict[str, Pixels], list[Part]]) -> None:
    output, images, parts = run
    storage = Storage(str(output))
    foci = pick_foci(storage, parts, 12)
    for focus, pick in zip(foci, look_around(storage, foci), strict=True):
        left, top, width, height = focus.region
        pixels = images[focus.name][top : top + height, left : left + width]
        found = pick.detections
        assert (found.height, found.width) == (height, width)
        masks = {coco_mask.decode(rle).tobytes() for rle in found.rles() if coco_mask.area(rle)}
        ground_truth = set()
        for number, category, crop, x, y in objects_in(pixels):
            mask = np.zeros((height, width), np.uint8)
            mask[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
            if (
                np.float32(0.1 + 0.9 * (number * 2_654_435_761 % 2**16) / 2**16)
                >= gallery_windows.SHOWN_SCORE
            ):
                ground_truth.add(np.asfortranarray(mask).tobytes())
            assert category < 3
        assert masks == ground_truth
        assert found.labels[pick.focus] == focus.label
        assert found.scores[pick.focus] == np.float32(focus.score)


def test_pictures_are_spread_over_images_and_categories_without_much_overlap(
    run: tuple[Path, dict[str, Pixels], list[Part]],
) -> None:
    output, _, parts = run
    foci = pick_foci(Storage(str(output)), parts, 9)
    assert len(foci) == 9
    assert {focus.name for focus in foci} == {"a.tif", "b.png"}
    assert sorted(np.unique([focus.label for focus in foci], return_counts=True)[1]) == [3, 3, 3]
    assert all(focus.score >= 0.5 for focus in foci)
    for k, one in enumerate(foci):
        for other in foci[:k]:
            shared = one.region.shared(other.region)
            assert one.row != other.row or shared.width * shared.height < 240 * 180 / 4
    assert foci == pick_foci(Storage(str(output)), parts, 9)


def test_rasters_and_pictures_are_drawn_from_the_pixels_around_the_instance(
    run: tuple[Path, dict[str, Pixels], list[Part]],
) -> None:
    output, images, parts = run
    items = drawn(output, parts)
    assert len(items) == 12
    assert all(item.note is None for item in items)
    foci = pick_foci(Storage(str(output)), parts, 12)
    for focus, item in zip(foci, items, strict=True):
        picture = Image.open(io.BytesIO(item.jpeg or b""))
        assert picture.width / picture.height == pytest.approx(4 / 3, abs=0.03)
        left, top, width, height = focus.region
        part = Image.fromarray(images[focus.name][top : top + height, left : left + width])
        differences = np.abs(
            np.asarray(picture, np.int16)
            - np.asarray(part.resize(picture.size, Image.Resampling.LANCZOS), np.int16)
        ).max(axis=2)
        assert np.median(differences) < 60
        assert item.name.startswith(f"{focus.name}, from column {left:,}, row {top:,}")


def test_a_missing_or_replaced_image_gets_a_note(tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif"):
        write_geotiff(tmp_path / "in" / name, mosaic(300, 400, 20, 1))
    (tmp_path / "in" / "c.png").write_bytes(png(mosaic(300, 400, 20, 2)))
    parts = parts_of(run_windows(tmp_path / "in", tmp_path / "out", compute_of(256, 64)))
    (tmp_path / "in" / "a.tif").unlink()
    write_geotiff(tmp_path / "in" / "b.tif", mosaic(64, 64, 1, 1))
    (tmp_path / "in" / "c.png").write_bytes(png(mosaic(64, 64, 1, 1)))
    notes = {item.name.split(",")[0]: item.note for item in drawn(tmp_path / "out", parts)}
    assert "does not exist" in (notes["a.tif"] or "")
    assert "changed since planning" in (notes["b.tif"] or "")
    assert "changed since planning" in (notes["c.png"] or "")


def test_an_object_that_is_larger_than_a_picture_is_shown_in_its_middle() -> None:
    box = {"xmin": 1000.0, "ymin": 2000.0, "xmax": 31_000.0, "ymax": 12_000.0}
    region = region_around(box, 18_000, 36_000)
    assert region.width == gallery_windows.MOST_PX
    assert (region.col_off + region.width / 2, region.row_off + region.height / 2) == (16_000, 7_000)


@given(
    st.tuples(st.floats(0, 500), st.floats(0, 300), st.floats(0.5, 500), st.floats(0.5, 300)),
    st.integers(1, 300),
    st.integers(1, 500),
)
def test_a_region_lies_in_its_image_and_holds_the_middle_of_its_instance(
    box: tuple[float, float, float, float], height: int, width: int
) -> None:
    xmin, ymin = min(box[0], width - 0.5), min(box[1], height - 0.5)
    xmax, ymax = min(xmin + box[2], width), min(ymin + box[3], height)
    region = region_around({"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}, height, width)
    assert 0 <= region.col_off < region.right <= width
    assert 0 <= region.row_off < region.bottom <= height
    assert region.col_off - 1 <= (xmin + xmax) / 2 <= region.right + 1
    assert region.row_off - 1 <= (ymin + ymax) / 2 <= region.bottom + 1


@given(st.data())
def test_cropped_masks_are_the_cropped_pixels(data: st.DataObject) -> None:
    height, width, n = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 4)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    masks = rng.random((n, height, width)) < 0.5
    left, top = data.draw(st.tuples(st.integers(0, width - 1), st.integers(0, height - 1)))
    region = Rect(left, top, data.draw(st.integers(1, width - left)), data.draw(st.integers(1, height - top)))
    whole = _detections(masks, height, width)
    inside = masks[:, top : region.bottom, left : region.right]
    found = crop_detections(whole, region)
    assert [coco_mask.decode(rle).tolist() for rle in found.rles()] == inside.astype(int).tolist()
    assert found.areas.tolist() == inside.sum(axis=(1, 2)).tolist()
    # The same, each drawn in a frame of its own.
    frames, texts = np.zeros((n, 4), np.int32), []
    for k, mask in enumerate(masks):
        x, y = rng.integers(0, [width, height])
        masks[k, :y], masks[k, :, :x] = False, False
        frames[k] = x, y, width - x, height - y
        texts.append(crop_to_rle(mask[y:, x:], 0, 0, height - y, width - x))
    framed = replace(_detections(masks, height, width), masks=tuple(texts), frames=frames)
    assert (
        crop_detections(framed, region).masks
        == crop_detections(_detections(masks, height, width), region).masks
    )


def _detections(masks: NDArray[np.bool_], height: int, width: int, box: float = 1.0) -> Detections:
    n = len(masks)
    return Detections(
        height=height,
        width=width,
        boxes=np.tile(np.array([0, 0, box, box], np.float32), (n, 1)),
        labels=np.ones(n, np.int32),
        scores=np.linspace(1, 0.5, n, dtype=np.float32),
        masks=tuple(crop_to_rle(mask, 0, 0, height, width) for mask in masks),
        areas=masks.sum(axis=(1, 2)).astype(np.int64),
        mask_boxes=np.zeros((n, 4), np.int32),
        capped=False,
    )


def test_an_image_with_more_instances_than_a_row_group_is_shown(tmp_path: Path) -> None:
    """Instances are ordered by score, so those of a region are spread over all row groups."""
    side, n = 40_000, 150_000
    rng = np.random.default_rng(0)
    at = rng.integers(0, side - 20, (n, 2))
    boxes = np.concatenate([at, at + 20], axis=1).astype(np.float32)
    one = crop_to_rle(np.ones((20, 20), np.bool_), 0, 0, 20, 20)
    detections = Detections(
        height=side,
        width=side,
        boxes=boxes,
        labels=rng.integers(1, 4, n).astype(np.int32),
        scores=np.linspace(1, 0.3, n, dtype=np.float32),
        masks=(one,) * n,
        areas=np.full(n, 400, np.int64),
        mask_boxes=boxes.astype(np.int32),
        capped=False,
        frames=np.concatenate([at, np.full((n, 2), 20)], axis=1).astype(np.int32),
    )
    result = ImageResult(0, 7, "a.tif", "file:///a.tif", 1, "e", detections, width=side, height=side)
    storage = Storage(str(tmp_path))
    images = schema.images_table([result], schema.MANIFEST.empty_table())
    instances = schema.instances_table([result], [Category(k, f"kind {k}") for k in (1, 2, 3)])
    write_table(storage, "images/a.parquet", images)
    write_table(storage, "instances/a.parquet", instances)
    assert pq.ParquetFile(tmp_path / "instances" / "a.parquet").num_row_groups > 2
    part = Part("images/a.parquet", "instances/a.parquet", 1, n)

    foci = pick_foci(storage, [part], 12)
    assert len(foci) == 12
    for focus, pick in zip(foci, look_around(storage, foci), strict=True):
        left, top, right, bottom = (
            focus.region.col_off,
            focus.region.row_off,
            focus.region.right,
            focus.region.bottom,
        )
        inside = (boxes[:, 0] < right) & (boxes[:, 1] < bottom) & (boxes[:, 2] > left) & (boxes[:, 3] > top)
        inside &= detections.scores >= 0.5
        assert pick.detections.scores.tolist() == detections.scores[inside].tolist()
        assert pick.detections.labels[pick.focus] == focus.label


def test_only_the_blocks_around_an_instance_of_a_large_raster_are_read(tmp_path: Path) -> None:
    image = ground(4000, 4000)
    paint(image, [PlantedInstance("ellipse", PLANTED_CATEGORIES[1].id, 0.9, 3000, 2500, 90, 60, 30)])
    assert (image[2500, 3000] == color_of(0, 1)).all()
    write_geotiff(tmp_path / "in" / "a.tif", image, block=512)
    success = run_windows(tmp_path / "in", tmp_path / "out", compute_of(2048, 256, min_score=0.01))
    tracemalloc.start()
    [item] = drawn(tmp_path / "out", parts_of(success))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert item.jpeg is not None
    assert peak < image.nbytes / 10
