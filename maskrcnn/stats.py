"""Statistics of a collection as integers: counts, histograms with fixed bins, and sums.

With integers, addition is exactly associative and commutative: statistics of shards may be added in any order and
grouping, and recomputing them from Parquet gives the same file. Means and quantiles are derived at the end, in
`summary`.

A histogram with edges e0 < e1 < … counts values in [e0, e1), [e1, e2), …; the last bin includes its upper
edge. In JSON an infinite edge is `null`. Failed images are counted in `images.status` and `images.error` only.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .errors import RunError
from .types import Category

Ints = NDArray[np.int64]

STATS_VERSION: Final = 2
"""Version 1 had a dense matrix of categories that occur together, which is read too."""
STATUSES: Final = ("ok", "empty", "failed")


def _one_and_a_half(first: int, last: int) -> list[int]:
    """Return 2^first, 1.5 * 2^first, 2^(first + 1), … up to 2^last."""
    return [edge for k in range(first, last) for edge in (2**k, 3 * 2 ** (k - 1))] + [2**last]


SCORE_BINS: Final = 20
SCORE_EDGES: Final = np.arange(SCORE_BINS + 1, dtype=np.float32) / np.float32(SCORE_BINS)
"""21 edges 0, 0.05, …, 1 as float32, as scores are: a score of float32(0.05) lies in the second bin."""
HALF: Final = SCORE_BINS // 2
"""Index of the first bin of scores >= 0.5."""

COUNT_EDGES: Final = (*range(102), *(2**k for k in range(7, 21)), None)
"""Instances per image: one bin per number up to 100, then up to 128, 256, …, 2^20 and above."""

AREA_EDGES: Final = (0, 1, 2, *_one_and_a_half(1, 30)[1:], None)
"""Mask pixels: an empty mask, 1, 2, then two bins per doubling up to 2^30 and above."""

RELATIVE_SCALE: Final = 10**7
RELATIVE_TICKS: Final = (0, *(m * 10**k for k in range(6) for m in (10, 15, 20, 30, 50, 70)), RELATIVE_SCALE)
"""Mask area / image area, from 1e-6 to 1, six bins per decade; in units of 1e-7, to compare without rounding.

area * 10^7 stays below 2^63 up to masks of 9e11 pixels.
"""
RELATIVE_EDGES: Final = tuple(tick / RELATIVE_SCALE for tick in RELATIVE_TICKS)

COCO_EDGES: Final = (0, 32**2, 96**2, None)
"""COCO's small < 1024 <= medium < 9216 <= large, by mask pixels.

COCO's evaluation includes both ends of its ranges, so that an area of exactly 1024 or 9216 is counted in two of
them; here each instance is counted once, in the larger.
"""

POSITION_BINS: Final = 32
POSITION_EDGES: Final = tuple(k / POSITION_BINS for k in range(POSITION_BINS + 1))
"""Fractions of the image's width and height."""

SIZE_EDGES: Final = (0, *_one_and_a_half(4, 16), None)
"""Width and height of images in pixels: two bins per doubling from 16 to 65536 and above."""

_FIXED: Final[Mapping[str, tuple[float | None, ...]]] = {
    "instances_per_image": COUNT_EDGES,
    "area_px": AREA_EDGES,
    "area_relative": RELATIVE_EDGES,
    "area_coco": COCO_EDGES,
    "position": POSITION_EDGES,
    "image_size": SIZE_EDGES,
}
_SQUARE: Final = ("position", "image_size")


# The value


