"""Archives made for tests: the same files packed in each way that is read."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from picture_tables import parquet, table_of

KINDS: Final = ("photos.tar", "photos.tar.gz", "photos.tgz", "photos.zip", "stored.zip")
"""Names of archives, which say how they are packed."""


def packed(name: str, files: Mapping[str, bytes]) -> bytes:
    """Return an archive of files, in their order."""
    sink = io.BytesIO()
    if name.endswith(".zip"):
        method = zipfile.ZIP_STORED if name.startswith("stored") else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(sink, "w", method) as archive:
            for member, data in files.items():
                archive.writestr(zipfile.ZipInfo(member), data, method)
    else:
        with tarfile.open(fileobj=sink, mode="w:" if name.endswith(".tar") else "w:gz") as tar:
            for member, data in files.items():
                add(tar, member, data)
    return sink.getvalue()


FORMS: Final = ("folder", "tar", "zip", "parquet")
"""In which a collection may lie, for tests that draw one."""


def in_form(form: str, folder: Path) -> Path:
    """Return a folder of PNG files as it is, or packed into an archive or a table beside it.

    In an archive they have the same names; in a table these are the column `file`.
    """
    if form == "folder":
        return folder
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}
    packed_into = folder.with_name(f"{folder.name}.{form}")
    packed_into.write_bytes(
        parquet(table_of(files), 7) if form == "parquet" else packed(packed_into.name, files)
    )
    return packed_into


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    """Add a file, a link or whatever else the fields say, to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))
