"""Ratios against other libraries, measured in one run on one machine, which is stated: `python -m tests.benchmarks`.

The sections that need Ray are here; the others are in `tests.benchmarks.suites`. A whole job is measured in its steady
state: by the slope between N and 3N images. The time until the first shard begins is reported separately.
"""

import logging
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from maskrcnn.errors import RunError, UsageError

from .suites_ray import job, pipeline, scaling

if TYPE_CHECKING:
    from .measure import Row, Settings

log = logging.getLogger("maskrcnn")


@click.command()
@click.option(
    "--only", metavar="SECTION,…", help="masks, coco, fetch, pipeline, scaling, job; by default all."
)
@click.option("--images", metavar="DIR", help="Photos to measure with; by default they are generated.")
@click.option("--model", metavar="NAME", help="By default ResNet-50-FPN with random weights.")
@click.option("--s3", metavar="URL", help="A prefix s3://… whose objects are fetched.")
@click.option(
    "--repeats", type=click.IntRange(1), default=5, show_default=True, help="Pairs of runs per row."
)
@click.option("--quick", is_flag=True, help="Small sizes, to see that it runs; the figures mean little.")
@click.option("--json", "json_path", metavar="PATH", help="Write the rows and the machine's record there.")
def main(only: str | None, json_path: str | None, **options: Any) -> None:
    """Measure this machine: ratios against other libraries, in one run, after results were compared."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(logging.INFO)
    try:
        run_bench(only, json_path, **options)
    except UsageError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except RunError as error:
        click.echo(f"stopped: {error}", err=True)
        sys.exit(3)


def run_bench(
    only: str | None,
    json_path: str | None,
    *,
    images: str | None,
    model: str | None,
    s3: str | None,
    repeats: int,
    quick: bool,
) -> None:
    """Run the sections, print their table and the machine's record, and write them as JSON if asked.

    Args:
        only: names of sections, separated by commas; None: all.
        json_path: where the JSON goes; None: nowhere.
        images: a folder of photos; None: they are generated.
        model: name or path; None: random weights.
        s3: a prefix of objects; None: nothing is fetched.
        repeats: pairs of runs a row.
        quick: small sizes.

    Raises:
        UsageError: there is no such section or folder.
        RunError: two sides' results differ.
    """
    try:
        from .measure import Settings, machine, table, to_json
    except ImportError as error:
        raise UsageError(f"the benchmarks need the package {error.name}; pip install {error.name}") from error
    chosen = chosen_sections(only)
    folder_of_images = None if images is None else Path(images)
    if folder_of_images is not None and not folder_of_images.is_dir():
        raise UsageError(f"--images {images} is no folder")
    if json_path is not None and not Path(json_path).absolute().parent.is_dir():
        raise UsageError(f"--json {json_path}: there is no such folder")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="maskrcnn-bench-") as folder:
        for name, section in chosen.items():
            log.info("section %s", name)
            (Path(folder) / name).mkdir()
            settings = Settings(Path(folder) / name, repeats, quick, folder_of_images, model, s3)
            for row in section(settings):
                log.info("%s", table([row]).splitlines()[1])
                rows.append(row)
    facts = machine()
    click.echo(table(rows))
    click.echo("\n" + "  ".join(f"{name} {value}" for name, value in facts.items()))
    if json_path:
        asked = {"only": list(chosen), "repeats": repeats, "quick": quick, "images": images, "model": model}
        Path(json_path).write_text(to_json(rows, facts, asked), encoding="utf-8")


def chosen_sections(only: str | None) -> dict[str, "Section"]:
    """Return the sections of these names, in the order of `SECTIONS`.

    Raises:
        UsageError: there is no section of a name.
    """
    names = list(SECTIONS) if only is None else [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in SECTIONS]
    if unknown or not names:
        raise UsageError(f"--only {only}: the sections are {', '.join(SECTIONS)}")
    return {name: section for name, section in SECTIONS.items() if name in names}


# --- the others, which need no Ray; torch is imported where it is needed ---


def _masks(settings: "Settings") -> Iterable["Row"]:
    from .suites import masks

    return masks(settings)


def _coco(settings: "Settings") -> Iterable["Row"]:
    from .suites import coco

    return coco(settings)


def _fetch(settings: "Settings") -> Iterable["Row"]:
    from .suites import fetch

    return fetch(settings)


Section = Callable[["Settings"], Iterable["Row"]]
SECTIONS: Final[dict[str, Section]] = {
    "masks": _masks,
    "coco": _coco,
    "fetch": _fetch,
    "pipeline": pipeline,
    "scaling": scaling,
    "job": job,
}
