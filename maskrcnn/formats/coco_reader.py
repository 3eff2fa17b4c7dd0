"""The one reader of COCO JSON, for `train`, `evaluate` and `segment`: its memory is proportional to the columns.

Ids are names: any integer or text. What cannot be used costs itself alone, and is counted by kind; see `coco_findings`.
An annotation whose image id or category id is used twice cannot be attributed to one image or category: it is left out.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import UsageError
from ..io.manifests.sources import open_source, usage_errors
from ..io.storage import Storage
from ..io.stores.local_names import as_found
from ..io.temporary import Spilled
from ..io.url import Url, redact
from ..masks.rle import MAX_PIXELS
from .coco_checks import ANNOTATIONS, CATEGORY_LEFT_OUT, IMAGE_LEFT_OUT, Draft, Listed, check_draft, draft_of
from .coco_findings import Findings, id_of, integer_of, is_number, is_number_as_text, summary_of_errors
from .json_stream import read_lists

MAX_CATEGORY_ID: Final = 2**31 - 1
_LISTS: Final = ("images", "annotations", "categories")


@dataclass(frozen=True, slots=True)
class CocoImages:
    """The images of a COCO dataset."""

    ids: Sequence[int | str]
    """Integers, or texts, each once."""
    names: Sequence[str | None]
    """`file_name` of each image."""
    sizes: NDArray[np.int64]
    """(N, 2) height and width of each image in pixels; zeros where they are not stated."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class CocoCategory:
    """A category of a COCO dataset."""

    id: int
    """From 0."""
    name: str | None


@dataclass(slots=True)
class CocoFile:
    """A COCO dataset whose annotations are still to be checked against the images."""

    source: str
    images: CocoImages
    categories: tuple[CocoCategory, ...]
    """In the order of the file, each id and each name once."""
    findings: Findings
    """What is wrong with it; `read_annotations` adds to it."""
    n_images: int
    """The number of images in the file, whether they can be used or not."""
    n_annotations: int
    """The number of annotations in the file, likewise."""
    has_masks: bool
    """Whether the annotations have masks, and not only boxes."""
    _drafts: Spilled[Draft]
    _ids: list[tuple[NDArray[np.bool_], NDArray[np.int64]]]
    """`Draft.has_id` and `Draft.ids` of all drafts."""
    _images_left_out: Mapping[int | str | None, str]
    _categories_left_out: Mapping[int | str | None, str]

    def read_annotations(
        self,
        sizes: NDArray[np.int64],
        left_out: NDArray[np.bool_] | None = None,
        *,
        masks: bool = True,
    ) -> pa.Table:
        """Return the annotations that `annotation_tables` yields as one table."""
        return pa.concat_tables(
            [ANNOTATIONS.empty_table(), *self.annotation_tables(sizes, left_out, masks=masks)]
        )

    def annotation_tables(
        self,
        sizes: NDArray[np.int64],
        left_out: NDArray[np.bool_] | None = None,
        *,
        masks: bool = True,
    ) -> Iterator[pa.Table]:
        """Yield the annotations that can be used, and add what is wrong with the others to `findings`.

        Args:
            sizes: (N, 2) height and width of each image in pixels, as stated or, where not, as they are. Zeros:
                unknown, and masks of its annotations are left out silently.
            left_out: (N,) images that the caller has reported and does not use.
            masks: whether annotations must have masks; else only their boxes are used, and their masks are decoded
                only where they have no valid box.

        Yields:
            `coco_checks.ANNOTATIONS`, in the order of the file, some thousands at a time.
        """
        left_out = np.zeros(len(self.images), np.bool_) if left_out is None else left_out
        images = Listed({id_: at for at, id_ in enumerate(self.images.ids)}, self._images_left_out)
        categories = Listed({c.id: at for at, c in enumerate(self.categories)}, self._categories_left_out)
        for draft, again in zip(self._drafts, _doubled(self._ids), strict=True):
            yield check_draft(draft, again, images, categories, sizes, left_out, self.findings, masks=masks)


