"""Objects cut by window borders are stitched to one whole object each, compared with their ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskrcnn.imaging.geometry import Rect
from maskrcnn.masks.rle import crop_to_rle
from maskrcnn.masks.rle_decode import read_spans
from maskrcnn.synthetic.planted import PlantedInstance
from maskrcnn.tiling.grid import Grid
from maskrcnn.tiling.overlap_matching import TOLERANCE_PX
from maskrcnn.tiling.stitching import StitchedDetections, WindowDetections, stitch

JITTER_PX = TOLERANCE_PX // 2


@dataclass(frozen=True)
class GroundTruth:
    """An object: its cropped mask, and the position of the crop in the image."""

    crop: np.ndarray
    left: int
    top: int
    label: int = 1
    score: float = 0.5

    @property
    def rect(self) -> Rect:
        return Rect(self.left, self.top, self.crop.shape[1], self.crop.shape[0])


def box(left: int, top: int, width: int, height: int, label: int = 1, score: float = 0.5) -> GroundTruth:
    return GroundTruth(np.ones((height, width), np.bool_), left, top, label, score)


def tight(crop: np.ndarray, left: int, top: int, label: int, score: float) -> GroundTruth | None:
    rows, columns = np.flatnonzero(crop.any(1)), np.flatnonzero(crop.any(0))
    if not len(rows):
        return None
    crop = crop[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return GroundTruth(crop, left + int(columns[0]), top + int(rows[0]), label, score)


# --- a segmenter that detects the ground truth in each window ---


def spread(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Dilate a mask by a square."""
    h, w = mask.shape
    padded = np.pad(mask, pixels)
    out = np.zeros_like(mask)
    for y in range(2 * pixels + 1):
        for x in range(2 * pixels + 1):
            out |= padded[y : y + h, x : x + w]
    return out


def eroded(mask: np.ndarray, pixels: int) -> np.ndarray:
    return ~spread(np.pad(~mask, pixels, constant_values=True), pixels)[
        pixels : pixels + mask.shape[0], pixels : pixels + mask.shape[1]
    ]


