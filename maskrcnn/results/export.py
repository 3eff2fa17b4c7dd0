"""Export a finished run to formats that other tools read: COCO JSON, CSV, PNG label maps.

Each export streams the tables and writes to an empty folder or prefix. The tables remain authoritative: an export
leaves out failed images, and values that its format cannot represent.
"""

import csv
import hashlib
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray
from PIL import Image

from ..errors import RunError, UsageError, plural
from ..formats.coco_writer import image_batches, instance_batches, plan_files, write_dataset, write_results
from ..io.parquet import Part
from ..io.storage import Storage
from ..io.temporary import temporary_folder
from ..masks.rle_decode import read_spans
from ..masks.spans import ranges
from ..schema import INSTANCES
from ..types import Category

CSV: Final = pa.schema(
    [
        ("name", pa.string()),
        ("image_id", pa.int64()),
        ("instance", pa.int32()),
        ("category_id", pa.int32()),
        ("category", pa.string()),
        ("score", pa.float32()),
        *[(side, pa.float32()) for side in ("xmin", "ymin", "xmax", "ymax")],
        ("area", pa.int64()),
    ]
)
"""The columns of `instances.csv`."""
MASKS_COLUMNS: Final = ("file", "value", "name", "image_id", "instance", "category_id", "category", "score")
_DRAWN_AT_ONCE: Final = 256
MAX_LABELS: Final = 2**16 - 1
"""Maximum number of instances in a 16-bit label map, besides the background."""

# Prefixes that spreadsheets interpret as a formula, including the full-width forms.
# https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA: Final = "^[=+\\-@\uff1d\uff0b\uff0d\uff20\t\r\n]"


def export_coco(
    run: Storage,
    parts: Sequence[Part],
    categories: Sequence[Category],
    dest: str,
    info: dict[str, Any],
    *,
    mode: str = "auto",
    masks: bool = True,
) -> int:
    """Write the COCO files of a run below `dest`, as planned by `coco_writer.plan_files`; return the annotations.

    Args:
        run: the run's directory.
        parts: all its parts, in order.
        categories: of its model.
        dest: path or url of an empty folder or prefix.
        info: `info` of the dataset form.
        mode: see `coco_writer.plan_files`.
        masks: whether the model detects masks.

    Raises:
        UsageError: `dest` is not empty, or masks have their own frames.
        RunError: something cannot be read or stored.
    """
    destination = _empty_destination(dest)
    count = 0
    for file in plan_files(parts, mode, masks=masks):
        count += write_dataset(
            run, file.parts, categories, file.dataset_target, info, destination=destination
        )
        for iou_type in file.iou_types:
            write_results(run, file.parts, file.results_target(iou_type), iou_type, destination=destination)
    return count


def export_csv(run: Storage, parts: Sequence[Part], dest: str) -> int:
    """Write `instances.csv` below `dest`, one row per instance (`CSV`), and return the number of rows.

    A name or category that a spreadsheet would interpret as a formula (it begins with =, +, -, @, a tab or a line
    break) is prefixed with an apostrophe. Texts are quoted; lines end with a line feed; the encoding is UTF-8.

    Raises:
        UsageError: `dest` is not empty.
        RunError: something cannot be read or stored.
    """
    destination = _empty_destination(dest)
    count = 0
    with temporary_folder() as folder:
        local = folder / "instances.csv"
        with pacsv.CSVWriter(local, CSV) as writer:
            for part in parts:
                names = _names(run, part)
                for batch in instance_batches(run, [part], _CSV_READ):
                    writer.write_batch(_csv_rows(batch, names))
                    count += len(batch)
        destination.put_file("instances.csv", local)
    return count


