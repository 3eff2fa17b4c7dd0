"""The columns of the tables, and the only function that converts torchvision's names to COCO's.

`docs/reference/tables.md` is generated from here. `SCHEMA_VERSION` is in `run.json` and in each Parquet footer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .types import Category, Detections

SCHEMA_VERSION: Final = 2
INSTANCES_PER_IMAGE: Final = 2**20
"""Number of ids reserved for each image: `id = row * INSTANCES_PER_IMAGE + instance + 1`, below 2^53 for 2^33 rows."""

INSTANCES_PER_RASTER: Final = 2**28
"""Number of ids reserved for each image in a run of windows: below 2^53 for 2^25 rows."""

METADATA: Final = {b"maskrcnn.schema_version": str(SCHEMA_VERSION).encode()}


def _field(name: str, type_: pa.DataType, *, null: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable=null)


MANIFEST: Final = pa.schema(
    [
        _field("image_id", pa.int64()),
        _field("name", pa.string()),
        _field("uri", pa.string()),
        _field("bytes", pa.int64(), null=True),
        _field("etag", pa.string(), null=True),
    ],
    metadata=METADATA,
)
"""The inputs, in the order of `name`; the user's additional columns follow."""

SKIPPED: Final = pa.schema(
    [
        _field("name", pa.string()),
        _field("uri", pa.string()),
        _field("bytes", pa.int64(), null=True),
        _field("kind", pa.string()),
    ],
    metadata=METADATA,
)
"""One row per file that a listing found and that is no input."""

RETIRED: Final = pa.schema(
    [
        _field("row", pa.int64()),
        _field("image_id", pa.int64()),
        _field("name", pa.string()),
        _field("uri", pa.string()),
        _field("reason", pa.string()),
        _field("generation", pa.int32()),
    ],
    metadata=METADATA,
)
"""One row per row of the manifest that no longer counts since an update found its input `changed` or `vanished`."""

PLACE: Final = pa.field(
    "place_in_archive",
    pa.struct(
        [
            ("offset", pa.int64()),
            ("stored", pa.int64()),
            ("packed", pa.int64()),
            ("method", pa.int16()),
            ("crc32", pa.int64()),
            ("refusal", pa.string()),
        ]
    ),
)
"""A column of manifests of which some inputs are in archives or tables: the fields of `io.archives.member.Member`, but
for name and size. Pictures in Parquet files have none, because their uri says where they are; an archive or a table
that could not be read has only `refusal`. The column is in no other table."""

IMAGES: Final = pa.schema(
    [
        _field("image_id", pa.int64()),
        _field("name", pa.string()),
        _field("uri", pa.string()),
        _field("status", pa.string()),
        _field("error", pa.string(), null=True),
        _field("message", pa.string(), null=True),
        _field("width", pa.int32(), null=True),
        _field("height", pa.int32(), null=True),
        _field("exif_orientation", pa.int8(), null=True),
        _field("n_instances", pa.int32()),
        _field("capped", pa.bool_()),
        _field("bytes", pa.int64(), null=True),
        _field("etag", pa.string(), null=True),
    ],
    metadata=METADATA,
)
"""One row per input; the manifest's additional columns follow."""

_BOX: Final = pa.struct([_field(name, pa.float32()) for name in ("xmin", "ymin", "xmax", "ymax")])
_MASK_BOX: Final = pa.struct([_field(name, pa.int32()) for name in ("xmin", "ymin", "xmax", "ymax")])
_SIZE: Final = pa.list_(_field("element", pa.int32()))
_SEGMENTATION: Final = pa.struct([_field("size", _SIZE), _field("counts", pa.string())])
# Parquet's writer accepts a null struct only if its fields are nullable; the fields of a frame never are null.
_FRAME: Final = pa.struct(
    [_field(name, pa.int32(), null=True) for name in ("col_off", "row_off", "width", "height")]
)

