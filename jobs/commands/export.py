"""The command `maskrcnn export`: write a finished run in another format."""

from typing import Any

import click

from maskrcnn.errors import UsageError, plural


@click.command()
@click.argument("output")
@click.argument("destination")
@click.option(
    "--format",
    "form",
    type=click.Choice(["coco", "csv", "png-masks", "geojson", "gpkg"]),
    default="coco",
    show_default=True,
)
def export(output: str, destination: str, form: Any) -> None:
    """Write a finished run in another format into an empty DESTINATION."""
    count, noun = run_export(output, destination, form)
    click.echo(f"{plural(count, noun)} in {destination}")


def run_export(output: str, destination: str, form: Any) -> tuple[int, str]:
    """Write a finished run in another format.

    Returns:
        The counts of what was written.

    Raises:
        UsageError: there is no finished run, its tables disagree, the destination is not empty, or the run has nothing
            of this format.
        RunError: something cannot be read or written.
    """
    import maskrcnn
    from maskrcnn.io.storage import Storage
    from maskrcnn.pipeline.plan import PLAN, no_run, read_plans
    from maskrcnn.pipeline.success import coco_info, detects_masks, parts_of
    from maskrcnn.results.export import export_coco, export_csv, export_png_masks
    from maskrcnn.results.part_checks import check_tables, reading

    run = maskrcnn.open_run(output)
    masks = detects_masks(run.info)
    if form == "png-masks" and not masks:
        raise UsageError(f"{output} has boxes without masks: export it as coco, csv, geojson or gpkg")
    check_tables(run.url, run.info, run.success)
    storage, parts = Storage(run.url), parts_of(run.success)
    polygons = [part["path"] for part in run.success["parts"].get("geo", [])]
    with reading(storage, *(path for part in parts for path in (part.images, part.instances)), *polygons):
        if form == "coco":
            if not (plans := read_plans(storage)):
                raise no_run(output, PLAN)
            info = coco_info(run.info, plans[0])
            return export_coco(storage, parts, run.categories, destination, info, masks=masks), "annotation"
        if form in ("geojson", "gpkg"):
            from maskrcnn.formats.geojson_geopackage import export_vector

            return export_vector(storage, polygons, destination, form), "polygon"
        if form == "csv":
            return export_csv(storage, parts, destination), "row"
        return export_png_masks(storage, parts, destination), "label map"
