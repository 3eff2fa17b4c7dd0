"""Render the four pages: one Jinja environment, one JPEG encoder, one form for embedded pictures.

All text is escaped, and a name that a template uses and is not given is an error. Templates are package data, so that
they are found in an installed wheel, also one that is imported from an archive.
"""

import base64
import functools
import io
from importlib import resources
from typing import Any, Final

import jinja2
from PIL import Image

from ..errors import plural
from ..types import Pixels
from .charts import number_text, percent_text, seconds_text

JPEG_QUALITY: Final = 80


def render(name: str, **values: Any) -> str:
    """Return a page.

    Args:
        name: file name of the template in `visualization/templates`.
        values: what the template prints.

    Raises:
        jinja2.TemplateNotFound: there is no such template.
        jinja2.UndefinedError: the template uses a name that is not among `values`.
    """
    return load(name).render(**values)


def load(name: str) -> jinja2.Template:
    """Return a compiled template; it is compiled once per process."""
    return _environment().get_template(name)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "data_uri": data_uri,
        "number": number_text,
        "percent": percent_text,
        "plural": plural,
        "score": score_text,
        "seconds": seconds_text,
    }
    return environment


def _source(name: str) -> str | None:
    file = resources.files(__package__).joinpath("templates", name)
    return file.read_text("utf-8") if file.is_file() else None


def score_text(value: float) -> str:
    """Return an AP, AR or PQ with three decimals; a negative one, which COCO uses for "not defined", as a dash.

    >>> score_text(0.5), score_text(-1)
    ('0.500', '-')
    """
    return "-" if value < 0 else f"{value:.3f}"


def encode_jpeg(picture: Pixels) -> bytes:
    """Return a picture, (height, width, 3) uint8, as JPEG for a page."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def data_uri(jpeg: bytes) -> str:
    """Return a JPEG file as a `data:` URI, which embeds it in a page.

    >>> data_uri(b"abc")
    'data:image/jpeg;base64,YWJj'
    """
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
