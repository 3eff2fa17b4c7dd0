"""A run whose rasters have several coordinate reference systems is readable as a whole, and by system."""

import re
from pathlib import Path

import duckdb
import numpy as np
import pytest
from windowed import NORTH_UP, compute_of, mosaic, process_shards, run_windows, write_geotiff

import maskrcnn
from maskrcnn.pipeline.reduce import reduce_run
from maskrcnn.results.verify import verify_run
from maskrcnn.visualization.run_report import write_report

geopandas = pytest.importorskip("geopandas", reason="needs the extra geo")
pytestmark = pytest.mark.slow

GUIDE = (Path(__file__).parents[2] / "docs/guides/querying.md").read_text(encoding="utf-8")
ZONES = ("EPSG:32636", "EPSG:32637")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rasters at equal coordinates of two zones of UTM, and one of each in a second part."""
    folder = tmp_path_factory.mktemp("zones")
    for number, crs in enumerate((*ZONES, *ZONES)):
        write_geotiff(folder / "in" / f"{number}.tif", mosaic(120, 150, 4, number), crs=crs)
    run_windows(folder / "in", folder / "out", shard_images=1)
    return folder / "out"


def test_each_system_has_a_folder_and_each_file_its_own_system(run: Path) -> None:
    assert {path.name for path in (run / "geo").iterdir()} == {"crs=EPSG_32636", "crs=EPSG_32637"}
    for zone, longitude in zip(ZONES, (32.55, 38.55), strict=True):
        frame = geopandas.read_parquet(run / "geo" / f"crs={zone.replace(':', '_')}")
        assert frame.crs == zone
        assert (
            "crs" not in geopandas.read_parquet(next((run / "geo").glob(f"*{zone[-5:]}/*.parquet"))).columns
        )
        assert frame.to_crs(4326).geometry.union_all().centroid.x == pytest.approx(longitude, abs=0.01)
    assert verify_run(str(run)).proven


def test_the_guides_queries_work(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.parent / "raster-out").symlink_to(run)
    monkeypatch.chdir(run.parent)
    whole, spatial = re.findall(r"```sql\n(.*?)```", GUIDE.partition("## Polygons")[2], re.DOTALL)[:2]
    west, north = NORTH_UP[2], NORTH_UP[5]
    assert f"{west:.0f}" in whole
    assert f"{north:.0f}" in whole
    found = duckdb.sql(whole).fetchall()
    objects = len(maskrcnn.open_run(str(run)).instances())
    assert sum(row[1] for row in found) == objects
    by_system = duckdb.sql("SELECT crs, count(*) FROM 'raster-out/geo/**/*.parquet' GROUP BY crs").fetchall()
    assert {crs for crs, _ in by_system} == {"EPSG_32636", "EPSG_32637"}
    assert sum(count for _, count in by_system) == objects
    extension = pytest.importorskip("duckdb_extension_spatial")
    [binary] = Path(extension.__path__[0]).rglob("spatial.duckdb_extension")
    one = spatial.replace("geo/*.parquet", "geo/crs=EPSG_32636/*.parquet").replace("LOAD spatial;", "")
    with duckdb.connect(config={"allow_unsigned_extensions": "true"}) as connection:
        connection.execute(f"LOAD '{binary}'")
        assert connection.execute(one).fetchall()


def test_writing_the_tables_again_gives_the_same_files(run: Path) -> None:
    before = {path: path.read_bytes() for path in (run / "geo").rglob("*.parquet")}
    stray = run / "geo" / "part-1-00000-1.parquet"  # as version 0.2 named them
    stray.write_bytes(b"old")
    process_shards(str(run), compute_of())
    reduce_run(str(run), write_report=write_report)
    assert {path: path.read_bytes() for path in (run / "geo").rglob("*.parquet")} == before
    assert np.sum([len(geopandas.read_parquet(path)) for path in before]) == len(
        maskrcnn.open_run(str(run)).instances()
    )
