"""The errors of this project, by who must act, and the counts in their messages.

    MaskrcnnError
    ├── UsageError          the user's command, configuration or input collection; exit code 2
    │   └── OwnNetworkError     the code of a network of the user's own breaks the interface, on any node
    ├── RunError            the run cannot go on (storage, weights, cluster), and can be resumed; exit code 3
    │   ├── StoreSetupError     a store cannot be used as the process is set up; exit code 2 before a run begins
    │   ├── StoreFailingError   the store refuses or fails so many reads that the images are not the cause
    │   └── HandedBackError     a worker was asked to stop, and hands its shard back
    ├── SegmenterError      the network raised an exception for a group of images; the image is to be identified
    └── ItemError           one image cannot be processed; it becomes a row of `images` with a code

The failure of an image never stops a run, and the failure of a run never becomes a row. `ItemError` becomes a row in
`pipeline.worker`; where only the polygons of an image failed, in `tiling.assemble`. What can be said about one image
when it is read stands in one table, `io.refusals`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

ERROR_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "not_found": "the object does not exist",
        "access_denied": "the store refused the read (403)",
        "archived": "the object is in an archive (S3 Glacier), and must be restored before it can be read",
        "storage_error": "the store failed, after retries",
        "changed": "the object changed since planning: its size or etag differs, or the local file's modification time",
        "empty_file": "the file has zero bytes",
        "too_many_bytes": "the file is larger than the limit on bytes",
        "not_an_image": "the content is not an image (HTML, text, an archive, …)",
        "unsupported_format": "an image or a raster, in a format, a compression or a layout that is not read",
        "unsupported_pixels": "float, 32-bit or multi-band pixels, which need --window and a stated --scale",
        "no_crs": "a raster without a location: no coordinate reference system, or no transform",
        "bad_georeference": "a raster whose transform does not fit its coordinate reference system, or whose polygons "
        "cannot be computed in it",
        "truncated": "the file ends before the image does",
        "corrupt": "the file cannot be decoded",
        "too_many_pixels": "the header states more pixels than the limit",
        "too_many_windows": "the image would be cut into more windows than the limit",
        "aspect": "so elongated that the model's resize would reduce a side to less than a pixel",
        "not_finite": "the network returned non-finite values for this image",
        "out_of_memory": "the image alone does not fit into memory",
        "partial": "some windows of the image failed; the others are kept",
        "timeout": "the image, processed alone, made no progress until its deadline",
        "worker_crash": "the image, processed alone, ended its process",
    }
)
"""The complete table of the values of the column `error`, with the meaning of each code."""


STORAGE_CODES: Final = frozenset({"access_denied", "storage_error"})
"""Codes whose cause is usually the store. `not_found` is not one of them: objects disappear one by one."""


KEPT_CODES: Final = ("partial", "bad_georeference")
"""Codes of images whose detections are kept: some windows failed, or the masks have no polygons."""


COSTLY_CODES: Final = frozenset({"worker_crash", "timeout", "out_of_memory"})
"""Codes of images that ended or blocked a process, and are not tried again unnecessarily."""


class MaskrcnnError(Exception):
    """Base class of the errors that this project raises deliberately."""


class UsageError(MaskrcnnError):
    """The command, its configuration or its inputs are wrong; the message states what to do."""


class OwnNetworkError(UsageError):
    """A network of the user's own does not do what the interface asks for; no image and no node is the cause.

    Attributes:
        what: what is wrong, without the network's name.
    """

    def __init__(self, model: str, what: str) -> None:
        super().__init__(model, what)
        self.what = what
        self._model = model

    def __str__(self) -> str:
        return f"--model {self._model}: {self.what}"


class RunError(MaskrcnnError):
    """The run stopped before its end for a reason other than its inputs; it can be resumed."""


class LimitReachedError(RunError):
    """The run stopped because the user had limited its time or its cost."""


class StoreSetupError(RunError):
    """A store cannot be used as this process is set up: credentials, address, region, a package, or the path.

    Repeating does not help. While a run is processed it stops the run like any `RunError`; before that, as a
    `UsageError` does, it ends the command with exit code 2.
    """


class StoreFailingError(RunError):
    """So many inputs failed with one code that the store or the credentials are the cause; repeating does not help."""


class HandedBackError(RunError):
    """A worker was asked to stop (a preemption notice) and did not finish; no image is the cause."""


class SegmenterError(MaskrcnnError):
    """The network raised an unexpected exception for a group of images.

    Attributes:
        code: error code of the image that is the cause, `worker_crash` or `out_of_memory`.
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
        width, height: of the image in pixels, int32, if its header could be read and the image is too large or too
            elongated; else None. In upright orientation, if the orientation is stored near the header.
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
