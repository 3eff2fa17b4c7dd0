"""The gallery is deterministic, varied, cheap to choose, and tolerates missing images."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskrcnn import schema
from maskrcnn.errors import ItemError
from maskrcnn.io.parquet import Part, write_table
from maskrcnn.io.storage import Storage
from maskrcnn.masks.rle import crop_to_rle
from maskrcnn.schema import ImageResult
from maskrcnn.types import Category, Detections, Pixels
from maskrcnn.visualization.gallery import GalleryPick, draw_gallery, pick_gallery

CATEGORIES = tuple(Category(k, f"kind {k}") for k in range(1, 9))
HEIGHT, WIDTH = 300, 400


def _detections(objects: list[tuple[int, float]]) -> Detections:
    """Objects are (label, score); the k-th is at (20 k, 10 k)."""
    n = len(objects)
    boxes = np.array([[20 * k, 10 * k, 20 * k + 60, 10 * k + 40] for k in range(n)], np.float32).reshape(n, 4)
    return Detections(
        height=HEIGHT,
        width=WIDTH,
        boxes=boxes,
        labels=np.array([label for label, _ in objects], np.int32),
        scores=np.array([score for _, score in objects], np.float32),
        masks=tuple(
            crop_to_rle(np.ones((40, 60), np.bool_), 20 * k, 10 * k, HEIGHT, WIDTH) for k in range(n)
        ),
        areas=np.full(n, 2400, np.int64),
        mask_boxes=np.zeros((n, 4), np.int32),
        capped=False,
    )


def _result(row: int, objects: list[tuple[int, float]] | None) -> ImageResult:
    detections = None if objects is None else _detections(objects)
    return ImageResult(
        row=row, image_id=7 * row, name=f"{row}.jpg", uri=f"file:///{row}.jpg", bytes=1, etag="e",
        detections=detections, error=None if detections else "corrupt", width=WIDTH, height=HEIGHT,
    )  # fmt: skip


class CountingStorage(Storage):
    """Records what was opened."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.opened: list[str] = []

    def open(self, path: str):
        self.opened.append(path)
        return super().open(path)


def _store(folder: Path, parts: list[list[ImageResult]]) -> tuple[CountingStorage, list[Part]]:
    storage = CountingStorage(str(folder))
    written = []
    for number, results in enumerate(parts):
        images = schema.images_table(results, schema.MANIFEST.empty_table())
        instances = schema.instances_table(results, CATEGORIES)
        paths = [f"{table}/part-1-{number:05d}.parquet" for table in ("images", "instances")]
        write_table(storage, paths[0], images)
        write_table(storage, paths[1], instances)
        written.append(Part(paths[0], paths[1], len(images), len(instances)))
    return storage, written


def _read(_: GalleryPick) -> Pixels:
    return np.full((HEIGHT, WIDTH, 3), 200, np.uint8)


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[CountingStorage, list[Part]]:
    """Three parts of 30 images: failed, empty, and with one to three objects of mostly one category."""
    rng = np.random.default_rng(0)
    parts = []
    for part in range(3):
        results = []
        for row in range(part * 30, part * 30 + 30):
            kind = row % 5
            if kind == 0:
                results.append(_result(row, None))
            elif kind == 1:
                results.append(_result(row, []))
            else:
                labels = np.where(rng.random(int(rng.integers(1, 4))) < 0.8, 1, rng.integers(1, 9))
                scores = np.sort(rng.uniform(0.1, 1, len(labels)))[::-1]
                results.append(_result(row, list(zip(labels.tolist(), scores.tolist(), strict=True))))
        parts.append(results)
    return _store(tmp_path, parts)


def test_picks_are_ok_images_with_their_own_instances(mixed: tuple[CountingStorage, list[Part]]):
    storage, parts = mixed
    picks = pick_gallery(storage, parts, 12)
    assert len({pick.image_id for pick in picks}) == 12
    instances = pa.concat_tables([_read_table(storage, part.instances) for part in parts])
    for pick in picks:
        row = pick.image_id // 7
        assert row % 5 > 1
        assert (pick.name, pick.uri) == (f"{row}.jpg", f"file:///{row}.jpg")
        own = instances.filter(pc.equal(instances["image_id"], pick.image_id))
        assert own["category_id"].to_pylist() == pick.detections.labels.tolist()
        assert own["score"].to_pylist() == pick.detections.scores.tolist()
        counts = [segmentation["counts"] for segmentation in own["segmentation"].to_pylist()]
        assert counts == [mask.decode() for mask in pick.detections.masks]
        assert [list(box.values()) for box in own["box"].to_pylist()] == pick.detections.boxes.tolist()


def _read_table(storage: Storage, path: str) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read(path)))


