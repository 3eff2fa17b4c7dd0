"""Archives made for tests: the same files packed in each way that is read."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

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


FORMS: Final = ("folder", "tar", "zip")
"""In which a collection may lie, for tests that draw one."""


def in_form(form: str, folder: Path) -> Path:
    """Return a folder of PNG files as it is, or packed into an archive beside it, in which they have the same names."""
    if form == "folder":
        return folder
    archive = folder.with_name(f"{folder.name}.{form}")
    archive.write_bytes(
        packed(archive.name, {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))})
    )
    return archive


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    """Add a file, a link or whatever else the fields say, to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))