def _doubled(drafts: Sequence[tuple[NDArray[np.bool_], NDArray[np.int64]]]) -> list[NDArray[np.bool_]]:
    """Return for each draft which of its annotations have the id of an earlier one."""
    if not drafts:
        return []
    has_id = np.concatenate([has_id for has_id, _ in drafts])
    ids = np.concatenate([ids for _, ids in drafts])
    places = np.flatnonzero(has_id)
    again = np.zeros(len(ids), np.bool_)
    again[places] = True
    again[places[np.unique(ids[places], return_index=True)[1]]] = False
    return np.split(again, np.cumsum([len(has_id) for has_id, _ in drafts])[:-1])


def read_coco(source: str) -> CocoFile:
    """Read a COCO dataset.

    Args:
        source: a path or a URL.

    Raises:
        UsageError: it cannot be read, is not a COCO dataset, or has no category that can be used.
    """
    images: list[tuple[Any, ...]] = []
    categories: list[dict[str, Any]] = []
    drafts = Spilled[Draft]()
    ids: list[tuple[NDArray[np.bool_], NDArray[np.int64]]] = []
    has_masks = False
    count = 1
    for name, entries in lists_of(source, _LISTS):
        if name == "annotations":
            if entries:
                draft = draft_of(entries, count)
                drafts.append(draft)
                ids.append((draft.has_id, draft.ids))
                has_masks |= draft.has_shapes
                count += len(entries)
            continue
        check_objects(source, name, entries)
        if name == "images":
            images += [(entry.get("id"), name_of(entry), *map(entry.get, _SIZE_KEYS)) for entry in entries]
        else:
            categories += entries
    findings = Findings()
    listed, images_left_out = _images(images, findings)
    known, categories_left_out = _categories(categories, findings)
    if not known:
        why = summary_of_errors(findings.listed())
        raise UsageError(
            f"{source} has no category that can be used"
            + (f": {why}" if why else ": list them under `categories`")
        )
    return CocoFile(
        source,
        listed,
        known,
        findings,
        len(images),
        count - 1,
        has_masks or not ids,
        drafts,
        ids,
        images_left_out,
        categories_left_out,
    )


def lists_of(
    source: str,
    names: Sequence[str],
    values: Sequence[str] = (),
    parse_float: Callable[[str], Any] = float,
) -> Iterable[tuple[str, list[Any]]]:
    """Yield the entries of the lists of a dataset, and some other values, each as a list of one.

    Raises:
        UsageError: a list is missing, or it cannot be read.
    """
    seen = set()
    with usage_errors(source), open_source(source) as file:
        for name, entries in read_lists(file, source, names, values, parse_float):
            seen.add(name)
            yield name, entries
    if absent := [name for name in names if name not in seen]:
        raise UsageError(
            f"{source} is not a COCO dataset: it has no list {', '.join(f'`{n}`' for n in absent)}"
        )


def check_objects(source: str, name: str, entries: Sequence[Any]) -> None:
    """Raise UsageError if an entry of a list is no object."""
    for entry in entries:
        if not isinstance(entry, dict):
            shown = json.dumps(entry, default=str)[:80]
            raise UsageError(f"{source} is not a COCO dataset: `{name}` holds {shown} instead of objects")


# --- images -------------------------------------------------------------------------------------------------

_SIZE_KEYS: Final = ("height", "width")
_IMAGE_KEYS: Final = ("id", "file_name", *_SIZE_KEYS)


def name_of(image: Mapping[str, Any]) -> Any:
    """Return the `file_name` of an image; in LVIS, which has none, the last two parts of its `coco_url`.

    >>> name_of({"coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg"})
    'train2017/000000391895.jpg'
    """
    url = image.get("coco_url")
    if "file_name" in image or not isinstance(url, str):
        return image.get("file_name")
    return "/".join(Url.parse(redact(url)).key.split("/")[-2:])


