"""Modules with networks of a user's own, without torch: they do what `--model planted` does, or something wrong."""

from pathlib import Path

PLANTED = """
import maskrcnn

print("imported")


def build(options, **arguments):
    print("built")
    return maskrcnn.PlantedSegmenter(
        min_score=options.min_score, max_detections=options.max_detections, keep=options.categories
    )
"""
"""The network of `--model planted`, which prints."""


def write_package(folder: Path) -> None:
    """Write a package `nets` whose module `pets` has `build`, and takes what it needs from another of its modules."""
    package = folder / "nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "planted.py").write_text(PLANTED)
    (package / "names.txt").write_text("plank\n")
    (package / "pets.py").write_text(
        "from pathlib import Path\n"
        "from .planted import build as build_planted\n"
        "assert Path(__file__).with_name('names.txt').read_text() == 'plank\\n'\n"
        "def build(options, *, depth=18, weights=None): return build_planted(options)\n"
    )
