"""Areas on the ellipsoid: how they compare with pyproj's geodesics, and what they cost.

python -m tests.benchmarks.areas
"""

import argparse
import time

import numpy as np
import pyproj
import shapely

from maskrcnn.formats.areas import areas_m2
from maskrcnn.imaging.georeference import parse_crs

PLACES = ((3857, 1_196_684, 8_379_727), (32636, 450_000, 36_000), (3413, -50, -50), (2263, 9.8e5, 2e5))
SHAPE = shapely.from_wkt("POLYGON((0 0,40 0,40 10,60 10,60 40,0 40,0 0),(5 5,5 9,9 9,9 5,5 5))")


def lonlat_of(crs: pyproj.CRS) -> pyproj.Transformer:
    """Return the transformer to longitude and latitude on the same datum."""
    return pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)


def geodesic(polygon: shapely.Polygon, crs: pyproj.CRS, to_lonlat: pyproj.Transformer, step: float) -> float:
    """Return the area by pyproj, along geodesics of at most a step in the units of the CRS."""
    divided = shapely.segmentize(polygon, step)
    on_earth = shapely.transform(divided, to_lonlat.transform, interleaved=False)
    return abs(float(crs.get_geod().geometry_area_perimeter(on_earth)[0]))


def main() -> None:
    """Print the largest relative difference by size of polygon, and the time per polygon."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--polygons", type=int, default=50_000)
    count = parser.parse_args().polygons
    for pixel in (0.1, 1.0, 10.0, 100.0, 1000.0):
        worst = 0.0
        for code, x, y in PLACES:
            crs = parse_crs(f"EPSG:{code}")
            polygon = shapely.transform(SHAPE, lambda corners, by=(pixel, x, y): corners * by[0] + by[1:])
            expected = geodesic(polygon, crs, lonlat_of(crs), pixel / 10)
            worst = max(worst, abs(float(areas_m2(np.array([polygon]), crs)[0]) / expected - 1))
        print(f"polygons of {60 * pixel:g} units: at most {worst:.1g} from pyproj's geodesics")
    crs = parse_crs("EPSG:32636")
    to_lonlat = lonlat_of(crs)
    places = [*np.random.default_rng(0).uniform(0, 100000.0, (count, 2)), 400000.0, 4000000.0]
    polygons = np.array(
        [shapely.transform(SHAPE, lambda corners, at=at: corners * 0.3 + at) for at in places]
    )
    began = time.perf_counter()
    areas_m2(polygons, crs)
    ours = (time.perf_counter() - began) / count
    began = time.perf_counter()
    for polygon in polygons[: count // 10]:
        geodesic(polygon, crs, to_lonlat, 1e9)
    theirs = (time.perf_counter() - began) / (count // 10)
    print(
        f"{count:,} polygons of 12 corners: {ours * 1e6:.1f} us each; one by one with pyproj {theirs * 1e6:.0f} us"
    )


if __name__ == "__main__":
    main()
