"""One environment renders the four pages: it escapes, refuses unknown names, and finds templates in an archive too."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import jinja2
import numpy as np
import pytest
from PIL import Image

import maskrcnn
from maskrcnn.visualization.templates import data_uri, encode_jpeg, load, render

PAGES = ("diff.html.j2", "evaluation.html.j2", "report.html.j2", "training.html.j2")


def test_the_four_pages_compile_once() -> None:
    for name in PAGES:
        assert load(name) is load(name)


def test_an_unknown_template_and_an_unknown_name_are_errors() -> None:
    with pytest.raises(jinja2.TemplateNotFound):
        load("none.html.j2")
    with pytest.raises(jinja2.UndefinedError):
        render("diff.html.j2", facts={})


def test_text_is_escaped() -> None:
    environment = load("diff.html.j2").environment
    assert environment.from_string("{{ name }}").render(name="<b>") == "&lt;b&gt;"
    assert environment.from_string("{{ n|plural('box') }}").render(n=2) == "2 boxes"


def test_a_picture_becomes_a_jpeg_in_a_uri() -> None:
    jpeg = encode_jpeg(np.full((6, 8, 3), 90, np.uint8))
    picture = Image.open(io.BytesIO(jpeg))
    assert (picture.format, picture.size) == ("JPEG", (8, 6))
    assert load("diff.html.j2").environment.from_string("{{ jpeg|data_uri }}").render(jpeg=jpeg) == data_uri(
        jpeg
    )


@pytest.mark.slow
def test_templates_are_found_where_the_package_is_an_archive(tmp_path: Path) -> None:
    """Templates are read as package data, not by a path beside the module."""
    source = Path(maskrcnn.__file__).parent
    with zipfile.ZipFile(tmp_path / "library.zip", "w") as archive:
        for path in source.rglob("*"):
            if path.suffix in {".py", ".j2"}:
                archive.write(path, path.relative_to(source.parent))
    code = (
        "from maskrcnn.visualization import templates; print(templates.__file__);"
        f"[templates.load(name) for name in {PAGES!r}]"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path / "library.zip"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(tmp_path / "library.zip"))
