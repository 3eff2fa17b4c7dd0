"""Fill the generated parts of the site: an MkDocs hook that reads schemas, error codes and public names from the code.

A page asks for a part with a comment on a line of its own: `<!-- generate: error-codes -->`,
`<!-- generate: columns NAME -->`, `<!-- generate: python-api -->` (the public names that the page does not have yet).
"""

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

import maskrcnn
from maskrcnn.errors import ERROR_CODES

DOCS = Path(__file__).parent
SCHEMAS = {
    "manifest": "maskrcnn.schema:MANIFEST",
    "skipped": "maskrcnn.schema:SKIPPED",
    "retired": "maskrcnn.schema:RETIRED",
    "images": "maskrcnn.schema:IMAGES",
    "instances": "maskrcnn.schema:INSTANCES",
    "windows": "maskrcnn.schema:WINDOWS",
    "pieces": "maskrcnn.schema:PIECES",
    "geo": "maskrcnn.formats.geoparquet:GEO",
    "evaluation": "maskrcnn.evaluation.evaluate_run:IMAGES",
}
"""Where each table's `pyarrow.Schema` is defined."""
_REQUEST = re.compile(r"^<!-- generate: ([\w-]+)(?: ([\w-]+))? -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_context: Any) -> str:
    """Replace each request of a page by the part it names (called by MkDocs for every page)."""
    return _REQUEST.sub(lambda request: _part(request, markdown), markdown)


def on_page_content(html: str, page: Any, **_context: Any) -> str:
    """Style the command line, and empty the cells of options that have no default or help (called by MkDocs)."""
    if page.file.src_uri != "reference/command-line.md":
        return html
    html = html.replace("<td><code>Sentinel.UNSET</code></td>", "<td></td>").replace(
        "<td>N/A</td>", "<td></td>"
    )
    return f'<div class="generated">{html}</div>'


def _part(request: re.Match[str], page: str) -> str:
    kind, name = request.groups()
    if kind == "python-api":
        return python_api(page)
    table = error_codes() if kind == "error-codes" else columns(name)
    return f'<div class="generated" markdown>\n\n{table}\n\n</div>'


def error_codes() -> str:
    """Return the closed table of error codes."""
    rows = (f"| `{code}` | {meaning} |" for code, meaning in ERROR_CODES.items())
    return "\n".join(["| Code | Meaning |", "|---|---|", *rows])


def schema_of(name: str) -> Any:
    """Return the `pyarrow.Schema` of a table by its name in `SCHEMAS`."""
    module, _, attribute = SCHEMAS[name].partition(":")
    return getattr(import_module(module), attribute)


def columns(name: str) -> str:
    """Return a table of the columns of one table: name, type and meaning.

    Raises:
        KeyError: a column has no description in `columns.toml`.
    """
    described = tomllib.loads((DOCS / "columns.toml").read_text(encoding="utf-8"))[name]
    lines = ["| Column | Type | Meaning |", "|---|---|---|"]
    for field in schema_of(name):
        if field.name not in described:
            raise KeyError(f"docs/columns.toml, [{name}]: describe the column {field.name!r}")
        lines.append(f"| `{field.name}` | {_type_of(field)} | {described[field.name]} |")
    if unknown := described.keys() - set(schema_of(name).names):
        raise KeyError(f"docs/columns.toml, [{name}]: no such column: {', '.join(sorted(unknown))}")
    return "\n".join(lines)


def _type_of(field: Any) -> str:
    return _spelled(field.type) + ("?" if field.nullable else "")


def _spelled(type_: Any) -> str:
    if pa.types.is_dictionary(type_):
        return _spelled(type_.value_type)
    if pa.types.is_list(type_):
        return f"list of {_spelled(type_.value_type)}"
    if pa.types.is_struct(type_):
        return f"struct({', '.join(f'{field.name} {_spelled(field.type)}' for field in type_)})"
    return {"float": "float32", "double": "float64"}.get(str(type_), str(type_))


def python_api(page: str) -> str:
    """Return a request to mkdocstrings for each public name of the package that a page does not request itself."""
    names = [name for name in maskrcnn.__all__ if not name.isupper()]
    return "\n\n".join(f"::: maskrcnn.{name}" for name in names if f"::: maskrcnn.{name}\n" not in page)