@dataclass(frozen=True, slots=True, eq=False)
class Stats:  # noqa: PLW1641 - arrays have no hash
    """Statistics of images and their instances; values with equal categories can be added.

    All arrays are int64 and read-only. K is the number of categories.

    Raises:
        ValueError: the categories are not sorted by distinct ids, or an array has a wrong shape or dtype.
    """

    categories: tuple[Category, ...]
    """By id, ascending."""
    status: Ints
    """(3,) images by status, in the order of `STATUSES`."""
    error: tuple[tuple[str, int], ...]
    """(code, number of images), sorted by code; only codes that occur."""
    category_instances: Ints
    """(K,)"""
    category_images: Ints
    """(K,) images in which the category occurs."""
    category_area_sum: Ints
    """(K,) sum of mask pixels."""
    category_scores: Ints
    """(K, 20) instances by score, `SCORE_EDGES`."""
    instances_per_image: Ints
    """(116,) images by number of instances, `COUNT_EDGES`."""
    area_px: Ints
    """(61,) instances by mask pixels, `AREA_EDGES`."""
    area_relative: Ints
    """(37,) instances by mask area / image area, `RELATIVE_EDGES`."""
    area_coco: Ints
    """(3,) small, medium, large: `COCO_EDGES`."""
    position: Ints
    """(32, 32) instances by the centre of their box in the image; rows are y, columns x."""
    pairs: Ints
    """(P, 3) indices i < j of two categories, and the number of images in which both occur, which is not 0; in order.

    Of K categories that occur, few of the K (K - 1) / 2 pairs do: 1.4 % of them in LVIS.
    """
    image_size: Ints
    """(26, 26) images by size, `SIZE_EDGES`; rows are height, columns width."""

    def __post_init__(self) -> None:
        ids = [category.id for category in self.categories]
        if sorted(set(ids)) != ids:
            raise ValueError("categories must be sorted by id, without repetition")
        for name, shape in _shapes(len(ids)).items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.int64:
                raise ValueError(f"{name}: {array.dtype}{array.shape}, expected int64{shape}")
            array.setflags(write=False)
        if self.pairs.shape != (len(self.pairs), 3) or self.pairs.dtype != np.int64:
            raise ValueError(f"pairs: {self.pairs.dtype}{self.pairs.shape}, expected int64(P, 3)")
        self.pairs.setflags(write=False)

    @classmethod
    def zero(cls, categories: Iterable[Category]) -> "Stats":
        """Return the statistics of no images: the neutral element of addition."""
        ordered = tuple(sorted(categories, key=lambda category: category.id))
        arrays = {name: np.zeros(shape, np.int64) for name, shape in _shapes(len(ordered)).items()}
        return cls(categories=ordered, error=(), pairs=np.empty((0, 3), np.int64), **arrays)

    def __add__(self, other: "Stats") -> "Stats":
        if self.categories != other.categories:
            raise ValueError("statistics with different categories cannot be added")
        error = dict(self.error)
        for code, count in other.error:
            error[code] = error.get(code, 0) + count
        return dataclasses.replace(
            self,
            error=tuple(sorted(error.items())),
            pairs=_summed(np.concatenate([self.pairs, other.pairs]), len(self.categories)),
            **{name: getattr(self, name) + getattr(other, name) for name in _shapes(len(self.categories))},
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stats):
            return NotImplemented
        return (self.categories, self.error) == (other.categories, other.error) and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in (*_shapes(len(self.categories)), "pairs")
        )

    def cooccurrence(self, chosen: Sequence[int] | NDArray[np.integer[Any]]) -> Ints:
        """Return for each pair of some categories the number of images in which both occur.

        Args:
            chosen: (C,) indices of categories, each once.

        Returns:
            (C, C): symmetric, the diagonal is `category_images`.
        """
        places = np.full(len(self.categories), -1)
        places[chosen] = np.arange(len(chosen))
        rows, columns = places[self.pairs[:, 0]], places[self.pairs[:, 1]]
        kept = (rows >= 0) & (columns >= 0)
        matrix = np.diag(self.category_images[chosen])
        matrix[rows[kept], columns[kept]] = matrix[columns[kept], rows[kept]] = self.pairs[kept, 2]
        return matrix

    @property
    def instances(self) -> int:
        """The number of instances."""
        return int(self.category_instances.sum())

    def to_json(self) -> dict[str, Any]:
        """Return the content of `stats.json`, of integers, strings and (as edges) floats and None only."""
        return {
            "schema_version": STATS_VERSION,
            "images": {
                "status": dict(zip(STATUSES, self.status.tolist(), strict=True)),
                "error": dict(self.error),
            },
            "instances": self.instances,
            "categories": [
                {
                    "id": category.id,
                    "name": category.name,
                    "instances": int(self.category_instances[k]),
                    "images": int(self.category_images[k]),
                    "area_sum": int(self.category_area_sum[k]),
                    "score_histogram": self.category_scores[k].tolist(),
                }
                for k, category in enumerate(self.categories)
            ],
            **{
                name: {"edges": list(edges), "counts": getattr(self, name).tolist()}
                for name, edges in _FIXED.items()
            },
            "cooccurrence": dict(zip(_PAIR, self._pairs_by_id().T.tolist(), strict=True)),
        }

    def _pairs_by_id(self) -> Ints:
        """Return `pairs` with the ids of the categories, (P, 3)."""
        ids = np.array([category.id for category in self.categories], np.int64)
        return np.column_stack([ids[self.pairs[:, :2]], self.pairs[:, 2]])

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Stats":
        """Return the value that `to_json` converted to `content`.

        Raises:
            RunError: it was written by a version with another schema or other bins.
        """
        version = content.get("schema_version")
        if version not in (1, STATS_VERSION):
            raise RunError(
                f"the statistics have schema version {version}, expected {STATS_VERSION}: segment the images again"
            )
        for name, edges in _FIXED.items():
            if content[name]["edges"] != list(edges):
                raise RunError(f"the statistics have other bins of {name}: segment the images again")
        rows = content["categories"]
        shapes = _shapes(len(rows))
        arrays: dict[str, Any] = {
            "status": [content["images"]["status"][name] for name in STATUSES],
            "category_instances": [row["instances"] for row in rows],
            "category_images": [row["images"] for row in rows],
            "category_area_sum": [row["area_sum"] for row in rows],
            "category_scores": [row["score_histogram"] for row in rows],
            **{name: content[name]["counts"] for name in _FIXED},
        }
        return cls(
            categories=tuple(Category(row["id"], row["name"]) for row in rows),
            pairs=_pairs_of(content["cooccurrence"], [row["id"] for row in rows]),
            error=tuple(sorted(content["images"]["error"].items())),
            **{name: np.array(values, np.int64).reshape(shapes[name]) for name, values in arrays.items()},
        )

    @classmethod
    def of_tables(cls, images: pa.Table, instances: pa.Table, categories: Iterable[Category]) -> "Stats":
        """Return the statistics of rows of `images` and all of their instances, each in any order.

        Raises:
            ValueError: an instance does not belong to an image that succeeded, or to a known category.
        """
        zero = cls.zero(categories)
        status = pc.index_in(images["status"], pa.array(STATUSES)).to_numpy()
        kept = images.filter(pa.array(status < STATUSES.index("failed")))
        errors = pc.value_counts(images["error"].drop_null()).to_pylist()
        width, height = (kept[name].to_numpy().astype(np.int64) for name in ("width", "height"))
        return cls(
            categories=zero.categories,
            status=_counts(status, len(STATUSES)),
            error=tuple(sorted((row["values"], row["counts"]) for row in errors)),
            instances_per_image=_histogram(kept["n_instances"].to_numpy(), COUNT_EDGES),
            image_size=_counts_2d(_bins(height, SIZE_EDGES), _bins(width, SIZE_EDGES), len(SIZE_EDGES) - 1),
            **_of_instances(kept["image_id"].to_numpy(), width, height, instances, zero.categories),
        )


