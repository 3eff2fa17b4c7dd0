"""A COCO dataset to train on: read, checked before the first step, and frozen as one table.

What cannot be used is listed by kind: an error stops a training, or its image or annotation is left out with
`--skip-invalid`; a warning names what is used otherwise than stated. For a network that detects masks, boxes and areas
are always those of the masks; for one that detects boxes only, the box of an annotation is that stated, or where it
states none, that of its mask.
"""

import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..errors import ItemError, UsageError, plural
from ..formats.coco_findings import Finding, Findings, summary_of_errors
from ..formats.coco_reader import CocoImages, below, find_images_root, read_coco
from ..imaging.decode import Limits, decode_image
from ..io.inputs import read_input
from ..io.schemes import STORES_IN_WORDS, is_supported
from ..io.stores.local_names import as_found
from ..io.url import Url, has_user, is_file, redact
from ..types import Category

LIMITS: Final = Limits(max_pixels=178_956_970, max_bytes=2**31, max_aspect=float("inf"))
"""Larger images are refused by their headers; `segment` does not read them whole either."""

SCHEMA: Final = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("labels", pa.list_(pa.int64()), nullable=False),
        pa.field("masks", pa.list_(pa.binary()), nullable=False),
        pa.field("boxes", pa.list_(pa.list_(pa.float64(), 4)), nullable=False),
        pa.field("crowd_labels", pa.list_(pa.int64()), nullable=False),
        pa.field("crowds", pa.list_(pa.binary()), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)
"""One row per image, in order of id. `labels` count the dataset's categories from 1; `masks` are COCO's compressed run
lengths over the whole image, or none for a network that detects boxes only: `boxes` are then the objects, xmin, ymin,
xmax, ymax in pixels within the image. Crowds are not among them: `crowd_labels` and `crowds` are theirs, always run
lengths; for a network that detects boxes only, those of their boxes. Empty masks and boxes are left out. `dataset` is
the JSON that lists the image, and `sha256` that of the image's file."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """What can be trained on, and what is wrong with the rest."""

    source: str
    """Path or URL of the COCO JSON; of several, one after the other."""
    images: pa.Table
    """Of `SCHEMA`."""
    categories: tuple[Category, ...]
    """In the order of their ids, which are names and may begin at 0; label 1 is the first."""
    findings: tuple[Finding, ...]
    n_listed: tuple[int, int]
    """The number of images and of annotations in the JSON, whether they can be used or not."""

    @property
    def n_left_out(self) -> tuple[int, int]:
        """The number of images and of annotations of the JSON that are not used."""
        used = self.n_objects + _count_of(self.images, "crowd_labels")
        return self.n_listed[0] - self.images.num_rows, self.n_listed[1] - used

    @property
    def n_objects(self) -> int:
        """The number of masks or boxes."""
        return _count_of(self.images, "labels")

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop a training."""
        return tuple(finding for finding in self.findings if finding.error)


def _count_of(images: pa.Table, column: str) -> int:
    """Return the number of entries of all lists of a column."""
    return len(pa.compute.list_flatten(images[column]))


