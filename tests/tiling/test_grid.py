"""Windows cover the image, their cores partition it, and tiles only reorder them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.imaging.geometry import Rect
from maskrcnn.tiling.grid import TILE_WINDOWS, Grid, tiling_of, windows_with_data


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    window = draw(st.integers(2, 24))
    overlap = draw(st.integers(0, window // 2))
    offset = draw(st.tuples(*[st.integers(0, window - overlap - 1)] * 2))
    return Grid(draw(st.integers(1, 60)), draw(st.integers(1, 60)), window, overlap, offset)


def coverage(grid: Grid, rects: list[Rect]) -> np.ndarray:
    counts = np.zeros((grid.height, grid.width), int)
    for rect in rects:
        counts[rect.row_off : rect.bottom, rect.col_off : rect.right] += 1
    return counts


@given(grids())
def test_cores_partition_the_image_and_are_inside_their_windows(grid: Grid) -> None:
    cores = [grid.core(window_id) for window_id in range(len(grid))]
    assert (coverage(grid, cores) == 1).all()
    for window, core in zip(grid, cores, strict=True):
        assert window.shared(core) == core


@given(grids())
def test_windows_are_inside_the_image_have_one_size_and_overlap_as_requested(grid: Grid) -> None:
    assert {(rect.width, rect.height) for rect in grid} == {
        (min(grid.window, grid.width), min(grid.window, grid.height))
    }
    assert coverage(grid, list(grid)).min() >= 1
    for starts in (grid.lefts, grid.tops):
        assert (np.diff(starts) <= grid.window - grid.overlap).all()
        assert (np.diff(starts) > 0).all()


@pytest.mark.slow
@given(grids())
def test_neighbours_are_the_pairs_that_overlap(grid: Grid) -> None:
    rects = list(grid)
    sharing = {
        (a, b)
        for a in range(len(rects))
        for b in range(a + 1, len(rects))
        if rects[a].shared(rects[b]).width and rects[a].shared(rects[b]).height
    }
    found = [(a, b) for a in range(len(rects)) for b in grid.later_neighbours(a)]
    assert len(found) == len(set(found))
    assert set(found) == sharing


@given(grids(), st.sampled_from([None, (4, 4), (1, 10**6)]))
def test_a_tiling_contains_each_window_once_and_tiles_are_rectangles(
    grid: Grid, block: tuple[int, int] | None
) -> None:
    tiling = tiling_of(grid, block)
    assert sorted(tiling.order.tolist()) == list(range(len(grid)))
    assert tiling.cuts[-1] == len(grid)
    for start, stop in zip(tiling.cuts, tiling.cuts[1:], strict=False):
        rows, columns = np.divmod(tiling.order[start:stop], len(grid.lefts))
        assert (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) == stop - start
        if block == (4, 4):
            assert stop - start <= TILE_WINDOWS
    if block is None:
        assert len(tiling.cuts) == 2


@given(grids(), st.tuples(st.integers(1, 30), st.integers(1, 30)), st.data())
def test_windows_that_touch_a_block_with_data_are_planned_and_no_others(
    grid: Grid, block: tuple[int, int], data: st.DataObject
) -> None:
    height, width = block
    across = -(-grid.width // width)
    numbers = st.integers(0, across * -(-grid.height // height) - 1)
    blocks = sorted(data.draw(st.sets(numbers, max_size=6)))
    places = [Rect(n % across * width, n // across * height, width, height) for n in blocks]
    touching = [any(min(rect.shared(place)[2:]) for place in places) for rect in grid]
    planned = windows_with_data(grid, block, np.array(blocks, np.int64))
    assert planned.tolist() == touching

    tiling, whole = tiling_of(grid, block, np.packbits(planned).tobytes()), tiling_of(grid, block)
    assert tiling.order.tolist() == [window for window in whole.order.tolist() if touching[window]]
    assert tiling.cuts[-1] == planned.sum()
    assert (np.diff(tiling.cuts) > 0).all(), "no shard is empty"


def test_each_block_of_a_large_raster_is_decoded_about_once() -> None:
    """Windows of 1024 pixels with an overlap of a quarter on blocks of 512: at most 1.17 times by default."""
    block = 512
    for side in (36_000, 18_000, 100_000):
        grid = Grid(side, side, 1024, 256)
        tiling = tiling_of(grid, (block, block))
        decoded = 0
        for start, stop in zip(tiling.cuts, tiling.cuts[1:], strict=False):
            first, last = grid[int(tiling.order[start])], grid[int(tiling.order[stop - 1])]
            width = -(-last.right // block) - first.col_off // block
            height = -(-last.bottom // block) - first.row_off // block
            decoded += width * height * block**2
        assert decoded / side**2 <= 1.17


@pytest.mark.parametrize(
    "numbers", [(0, 9, 4, 1), (9, 9, 4, 3), (9, 9, 0, 0), (9, 9, 4, -1), (9, 9, 4, 1, (3, 0))]
)
def test_an_invalid_grid_is_rejected(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"not a valid grid|an offset"):
        Grid(*numbers)  # type: ignore[arg-type]


@given(grids())
def test_the_number_of_windows_is_known_without_making_them(grid: Grid) -> None:
    assert len(grid) == len(grid.lefts) * len(grid.tops) == len(list(grid))
    assert len(Grid(2**31 - 1, 2**31 - 1, 32, 16)) == 134_217_727**2