INSTANCES: Final = pa.schema(
    [
        _field("id", pa.int64()),
        _field("image_id", pa.int64()),
        _field("instance", pa.int32()),
        _field("category_id", pa.int32()),
        _field("category", pa.dictionary(pa.int32(), pa.string())),
        _field("score", pa.float32()),
        _field("box", _BOX),
        _field("area", pa.int64()),
        _field("mask_box", _MASK_BOX),
        _field("segmentation", _SEGMENTATION),
        _field("frame", _FRAME, null=True),
        _field("touches_border", pa.bool_()),
    ],
    metadata=METADATA,
)
"""One row per object, in image coordinates."""

WINDOWS: Final = pa.schema(
    [
        _field("image_id", pa.int64()),
        _field("window_id", pa.int32()),
        _field("col_off", pa.int32()),
        _field("row_off", pa.int32()),
        _field("width", pa.int32()),
        _field("height", pa.int32()),
        _field("status", pa.string()),
        _field("error", pa.string(), null=True),
        _field("message", pa.string(), null=True),
        _field("n_pieces", pa.int32()),
        _field("capped", pa.bool_()),
    ],
    metadata=METADATA,
)
"""One row per window of an image, row by row from 0; one window without pixels if the image's size is unknown."""

PIECES: Final = pa.schema(
    [
        _field("image_id", pa.int64()),
        _field("window_id", pa.int32()),
        _field("piece", pa.int32()),
        _field("instance", pa.int32()),
        _field("category_id", pa.int32()),
        _field("category", pa.dictionary(pa.int32(), pa.string())),
        _field("score", pa.float32()),
        _field("box", _BOX),
        _field("area", pa.int64()),
        _field("mask_box", _MASK_BOX),
        _field("segmentation", _SEGMENTATION),
    ],
    metadata=METADATA,
)
"""One row per detection in a window, in window coordinates, with the object (`instances.instance`) it is part of."""


def _without_masks(schema: pa.Schema) -> pa.Schema:
    """Return a schema whose columns of the mask may be null."""
    for name, nullable in _NO_MASK.items():
        schema = schema.set(schema.get_field_index(name), _field(name, nullable, null=True))
    return schema


_NO_MASK: Final = {
    # Parquet's writer accepts a null struct only if its fields are nullable.
    "mask_box": pa.struct([field.with_nullable(nullable=True) for field in _MASK_BOX]),
    "segmentation": pa.struct([field.with_nullable(nullable=True) for field in _SEGMENTATION]),
}
"""The columns of the mask, which are null throughout in runs of models that detect boxes only."""
_BOX_INSTANCES: Final = _without_masks(INSTANCES)
_BOX_PIECES: Final = _without_masks(PIECES)


def instances_schema(*, masks: bool) -> pa.Schema:
    """Return the schema of `instances`: `INSTANCES`, or without masks, where `segmentation` and `mask_box` are null."""
    return INSTANCES if masks else _BOX_INSTANCES


def pieces_schema(*, masks: bool) -> pa.Schema:
    """Return the schema of `pieces`, as `instances_schema`."""
    return PIECES if masks else _BOX_PIECES


ITEMS: Final = pa.schema(
    [
        *MANIFEST,
        _field("image_row", pa.int64()),
        _field("window_id", pa.int32()),
        _field("col_off", pa.int32()),
        _field("row_off", pa.int32()),
        _field("window_width", pa.int32()),
        _field("window_height", pa.int32()),
        _field("image_width", pa.int32()),
        _field("image_height", pa.int32()),
        _field("block_width", pa.int32(), null=True),
        _field("block_height", pa.int32(), null=True),
        _field("header_error", pa.string(), null=True),
        _field("header_message", pa.string(), null=True),
    ],
    metadata=METADATA,
)
"""The inputs of a shard of windows: a manifest whose inputs are windows, numbered through the run as `image_id`. If the
image's header could not be read, sizes are zero and the error is set; blocks are null for images read as a whole."""


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The result of one input: detections, or an error."""

    row: int
    """Row of the manifest, from 0."""
    image_id: int
    name: str
    uri: str
    bytes: int | None
    etag: str | None
    detections: Detections | None
    """None if it failed."""
    error: str | None = None
    message: str | None = None
    width: int | None = None
    """After EXIF orientation, in pixels; None if the image could not be opened."""
    height: int | None = None
    exif_orientation: int | None = None
    skipped: bool = False
    """Whether it is a window without any valid pixel."""

    @property
    def status(self) -> str:
        """`ok`, `empty` (no detections), `failed` or `skipped`."""
        if self.skipped:
            return "skipped"
        if self.detections is None:
            return "failed"
        return "ok" if len(self.detections) else "empty"


def images_schema(manifest: pa.Schema) -> pa.Schema:
    """Return the schema of `images`: the fixed columns, then the manifest's additional ones."""
    additional = [field for field in manifest if field.name not in (*MANIFEST.names, PLACE.name)]
    return pa.schema([*IMAGES, *additional], metadata=METADATA)