def _shapes(k: int) -> dict[str, tuple[int, ...]]:
    """Return the arrays of a `Stats` of `k` categories, by name."""
    shapes: dict[str, tuple[int, ...]] = {
        "status": (len(STATUSES),),
        "category_instances": (k,),
        "category_images": (k,),
        "category_area_sum": (k,),
        "category_scores": (k, SCORE_BINS),
    }
    for name, edges in _FIXED.items():
        shapes[name] = (len(edges) - 1,) * (2 if name in _SQUARE else 1)
    return shapes


# Counting


def _of_instances(
    image_ids: Ints, width: Ints, height: Ints, instances: pa.Table, categories: Sequence[Category]
) -> dict[str, Ints]:
    """Return the arrays that count instances, given the ids and sizes of their images."""
    image = _positions(
        instances["image_id"].to_numpy(), image_ids, "instance of an image that does not exist"
    )
    ids = np.array([category.id for category in categories], np.int64)
    category = _positions(instances["category_id"].to_numpy(), ids, "instance of an unknown category")
    area = instances["area"].to_numpy()
    score_bin = np.searchsorted(SCORE_EDGES[1:-1], instances["score"].to_numpy(), side="right")
    scores = _counts(category * SCORE_BINS + score_bin, len(ids) * SCORE_BINS)
    area_sum = np.zeros(len(ids), np.int64)
    np.add.at(area_sum, category, area)

    x, y = _centres(instances["box"])
    column, row = _position_bins(x, width[image]), _position_bins(y, height[image])
    present = np.unique(image * len(ids) + category) if len(image) else np.empty(0, np.int64)
    relative = area * RELATIVE_SCALE // (width * height)[image]
    return {
        "category_instances": _counts(category, len(ids)),
        "category_images": _counts(present % max(len(ids), 1), len(ids)),
        "category_area_sum": area_sum,
        "category_scores": scores.reshape(-1, SCORE_BINS),
        "area_px": _histogram(area, AREA_EDGES),
        "area_relative": _histogram(relative, RELATIVE_TICKS),
        "area_coco": _histogram(area, COCO_EDGES),
        "position": _counts_2d(row, column, POSITION_BINS),
        "pairs": _pairs(*np.divmod(present, max(len(ids), 1)), len(ids)),
    }


