"""The command `maskrcnn demo`: all steps on generated scenes and on real images, without a network connection."""

import logging
import re
import time
from pathlib import Path
from typing import Final

import click

from maskrcnn.config import InferenceConfig, ResourceConfig
from maskrcnn.errors import UsageError, plural

log = logging.getLogger("maskrcnn")

SEED: Final = 20_000_000
"""Outside the range of seeds that the embedded model was trained on."""

OVERLAY_PX: Final = 720
"""Side of a scene in the picture: its labels need more room than its 384 pixels offer."""

QUERIES: Final = (
    (
        "Number and mean size of the instances of each category, at a score of at least 0.5",
        """SELECT category, count(*) AS instances, round(avg(area))::INT AS mean_area_px
           FROM 'OUT/instances/*.parquet' WHERE score >= 0.5
           GROUP BY category ORDER BY instances DESC""",
    ),
    (
        "Which scenes have the highest numbers of instances?",
        """SELECT name, count(*) AS instances, round(sum(area) / any_value(width * height), 3) AS covered
           FROM 'OUT/images/*.parquet' JOIN 'OUT/instances/*.parquet' USING (image_id)
           WHERE score >= 0.5 GROUP BY name ORDER BY instances DESC, name LIMIT 5""",
    ),
    (
        "What lies within 40 pixels of a pool?",
        """WITH centre AS (SELECT image_id, category, (box.xmin + box.xmax) / 2 AS x, (box.ymin + box.ymax) / 2 AS y
                           FROM 'OUT/instances/*.parquet' WHERE score >= 0.5)
           SELECT near.category, count(*) AS pairs FROM centre AS pool JOIN centre AS near USING (image_id)
           WHERE pool.category = 'pool' AND near.category <> 'pool'
             AND (pool.x - near.x) ** 2 + (pool.y - near.y) ** 2 < 40 ** 2
           GROUP BY near.category ORDER BY pairs DESC""",
    ),
)


NUCLEI_DETECTIONS: Final = 400
"""Images of cells show more than the usual 100 objects."""
MOSAIC_SIDE: Final = 3
"""Scenes along each side of the mosaic."""
MOSAIC_QUERY: Final = (
    "How much ground does each category cover, at a score of at least 0.5?",
    """SELECT category, count(*) AS objects, round(sum(area_m2))::INT AS m2
       FROM 'OUT/geo/**/*.parquet' WHERE score >= 0.5 GROUP BY category ORDER BY m2 DESC""",
)


@click.command()
@click.argument("directory", required=False, default="demo", metavar="[DIR]")
@click.option(
    "--scenes", type=click.IntRange(1), default=60, show_default=True, help="Number of generated scenes."
)
def demo(directory: str, scenes: int) -> None:
    """Run all steps on generated scenes, a mosaic of them, and real images, and print the results."""
    run_demo(directory, scenes)


def run_demo(directory: str, scenes: int) -> None:
    """Generate scenes, segment them in this process, and print accuracy and queries; then a mosaic and real images.

    Args:
        directory: gets `scenes/` (images and their ground truth), `run/`, `overlay.png`, with the extra `geo` `mosaic/`
            and `mosaic-run/`, and of the real images `nuclei/`, `nuclei-run/` and `nuclei.png`; must be empty or not
            exist.
        scenes: number of scenes.

    Raises:
        UsageError: the directory is not empty, or in a store.
    """
    from maskrcnn.io.url import Url, redact
    from maskrcnn.synthetic.scenes import write_scenes

    from ..driver.planning import Request
    from ..driver.run import run_segment

    if not Url.parse(directory).is_local:
        raise UsageError(
            f"{redact(directory)} is not a local folder: name one, for its files are opened by other tools"
        )
    root = Path(directory)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the directory {root}: {error.strerror}") from error
    if any(root.iterdir()):
        raise UsageError(f"{root} is not empty; name another directory, or remove it")
    started = time.monotonic()
    log.info("generating %s in %s", plural(scenes, "scene"), root / "scenes")
    write_scenes(root / "scenes", scenes, seed=SEED)
    run = root / "run"
    # The ground truth names the images, so that ids agree and the results can be evaluated against it.
    request = Request(str(root / "scenes" / "instances.json"), str(run), InferenceConfig(model="scenes"))
    run_segment(request, ResourceConfig(ray=False), None)
    click.echo("\nAgainst the ground truth of the generated scenes (COCO average precision)")
    print_accuracy(root / "scenes" / "instances.json", run)
    overlay = write_overlay(run, root / "overlay.png", images=4)
    print_queries(run)
    mosaic = segment_mosaic(root)
    nuclei, picture = segment_nuclei(root)
    click.echo(
        f"\nreport   {run / 'report.html'}\noverlay  {overlay}\ntables   {run}/images, {run}/instances"
    )
    if mosaic is not None:
        click.echo(f"mosaic   {mosaic / 'report.html'}\npolygons {mosaic}/geo")
    click.echo(f"nuclei   {nuclei / 'report.html'}\noverlay  {picture}")
    click.echo(f"demo took {time.monotonic() - started:.0f} s")


