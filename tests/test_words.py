"""The words of names, messages, help and pages: the field's, and none of those that the project once used instead."""

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = sorted(path.name for path in (ROOT / "maskrcnn").iterdir() if (path / "__init__.py").exists())
GROUND_TRUTH = r"(?<!ground )(?<!ground_)(?<!ground-)(?<!--)(?<!=)"  # the option --truth, and its RUN=TRUTH
IN_NAMES = (
    r"weigh(s|ed|ing)?|scoresheet|reckon(s|ed)?|trunks?|inquest|convict(s|ed)?|verdicts?|ledger|sweep(s|ing)?|swept"
    r"|seams?|scraps?|unrle|recipes?|warm ?start|spurious|told|tells?|mend(s|ed|ing)?|survey|closeups?|scenery"
    r"|partscore"
)
IN_PROSE = (
    IN_NAMES
    + r"|learns?|learned from|(?<!there )(?-i:is none|are none)|is no number|are no numbers|none other|how sure"
    r"|one a line"
    r"|alike|how (many|large)|trials|warm ?started"
    r"|the most (actors|images|instances|pixels|pictures)|passed over|what is taken for what|plain(ly)? (re)?computed"
    r"|1 images|1 instances|1 windows|1 shards|what is there|purse|in the crowd|last words"
)
NAME = re.compile(rf"(?:{IN_NAMES}|{GROUND_TRUTH}truths?)", re.IGNORECASE)
EXCEPT = {'"recipe"', "tell"}  # a key in files that exist; the method of Python's files
PROSE = re.compile(rf"\b(?:{IN_PROSE}|{GROUND_TRUTH}truths?)\b", re.IGNORECASE)


def words_of(name: str) -> str:
    """Return an identifier as words: `read_ground_truth` and `ReadGroundTruth` as `read ground truth`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ").lower()


def offences_in_python(path: Path) -> list[str]:
    """Return each name, comment and string of a module that has one of the words."""
    text, found = path.read_text(), []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.string in EXCEPT:
            continue
        if token.type == tokenize.NAME:
            hits = [
                word
                for word in words_of(token.string).split()
                if NAME.fullmatch(word) and not word.startswith("truth")
            ]
            said = words_of(token.string)
            hits += ["truth"] if re.search(rf"\b{GROUND_TRUTH}truths?\b", said) else []
        elif token.type in (tokenize.STRING, tokenize.COMMENT):
            hits = [match[0] for match in PROSE.finditer(" ".join(token.string.replace("_", " ").split()))]
        else:
            continue
        found += [f"{path.relative_to(ROOT)}:{token.start[0]}: {hit}" for hit in hits]
    return found


def offences_in_text(path: Path, text: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for number, line in enumerate(text.splitlines(), 1)
        for match in PROSE.finditer(line.replace("_", " "))
    ]


def test_the_list_finds_what_it_names() -> None:
    assert words_of("readTruthOf_weighed") == "read truth of weighed"
    assert PROSE.search("weighs the result")
    assert PROSE.search("the truth")
    assert NAME.fullmatch("swept")
    assert not PROSE.search("the ground truth, its weights and the ground_truth")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_speaks_the_words_of_the_field(room: str) -> None:
    files = sorted((ROOT / "maskrcnn" / room).rglob("*.py"))
    assert [offence for path in files for offence in offences_in_python(path)] == []


def test_values_and_the_command_line_speak_them_too() -> None:
    files = [
        *(ROOT / "maskrcnn").glob("*.py"),
        *(ROOT / "jobs").rglob("*.py"),
        *(ROOT / "cluster").glob("*.py"),
    ]
    assert [offence for path in sorted(files) for offence in offences_in_python(path)] == []


def test_tests_speak_them_too() -> None:
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "test_words.py"]
    assert [offence for path in sorted(files) for offence in offences_in_python(path)] == []


def test_pages_speak_them_too() -> None:
    templates = sorted((ROOT / "maskrcnn" / "visualization" / "templates").glob("*.j2"))
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]
    pages += [*sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "cluster").glob("*.md"))]
    assert templates
    assert len(pages) > 3
    texts = {path: path.read_text() for path in [*templates, *pages]}
    changelog = ROOT / "CHANGELOG.md"
    texts[changelog] = re.sub(r"`[^`\n]+`", "", texts[changelog])  # it lists what is now called otherwise
    assert [offence for path, text in texts.items() for offence in offences_in_text(path, text)] == []


def test_notebooks_speak_them_too() -> None:
    found = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            found += offences_in_text(path, "".join(cell["source"]))
    assert found == []


def test_no_old_module_is_named_anywhere() -> None:
    """What moved has left no path behind, in strings, notebooks and pages neither."""
    flat = {path.stem for path in (ROOT / "maskrcnn").glob("*.py")} | set(ROOMS)
    files = [
        path
        for folder in ("maskrcnn", "jobs", "tests", "docs", "cluster")
        for path in (ROOT / folder).rglob("*.*")
    ]
    files += [
        *(ROOT / "notebooks").glob("*.ipynb"),
        *ROOT.glob("*.md"),
        ROOT / "Makefile",
        ROOT / "pyproject.toml",
    ]
    stale = []
    public = set(
        ast.literal_eval(
            re.search(r"__all__ = (\[.*?\])", (ROOT / "maskrcnn" / "__init__.py").read_text(), re.S)[1]
        )
    )
    for path in files:
        if path.suffix not in {".py", ".md", ".ipynb", ".yaml", ".toml", ".j2"} or path.name in {
            "test_words.py",
            "CHANGELOG.md",
        }:
            continue
        for match in re.finditer(r"(?<![\w./-])maskrcnn[./]([a-z_0-9]+)(?![\w-])(\.\w+)?", path.read_text()):
            name = match[1]
            if name not in flat | public | {"py", "schema_version", "no_such_name"} and not name.startswith(
                "__"
            ):
                stale.append(f"{path.relative_to(ROOT)}: {match[0]}")
    assert stale == []