def images_table(results: Sequence[ImageResult], manifest_rows: pa.Table) -> pa.Table:
    """Return the rows of `images` for consecutive rows of the manifest.

    Args:
        results: one for each row of `manifest_rows`, in the same order.
        manifest_rows: the manifest's rows, whose additional columns are copied.
    """
    columns: dict[str, Any] = {
        "n_instances": [0 if r.detections is None else len(r.detections) for r in results],
        "capped": [r.detections is not None and r.detections.capped for r in results],
    }
    for name in IMAGES.names:
        if name not in columns:
            columns[name] = [getattr(result, name) for result in results]
    schema = images_schema(manifest_rows.schema)
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else manifest_rows[field.name].combine_chunks()
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def instances_table(
    results: Sequence[ImageResult],
    categories: Sequence[Category],
    ids_per_image: int = INSTANCES_PER_IMAGE,
    *,
    masks: bool = True,
) -> pa.Table:
    """Return the rows of `instances`: `labels` become `category_id`, and `masks` become `segmentation`.

    Args:
        results: of any images.
        categories: of the model.
        ids_per_image: the number of ids reserved for each image.
        masks: whether the model detects masks; else their columns are null.
    """
    found = [(r, r.detections) for r in results if r.detections is not None]
    counts = np.array([len(d) for _, d in found], dtype=np.int64)
    rows = np.repeat(np.array([r.row for r, _ in found], dtype=np.int64), counts)
    image_ids = np.repeat(np.array([r.image_id for r, _ in found], dtype=np.int64), counts)
    instance = np.concatenate([np.arange(n, dtype=np.int32) for n in counts] or [np.empty(0, np.int32)])

    def column(name: str, empty: Any) -> Any:
        return np.concatenate([getattr(d, name) for _, d in found] or [empty])

    boxes = column("boxes", np.empty((0, 4), np.float32))
    labels = column("labels", np.empty(0, np.int32))
    schema = instances_schema(masks=masks)

    # The same dictionary for all shards, so that the dictionaries of the parts are equal.
    order = {category.id: position for position, category in enumerate(categories)}
    dictionary = pa.array([category.name for category in categories], pa.string())
    codes = pa.array([order[int(label)] for label in labels], pa.int32())
    mask_boxes, segmentation = (
        (
            _struct(column("mask_boxes", np.empty((0, 4), np.int32)), _MASK_BOX),
            _segmentation([d for _, d in found]),
        )
        if masks
        else (pa.nulls(len(labels), _NO_MASK[name]) for name in ("mask_box", "segmentation"))
    )
    arrays = [
        pa.array(rows * ids_per_image + instance + 1),
        pa.array(image_ids),
        pa.array(instance),
        pa.array(labels),
        pa.DictionaryArray.from_arrays(codes, dictionary),
        pa.array(column("scores", np.empty(0, np.float32))),
        _struct(boxes, _BOX),
        pa.array(column("areas", np.empty(0, np.int64))),
        mask_boxes,
        segmentation,
        _frames([d for _, d in found]),
        pa.array(column("touches_border", np.empty(0, np.bool_))),
    ]
    return pa.table(arrays, schema=schema)


def _segmentation(found: Sequence[Detections]) -> pa.StructArray:
    sizes = np.concatenate([np.empty((0, 2), np.int32), *(d.mask_sizes for d in found)])
    offsets = pa.array(np.arange(0, 2 * len(sizes) + 1, 2, dtype=np.int32))
    masks = [counts.decode("ascii") for d in found for counts in d.masks or ()]
    return pa.StructArray.from_arrays(
        [
            pa.ListArray.from_arrays(offsets, pa.array(sizes.ravel(), pa.int32()), type=_SIZE),
            pa.array(masks, pa.string()),
        ],
        fields=list(_SEGMENTATION),
    )