def export_png_masks(
    run: Storage, parts: Sequence[Part], dest: str, naming: Literal["name", "id"] = "name"
) -> int:
    """Write one PNG label map per image below `dest`/masks, and `masks.csv`; return the number of label maps.

    The value of a pixel is `instance` + 1, or 0 for background; if masks overlap, the one with the higher score is on
    top. The maps have 8 bits per pixel for up to 255 instances, else 16. `masks.csv` (`MASKS_COLUMNS`) has one row per
    instance, which describes a value of a file; formulas are escaped as in `export_csv`. An image without detections
    has a map of zeros and no row.

    Args:
        run: the run's directory.
        parts: all its parts, in order.
        dest: path or url of an empty folder or prefix.
        naming: `name`: after the image, keeping sub-folders (see `safe_name`). `id`: after its `image_id`.

    Raises:
        UsageError: `dest` is not empty, an image has more than `MAX_LABELS` instances, or masks have their own
            frames.
        RunError: something cannot be read or stored.
    """
    destination = _empty_destination(dest)
    _check_labels_fit(run, parts)
    count = 0
    with temporary_folder() as folder:
        local = folder / "masks.csv"
        with local.open("w", encoding="utf-8", newline="") as text:
            index = csv.writer(text, lineterminator="\n")
            index.writerow(MASKS_COLUMNS)
            names = DistinctNames()
            for image in _labelled_images(run, parts):
                stem = safe_name(image.name, image.image_id) if naming == "name" else str(image.image_id)
                path = f"masks/{names.name(stem, '.png', image.image_id)}"
                destination.write(path, _png(label_map(image.height, image.width, image.rles())))
                index.writerows(_index_rows(path, image))
                count += 1
        destination.put_file("masks.csv", local)
    return count