def read_dataset(
    source: str,
    images_root: str | None = None,
    *,
    masks: bool = True,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Dataset:
    """Read a dataset and check all of it: each annotation, and each image to its last pixel.

    Args:
        source: path or URL of a COCO JSON: `images`, `annotations` with polygons or run lengths, `categories`.
        images_root: what `file_name` is relative to; None: found by `find_images_root`.
        masks: whether for a network that detects masks; else an annotation needs only a box or a mask.
        progress: called with the number of images checked, and that of all.

    Raises:
        UsageError: it is not a COCO dataset, has no image or category that can be used, or its images are not found.
        RunError: its store cannot be read at all.
    """
    file = read_coco(source)
    findings = file.findings
    order = sorted(range(len(file.categories)), key=lambda at: file.categories[at].id)
    categories = tuple(
        Category(category.id, category.name or str(category.id))
        for category in (file.categories[at] for at in order)
    )
    if not len(file.images):
        why = summary_of_errors(findings.listed())
        raise UsageError(f"{source} lists no image that can be used" + (f": {why}" if why else ""))
    named = _named(file.images, findings)
    names = [name for name, sound in zip(file.images.names, named, strict=True) if name and sound]
    root = images_root or find_images_root(source, names)
    sizes, digests = _checked_images(file.images, named, root, findings, progress)
    sound = np.array([digest is not None for digest in digests], np.bool_)
    annotations = file.read_annotations(sizes, ~sound, masks=masks)
    boxes = None if masks else _boxes(annotations)
    annotations, boxes = _trainable(annotations, boxes, findings)
    labels = np.empty(len(order), np.int64)
    labels[order] = np.arange(1, len(order) + 1)
    table = _table(source, file.images, sizes, digests, root, annotations, boxes, labels)
    _count(table, categories, findings)
    listed = file.n_images, file.n_annotations
    return Dataset(source, table, categories, findings.listed(), listed)


def split_dataset(images: pa.Table, share: float) -> tuple[pa.Table, pa.Table]:
    """Set a share of the images apart for validation, by their names, so that the same ones are always chosen.

    Of n names the share is n times `share`, rounded, and at least one on either side: those whose SHA-256 are the
    smallest. The order of the images changes nothing. An image that is added displaces at most one from validation or
    adds at most one; the others stay where they are. Images of one name stay together. Where one side would have no
    image with an object, though there are two of them, one is exchanged.

    Raises:
        UsageError: there are not two images of different names.
    """
    names = images["name"].to_pylist()
    counts = pa.compute.list_value_length(images["labels"]).to_pylist()
    with_objects = {name for name, count in zip(names, counts, strict=True) if count}
    order = sorted(set(names), key=lambda name: sha256(name.encode()).digest())
    if len(order) < 2:
        raise UsageError(
            f"{plural(images.num_rows, 'image')} cannot be split into training and validation at a share of {share}: "
            "give --val"
        )
    count = min(max(1, math.floor(share * len(order) + 0.5)), len(order) - 1)
    apart = set(_with_objects_on_both_sides(order, count, with_objects)[:count])
    is_apart = pa.array([name in apart for name in names], pa.bool_())
    return images.filter(pa.compute.invert(is_apart)), images.filter(is_apart)


def _with_objects_on_both_sides(order: Sequence[str], count: int, with_objects: Collection[str]) -> list[str]:
    """Return names in an order whose first `count`, and whose others, each have one with an object, if that can be.

    A single image with objects is trained on.
    """
    names = list(order)
    there = [at for at, name in enumerate(names) if name in with_objects]
    if there and there[0] >= count and len(there) > 1:
        names[count - 1], names[there[0]] = names[there[0]], names[count - 1]
    elif there and there[-1] < count:
        names[there[-1]], names[count] = names[count], names[there[-1]]
    return names


def coco_ground_truth(images: pa.Table, categories: tuple[Category, ...]) -> dict[str, Any]:
    """Return a frozen table in COCO dataset form, as `evaluate` takes it."""
    annotations: list[dict[str, Any]] = []
    for row in images.to_pylist():
        shapes = row["masks"] or row["boxes"]
        objects = [(label, shape, 0) for label, shape in zip(row["labels"], shapes, strict=True)]
        # A training begun by version 0.2 has no crowds.
        crowds = zip(row.get("crowd_labels", ()), row.get("crowds", ()), strict=True)
        for label, shape, is_crowd in objects + [(*crowd, 1) for crowd in crowds]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": row["image_id"],
                    "category_id": categories[label - 1].id,
                    **(_of_mask if row["masks"] or is_crowd else _of_box)(row, shape),
                    "iscrowd": is_crowd,
                }
            )
    return {
        "images": [
            {"id": row["image_id"], "file_name": row["name"], "height": row["height"], "width": row["width"]}
            for row in images.select(["image_id", "name", "height", "width"]).to_pylist()
        ],
        "annotations": annotations,
        "categories": [{"id": category.id, "name": category.name} for category in categories],
    }


def _of_mask(row: Mapping[str, Any], counts: bytes) -> dict[str, Any]:
    rle = {"size": [row["height"], row["width"]], "counts": counts}
    return {"segmentation": rle, "area": int(coco_mask.area(rle)), "bbox": coco_mask.toBbox(rle).tolist()}


def _of_box(_row: Mapping[str, Any], box: Sequence[float]) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {"area": (x1 - x0) * (y1 - y0), "bbox": [x0, y0, x1 - x0, y1 - y0]}


# --- images -------------------------------------------------------------------------------------------------


_WINDOWS: Final = re.compile(r"[A-Za-z]:[/\\]")
_FOREIGN: Final = "image whose file_name is "
_NOWHERE: Final = (
    f"{_FOREIGN}a whole path or URL where there is no file (make it relative, and give --images-root)"
)


