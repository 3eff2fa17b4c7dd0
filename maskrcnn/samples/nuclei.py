"""Microscope images of nuclei, which the embedded model `nuclei` was not trained on."""

import shutil
from importlib.resources import as_file, files
from pathlib import Path

__all__ = ["write_nuclei"]


def write_nuclei(folder: str | Path) -> None:
    """Write 8 microscope images of nuclei as PNG files, and `instances.json`, a COCO JSON of their 396 nuclei.

    They are images of BBBC038v1, the Data Science Bowl 2018 (CC0 1.0), with the masks that its community corrected.

    Args:
        folder: the output folder, created if it does not exist; files of these names are replaced.

    Reference: https://bbbc.broadinstitute.org/BBBC038
    """
    with as_file(files(__package__) / "data" / "nuclei") as source:
        shutil.copytree(source, folder, dirs_exist_ok=True)
