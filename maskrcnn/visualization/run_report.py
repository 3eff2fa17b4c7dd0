"""Write `report.html`: one file that shows the detections of a run, its failures, timings and provenance.

The file is self-contained: no scripts, no fonts, no external pictures. Charts are inline SVG, so that they follow the
page's light or dark colors. The template engine escapes all text; a content security policy forbids scripts as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from ..errors import ERROR_CODES
from ..io.parquet import GEO, IMAGES, PIECES, Part
from ..io.storage import Storage
from ..pipeline.success import categories_of, parts_of
from ..stats import HALF, Stats, summary
from ..tiling.index import WindowIndex
from .charts import cooccurrence_matrix, histograms, number_text, position_map, size_map
from .gallery import GalleryItem, draw_gallery, pick_gallery
from .gallery_windows import draw_window_gallery
from .maps import Maps, draw_maps
from .run_pixels import RunPixels
from .templates import render

LISTED_CATEGORIES: Final = 25
"""Rows of the table of categories that are visible at first; the others can be unfolded."""
STAGES: Final = ("fetch", "decode", "model", "encode", "write", "other")

# Tables


def _category_rows(stats: Stats) -> list[dict[str, Any]]:
    """Return the statistics of each category with detections, ordered by the number of instances."""
    order = np.argsort(-stats.category_instances, kind="stable")
    most = max(int(stats.category_instances.max(initial=0)), 1)
    rows = []
    for k in order[stats.category_instances[order] > 0].tolist():
        instances = int(stats.category_instances[k])
        scores = stats.category_scores[k]
        rows.append(
            {
                "id": stats.categories[k].id,
                "name": stats.categories[k].name,
                "instances": instances,
                "share": instances / most,
                "at_half": int(scores[HALF:].sum()),
                "share_at_half": int(scores[HALF:].sum()) / most,
                "images": int(stats.category_images[k]),
                "mean_area": int(stats.category_area_sum[k]) / instances,
                "spark": (scores / max(int(scores.max()), 1)).tolist(),
            }
        )
    return rows


def _failures(stats: Stats) -> list[dict[str, Any]]:
    total = max(int(stats.status.sum()), 1)
    rows = [
        {"code": code, "meaning": ERROR_CODES.get(code, "an unknown code"), "images": n, "share": n / total}
        for code, n in stats.error
    ]
    return sorted(rows, key=lambda row: (-int(row["images"]), row["code"]))


def _stages(timings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the stages of processing with their share of the worker time, in order of execution."""
    seconds: Mapping[str, float] = timings.get("stages_s") or {}
    total = sum(seconds.values())
    names = [*(name for name in STAGES if name in seconds), *sorted(set(seconds) - set(STAGES))]
    return [
        {"name": name, "seconds": seconds[name], "share": seconds[name] / total, "hue": k % len(STAGES)}
        for k, name in enumerate(names)
        if total > 0
    ]


def _facts(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a mapping as rows of text; empty values are left out."""
    return [
        (key.replace("_", " "), _fact(entry))
        for key, entry in value.items()
        if entry not in (None, "", [], {})
    ]


def _fact(entry: object) -> str:
    if isinstance(entry, bool):
        return "yes" if entry else "no"
    if isinstance(entry, int):
        return number_text(entry)
    if isinstance(entry, Mapping):
        return ", ".join(f"{key}: {_fact(item)}" for key, item in entry.items())
    if isinstance(entry, Sequence) and not isinstance(entry, str):
        return ", ".join(_fact(item) for item in entry)
    return str(entry)


# The page


def render_report(
    run: Mapping[str, Any],
    stats: Mapping[str, Any],
    timings: Mapping[str, Any],
    gallery: Sequence[GalleryItem],
    maps: Maps | None = None,
    windows: Mapping[str, int] | None = None,
) -> str:
    """Return the report as one self-contained HTML file.

    Args:
        run: the content of `run.json`.
        stats: the content of `stats.json`.
        timings: the content of `timings.json`; missing values are left out.
        gallery: pictures, from `draw_gallery`.
        maps: from `maps.draw_maps`.
        windows: of a run of windows, the number of windows by status, and the number of window detections as `pieces`.

    Raises:
        RunError: `stats` was written by a version with other histogram bins.
    """
    values = Stats.from_json(stats)
    figures = summary(values)
    categories = _category_rows(values)
    found = {row["id"] for row in categories}
    return render(
        "report.html.j2",
        run=run,
        figures=figures,
        failures=_failures(values),
        gallery=gallery,
        maps=maps,
        windows=windows,
        categories=categories,
        listed=LISTED_CATEGORIES,
        not_found=[category.name for category in values.categories if category.id not in found],
        charts=histograms(values, figures),
        position=position_map(values),
        sizes=size_map(values),
        matrix=cooccurrence_matrix(values),
        timings=timings,
        stages=_stages(timings),
        execution=[_facts(entry) for entry in timings.get("execution") or []],
        provenance=[
            ("Model", _facts({k: v for k, v in run.get("model", {}).items() if k != "categories"})),
            ("Inputs", _facts(run.get("inputs", {}))),
            ("Settings", _facts(run.get("settings", {}))),
            ("Versions", _facts(run.get("versions", {}))),
        ],
    )


GALLERY_IMAGES: Final = 12


def write_report(
    url: str, sources: tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]
) -> str:
    """Write `report.html` of a run whose tables are complete; passed to `reduce_run` as `write_report`.

    Args:
        url: the run's directory.
        sources: the content of `run.json`, `stats.json`, `timings.json` and `_SUCCESS`.

    Returns:
        The path of the page, relative to the run's directory.
    """
    storage = Storage(url)
    run, stats, timings, success = sources
    parts = parts_of(success)
    with RunPixels(storage, run) as pixels:
        if pixels.windows is not None:
            page = _windowed_report(storage, sources, parts, pixels, pixels.windows)
        else:
            picks = pick_gallery(storage, parts, GALLERY_IMAGES)
            page = render_report(run, stats, timings, draw_gallery(picks, pixels.read, categories_of(run)))
    storage.write("report.html", page.encode())
    return "report.html"


def _windowed_report(
    storage: Storage,
    sources: tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]],
    parts: Sequence[Part],
    pixels: RunPixels,
    items: WindowIndex,
) -> str:
    run, stats, timings, success = sources
    gallery = draw_window_gallery(storage, pixels, parts, categories_of(run), GALLERY_IMAGES)
    images, geo = ([entry["path"] for entry in success["parts"][table]] for table in (IMAGES, GEO))
    maps = draw_maps(storage, items, images, geo, Stats.from_json(stats))
    pieces = sum(entry["rows"] for entry in success["parts"][PIECES])
    return render_report(run, stats, timings, gallery, maps, success["windows"] | {"pieces": pieces})