def label_map(
    height: int, width: int, rles: Sequence[dict[str, Any]]
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Draw masks into one label map, the first on top.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        rles: N <= `MAX_LABELS` masks as `pycocotools.mask` takes them, by score descending.

    Returns:
        (height, width), uint8 if N <= 255, else uint16: the number of the mask from 1, or 0.
    """
    # Column-major, like run lengths. The time depends on the pixels of the masks, not on those of the image.
    columns: Any = np.zeros(height * width, np.uint8 if len(rles) <= 255 else np.uint16)
    for last in range(len(rles), 0, -_DRAWN_AT_ONCE):
        first = max(last - _DRAWN_AT_ONCE, 0)
        spans = read_spans([_counts(rle) for rle in rles[first:last]], height, width)
        begin = spans.column * height + spans.start
        cuts = np.searchsorted(spans.of, np.arange(spans.n + 1))
        for number in range(last, first, -1):
            own = slice(*cuts[number - 1 - first : number + 1 - first])
            columns[ranges(begin[own], spans.stop[own] - spans.start[own])] = number
    labels: NDArray[np.uint8] | NDArray[np.uint16] = columns.reshape(width, height).T
    return labels


def _counts(rle: dict[str, Any]) -> bytes:
    counts: str | bytes = rle["counts"]
    return counts.encode() if isinstance(counts, str) else counts


def safe_name(name: str, image_id: int) -> str:
    r"""Return a safe relative path that is as similar to a name as possible, and unique per image.

    Sub-folders are kept. Parent references, drive letters, empty and over-long parts, and characters that some file
    system rejects are not; a changed name ends in `~` and its image's id, and so does a name that looks changed.

    >>> safe_name("site 1/übung.jpg", 7), safe_name("../../etc/passwd", 8)
    ('site 1/übung.jpg', 'etc/passwd~8')
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    cleaned = [_safe_part(part) for part in parts]
    # A folder must not have the same name as a label map beside it.
    cleaned[:-1] = [f"{folder}_" if folder.lower().endswith(".png") else folder for folder in cleaned[:-1]]
    safe = "/".join(cleaned) or "_"
    return safe if safe == name and not re.search(r"~\d+$", safe) else f"{safe}~{image_id}"


class DistinctNames:
    """Names of files that differ on every store, also on those that ignore case or the way an accent is encoded."""

    def __init__(self) -> None:
        self._taken: set[bytes] = set()

    def name(self, stem: str, suffix: str, image_id: int) -> str:
        """Return `stem` with its suffix; if that is taken, with `~` and the image's id between them.

        >>> names = DistinctNames()
        >>> [names.name(stem, ".png", 7) for stem in ("x", "y", "X")]
        ['x.png', 'y.png', 'X~7.png']
        """
        while (key := _folded(stem + suffix)) in self._taken:
            stem = f"{stem}~{image_id}"
        self._taken.add(key)
        return stem + suffix


def _folded(name: str) -> bytes:
    """Return what two names have in common that some store does not distinguish; a digest, since there may be many."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return hashlib.blake2b(folded.encode(), digest_size=16).digest()


def _safe_part(part: str) -> str:
    cleaned = re.sub(r'[\x00-\x1f\x7f<>:"|?*]', "_", part)
    # File systems allow 255 bytes; some are for the id and the suffix. Windows drops final blanks and dots.
    return cleaned.encode()[:200].decode(errors="ignore").rstrip(" .") or "_"


def _empty_destination(dest: str) -> Storage:
    destination = Storage(dest)
    if destination.list():
        raise UsageError(f"{dest} is not empty: export to an empty folder or prefix")
    return destination


# CSV

_CSV_READ: Final = ("image_id", "instance", "category_id", "category", "score", "box", "area")


def _names(run: Storage, part: Part) -> pa.Table:
    """Return `image_id` and `name` of a part's images."""
    batches = image_batches(run, [part], ("image_id", "name", "status"))
    schema = pa.schema([("image_id", pa.int64()), ("name", pa.string())])
    return pa.Table.from_batches([b.select(["image_id", "name"]).cast(schema) for b in batches], schema)


def _csv_rows(batch: pa.RecordBatch, names: pa.Table) -> pa.RecordBatch:
    position = pc.index_in(batch["image_id"], names["image_id"])
    if position.null_count:
        raise RunError("an instance belongs to no image of its part")
    name = names["name"].take(position).combine_chunks()
    columns = [
        _guarded(name), batch["image_id"], batch["instance"], batch["category_id"],
        _guarded(batch["category"].cast(pa.string())), batch["score"], *batch["box"].flatten(), batch["area"],
    ]  # fmt: skip
    return pa.record_batch(columns, schema=CSV)


def _guarded(texts: pa.StringArray) -> pa.StringArray:
    formula = pc.match_substring_regex(texts, _FORMULA)
    return pc.if_else(formula, pc.binary_join_element_wise("'", texts, ""), texts)


# Label maps

_IMAGES_READ: Final = ("image_id", "name", "status", "width", "height", "n_instances")
_LABELLED: Final = pa.schema(
    INSTANCES.field(name)
    for name in ("image_id", "instance", "category_id", "category", "score", "segmentation", "frame")
)


@dataclass(frozen=True, slots=True)
class _LabelledImage:
    """An image that did not fail, with its rows of `instances`, by score descending."""

    image_id: int
    name: str
    width: int
    height: int
    instances: pa.Table

    def rles(self) -> list[dict[str, Any]]:
        rles: list[dict[str, Any]] = self.instances["segmentation"].to_pylist()
        return rles


def _check_labels_fit(run: Storage, parts: Sequence[Part]) -> None:
    for batch in image_batches(run, parts, ("image_id", "status", "n_instances")):
        most = pc.max(batch["n_instances"]).as_py() or 0
        if most > MAX_LABELS:
            row = batch.filter(pc.equal(batch["n_instances"], most))
            raise UsageError(
                f"image {row['image_id'][0]} has {plural(most, 'instance')}; a label map holds at most {MAX_LABELS}"
            )


def _labelled_images(run: Storage, parts: Sequence[Part]) -> Iterator[_LabelledImage]:
    """Yield images with their instances; both tables are in the order of the manifest."""
    for part in parts:
        stream = instance_batches(run, [part], _LABELLED.names)
        waiting = _LABELLED.empty_table()
        for batch in image_batches(run, [part], _IMAGES_READ):
            for row in batch.to_pylist():
                n = row["n_instances"]
                while len(waiting) < n and (following := next(stream, None)) is not None:
                    waiting = pa.concat_tables([waiting, pa.Table.from_batches([following])])
                instances, waiting = waiting.slice(0, n), waiting.slice(n)
                if instances["image_id"].to_pylist() != [row["image_id"]] * n:
                    raise RunError(f"{part.instances} does not follow the rows of {part.images}")
                yield _LabelledImage(row["image_id"], row["name"], row["width"], row["height"], instances)


def _index_rows(path: str, image: _LabelledImage) -> Iterator[tuple[Any, ...]]:
    [name] = _guarded(pa.array([image.name])).to_pylist()
    rows = image.instances
    columns = (
        rows["instance"],
        rows["category_id"],
        _guarded(rows["category"].cast(pa.string())),
        rows["score"],
    )
    for instance, category_id, category, score in zip(*(c.to_pylist() for c in columns), strict=True):
        shortest = str(np.float32(score))
        yield path, instance + 1, name, image.image_id, instance, category_id, category, shortest


def _png(labels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG")
    return buffer.getvalue()
