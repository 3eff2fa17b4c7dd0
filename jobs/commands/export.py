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
        UsageError: there is no finished run, the destination is not empty, or the run has nothing of this format.
        RunError: something cannot be read or written.
    """
    import maskrcnn
    from maskrcnn.io.storage import Storage
    from maskrcnn.pipeline.plan import read_plans
    from maskrcnn.pipeline.success import coco_info, detects_masks, parts_of
    from maskrcnn.results.export import export_coco, export_csv, export_png_masks

    run = maskrcnn.open_run(output)
    storage, parts, masks = Storage(run.url), parts_of(run.success), detects_masks(run.info)
    if form == "coco":
        info = coco_info(run.info, read_plans(storage)[0])
        return export_coco(storage, parts, run.categories, destination, info, masks=masks), "annotation"
    if form in ("geojson", "gpkg"):
        from maskrcnn.formats.geojson_geopackage import export_vector

        polygons = [part["path"] for part in run.success["parts"].get("geo", [])]
        return export_vector(storage, polygons, destination, form), "polygon"
    if form == "csv":
        return export_csv(storage, parts, destination), "row"
    if not masks:
        raise UsageError(f"{output} has boxes without masks: export it as coco, csv, geojson or gpkg")
    return export_png_masks(storage, parts, destination), "label map"