def _named(images: CocoImages, findings: Findings) -> NDArray[np.bool_]:
    """Return (N,) which images have a file_name that can be read, and a size that can be trained on."""
    sound = np.zeros(len(images), np.bool_)
    places: dict[str, list[int]] = defaultdict(list)
    for at, (id_, name) in enumerate(zip(images.ids, images.names, strict=True)):
        height, width = images.sizes[at].tolist()
        if name is None:
            findings.error("image without a file_name", f"id {id_}")
        elif (fault := _fault_of_name(name)) is not None:
            findings.error(fault, repr(redact(name)))
        elif height * width > LIMITS.max_pixels:
            findings.error(
                f"image of more than {LIMITS.max_pixels:,} pixels",
                f"{name}: {height} x {width} (height x width)",
            )
        else:
            places[_place("", name)].append(at)
    for same in places.values():
        sound[same[0]] = len(same) == 1
        if len(same) > 1:  # each has a part of the objects, and would teach that the others are background
            ids = ", ".join(repr(images.ids[at]) for at in same[:3])
            findings.error(
                "file_name of several images (list it once, with all its annotations)",
                f"{images.names[same[0]]} (ids {ids}{', …' if len(same) > 3 else ''})",
            )
    return sound


def _fault_of_name(name: str) -> str | None:
    """Return what is wrong with a file_name; None for a path below the images' folder, a whole path, and a URL."""
    url = Url.parse(name)
    faults = (
        (not name.isprintable(), "not printable text"),
        (
            has_user(name),
            "a URL with a user or a password (credentials come from the environment)",
        ),
        (url.is_web, "an address on the web (download the image, and name its path)"),
        (not is_supported(url), f"a URL of no supported store (use a path, {STORES_IN_WORDS})"),
        (_WINDOWS.match(name), "a path with a drive of Windows (make it relative, and give --images-root)"),
        (not _is_whole(name) and not below(name), "not a path below the images' folder"),
    )
    return next((f"{_FOREIGN}{fault}" for wrong, fault in faults if wrong), None)


def _is_whole(name: str) -> bool:
    """Return whether a file_name says by itself where its image is."""
    url = Url.parse(name)
    return not url.is_local or (url.key.startswith("/") and not url.key.endswith("/"))


def _place(root: str, name: str) -> str:
    """Return the path or URL of an image."""
    if _is_whole(name):
        return Url.parse(as_found(name)).text
    return as_found(Url.parse(root).join(below(name) or name).text)


def _checked_images(
    images: CocoImages,
    named: NDArray[np.bool_],
    root: str,
    findings: Findings,
    progress: Callable[[int, int], None],
) -> tuple[NDArray[np.int64], list[str | None]]:
    """Return the (N, 2) height and width of all images, and the SHA-256 of each file.

    It is None where the image cannot be decoded or has not the size that is stated.
    """
    sizes = images.sizes.copy()
    digests: list[str | None] = [None] * len(images)
    places = np.flatnonzero(named).tolist()
    uris = [_place(root, str(images.names[at])) for at in places]
    with ThreadPoolExecutor(max_workers=min(32, 2 * (os.cpu_count() or 1))) as pool:
        for done, (at, image) in enumerate(zip(places, pool.map(_look, uris), strict=True), start=1):
            name, stated = images.names[at], tuple(images.sizes[at].tolist())
            if image == "not_found" and _is_whole(str(name)):
                findings.error(_NOWHERE, name)
            elif isinstance(image, str):
                findings.error("image that cannot be read", f"{name} ({image})")
            elif stated not in (image.size, (0, 0)):
                findings.error("image of another size than stated", _other_size(str(name), image, stated))
            else:
                sizes[at], digests[at] = image.size, image.sha256
            progress(done, len(places))
    return sizes, digests


def _other_size(name: str, image: "_Image", stated: tuple[int, int]) -> str:
    turned = (image.exif_orientation or 1) > 4 and stated == image.size[::-1]
    why = f"; EXIF orientation {image.exif_orientation} turns the file" if turned else ""
    actual, given = (f"{height} x {width}" for height, width in (image.size, stated))
    return f"{name} (height x width is {actual}, stated {given}{why})"


class _Image(NamedTuple):
    size: tuple[int, int]
    """Height and width in pixels, after EXIF."""
    exif_orientation: int | None
    sha256: str


def _look(uri: str) -> _Image | str:
    """Decode an image; return what is known of it, or the code of why it cannot be read."""
    if (url := Url.parse(uri)).is_local and not is_file(url.local_path):  # reading a pipe would block
        return "not_found"
    try:
        data = read_input(uri, LIMITS.max_bytes)
        image = decode_image(data, LIMITS)
    except ItemError as error:
        return error.code
    shape = image.pixels.shape
    return _Image((shape[0], shape[1]), image.exif_orientation, sha256(data).hexdigest())


# --- objects ------------------------------------------------------------------------------------------------


