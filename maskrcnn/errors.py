"""Everything that can go wrong, by who must act.

    MaskrcnnError
    ├── UsageError          the user's command, configuration or input collection; exit code 2
    ├── RunError            the run cannot go on (storage, weights, cluster), and can be resumed; exit code 3
    │   ├── StoreFailingError   the store refuses or fails on so many inputs that it is not theirs
    │   └── HandedBackError     a worker was told to go, and gives its shard back
    ├── SegmenterError      the network raised on a group of images; which one is at fault must be found out
    └── ItemError           one image cannot be processed; it becomes a row of `images` with a code

An item's fault never stops a run, a run's fault never becomes a row. `ItemError` becomes a row in one place, `worker`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

ERROR_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "not_found": "the object does not exist",
        "access_denied": "the store refused the read (403)",
        "storage_error": "the store failed, after retries",
        "changed": "the object is not the one that was planned: its size or etag differs, or the local file's time",
        "empty_file": "zero bytes",
        "too_many_bytes": "the file is larger than the limit on bytes",
        "not_an_image": "the content is no image (HTML, text, an archive, …)",
        "unsupported_format": "an image, but not JPEG, PNG, WebP, BMP, GIF or TIFF",
        "unsupported_pixels": "float, 32-bit or multi-band pixels, which need the raster mode's stated scaling",
        "no_crs": "a raster that does not say where it lies: no coordinate reference system, or no transform",
        "truncated": "the file ends before the image does",
        "corrupt": "the file cannot be decoded",
        "too_many_pixels": "the header promises more pixels than the limit",
        "aspect": "so elongated that the model's resize would make it less than a pixel high or wide",
        "not_finite": "the network gave values that are not finite for this image",
        "out_of_memory": "the image alone does not fit into memory",
        "partial": "some windows of the image failed; the others are kept",
        "timeout": "the image, alone, made no progress until its deadline",
        "worker_crash": "the image, alone, ended its process",
    }
)
"""The closed table of what may stand in the column `error`, with the meaning of each code."""


STORAGE_CODES: Final = frozenset({"access_denied", "storage_error"})
"""Codes that say more of the store than of the image. `not_found` is none: keys vanish one by one."""


COSTLY_CODES: Final = frozenset({"worker_crash", "timeout", "out_of_memory"})
"""Codes of images that ended or held up a process, and are not to be tried again without need."""


class MaskrcnnError(Exception):
    """Base of every error this project raises on purpose."""


class UsageError(MaskrcnnError):
    """The command, its configuration or its inputs are wrong; the message says what to do."""


class RunError(MaskrcnnError):
    """The run stopped before its end for a reason outside of its inputs; it can be resumed."""


class StoreFailingError(RunError):
    """So many inputs failed alike that the store or the credentials are at fault; no attempt can mend that."""


class HandedBackError(RunError):
    """A worker was told to go (a preemption notice) and did not finish; nobody is at fault."""


class SegmenterError(MaskrcnnError):
    """The network raised something unexpected on a group of images.

    Attributes:
        code: what the image at fault will be failed with, `worker_crash` or `out_of_memory`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = " ".join(message.split())[:500]

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ItemError(MaskrcnnError):
    """One image cannot be processed.

    Attributes:
        code: one of `ERROR_CODES`.
        message: one line for a person, without the code.
        width, height: of the image in pixels, int32, where its header could be read and said that it is too large or
            too elongated; else None. Upright, where the orientation stands near the header.
    """

    def __init__(
        self, code: str, message: str, *, width: int | None = None, height: int | None = None
    ) -> None:
        if code not in ERROR_CODES:
            raise ValueError(f"unknown error code {code!r}")
        super().__init__(code, message)
        self.code = code
        self.message = " ".join(message.split())[:500]
        self.width = width
        self.height = height

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """Return a count with its noun in the right number, for messages.

    Args:
        count: the number; thousands are separated by commas.
        noun: the singular; its last word is made plural.
        nouns: the plural, where it does not follow the usual spelling.

    >>> plural(1, "image"), plural(0, "image"), plural(1200, "category"), plural(2, "box")
    ('1 image', '0 images', '1,200 categories', '2 boxes')
    >>> plural(2, "kind of error", "kinds of errors")
    '2 kinds of errors'
    """
    return f"{count:,} {noun if count == 1 else nouns or _plural_of(noun)}"


def _plural_of(noun: str) -> str:
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"