def segment_mosaic(root: Path) -> Path | None:
    """Join scenes to a GeoTIFF, segment it in windows, and print the ground area of each category.

    Returns:
        The run's directory; None if the extra `geo` is not installed.
    """
    from maskrcnn.imaging.georeference import extra
    from maskrcnn.synthetic.scenes import write_mosaic

    from ..driver.planning import Request
    from ..driver.run import run_segment

    try:
        write_mosaic(root / "mosaic", MOSAIC_SIDE, MOSAIC_SIDE, seed=SEED + 1_000_000)
        extra("shapely")
    except UsageError as error:
        click.echo(f"\n(no mosaic: {error})")
        return None
    run = root / "mosaic-run"
    log.info("segmenting %s in windows", root / "mosaic" / "mosaic.tif")
    inference = InferenceConfig(model="scenes", window=512, overlap=128)
    request = Request(str(root / "mosaic" / "mosaic.tif"), str(run), inference)
    success = run_segment(request, ResourceConfig(ray=False), None)
    windows = plural(sum(success["windows"].values()), "window")
    click.echo(
        f"\nA mosaic in {windows}: {plural(success['counts']['instances'], 'whole object')} with any score"
    )
    _print_query(run, *MOSAIC_QUERY)
    return run


def segment_nuclei(root: Path) -> tuple[Path, Path]:
    """Segment real microscope images, and print the accuracy; return the run's directory and a picture of it."""
    from maskrcnn.samples.nuclei import write_nuclei

    from ..driver.planning import Request
    from ..driver.run import run_segment

    ground_truth, run = root / "nuclei" / "instances.json", root / "nuclei-run"
    write_nuclei(ground_truth.parent)
    log.info("segmenting nuclei in %s", ground_truth.parent)
    inference = InferenceConfig(model="nuclei", max_detections=NUCLEI_DETECTIONS)
    run_segment(Request(str(ground_truth), str(run), inference), ResourceConfig(ray=False), None)
    click.echo("\nReal images, which the model `nuclei` was not trained on, against their ground truth")
    print_accuracy(ground_truth, run, NUCLEI_DETECTIONS)
    return run, write_overlay(run, root / "nuclei.png", images=8)


def print_accuracy(ground_truth: Path, run: Path, max_detections: int = 100) -> None:
    """Print box and mask AP of a run against its ground truth."""
    from maskrcnn.evaluation.pycocotools_reference import average_precision
    from maskrcnn.formats.coco_writer import IouType

    kinds: dict[str, IouType] = {"box": "bbox", "mask": "segm"}
    for name, kind in kinds.items():
        results = run / "coco" / f"results_{kind}.json"
        found = average_precision(ground_truth, results, kind, max_detections)
        click.echo(f"{name} AP {found.ap:.3f}  (AP50 {found.ap50:.3f}, AP75 {found.ap75:.3f})")


def write_overlay(folder: Path, target: Path, images: int) -> Path:
    """Draw the detections of a run over its first images, as one picture."""
    import pyarrow.compute as pc
    from PIL import Image

    import maskrcnn
    from maskrcnn.io.inputs import read_input
    from maskrcnn.schema import detections_of

    run = maskrcnn.open_run(str(folder))
    instances = run.instances()
    limits = maskrcnn.Limits(10**8, 10**9, 100.0)
    drawn = []
    for row in run.images().slice(0, images).to_pylist():
        rows = instances.filter(pc.equal(instances["image_id"], row["image_id"]))
        pixels = maskrcnn.decode_image(read_input(row["uri"], limits.max_bytes), limits).pixels
        drawn.append(
            maskrcnn.draw_instances(pixels, detections_of(row, rows), run.categories, min_side=OVERLAY_PX)
        )
    columns = 2 if images <= 4 else 4
    Image.fromarray(maskrcnn.contact_sheet(drawn, columns=columns, cell_px=OVERLAY_PX)).save(target)
    return target


def print_queries(run: Path) -> None:
    """Print three DuckDB queries and their answers."""
    for question, query in QUERIES:
        if not _print_query(run, question, query):
            return


def _print_query(run: Path, question: str, query: str) -> bool:
    """Print a query and its answer; return whether DuckDB is installed."""
    try:
        import duckdb
    except ImportError:
        click.echo("\n(install duckdb to see queries over the tables)")
        return False
    place = str(run).replace("'", "''")
    # Otherwise a folder `status=final` above the run is taken for the column `status`.
    sql = re.sub(
        r"'OUT/(.*?)'", lambda at: f"read_parquet('{place}/{at[1]}', hive_partitioning = false)", query
    )
    click.echo(f"\n{question}\n  {' '.join(sql.split())}\n{duckdb.sql(sql)}")
    return True