def _boxes(annotations: pa.Table) -> NDArray[np.float64]:
    """Return the boxes of annotations cut to their images, (N, 4) xmin, ymin, xmax, ymax, pixels."""
    x, y, width, height, rows, columns = (
        annotations[name].to_numpy() for name in ("x", "y", "width", "height", "mask_height", "mask_width")
    )
    sides = [
        np.clip(at, 0, end) for at, end in ((x, columns), (y, rows), (x + width, columns), (y + height, rows))
    ]
    return np.stack(sides, axis=1).astype(np.float64)


def _trainable(
    annotations: pa.Table, boxes: NDArray[np.float64] | None, findings: Findings
) -> tuple[pa.Table, NDArray[np.float64] | None]:
    """Return the annotations that are trained on and the crowds, and their boxes if there are any."""
    if boxes is None:
        shape, empty = "mask", annotations["mask_area"].to_numpy() == 0
    else:
        shape, empty = "box within its image", (boxes[:, 2:] <= boxes[:, :2]).any(1)
    crowd = annotations["crowd"].to_numpy() & ~empty
    for kind, rows in (
        ("crowd, whose region is not trained on as background", crowd),
        (f"empty {shape}, left out", empty),
    ):
        for number in annotations["number"].filter(pa.array(rows)).to_pylist():
            findings.warning(kind, f"annotation no. {number}")
    return annotations.filter(pa.array(~empty)), None if boxes is None else boxes[~empty]


def _region(box: Sequence[float], height: int, width: int) -> bytes:
    """Return a box as COCO's compressed run lengths."""
    x0, y0, x1, y1 = box
    (rle,) = coco_mask.frPyObjects(np.array([[x0, y0, x1 - x0, y1 - y0]]), height, width)
    return bytes(rle["counts"])


def _table(
    source: str,
    images: CocoImages,
    sizes: NDArray[np.int64],
    digests: Sequence[str | None],
    root: str,
    annotations: pa.Table,
    boxes: NDArray[np.float64] | None,
    labels: NDArray[np.int64],
) -> pa.Table:
    """Return the table of the images that can be used, `SCHEMA`; ids that are texts become 1, 2, … in their order."""
    are_texts = any(isinstance(id_, str) for id_ in images.ids)
    sound = [at for at, digest in enumerate(digests) if digest is not None]
    by_id = sorted(sound, key=lambda at: images.ids[at])
    of: dict[int, list[int]] = defaultdict(list)
    crowds_of: dict[int, list[int]] = defaultdict(list)
    places = zip(annotations["image"].to_pylist(), annotations["crowd"].to_pylist(), strict=True)
    for position, (image, is_crowd) in enumerate(places):
        (crowds_of if is_crowd else of)[image].append(position)
    label = labels[annotations["category"].to_numpy()].tolist()
    masks = annotations["counts"].to_pylist() if boxes is None else []
    corners = [] if boxes is None else boxes.tolist()
    names = [str(images.names[at]) for at in by_id]
    uris = [_place(root, name) for name in names]
    columns = {
        "image_id": [n if are_texts else images.ids[at] for n, at in enumerate(by_id, start=1)],
        "name": names,
        "uri": [os.path.abspath(uri) if Url.parse(uri).is_local else uri for uri in uris],  # noqa: PTH100 (keeps links)
        "height": sizes[by_id, 0],
        "width": sizes[by_id, 1],
        "labels": [[label[i] for i in of[at]] for at in by_id],
        "masks": [[masks[i] for i in of[at]] if boxes is None else [] for at in by_id],
        "boxes": [[] if boxes is None else [corners[i] for i in of[at]] for at in by_id],
        "crowd_labels": [[label[i] for i in crowds_of[at]] for at in by_id],
        "crowds": [
            [masks[i] if boxes is None else _region(corners[i], *sizes[at].tolist()) for i in crowds_of[at]]
            for at in by_id
        ],
        "dataset": [source] * len(by_id),
        "sha256": [digests[at] for at in by_id],
    }
    return pa.table(columns, schema=SCHEMA)


def _count(table: pa.Table, categories: tuple[Category, ...], findings: Findings) -> None:
    labels = set(table["labels"].combine_chunks().flatten().to_pylist())
    for label, category in enumerate(categories, start=1):
        if label not in labels:
            findings.warning("category that no object has", category.name)
    empty = table.filter(pa.compute.equal(pa.compute.list_value_length(table["labels"]), 0))
    for name, crowds in zip(empty["name"].to_pylist(), empty["crowds"].to_pylist(), strict=True):
        where = " outside of its crowds" if crowds else ""
        findings.warning(f"image without an object, trained on as background{where}", name)
