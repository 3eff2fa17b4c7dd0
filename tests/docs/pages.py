"""The pages of the documentation, and the code blocks in them."""

import importlib.util
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
GUIDES = [README, DOCS / "index.md", DOCS / "getting-started.md", *sorted((DOCS / "guides").glob("*.md"))]
"""Whose commands, Python and SQL are run."""
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "cluster").glob("*.md"))]
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Return `page:line`, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, language: str) -> list[Block]:
    """Return a page's blocks in one language, in their order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start()) + 2, match[2], textwrap.dedent(match[3]))
        for match in _BLOCK.finditer(text)
        if match[2] == language
    ]


def commands(page: Path) -> list[tuple[str, str]]:
    """Return each `maskrcnn` command in the shell blocks of a page, with its place; comments are left out."""
    found = []
    for block in blocks(page, "bash"):
        joined = re.sub(r"\\\n\s*", " ", block.text)
        for line in joined.splitlines():
            match = re.match(r"(?:ray job submit .* -- )?maskrcnn (.*)", line)
            if match:
                found.append((block.place, re.sub(r"\s+#.*$", "", match[1]).rstrip()))
    return found


def generator() -> ModuleType:
    """Import `docs/generate.py`, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
