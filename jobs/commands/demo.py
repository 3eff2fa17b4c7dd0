"""`maskrcnn demo`: the whole chain on a generated collection, with nothing from the network."""

import logging
import time
from pathlib import Path
from typing import Final

import click

from maskrcnn.config import InferenceConfig, ResourceConfig
from maskrcnn.errors import UsageError

from .segment import Request, segment

log = logging.getLogger("maskrcnn")

SEED: Final = 20_000_000
"""Far from the seeds that the embedded model was trained on."""

OVERLAY_PX: Final = 720
"""Of a scene in the picture: its labels need more room than its 384 pixels give."""

QUERIES: Final = (
    (
        "How many of each category, and how large?",
        """SELECT category, count(*) AS instances, round(avg(area))::INT AS mean_area_px
           FROM 'OUT/instances/*.parquet' WHERE score >= 0.5
           GROUP BY category ORDER BY instances DESC""",
    ),
    (
        "Which scenes are the fullest?",
        """SELECT name, count(*) AS instances, round(sum(area) / any_value(width * height), 3) AS covered
           FROM 'OUT/images/*.parquet' JOIN 'OUT/instances/*.parquet' USING (image_id)
           WHERE score >= 0.5 GROUP BY name ORDER BY instances DESC, name LIMIT 5""",
    ),
    (
        "What stands within 40 pixels of a pool?",
        """WITH centre AS (SELECT image_id, category, (box.xmin + box.xmax) / 2 AS x, (box.ymin + box.ymax) / 2 AS y
                           FROM 'OUT/instances/*.parquet' WHERE score >= 0.5)
           SELECT near.category, count(*) AS pairs FROM centre AS pool JOIN centre AS near USING (image_id)
           WHERE pool.category = 'pool' AND near.category <> 'pool'
             AND (pool.x - near.x) ** 2 + (pool.y - near.y) ** 2 < 40 ** 2
           GROUP BY near.category ORDER BY pairs DESC""",
    ),
)


MOSAIC_SIDE: Final = 3
"""Scenes a side of the mosaic."""
MOSAIC_QUERY: Final = (
    "How much ground does each category cover?",
    """SELECT category, count(*) AS objects, round(sum(area_m2))::INT AS m2
       FROM 'OUT/geo/*.parquet' WHERE score >= 0.5 GROUP BY category ORDER BY m2 DESC""",
)


def run_demo(directory: str, scenes: int) -> None:
    """Generate scenes, segment them on a local Ray, and print accuracy and queries.

    Args:
        directory: gets `scenes/` (images and planted truth), `run/`, `overlay.png`, and with the extra `geo`
            `mosaic/` and `mosaic-run/`; must not exist or be empty.
        scenes: how many to generate.

    Raises:
        UsageError: the directory holds something already.
    """
    from maskrcnn.synthetic.scenes import write_scenes

    root = Path(directory)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the directory {root}: {error.strerror}") from error
    if any(root.iterdir()):
        raise UsageError(f"{root} is not empty; name another directory, or remove it")
    started = time.monotonic()
    log.info("generating %s scenes in %s", scenes, root / "scenes")
    write_scenes(root / "scenes", scenes, seed=SEED)
    run = root / "run"
    request = Request(str(root / "scenes" / "instances.json"), str(run), InferenceConfig(model="scenes"))
    # The truth's file names its images, so that ids agree and the results can be weighed against it.
    segment(request, ResourceConfig(), "local")
    print_accuracy(root)
    overlay = write_overlay(root)
    print_queries(run)
    mosaic = segment_mosaic(root)
    click.echo(
        f"\nreport   {run / 'report.html'}\noverlay  {overlay}\ntables   {run}/images, {run}/instances"
    )
    if mosaic is not None:
        click.echo(f"mosaic   {mosaic / 'report.html'}\npolygons {mosaic}/geo")
    click.echo(f"demo took {time.monotonic() - started:.0f} s")


def segment_mosaic(root: Path) -> Path | None:
    """Lay scenes side by side as a GeoTIFF, segment it in windows, and print what is on how much ground.

    Returns:
        The run's directory; None where the extra `geo` is missing.
    """
    from maskrcnn.formats.geoparquet import extra
    from maskrcnn.synthetic.scenes import write_mosaic

    try:
        write_mosaic(root / "mosaic", MOSAIC_SIDE, MOSAIC_SIDE, seed=SEED + 1_000_000)
        extra("shapely")
    except UsageError as error:
        click.echo(f"\n(no mosaic: {error})")
        return None
    run = root / "mosaic-run"
    log.info("segmenting %s in windows", root / "mosaic" / "mosaic.tif")
    compute = InferenceConfig(model="scenes", window=512, overlap=128)
    success = segment(
        Request(str(root / "mosaic" / "mosaic.tif"), str(run), compute), ResourceConfig(), "local"
    )
    click.echo(
        f"\nA mosaic in {sum(success['windows'].values())} windows: {success['counts']['instances']} whole objects"
    )
    _print_query(run, *MOSAIC_QUERY)
    return run


def print_accuracy(root: Path) -> None:
    """Print box and mask AP of the run against the planted truth."""
    from maskrcnn.evaluation.pycocotools_reference import average_precision

    truth, results = root / "scenes" / "instances.json", root / "run" / "coco" / "results.json"
    click.echo("\nAgainst the planted truth (COCO average precision)")
    boxes, masks = average_precision(truth, results, "bbox"), average_precision(truth, results, "segm")
    for name, found in (("box", boxes), ("mask", masks)):
        click.echo(f"{name} AP {found.ap:.3f}  (AP50 {found.ap50:.3f}, AP75 {found.ap75:.3f})")


def write_overlay(root: Path) -> Path:
    """Draw the detections over the first four scenes, as one picture."""
    import pyarrow.compute as pc
    from PIL import Image

    import maskrcnn
    from maskrcnn.io.inputs import read_input
    from maskrcnn.schema import detections_of

    run = maskrcnn.open_run(str(root / "run"))
    images, instances = run.images(), run.instances()
    limits = maskrcnn.Limits(10**8, 10**9, 100.0)
    drawn = []
    for row in images.slice(0, 4).to_pylist():
        found = instances.filter(pc.equal(instances["image_id"], row["image_id"]))
        pixels = maskrcnn.decode_image(read_input(row["uri"], limits.max_bytes), limits).pixels
        drawn.append(
            maskrcnn.draw_instances(pixels, detections_of(row, found), run.categories, min_side=OVERLAY_PX)
        )
    target = root / "overlay.png"
    Image.fromarray(maskrcnn.contact_sheet(drawn, columns=2, cell_px=OVERLAY_PX)).save(target)
    return target


def print_queries(run: Path) -> None:
    """Print three DuckDB queries and their answers."""
    for question, query in QUERIES:
        if not _print_query(run, question, query):
            return


def _print_query(run: Path, question: str, query: str) -> bool:
    """Print a query and its answer; return whether DuckDB is there."""
    try:
        import duckdb
    except ImportError:
        click.echo("\n(install duckdb to see queries over the tables)")
        return False
    sql = query.replace("OUT", str(run).replace("'", "''"))
    click.echo(f"\n{question}\n  {' '.join(sql.split())}\n{duckdb.sql(sql)}")
    return True
