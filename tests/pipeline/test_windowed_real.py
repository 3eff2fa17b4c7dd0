"""Real rasters in windows: what is found lies where the labels lie, and odd files each get their code."""

from pathlib import Path

import numpy as np
import pytest
from windowed import compute_of, run_windows, write_geotiff

import maskrcnn
from maskrcnn.results.verify import verify_run
from maskrcnn.synthetic.planted import PlantedSegmenter
from maskrcnn.synthetic.planted_mosaic import color_of, ground

rasterio = pytest.importorskip("rasterio")
geopandas = pytest.importorskip("geopandas")

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="the real data do not lie beside this project"),
]


def test_polygons_of_the_kampala_mosaic_overlay_its_labels(tmp_path: Path) -> None:
    from rasterio.features import rasterize

    with rasterio.open(DATA / "kampala/kampala.tif") as file:
        shape, transform, crs = (file.height, file.width), file.transform, file.crs
    labels = geopandas.read_file(DATA / "kampala/kampala.geojson").to_crs(crs)
    numbers = rasterize(
        ((geometry, index + 1) for index, geometry in enumerate(labels.geometry)), shape, transform=transform
    )
    pixels = ground(*shape)
    for index in range(len(labels)):
        pixels[numbers == index + 1] = color_of(index, index % 3)
    write_geotiff(
        tmp_path / "in" / "kampala.tif",
        pixels,
        crs=crs.to_string(),
        transform=tuple(transform)[:6],
        block=512,
    )
    run_windows(tmp_path / "in", tmp_path / "out", compute_of(512, 64))
    [part] = maskrcnn.open_run(str(tmp_path / "out")).success["parts"]["geo"]
    found = geopandas.read_parquet(tmp_path / "out" / part["path"])
    assert found.crs == crs
    assert len(found) == len(np.unique(numbers)) - 1
    ours, theirs = found.union_all(), labels.union_all()
    assert ours.intersection(theirs).area / ours.union(theirs).area >= 0.98
    assert verify_run(str(tmp_path / "out")).proven


RASTERS = {
    "RGB.byte.tif": None,
    "all-nodata.tif": "unsupported_pixels",
    "cog_cmap.tif": None,
    "cog_dateline.tif": "unsupported_pixels",
    "cog_gcps.tif": "no_crs",
    "cog_int16.tif": "unsupported_pixels",
    "cog_nodata.tif": "unsupported_pixels",
    "cog_rgb_mask.tif": None,
    "cog_rgba.tif": None,
    "corrupt.tif": "partial",
    "nocog.tif": "unsupported_pixels",
    "rotated.tif": "no_crs",
    "spacenet_uint16.tif": "unsupported_pixels",
}


def test_odd_rasters_are_read_or_get_their_code(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in RASTERS:
        (folder / name).symlink_to(DATA / f"rasters/{name}")
    success = run_windows(folder, tmp_path / "out", compute_of(512, 64), segmenter=PlantedSegmenter())
    images = maskrcnn.open_run(str(tmp_path / "out")).images().to_pylist()
    assert {row["name"]: row["error"] for row in images} == RASTERS
    assert success["windows"]["skipped"] > 0
    assert verify_run(str(tmp_path / "out")).proven


@pytest.mark.parametrize("scale", ["p2,p98", "0,4000", "dataset"])
def test_a_stated_scaling_reads_rasters_beyond_bytes(tmp_path: Path, scale: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = ["cog_scale.tif"] if scale == "dataset" else ["cog_int16.tif", "spacenet_uint16.tif"]
    for name in names:
        (folder / name).symlink_to(DATA / f"rasters/{name}")
    run_windows(folder, tmp_path / "out", compute_of(512, 64, scale=scale), segmenter=PlantedSegmenter())
    run = maskrcnn.open_run(str(tmp_path / "out"))
    assert [row["status"] for row in run.images().to_pylist()] == ["empty"] * len(names)
    if scale.startswith("p"):
        lows, highs = run.info["radiometry"]["lows"], run.info["radiometry"]["highs"]
        assert all(low < high for low, high in zip(lows, highs, strict=True))


def test_a_rotated_raster_goes_on_with_a_crs_that_is_assumed(tmp_path: Path) -> None:
    run_windows(DATA / "rasters/rotated.tif", tmp_path / "out", compute_of(512, 64, assume_crs="EPSG:32618"))
    [row] = maskrcnn.open_run(str(tmp_path / "out")).images().to_pylist()
    assert row["status"] != "failed"