def test_picks_are_the_same_each_time_and_come_from_all_parts(mixed: tuple[CountingStorage, list[Part]]):
    storage, parts = mixed
    picks = pick_gallery(storage, parts, 12)
    again = pick_gallery(storage, parts, 12)
    assert [(pick.image_id, pick.focus) for pick in picks] == [(pick.image_id, pick.focus) for pick in again]
    assert np.bincount([pick.image_id // 7 // 30 for pick in picks]).tolist() == [4, 4, 4]


def test_rare_categories_are_shown(tmp_path: Path):
    rows = [_result(row, [(1, 0.9)]) for row in range(40)]
    rows[17] = _result(17, [(1, 0.99), (5, 0.8), (6, 0.3)])
    rows[31] = _result(31, [(2, 0.6)])
    storage, parts = _store(tmp_path, [rows])
    picks = pick_gallery(storage, parts, 3)
    shown = {pick.image_id // 7: int(pick.detections.labels[pick.focus]) for pick in picks}
    assert sorted(shown.values()) == [1, 2, 5]
    assert shown[17] == 5
    assert shown[31] == 2


def test_the_number_of_opened_parts_is_bounded(tmp_path: Path):
    storage, parts = _store(tmp_path, [[_result(row, [(1, 0.9)])] for row in range(40)])
    assert len(pick_gallery(storage, parts, 5)) == 5
    assert len(set(storage.opened)) == 2 * 5


def test_no_detections_give_no_pictures(tmp_path: Path):
    storage, parts = _store(tmp_path, [[_result(0, None), _result(1, [])]])
    assert pick_gallery(storage, parts) == []
    assert pick_gallery(storage, []) == []
    assert storage.opened == []


def test_a_collection_with_only_low_scores_is_shown_too(tmp_path: Path):
    storage, parts = _store(tmp_path, [[_result(0, [(3, 0.2), (1, 0.1)])]])
    [item] = draw_gallery(pick_gallery(storage, parts), _read, CATEGORIES)
    assert item.caption == "kind 3 0.20"
    assert item.jpeg is not None


def test_items_are_jpegs_of_4_to_3_with_captions(mixed: tuple[CountingStorage, list[Part]]):
    storage, parts = mixed
    picks = pick_gallery(storage, parts, 6)
    for pick, item in zip(picks, draw_gallery(picks, _read, CATEGORIES), strict=True):
        assert item.name == pick.name
        assert item.caption.startswith(f"kind {pick.detections.labels[pick.focus]} ")
        picture = Image.open(io.BytesIO(item.jpeg or b""))
        assert picture.format == "JPEG"
        assert picture.width / picture.height == pytest.approx(4 / 3, abs=0.02)
        assert np.asarray(picture).std() > 0  # something is drawn on the plain ground


def test_the_instance_in_focus_is_in_the_picture(tmp_path: Path):
    """A crop follows its object into the corner of the image."""
    storage, parts = _store(tmp_path, [[_result(0, [(1, 0.9)])]])
    [pick] = pick_gallery(storage, parts)
    corner = replace(
        pick.detections,
        boxes=np.array([[390, 290, 400, 300]], np.float32),
        masks=(crop_to_rle(np.ones((10, 10), np.bool_), 390, 290, HEIGHT, WIDTH),),
    )
    pixels = _read(pick)
    pixels[290:, 390:] = (255, 0, 255)
    [item] = draw_gallery([replace(pick, detections=corner)], lambda _: pixels, CATEGORIES)
    picture = np.asarray(Image.open(io.BytesIO(item.jpeg or b""))).astype(int)
    plain = np.abs(picture - 200).sum(axis=2) < 20
    assert not plain[-10:, -10:].any()
    assert plain[:100, :100].all()


def test_a_missing_or_changed_image_gets_a_note(tmp_path: Path):
    storage, parts = _store(tmp_path, [[_result(row, [(1, 0.9)]) for row in range(2)]])
    picks = pick_gallery(storage, parts)

    def read(pick: GalleryPick) -> Pixels:
        if pick.uri == picks[0].uri:
            raise ItemError("not_found", "no such object")
        return np.zeros((10, 10, 3), np.uint8)

    gone, changed = draw_gallery(picks, read, CATEGORIES)
    assert (gone.jpeg, gone.note) == (None, "The image cannot be read any more: the object does not exist.")
    assert (changed.jpeg, changed.note) == (None, "The image has another size now.")


def test_other_exceptions_propagate(tmp_path: Path):
    storage, parts = _store(tmp_path, [[_result(0, [(1, 0.9)])]])

    def read(_: GalleryPick) -> Pixels:
        raise MemoryError

    with pytest.raises(MemoryError):
        draw_gallery(pick_gallery(storage, parts), read, CATEGORIES)