def jittered(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift, dilate or erode a mask by up to `JITTER_PX`; the canvas has a margin of that size."""
    kind = rng.integers(3)
    if kind == 0:
        return np.roll(canvas, rng.integers(-JITTER_PX, JITTER_PX + 1, 2), (0, 1))
    pixels = int(rng.integers(1, JITTER_PX + 1))
    return spread(canvas, pixels) if kind == 1 else eroded(canvas, pixels)


def visible_part(
    ground_truth: GroundTruth, window: Rect, rng: np.random.Generator | None, early: bool
) -> GroundTruth | None:
    """Return the visible part of an object in a window, in the frame of the window.

    Args:
        rng: the generator of the jitter of the mask; None: no jitter.
        early: whether the mask is jittered before it is clipped to the window.
    """
    margin = JITTER_PX if rng else 0
    near = Rect(
        window.col_off - margin,
        window.row_off - margin,
        window.width + 2 * margin,
        window.height + 2 * margin,
    )
    shared = ground_truth.rect.shared(near if early else window)
    if not (shared.width and shared.height):
        return None
    y, x = shared.row_off - ground_truth.top, shared.col_off - ground_truth.left
    canvas = np.pad(ground_truth.crop[y : y + shared.height, x : x + shared.width], margin)
    if rng:
        canvas = jittered(canvas, rng)
    left, top = shared.col_off - margin - window.col_off, shared.row_off - margin - window.row_off
    canvas = canvas[max(-top, 0) : max(window.height - top, 0), max(-left, 0) : max(window.width - left, 0)]
    return tight(canvas, max(left, 0), max(top, 0), ground_truth.label, ground_truth.score)


def segmented(
    grid: Grid, ground_truths: Sequence[GroundTruth], seed: int | None = None
) -> tuple[WindowDetections, np.ndarray]:
    """Return the detections in the windows, and the index of the ground truth of each.

    Args:
        seed: the seed of the jitter, which differs between windows and objects; None: no jitter.
    """
    rows = []
    for of, ground_truth in enumerate(ground_truths):
        rect = ground_truth.rect
        columns = np.flatnonzero((grid.lefts < rect.right) & (grid.lefts + grid.window > rect.col_off))
        for row in np.flatnonzero((grid.tops < rect.bottom) & (grid.tops + grid.window > rect.row_off)):
            for column in columns:
                window_id = int(row * len(grid.lefts) + column)
                rng = None if seed is None else np.random.default_rng((seed, of, window_id))
                detection = visible_part(
                    ground_truth, grid[window_id], rng, early=rng is not None and bool(rng.integers(2))
                )
                if detection:
                    rows.append((window_id, -detection.score, of, detection))
    rows.sort(key=lambda row: row[:3])
    return detections_of(grid, [(row[0], row[3]) for row in rows]), np.array(
        [row[2] for row in rows], np.int64
    )


def detections_of(grid: Grid, found: Sequence[tuple[int, GroundTruth]]) -> WindowDetections:
    height, width = min(grid.window, grid.height), min(grid.window, grid.width)
    boxes = np.array([(p.left, p.top, p.rect.right, p.rect.bottom) for _, p in found]).reshape(-1, 4)
    return WindowDetections(
        window_id=np.array([window for window, _ in found], np.int32),
        labels=np.array([p.label for _, p in found], np.int32),
        scores=np.array([p.score for _, p in found], np.float32),
        boxes=boxes.astype(np.float32),
        masks=[crop_to_rle(p.crop, p.left, p.top, height, width) for _, p in found],
        mask_boxes=boxes.astype(np.int32),
    )


# --- comparison with the ground truth ---


def drawn(objects: StitchedDetections, index: int, rect: Rect) -> np.ndarray:
    """Fill the mask of an object inside a rectangle of the image."""
    if objects.frames is None:
        left, top, size = 0, 0, (objects.height, objects.width)
    else:
        left, top, width, height = objects.frames[index].tolist()
        size = (height, width)
    spans = read_spans([objects.masks[index]], *size)
    canvas = np.zeros((rect.height, rect.width), np.bool_)
    dx, dy = left - rect.col_off, top - rect.row_off
    for column, start, stop in zip(spans.column + dx, spans.start + dy, spans.stop + dy, strict=True):
        if 0 <= column < rect.width:
            canvas[max(start, 0) : max(stop, 0), column] = True
    return canvas


def is_exactly(objects: StitchedDetections, ground_truths: Sequence[GroundTruth], of: np.ndarray) -> None:
    """Check that each ground truth is one object, equal in box, label, score, pixels and assigned detections."""
    assert len(objects.masks) == len(ground_truths)
    object_of = {}
    for detection, ground_truth in enumerate(of):
        assert (
            object_of.setdefault(ground_truth, objects.object_of[detection]) == objects.object_of[detection]
        )
    assert sorted(object_of.values()) == list(range(len(ground_truths)))
    for index, ground_truth in enumerate(ground_truths):
        found, rect = object_of[index], ground_truth.rect
        corners = [rect.col_off, rect.row_off, rect.right, rect.bottom]
        assert objects.labels[found] == ground_truth.label
        assert objects.scores[found] == np.float32(ground_truth.score)
        assert objects.boxes[found].tolist() == corners
        assert objects.mask_boxes[found].tolist() == corners
        assert objects.areas[found] == ground_truth.crop.sum()
        assert (drawn(objects, found, rect) == ground_truth.crop).all()


def off(objects: StitchedDetections, index: int, ground_truth: GroundTruth) -> int:
    """Return the maximum distance of a differing pixel from the contour of the ground truth, in pixels; at most 9."""
    margin = 24
    rect = Rect(
        ground_truth.left - margin,
        ground_truth.top - margin,
        ground_truth.rect.width + 2 * margin,
        ground_truth.rect.height + 2 * margin,
    )
    canvas = drawn(objects, index, rect)
    if canvas.sum() != objects.areas[index]:
        return 9
    true = np.pad(ground_truth.crop, margin)
    wrong = canvas != true
    for pixels in range(9):
        # All differing pixels are within `pixels` of the contour, neither deep inside nor far outside.
        if not (wrong & (eroded(true, pixels) | ~spread(true, pixels))).any():
            return pixels
    return 9


def is_about(objects: StitchedDetections, ground_truths: Sequence[GroundTruth]) -> None:
    """Check that each ground truth is one object whose differing pixels are within the jitter of the contour."""
    assert len(objects.masks) == len(ground_truths)
    left = set(range(len(ground_truths)))
    for index in range(len(ground_truths)):
        xmin, ymin, xmax, ymax = objects.mask_boxes[index].tolist()
        near = [
            t
            for t in left
            if ground_truths[t].label == objects.labels[index]
            and abs(np.array(ground_truths[t].rect[:2]) - [xmin, ymin]).max() <= 24
            and abs(
                np.array([ground_truths[t].rect.right, ground_truths[t].rect.bottom]) - [xmax, ymax]
            ).max()
            <= 24
        ]
        best = min(near, key=lambda t: off(objects, index, ground_truths[t]), default=None)
        assert best is not None, f"no ground truth is similar to {objects.mask_boxes[index]}"
        assert off(objects, index, ground_truths[best]) <= JITTER_PX, (
            objects.mask_boxes[index],
            ground_truths[best].rect,
        )
        left.remove(best)


# --- mosaics ---


class Mosaic:
    """Objects that do not overlap within a category, except for small ones inside large ones.

    Args:
        least: the minimum side of the visible part of an object, pixels; smaller ones are not added.
    """

    def __init__(self, height: int, width: int, least: int) -> None:
        self.ground_truths: list[GroundTruth] = []
        self._height, self._width, self._least = height, width, least
        self._taken: dict[tuple[int, bool], np.ndarray] = {}

    def add(self, ground_truth: GroundTruth | None, *, inner: bool = False) -> bool:
        """Add an object if it overlaps no other of its category; return whether it was added."""
        if ground_truth is None or min(ground_truth.crop.shape) < self._least:
            return False
        if ground_truth.rect.shared(Rect(0, 0, self._width, self._height)) != ground_truth.rect:
            return False
        rect, layer = ground_truth.rect, (ground_truth.label, inner)
        if layer not in self._taken:
            self._taken[layer] = np.zeros((self._height, self._width), np.bool_)
        view = self._taken[layer][rect.row_off : rect.bottom, rect.col_off : rect.right]
        if (view & ground_truth.crop).any():
            return False
        view |= ground_truth.crop
        self.ground_truths.append(
            replace(ground_truth, score=round(0.1 + len(self.ground_truths) % 800 / 1000, 3))
        )
        return True

    def add_random(self, rng: np.random.Generator, most: float) -> None:
        """Add a rotated ellipse or rectangle of random size and aspect ratio."""
        a, b = np.exp(rng.uniform(np.log(self._least), np.log(most), 2))
        shape = ("rectangle", "ellipse")[rng.integers(2)]
        x, y = rng.uniform(0, self._width), rng.uniform(0, self._height)
        planted = PlantedInstance(
            shape, 1, 0.5, x, y, max(a, b / 6), max(b, a / 6), rng.choice([0.0, rng.uniform(0, 180)])
        )
        crop, left, top = planted.crop(self._height, self._width)
        self.add(tight(crop, left, top, int(rng.integers(1, 4)), 0.5))

    def add_cells(self, rng: np.random.Generator, left: int, top: int, count: int, side: int) -> None:
        """Add `count` by `count` touching objects of one category with sides of about `side` pixels."""
        sites = (np.mgrid[:count, :count].reshape(2, -1).T + rng.uniform(0.2, 0.8, (count**2, 2))) * side
        y, x = np.mgrid[: count * side, : count * side]
        nearest = np.argmin([(y - row) ** 2 + (x - column) ** 2 for row, column in sites], axis=0)
        for cell in range(count**2):
            self.add(tight(nearest == cell, left, top, 1, 0.5))

    def add_large(self, rng: np.random.Generator, left: int, top: int, side: int) -> None:
        """Add a large object, and small ones of the same category inside it and beside it."""
        if not self.add(box(left, top, side, side, 2)):
            return
        for _ in range(6):
            x, y = (int(v) for v in rng.integers(2, side - 26, 2))
            self.add(box(left + x, top + y, 18, 24, 2), inner=True)
        self.add(box(left + side, top + side // 2, 20, 20, 2))

    def add_slivers(self, grid: Grid, rng: np.random.Generator, side: int) -> None:
        """Add objects that extend one to three pixels into a window, from each of its sides."""
        for window in rng.permutation(len(grid))[:60]:
            rect, deep = grid[int(window)], int(rng.integers(1, 4))
            along = int(rng.integers(0, grid.window))
            for left, top in (
                (rect.col_off + deep - side, rect.row_off + along),
                (rect.right - deep, rect.row_off + along),
                (rect.col_off + along, rect.row_off + deep - side),
                (rect.col_off + along, rect.bottom - deep),
            ):
                self.add(box(left, top, side, side, int(rng.integers(1, 4))))


def mosaic(grid: Grid, seed: int, count: int, least: int) -> list[GroundTruth]:
    """Return objects with sides of at least `least` pixels, up to twice a window."""
    rng = np.random.default_rng(seed)
    made = Mosaic(grid.height, grid.width, least)
    window = grid.window
    for planned in (grid.lefts[1:], grid.tops[1:]):
        at = int(rng.choice(planned)) if len(planned) else 0
        made.add_cells(rng, max(at - 90, 0), max(int(rng.choice(grid.tops)) - 90, 0), 5, 36)
        made.add_cells(rng, max(at - 40, 0), int(rng.integers(0, grid.height)), 4, window // 4)
    made.add_large(rng, window // 2, window // 3, window - 40)
    made.add_large(rng, int(rng.integers(grid.width)), int(rng.integers(grid.height)), grid.overlap + 30)
    made.add_slivers(grid, rng, max(least, 16))
    made.add(box(0, grid.height // 2, min(grid.width, 2 * window), 19, 3))
    made.add(box(grid.width // 3, 0, 17, min(grid.height, 3 * window), 3))
    for _ in range(count):
        made.add_random(rng, window if rng.random() < 0.2 else window / 6)
    return made.ground_truths


def offsets(window: int, overlap: int, count: int, seed: int) -> list[tuple[int, int]]:
    """Return (0, 0) and random valid offsets of a grid."""
    rng = np.random.default_rng(seed)
    return [(0, 0), *map(tuple, rng.integers(0, window - overlap, (count - 1, 2)).tolist())]  # type: ignore[list-item]


# --- random mosaics ---


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize(("overlap", "jitter"), [(128, False), (256, False), (128, True), (256, True)])
def test_planted_mosaics_are_stitched_for_any_position_of_the_grid(overlap: int, jitter: bool) -> None:
    """Test one offset of the grid each; `python -m tests.benchmarks.stitching --offsets 16` tests sixteen."""
    grid = Grid(4096, 4500, 1024, overlap, offsets(1024, overlap, 2, seed=overlap)[1])
    ground_truths = mosaic(grid, 1, 500, 16 if jitter else 3)
    detections, of = segmented(grid, ground_truths, 1 if jitter else None)
    objects = stitch(grid, detections, capped=False)
    if jitter:
        is_about(objects, ground_truths)
    else:
        is_exactly(objects, ground_truths, of)


@st.composite
def grids(draw: st.DrawFn, *narrow: int) -> Grid:
    """Draw grids of any position and image size, from one to many windows; overlaps of a quarter to a half or less."""
    overlap = draw(st.sampled_from([*narrow, 64, 96, 128]))
    offset = draw(st.tuples(*[st.integers(0, 255 - overlap)] * 2))
    return Grid(draw(st.integers(100, 1100)), draw(st.integers(100, 1100)), 256, overlap, offset)


SEEDS = st.integers(0, 2**31)


@pytest.mark.slow
@settings(max_examples=12)
@given(grids(3, 8, 16), SEEDS)
def test_without_jitter_every_pixel_is_exact(grid: Grid, seed: int) -> None:
    ground_truths = mosaic(grid, seed, 60, 1)
    detections, of = segmented(grid, ground_truths)
    is_exactly(stitch(grid, detections, capped=False), ground_truths, of)


@pytest.mark.slow
@settings(max_examples=12)
@given(grids(), SEEDS)
@example(Grid(1008, 630, 256, 96, (36, 66)), 205)  # two windows that are not adjacent share 6 x 2 pixels
def test_with_jitter_no_object_is_lost_duplicated_or_further_off(grid: Grid, seed: int) -> None:
    ground_truths = mosaic(grid, seed, 60, 16)
    detections, _ = segmented(grid, ground_truths, seed)
    is_about(stitch(grid, detections, capped=False), ground_truths)


@pytest.mark.slow
@settings(max_examples=5)
@given(grids(), SEEDS)
def test_the_order_of_windows_does_not_matter(grid: Grid, seed: int) -> None:
    detections, _ = segmented(grid, mosaic(grid, seed, 60, 8), seed)
    windows = np.random.default_rng(seed).permutation(len(grid))
    order = np.argsort(windows[detections.window_id], kind="stable")
    names = ("window_id", "labels", "scores", "boxes", "mask_boxes")
    columns = {name: getattr(detections, name)[order] for name in names}
    shuffled = WindowDetections(masks=[detections.masks[i] for i in order], **columns)
    one, other = stitch(grid, detections, capped=False), stitch(grid, shuffled, capped=False)
    assert one.masks == other.masks
    for name in ("boxes", "labels", "scores", "areas", "mask_boxes"):
        assert (getattr(one, name) == getattr(other, name)).all()
    assert (one.object_of[order] == other.object_of).all()


# --- single cases ---

GRID = Grid(256, 448, 256, 64)
"""Two windows side by side, which overlap in columns 192 to 255."""
FOUR = Grid(448, 448, 256, 64)
"""Four windows, which overlap in the middle 64 rows and columns."""


def merged(grid: Grid, found: Sequence[tuple[int, GroundTruth]]) -> StitchedDetections:
    return stitch(grid, detections_of(grid, found), capped=False)


def test_no_detections_give_no_objects() -> None:
    objects = stitch(GRID, detections_of(GRID, []), capped=True)
    assert objects.masks == ()
    assert objects.object_of.shape == (0,)
    assert objects.object_of.dtype == np.int32
    assert objects.capped
    assert len(objects) == 0


def test_the_result_has_the_form_of_detections() -> None:
    ground_truths = [
        box(30, 30, 20, 30, 2, 0.9),
        box(100, 40, 300, 50, 1, 0.7),
        box(180, 200, 30, 20, 1, 0.8),
    ]
    detections, _ = segmented(GRID, ground_truths)
    found = stitch(GRID, detections, capped=False)
    assert (found.height, found.width) == (256, 448)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert coco_mask.toBbox(found.rles()).tolist() == [
        [30, 30, 20, 30],
        [180, 200, 30, 20],
        [100, 40, 300, 50],
    ]


def test_a_detection_of_only_one_window_is_kept() -> None:
    alone = [(0, box(200, 10, 20, 20)), (1, box(20, 100, 20, 20)), (1, box(0, 200, 3, 30))]
    objects = merged(GRID, alone)
    assert sorted(objects.mask_boxes[:, 0].tolist()) == [192, 200, 212]


def test_categories_are_not_united() -> None:
    assert len(merged(GRID, [(0, box(200, 10, 20, 20, 1)), (1, box(8, 10, 20, 20, 2))]).masks) == 2


def test_empty_masks_are_kept_and_not_united() -> None:
    nothing = GroundTruth(np.zeros((0, 0), np.bool_), 0, 0)
    detections = detections_of(GRID, [(0, nothing), (1, nothing), (1, box(0, 0, 20, 20))])
    objects = stitch(GRID, detections, capped=False)
    assert sorted(objects.areas.tolist()) == [0, 0, 400]
    assert objects.mask_boxes[objects.areas == 0].tolist() == [[0, 0, 0, 0]] * 2


def test_a_complete_detection_determines_its_object() -> None:
    """The window whose core contains the centre of the object takes precedence, whatever the scores."""
    left, right = box(195, 50, 40, 40, score=0.4), box(3 + 4, 51, 40, 40, score=0.9)
    objects = merged(GRID, [(0, left), (1, right)])
    assert objects.scores.tolist() == pytest.approx([0.4])
    assert objects.mask_boxes.tolist() == [[195, 50, 235, 90]]


def test_a_composed_object_takes_each_pixel_from_the_window_whose_core_contains_it() -> None:
    objects = merged(GRID, [(0, box(100, 50, 156, 40, score=0.4)), (1, box(0, 52, 200, 40, score=0.9))])
    assert objects.object_of.tolist() == [0, 0]
    assert objects.scores.tolist() == pytest.approx([0.9])
    assert objects.boxes.tolist() == [[100, 50, 392, 92]]
    mask = drawn(objects, 0, Rect(0, 0, 448, 256))
    expected = np.zeros((256, 448), np.bool_)
    expected[50:90, 100:224] = True
    expected[52:92, 224:392] = True
    assert (mask == expected).all()


def test_two_parts_in_one_window_are_one_object_if_another_window_contains_it_whole() -> None:
    """A rotated U: the left window contains all but its ends, the right one the two arms."""
    u = np.zeros((100, 150), np.bool_)
    u[:40], u[60:], u[:, :40] = True, True, True
    arms = [(1, box(0, 50, 108, 40)), (1, box(0, 110, 108, 40))]
    objects = merged(GRID, [(0, GroundTruth(u, 106, 50)), *arms])
    assert objects.object_of.tolist() == [0, 0, 0]
    assert objects.areas.tolist() == [u.sum() + 2 * 40 * 44]


def test_a_merged_detection_does_not_unite_objects_that_another_window_separates() -> None:
    """The upper right window merges two objects; the chains through it and the lower right one are broken."""
    first, second = box(200, 200, 30, 26), box(200, 226, 30, 28)
    blob = box(8, 200, 30, 54)
    low = [(3, box(8, 8, 30, 54)), (2, box(200, 8, 30, 26)), (2, box(200, 34, 30, 28))]
    objects = merged(FOUR, [(0, first), (0, second), (1, blob), *low])
    assert len({int(i) for i in objects.object_of[:2]}) == 2
    assert objects.object_of[0] != objects.object_of[1]
    assert len(objects.masks) == 2


def test_the_weakest_match_of_a_chain_that_would_unite_two_detections_of_a_window_is_dropped() -> None:
    """The upper right detection matches the lower left one, which is the first object, and the second even better."""
    first, second = box(200, 196, 30, 56), box(200, 100, 30, 92)
    objects = merged(FOUR, [(0, first), (0, second), (1, box(8, 100, 30, 152)), (2, box(200, 4, 30, 56))])
    assert objects.object_of[0] == objects.object_of[2] == objects.object_of[3]
    assert len(objects.masks) == 2


def test_a_fragment_between_touching_objects_does_not_unite_them() -> None:
    """In the right window, the fragment of the left object lies where the left window has the right object."""
    left = [(0, box(150, 50, 41, 60)), (0, box(191, 50, 40, 60))]
    right = [(1, box(0, 50, 3, 60)), (1, box(3, 50, 36, 60))]
    objects = merged(GRID, left + right)
    assert len(objects.masks) == 2
    assert objects.object_of[0] != objects.object_of[1] == objects.object_of[3]


def test_a_fragment_adds_no_pixels_to_its_object() -> None:
    """A fragment two pixels below the object could belong to a neighbour that the left window missed."""
    across = [(0, box(100, 50, 156, 40, score=0.4)), (1, box(0, 50, 200, 40, score=0.5))]
    objects = merged(GRID, [*across, (1, box(0, 92, 3, 3, score=0.9))])
    assert objects.object_of.tolist() == [0, 0, 0]
    assert objects.scores.tolist() == [0.5]
    assert objects.boxes.tolist() == [[100, 50, 392, 90]]
    assert objects.areas.tolist() == [292 * 40]


@pytest.mark.parametrize(
    ("upper_left", "lower_right"),
    [
        (box(186, 250, 9, 6), box(0, 58, 3, 150)),  # equal in the overlap
        (box(186, 250, 8, 6), box(0, 58, 5, 150)),  # close to each other
        (box(186, 240, 70, 16), box(0, 48, 3, 150)),  # one inside the other
    ],
)
def test_a_few_pixels_at_the_corner_of_four_windows_unite_nothing(
    upper_left: GroundTruth, lower_right: GroundTruth
) -> None:
    """They could be neighbours with inexact masks; if they are one object, the other two windows link them."""
    assert len(merged(FOUR, [(0, upper_left), (3, lower_right)]).masks) == 2


def test_a_damaged_mask_is_rejected() -> None:
    detections = replace(detections_of(GRID, [(0, box(200, 9, 9, 9))]), masks=[b"0"])
    with pytest.raises(ValueError, match="mask 0 is not a valid mask of 256 x 256 pixels"):
        stitch(GRID, detections, capped=False)


@pytest.mark.slow
@settings(max_examples=5)
@given(st.integers(0, 2**31))
def test_masks_of_the_largest_images_are_encoded_in_frames(seed: int) -> None:
    """Stitch the same objects near the far corner of an image of at least 2^32 pixels."""
    small = Grid(616, 616, 256, 64)
    ground_truths = [
        ground_truth for ground_truth in mosaic(small, seed, 30, 2) if ground_truth.left and ground_truth.top
    ]
    far = 65_536 - 192 * 3 - 64
    large = Grid(65_536 + 3, 65_536, 256, 64)
    moved = [
        replace(ground_truth, left=ground_truth.left + far, top=ground_truth.top + far)
        for ground_truth in ground_truths
    ]
    detections, of = segmented(large, moved)
    empty = replace(
        detections_of(large, [(0, GroundTruth(np.zeros((0, 0), np.bool_), 0, 0, 1, 0.01))]),
        labels=np.array([9], np.int32),
    )
    columns = {
        name: np.concatenate([getattr(empty, name), getattr(detections, name)])
        for name in ("window_id", "labels", "scores", "boxes", "mask_boxes")
    }
    objects = stitch(
        large, WindowDetections(masks=[*empty.masks, *detections.masks], **columns), capped=False
    )
    assert objects.frames is not None
    assert objects.object_of[0] == len(moved)
    assert objects.frames[-1].tolist() == [0, 0, 1, 1]
    assert coco_mask.area({"size": [1, 1], "counts": objects.masks[-1]}) == 0
    columns = ("boxes", "labels", "scores", "masks", "areas", "mask_boxes", "frames")
    all_but_last = {name: getattr(objects, name)[:-1] for name in columns}
    trimmed = replace(objects, object_of=objects.object_of[1:], **all_but_last)
    is_exactly(trimmed, moved, of)
    assert [rle["size"] for rle in objects.rles()] == objects.frames[:, [3, 2]].tolist()
