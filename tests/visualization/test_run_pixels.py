"""Pixels of a finished run are those that the run read; images that have changed since are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_runs import picture, rectangles, result, write_run
from windowed import compute_of, mosaic, run_windows, write_geotiff

from maskrcnn.errors import ItemError, RunError
from maskrcnn.imaging.geometry import Rect
from maskrcnn.results.reader import ImageRow, RunReader
from maskrcnn.results.run import open_run
from maskrcnn.synthetic.planted import png
from maskrcnn.visualization.run_pixels import RunPixels, unreadable_note, why_unreadable


def images_of(output: Path) -> list[ImageRow]:
    with RunReader(open_run(str(output))) as reader:
        return list(reader.images())


def test_a_photo_is_read_whole_or_in_part(tmp_path: Path) -> None:
    uri = picture(tmp_path / "in" / "a.png", 30, 40, 77)
    write_run(tmp_path / "run", [result(0, "a.png", rectangles(30, 40), uri=uri)])
    [image] = images_of(tmp_path / "run")
    with RunReader(open_run(str(tmp_path / "run"))) as reader:
        pixels = RunPixels(reader.storage, reader.run.info)
    assert pixels.windows is None
    with pixels:
        assert pixels.read(image).shape == (30, 40, 3)
        part = pixels.read(image, Rect(5, 10, 20, 15))
    assert part.shape == (15, 20, 3)
    assert (part == 77).all()


@pytest.mark.parametrize("change", ["bytes", "size", "gone"])
def test_a_photo_that_has_changed_is_refused(tmp_path: Path, change: str) -> None:
    uri = picture(tmp_path / "in" / "a.png", 30, 40)
    write_run(tmp_path / "run", [result(0, "a.png", rectangles(30, 40), uri=uri)])
    [image] = images_of(tmp_path / "run")
    if change == "bytes":
        image = replace(image, bytes=(tmp_path / "in" / "a.png").stat().st_size + 1)
    elif change == "size":
        picture(tmp_path / "in" / "a.png", 40, 30)
    else:
        (tmp_path / "in" / "a.png").unlink()
    with (
        RunReader(open_run(str(tmp_path / "run"))) as reader,
        RunPixels(reader.storage, reader.run.info) as pixels,
        pytest.raises(ItemError) as caught,
    ):
        pixels.read(image)
    assert caught.value.code == ("not_found" if change == "gone" else "changed")


@pytest.mark.slow
def test_rasters_and_photos_of_a_run_of_windows_are_read(tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    seen = {"a.tif": mosaic(300, 400, 20, 1), "b.png": mosaic(200, 260, 8, 2)}
    write_geotiff(tmp_path / "in" / "a.tif", seen["a.tif"])
    (tmp_path / "in" / "b.png").write_bytes(png(seen["b.png"]))
    run_windows(tmp_path / "in", tmp_path / "run", compute_of(256, 64))
    region = Rect(30, 20, 100, 90)
    with RunReader(open_run(str(tmp_path / "run"))) as reader:
        pixels = RunPixels(reader.storage, reader.run.info)
        with pixels:
            for image in reader.images():
                expected = seen[image.name]
                assert np.array_equal(pixels.read(image), expected)
                assert np.array_equal(pixels.read(image, region), expected[20:110, 30:130])
    raster = images_of(tmp_path / "run")[0]
    with pytest.raises(ValueError, match="within `with`"):
        pixels.read(raster)


def test_a_sentence_says_why_an_image_is_not_read() -> None:
    assert unreadable_note(ItemError("not_found", "x")) == (
        "The image cannot be read any more: the object does not exist."
    )
    assert why_unreadable(RunError("x")) == "it is not accessible from this machine"