def _centres(boxes: pa.ChunkedArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the centres' x and y in pixels."""
    xmin, ymin, xmax, ymax = (
        pc.struct_field(boxes, name).to_numpy().astype(np.float64)
        for name in ("xmin", "ymin", "xmax", "ymax")
    )
    return (xmin + xmax) / 2, (ymin + ymax) / 2


def _position_bins(centre: NDArray[np.float64], side: Ints) -> Ints:
    return np.clip(np.floor(centre * POSITION_BINS / side), 0, POSITION_BINS - 1).astype(np.int64)


def _positions(keys: NDArray[Any], table: Ints, fault: str) -> NDArray[np.intp]:
    """Return the index of each of `keys` in `table`, whose values are distinct."""
    order = np.argsort(table, kind="stable")
    if not len(keys):
        return np.empty(0, np.intp)
    if not len(table):
        raise ValueError(f"{fault}: {keys[0]}")
    found = order[np.minimum(np.searchsorted(table, keys, sorter=order), len(table) - 1)]
    wrong = table[found] != keys
    if wrong.any():
        raise ValueError(f"{fault}: {keys[wrong][0]}")
    return found


def _pairs(image: Ints, category: Ints, k: int) -> Ints:
    """Return the pairs of categories that occur together, as of `Stats.pairs`.

    Args:
        image: (N,) images, ascending.
        category: (N,) indices of the categories that occur in them, each once, ascending in each image.
        k: number of categories.
    """
    # Each occurrence is paired with all occurrences of its image, which are adjacent.
    _, start, count = np.unique(image, return_index=True, return_counts=True)
    partners = np.repeat(count, count)
    first = np.repeat(category, partners)
    within = np.arange(len(first)) - np.repeat(np.cumsum(partners) - partners, partners)
    second = category[np.repeat(np.repeat(start, count), partners) + within]
    both = np.column_stack([first, second, np.ones(len(first), np.int64)])
    return _summed(both[first < second], k)


def _summed(pairs: Ints, k: int) -> Ints:
    """Return pairs of categories, (P, 3), in order and each once, with the sums of their images."""
    keys, inverse = np.unique(pairs[:, 0] * k + pairs[:, 1], return_inverse=True)
    sums = np.zeros(len(keys), np.int64)
    np.add.at(sums, inverse, pairs[:, 2])
    return np.column_stack([*np.divmod(keys, max(k, 1)), sums])


_PAIR: Final = ("first", "second", "images")


def _pairs_of(content: Mapping[str, Any], ids: Sequence[int]) -> Ints:
    """Return `Stats.pairs` from JSON; of version 1 from its matrix."""
    if "counts" in content:
        matrix = np.triu(np.array(content["counts"], np.int64).reshape(len(ids), len(ids)), 1)
        first, second = np.nonzero(matrix)
        return np.column_stack([first, second, matrix[first, second]])
    values = np.array([content[name] for name in _PAIR], np.int64).reshape(3, -1)
    return np.column_stack([np.searchsorted(np.array(ids, np.int64), values[:2]).T, values[2]])


def _bins(values: NDArray[Any], edges: Sequence[int | None]) -> NDArray[np.intp]:
    return np.searchsorted(np.array(edges[1:-1], np.int64), values, side="right")


def _histogram(values: NDArray[Any], edges: Sequence[int | None]) -> Ints:
    return _counts(_bins(values, edges), len(edges) - 1)


def _counts(bins: NDArray[Any], n: int) -> Ints:
    return np.bincount(bins, minlength=n).astype(np.int64, copy=False)


def _counts_2d(rows: NDArray[Any], columns: NDArray[Any], n: int) -> Ints:
    return _counts(rows * n + columns, n * n).reshape(n, n)


def summary(stats: Stats) -> dict[str, Any]:
    """Return totals, means, and quantiles of the statistics.

    Counts and means are exact. A quantile is known up to its bin, so it is given as the bin's edges, [low, high)
    (None: no upper end); instances per image up to 100 have bins of one number, which is `low`. The quantile q is the
    smallest value that at least a share q of the values do not exceed. Values without data are None.
    """
    total, done, n = int(stats.status.sum()), int(stats.status[:2].sum()), stats.instances
    scores = stats.category_scores
    return {
        "images": {**dict(zip(STATUSES, stats.status.tolist(), strict=True)), "total": total},
        "failure_rate": int(stats.status[2]) / total if total else None,
        "instances": n,
        "instances_at_half": int(scores[:, HALF:].sum()),
        "categories": {"known": len(stats.categories), "found": int((stats.category_instances > 0).sum())},
        "instances_per_image": {
            "mean": n / done if done else None,
            **quantiles(stats.instances_per_image, COUNT_EDGES),
        },
        "area_px": {
            "mean": int(stats.category_area_sum.sum()) / n if n else None,
            **quantiles(stats.area_px, AREA_EDGES),
        },
        "area_relative": quantiles(stats.area_relative, RELATIVE_EDGES),
        "area_coco": dict(zip(("small", "medium", "large"), stats.area_coco.tolist(), strict=True)),
        "score": quantiles(scores.sum(axis=0), tuple(k / SCORE_BINS for k in range(SCORE_BINS + 1))),
    }


def quantiles(counts: Ints, edges: Sequence[float | None]) -> dict[str, list[float | None] | None]:
    """Return the bins, as [low, high], in which the 10 %, 50 % and 90 % quantiles of a histogram lie.

    >>> quantiles(np.array([5, 4, 1]), (0, 1, 2, None))
    {'p10': [0, 1], 'p50': [0, 1], 'p90': [1, 2]}
    """
    cumulative = np.cumsum(counts)
    total = int(cumulative[-1])
    found: dict[str, list[float | None] | None] = {}
    for percent in (10, 50, 90):
        # Integers on both sides: cumulative / total >= percent / 100.
        k = int(np.searchsorted(cumulative * 100, percent * total, side="left"))
        found[f"p{percent}"] = [edges[k], edges[k + 1]] if total else None
    return found
