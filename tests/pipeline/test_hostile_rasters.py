"""Nothing that a raster says can stop the others: each ends as one row, and the run verifies."""

import dataclasses
import logging
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from maskrcnn_jobs.driver.planning import Request, prepare
from windowed import NORTH_UP, compute_of, mosaic, process_shards, run_windows, write_geotiff

import maskrcnn
from maskrcnn.errors import ERROR_CODES, UsageError
from maskrcnn.io.storage import Storage
from maskrcnn.pipeline.manifest_file import read_grid, write_grid
from maskrcnn.pipeline.plan import PLAN, read_run
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.results.verify import verify_run
from maskrcnn.visualization.run_report import write_report

pytestmark = pytest.mark.slow

rasterio = pytest.importorskip("rasterio")
Window = pytest.importorskip("rasterio.windows").Window

LOCAL = 'LOCAL_CS["site",UNIT["metre",1]]'
GOOD = {"crs": "EPSG:32636", "transform": NORTH_UP, "side": 64}


def write(path: Path, raster: dict[str, Any]) -> None:
    """Write a raster with an object; `code` replaces the EPSG code 32636 in the file."""
    side, code = raster["side"], raster.get("code")
    pixels = mosaic(side, side + 9, 1) if side < 1000 else np.zeros((1, 1, 1), np.uint8)
    if side < 1000:
        write_geotiff(path, pixels, crs=raster["crs"], transform=raster["transform"], block=32)
    else:  # sparse: a few bytes that promise many pixels
        profile = {
            "tiled": True,
            "blockxsize": 16_384,
            "blockysize": 16_384,
            "sparse_ok": True,
            "BIGTIFF": "YES",
        }
        with rasterio.open(
            path, "w", driver="GTiff", height=side, width=side, count=1, dtype="uint8", crs="EPSG:32636",
            transform=rasterio.Affine(*NORTH_UP), **profile,
        ):  # fmt: skip
            pass
    if code is not None:
        data = path.read_bytes()
        path.write_bytes(data.replace((32636).to_bytes(2, "little"), code.to_bytes(2, "little")))


numbers = st.one_of(
    st.floats(),  # infinite, NaN, subnormal, …
    st.floats(-1e6, 1e6),
    st.sampled_from([0.0, 0.5, -0.5, 450_000.0, 36_000.0, 1e307, 1e-300, 1e16]),
)
transforms = st.one_of(
    st.tuples(*[numbers] * 6),
    st.tuples(*[numbers] * 6).map(lambda t: (t[0], 0.0, t[2], 0.0, t[4], t[5])),
    st.sampled_from([NORTH_UP, (1e-5, 0.0, 32.5, 0.0, -1e-5, 0.3), (0.5, 0.0, 0.0, 0.0, 0.5, 0.0)]),
)
rasters = st.fixed_dictionaries(
    {
        "crs": st.sampled_from(
            ["EPSG:32636", "EPSG:4326", "EPSG:3857", "EPSG:3413", "EPSG:2263", "EPSG:4978", LOCAL, None]
        ),
        "transform": transforms,
        "side": st.sampled_from([33, 64, 70]),
    },
    optional={"code": st.sampled_from([4326, 3857, 5703, 1, 60_000, 32767])},
)