def _images(
    entries: Sequence[tuple[Any, ...]], findings: Findings
) -> tuple[CocoImages, dict[int | str | None, str]]:
    """Return the images that can be used; and by id, why annotations of the others are left out."""
    ids = [id_of(entry[0]) for entry in entries]
    counts = Counter(ids)
    doubled: dict[int | str | None, list[str]] = {}
    for id_, entry in zip(ids, entries, strict=True):
        if counts[id_] > 1:
            doubled.setdefault(id_, []).append(str(entry[1] or ""))
    kinds = {type(value) for value in counts}
    mixed = {int, str} <= kinds
    kept: list[tuple[int | str, str | None, tuple[int, int]]] = []
    left_out: dict[int | str | None, str] = {}
    for id_, entry in zip(ids, entries, strict=True):
        name = entry[1] if isinstance(entry[1], str) and entry[1] else None
        shown = f"{id_!r} {name or ''}".rstrip()
        height, width = (integer_of(side) or 0 for side in entry[2:])
        stated = min(height, width) >= 1
        if id_ is None:
            findings.error("image without an id", json.dumps(dict(zip(_IMAGE_KEYS, entry, strict=True))))
        elif mixed and isinstance(id_, str):
            findings.error("image whose id is a text, where others are integers", shown)
            left_out[id_] = IMAGE_LEFT_OUT
        elif counts[id_] > 1:
            if id_ not in left_out:
                findings.error("image id used twice", f"{id_!r} {', '.join(doubled[id_])}")
            left_out[id_] = "annotation of an image id used twice"
        elif stated and height * width > MAX_PIXELS:
            findings.error("image of 2^32 pixels or more, for which COCO has no masks", shown)
            left_out[id_] = IMAGE_LEFT_OUT
        else:
            if not stated:
                texts = all(map(is_number_as_text, entry[2:]))
                what = (
                    "whose height and width are texts, not numbers" if texts else "without height and width"
                )
                findings.warning(f"image {what}; the file's are used", shown)
            kept.append((id_, name, (height, width) if stated else (0, 0)))
    sizes = np.array([size for _, _, size in kept], np.int64).reshape(-1, 2)
    return CocoImages([id_ for id_, _, _ in kept], [name for _, name, _ in kept], sizes), left_out


_IMAGE_FOLDERS: Final = ("images", "data", "imgs", "img", "JPEGImages")