def _frames(found: Sequence[Detections]) -> pa.StructArray:
    pieces = [
        pa.nulls(len(d), _FRAME) if d.frames is None else _struct(d.frames, _FRAME) for d in found if len(d)
    ]
    return pa.concat_arrays(pieces) if pieces else pa.nulls(0, _FRAME)


@dataclass(frozen=True, slots=True, eq=False)
class InstanceColumns:
    """N rows of `instances` that all have masks, or all have none."""

    boxes: NDArray[np.float32]
    """(N, 4)"""
    labels: NDArray[np.int32]
    scores: NDArray[np.float32]
    areas: NDArray[np.int64]
    mask_boxes: NDArray[np.int32]
    """(N, 4)"""
    frames: NDArray[np.int32] | None
    """(N, 4), or None where masks cover the whole image."""
    counts: pa.Array | None
    """(N,) run lengths as text; None where there are boxes only."""

    @classmethod
    def of(cls, table: pa.Table) -> "InstanceColumns | None":
        """Return the columns of a table; None if some of its rows, but not all, have masks or frames."""
        if not all(table[name].null_count in (0, len(table)) for name in ("segmentation", "frame")):
            return None
        has_masks, has_frames = (table[name].null_count == 0 for name in ("segmentation", "frame"))
        segmentation = table["segmentation"].combine_chunks()
        return cls(
            structs_as_array(table["box"]),
            table["category_id"].to_numpy(),
            table["score"].to_numpy(),
            table["area"].to_numpy(),
            structs_as_array(table["mask_box"]),
            structs_as_array(table["frame"]) if has_frames else None,
            segmentation.field("counts") if has_masks else None,
        )

    def detections(self, image: dict[str, Any], start: int, stop: int) -> Detections:
        """Return the rows from `start` to `stop` as the detections of an image.

        Args:
            image: its row of `images`.
            start: its first row.
            stop: the end of its rows.
        """
        rows = slice(start, stop)
        size, capped = (image["height"], image["width"]), image["capped"]
        boxes, labels, scores = self.boxes[rows], self.labels[rows], self.scores[rows]
        if self.counts is None and stop > start:
            return Detections.of_boxes(*size, boxes, labels, scores, capped=capped)
        texts = [] if self.counts is None else self.counts.slice(start, stop - start).to_pylist()
        # Without masks the column is null, and its empty array is of no integers.
        mask_boxes = self.mask_boxes[rows].astype(np.int32, copy=False)
        return Detections(
            height=size[0],
            width=size[1],
            boxes=boxes,
            labels=labels,
            scores=scores,
            masks=tuple(text.encode("ascii") for text in texts),
            areas=self.areas[rows],
            mask_boxes=mask_boxes,
            capped=capped,
            frames=self.frames[rows] if self.frames is not None and stop > start else None,
        )


def detections_of(image: dict[str, Any], instances: pa.Table) -> Detections:
    """Return the rows of an image as `Detections`: the inverse of `instances_table`.

    Args:
        image: its row of `images`.
        instances: its rows of `instances`, in their order.

    Raises:
        ValueError: some of them have masks, or frames, and some have none.
    """
    columns = InstanceColumns.of(instances)
    if columns is None:
        raise ValueError(f"only some instances of image {image.get('name')} have masks or frames")
    return columns.detections(image, 0, len(instances))


def _struct(columns: NDArray[Any], type_: pa.StructType) -> pa.StructArray:
    """Return the columns of an (N, K) array as one column of structs."""
    arrays = [pa.array(np.ascontiguousarray(column)) for column in columns.T]
    return pa.StructArray.from_arrays(arrays, fields=list(type_))


def structs_as_array(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of structs of K equal fields as an array, (N, K)."""
    structs = column.combine_chunks()
    fields = range(structs.type.num_fields)
    return np.stack([structs.field(i).to_numpy(zero_copy_only=False) for i in fields], axis=1)