@given(drawn=st.lists(rasters, min_size=24, max_size=30))
@settings(
    max_examples=2,  # the first one is the simplest
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@pytest.mark.filterwarnings("ignore")
def test_each_raster_ends_as_one_row(drawn: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, raster in enumerate([GOOD, *drawn]):
            write(folder / "in" / f"{number:02}.tif", raster)
        run_windows(folder / "in", folder / "out", compute_of(48, 8))
        run = maskrcnn.open_run(folder / "out")
        rows = run.images().to_pylist()
        assert [row["name"] for row in rows] == [f"{number:02}.tif" for number in range(len(drawn) + 1)]
        assert rows[0]["status"] == "ok"
        assert all(row["error"] in ERROR_CODES for row in rows if row["status"] == "failed")
        assert all(row["error"] is None for row in rows if row["status"] != "failed")
        report = verify_run(folder / "out")
        assert report.findings == ()
        assert report.proven


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    write(tmp_path / "in" / "a.tif", GOOD)
    write(tmp_path / "in" / "b.tif", GOOD | {"side": 200_000})
    return tmp_path / "in"


def test_an_image_of_too_many_windows_fails_and_the_others_do_not(sparse: Path, tmp_path: Path) -> None:
    run_windows(sparse, tmp_path / "out", compute_of(64, 32))
    good, large = maskrcnn.open_run(tmp_path / "out").images().to_pylist()
    assert (good["status"], good["n_instances"]) == ("ok", 1)
    assert (large["status"], large["error"]) == ("failed", "too_many_windows")
    assert large["message"].startswith(
        "200000 x 200000 pixels are 39,050,001 windows, more than the limit of 1,048,576"
    )
    assert verify_run(tmp_path / "out").proven


def sharing_its_blocks(path: Path) -> None:
    """Make all 25 blocks of a sparse raster lie in one place."""
    data = bytearray(path.read_bytes())
    for tag in (324, 325):  # the places and the sizes of the blocks: 8 bytes at 8
        at = data.index(struct.pack("<HHI", tag, 4, 25))
        [start] = struct.unpack_from("<I", data, at + 8)
        data[start : start + 100] = struct.pack("<I", 8) * 25
    path.write_bytes(data)


def test_windows_without_data_are_not_planned_and_data_that_cannot_be_there_are_refused(
    tmp_path: Path,
) -> None:
    """Three files of few bytes and 40,000 x 40,000 pixels: none stored, one place for all of them, and some."""
    side = 40_000
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32636", "sparse_ok": True}
    profile |= {"height": side, "width": side, "tiled": True, "compress": "deflate"}
    profile["transform"] = rasterio.Affine(*NORTH_UP)
    (tmp_path / "in").mkdir()
    for name, block in (("none.tif", 256), ("shared.tif", 8192), ("some.tif", 256)):
        with rasterio.open(
            tmp_path / "in" / name, "w", blockxsize=block, blockysize=block, **profile
        ) as file:
            if name == "some.tif":  # in 2 x 2 blocks, from column 19,968 and row 29,952
                file.write(np.moveaxis(mosaic(200, 200, 3), 2, 0), window=Window(20_100, 30_100, 200, 200))
    sharing_its_blocks(tmp_path / "in" / "shared.tif")
    run_windows(tmp_path / "in", tmp_path / "out", compute_of(256, 64, max_windows=18))
    run = maskrcnn.open_run(tmp_path / "out")
    none, shared, some = run.images().to_pylist()
    assert (none["name"], none["status"], none["width"]) == ("none.tif", "empty", side)
    assert (shared["name"], shared["status"], shared["error"]) == ("shared.tif", "failed", "corrupt")
    assert shared["message"].startswith(
        "40000 x 40000 pixels, of which 1,600,000,000 hold data, in a file of "
    )
    assert (some["name"], some["status"], some["n_instances"]) == ("some.tif", "ok", 3)
    [part] = run.success["parts"]["windows"]
    windows = pq.ParquetFile(tmp_path / "out" / part["path"]).read().to_pylist()
    assert [window["status"] for window in windows if window["image_id"] == none["image_id"]] == ["skipped"]
    planned = {(w["col_off"], w["row_off"]) for w in windows if w["image_id"] == some["image_id"]}
    columns, rows = range(19_776, 20_480, 192), range(29_760, 30_464, 192)  # windows begin every 192 pixels
    assert planned == {(column, row) for column in columns for row in rows}
    report = verify_run(tmp_path / "out")
    assert report.findings == ()
    assert report.proven


def test_a_run_of_too_many_windows_is_refused_when_it_is_planned(
    sparse: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (sparse / "b.tif").unlink()
    with caplog.at_level(logging.WARNING), pytest.raises(UsageError) as caught:
        prepare(Request(str(sparse), str(tmp_path / "out"), compute_of(32, 16, max_windows=11)))
    assert str(caught.value) == (
        "1 image would be cut into 12 windows, more than the limit of 11: use a larger --window, a smaller --overlap "
        "or fewer images (--limit), or raise --max-windows"
    )
    prepare(Request(str(sparse), str(tmp_path / "out"), compute_of(32, 16, max_windows=12)))
    assert read_run(Storage(tmp_path / "out"))["settings"]["max_windows"] == 12


def test_an_image_whose_polygons_fail_keeps_its_masks_and_has_a_code(tmp_path: Path) -> None:
    """A PROJ that does not know what the PROJ of the planning machine knew."""
    for name in ("a.tif", "b.tif"):
        write(tmp_path / "in" / name, GOOD)
    output, inference = Storage(tmp_path / "out"), compute_of(48, 8)
    plan = prepare(Request(str(tmp_path / "in"), output.url, inference))
    grid = read_grid(output, plan)
    unknown = pa.array(["FUTURECRS", grid["crs"][1].as_py()])
    sha256 = write_grid(
        output, grid.set_column(grid.column_names.index("crs"), grid.schema.field("crs"), unknown)
    )
    output.write(PLAN, dataclasses.replace(plan, grid_sha256=sha256).to_json().encode())
    process_shards(output.url, inference)
    reduce_run(output.url, write_report=write_report)
    lost, good = maskrcnn.open_run(output.url).images().to_pylist()
    assert (lost["status"], lost["error"], lost["n_instances"]) == ("ok", "bad_georeference", 1)
    assert lost["message"].startswith("PROJ does not know its coordinate reference system, FUTURECRS")
    assert (good["status"], good["error"]) == ("ok", None)
    [part] = maskrcnn.open_run(output.url).success["parts"]["geo"]
    assert (part["path"], part["rows"]) == ("geo/part-0000000000-1.parquet", 1)
    assert verify_run(output.url).findings == ()
    assert verify_run(output.url).proven