def find_images_root(source: str, names: Sequence[str], probes: int = 20) -> str:
    """Return the folder in which most of some images exist.

    The places are those that datasets use: beside the JSON (Roboflow, labelme), `images/` (CVAT, Label Studio), `data/`
    (FiftyOne) and its like, a folder of the JSON's name or of its first or last word; and, for COCO's own layout of
    `annotations/instances_train2017.json` and `train2017/`, the same places in the folder above.

    Args:
        source: path or URL of the JSON.
        names: `file_name` of the images; those that are not paths below a folder are not looked for.
        probes: the maximum number of images that are looked for.

    Raises:
        UsageError: none of them exists in any of the folders.
    """
    folder = Url.parse(source).folder
    names = [path for path in map(below, names) if path]
    if not names:
        return folder.text
    some = names[:: max(1, len(names) // probes)][:probes]
    found: dict[str, int] = {}
    for place in _places(folder, source.rpartition("/")[2].rpartition(".")[0]):
        found[place] = _count_existing(place, some)
        if found[place] == len(some):
            return place
    best = max(found, key=lambda place: found[place])
    if not found[best]:
        raise UsageError(
            f"{source}: none of its images ({', '.join(map(repr, some[:3]))}{', …' if len(some) > 3 else ''}) is in "
            f"{', '.join(found)}: name their folder with --images-root"
        )
    return best


def _places(folder: Url, stem: str) -> list[str]:
    """Return the folders in which a dataset's images may be, given that of its JSON and the JSON's name."""
    splits = [word for word in (stem.rpartition("_")[2], re.split("[_.-]", stem)[0]) if word]
    below = [*_IMAGE_FOLDERS, stem, *splits, *(f"images/{split}" for split in splits)]
    folders = [folder] if (above := _folder_above(folder)) is None else [folder, above]
    places = [place for each in folders for place in (each, *(each.join(name) for name in below if name))]
    return list(dict.fromkeys(place.text for place in places))


def below(name: str) -> str | None:
    """Return a `file_name` as a path below a folder; None where it is absolute, a URL, or leads out of the folder.

    >>> [below(name) for name in ("./a//b.png", "a/b.png", "../a.png", "/a.png", "s3://a/b.png", "a/")]
    ['a/b.png', 'a/b.png', None, None, None, None]
    """
    parts = re.split(r"[/\\]", name)
    if not name.isprintable() or "://" in name or ".." in parts or not parts[0] or parts[-1] in ("", "."):
        return None
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _folder_above(folder: Url) -> Url | None:
    """Return the folder that contains a folder; None at the root of a store."""
    if folder.is_local:
        path = folder.local_path.absolute()
        return Url.parse(str(path.parent)) if path.parent != path else None
    head, slash, _ = folder.key.rstrip("/").rpartition("/")
    return Url(folder.scheme, folder.bucket, head + slash) if folder.key.strip("/") else None


def _count_existing(folder: str, names: Sequence[str]) -> int:
    storage = Storage(folder)
    place = Url.parse(folder)
    if place.is_local:
        return sum(os.path.lexists(as_found(place.join(name).text)) for name in names)
    return sum(storage.exists(name) for name in names)


# --- categories ---------------------------------------------------------------------------------------------

_NO_CATEGORY_ID: Final = "without an id that is an integer from 0"


def _categories(
    entries: Sequence[Mapping[str, Any]], findings: Findings
) -> tuple[tuple[CocoCategory, ...], dict[int | str | None, str]]:
    """Return the categories that can be used; and by id, why annotations of the others are left out."""
    left_out: dict[int | str | None, str] = {}
    numbered: list[tuple[int, Any]] = []
    for entry in entries:
        number = integer_of(entry.get("id"))
        if number is None or not 0 <= number <= MAX_CATEGORY_ID:
            id_ = id_of(entry.get("id"))
            quoted = is_number_as_text(id_)
            what = (
                "whose id is a text, not an integer (write it without quotes)" if quoted else _NO_CATEGORY_ID
            )
            findings.error(f"category {what}", json.dumps(entry))
            if id_ is not None:
                left_out[id_] = CATEGORY_LEFT_OUT
        else:
            numbered.append((number, entry.get("name")))
    by_id = Counter(number for number, _ in numbered)
    for number in [number for number, count in by_id.items() if count > 1]:
        names = [repr(name) for other, name in numbered if other == number]
        findings.error("category id used twice", f"{number} {', '.join(names)}")
        left_out[number] = "annotation of a category id used twice"
    kept: list[CocoCategory] = []
    for number, name in numbered:
        if number in left_out:
            continue
        if name is None or (isinstance(name, str) and not name.strip()):
            findings.warning("category without a name; it is named by its id", number)
            kept.append(CocoCategory(number, None))
        elif not isinstance(name, str):
            kind = "a number, not a text (write it in quotes)" if is_number(name) else "not a text"
            findings.error(f"category whose name is {kind}", f"{number} {name!r}")
            left_out[number] = CATEGORY_LEFT_OUT
        elif not name.replace(" ", "").isprintable():
            findings.error("category whose name is not printable text", f"{number} {name!r}")
            left_out[number] = CATEGORY_LEFT_OUT
        else:
            kept.append(CocoCategory(number, name))
    return _without_doubled_names(kept, left_out, findings), left_out


def _without_doubled_names(
    categories: Sequence[CocoCategory], left_out: dict[int | str | None, str], findings: Findings
) -> tuple[CocoCategory, ...]:
    by_name = Counter(category.name for category in categories if category.name is not None)
    for name in [name for name, count in by_name.items() if count > 1]:
        ids = [category.id for category in categories if category.name == name]
        findings.error("category name used twice", f"{name!r} ({', '.join(map(str, ids))})")
        left_out |= dict.fromkeys(ids, "annotation of a category name used twice")
    kept = [category for category in categories if by_name.get(category.name or "", 1) == 1]
    by_folded_name = Counter(folded_name(category.name) for category in kept if category.name)
    for category in kept:
        if category.name and by_folded_name[folded_name(category.name)] > 1:
            findings.warning(
                "category name that differs from another in case or blanks alone", repr(category.name)
            )
    return tuple(kept)


def folded_name(name: str) -> str:
    """Return the name of a category without blanks and differences of case.

    >>> folded_name(" Traffic Light")
    'trafficlight'
    """
    return "".join(name.split()).casefold()
