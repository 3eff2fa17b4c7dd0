"""`maskrcnn show`."""

import json

import click

from .options import json_option


@click.command()
@click.argument("source", metavar="IMAGE|OUTPUT")
@click.option("--image", "images", metavar="NAME|ID", multiple=True, help="Of a run: this image; repeatable.")
@click.option(
    "--where", metavar="SQL", help="Of a run: images and instances for which this holds (needs DuckDB)."
)
@click.option(
    "--worst",
    type=click.IntRange(1),
    metavar="N",
    help="Of an evaluated run: the N images of least quality.",
)
@click.option(
    "--count",
    type=click.IntRange(1, 1000),
    default=12,
    show_default=True,
    help="The most pictures, where images are not named.",
)
@click.option("--masks", is_flag=True, help="Each mask apart, around its object.")
@click.option(
    "--min-score", type=float, help="Leave out weaker instances; by default 0.5, with --where none."
)
@click.option("--categories", metavar="NAME,…", help="Only these categories.")
@click.option("--columns", type=click.IntRange(1), help="Of the contact sheet.")
@click.option("--max-side", type=click.IntRange(64, 20_000), metavar="PX", help="Of each picture.")
@click.option("--output", metavar="FILE", help="By default NAME-instances.png here; .png, .jpg or .webp.")
@click.option("--each", metavar="DIR", help="A PNG an image in there, not one contact sheet.")
@click.option(
    "--model",
    help="Of an IMAGE: coco (by default), coco-v1, scenes, or the path or URL of weights.",
)
@click.option("--labels", metavar="FILE", help="Category names of a .pth file, one a line.")
@json_option
def show(
    source: str, images: tuple[str, ...], categories: str | None, as_json: bool, **options: object
) -> None:
    """Draw what was found: masks, boxes and labels, as a PNG or a contact sheet.

    An IMAGE is segmented here, without Ray. Of the OUTPUT of a finished run the images that are asked for are drawn,
    by default the first in which something was found; of large rasters, what is around an instance. SQL may name the
    columns of `images` and `instances`, as in --where "category = 'car' AND score < 0.6".
    """
    from maskrcnn.errors import UsageError

    from .show import ShowRequest
    from .show import show as show_pictures
    from .terminal import plain

    names = tuple(dict.fromkeys(name.strip() for name in (categories or "").split(",") if name.strip()))
    if categories is not None and not names:
        raise UsageError("--categories names no category")
    showed = show_pictures(ShowRequest(source, images, categories=names, **options))  # type: ignore[arg-type]
    if as_json:
        click.echo(json.dumps({"files": list(showed.files), "images": list(showed.facts)}))
        return
    for line in (*showed.lines, *showed.files):
        click.echo(plain(line))
