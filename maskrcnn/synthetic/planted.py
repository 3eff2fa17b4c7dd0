"""Images whose pixels contain their own ground truth, and a segmenter that reads it.

They replace the network in tests of other parts: whole runs, with kills and retries, then take milliseconds. The
ground truth is exact, so a run over planted images has exactly one correct result. It survives lossless formats only.

The first bytes of the pixels, row by row, are `SIGNATURE`, the length of the payload (uint32, little-endian), its
CRC-32, and the payload: JSON, a list of the fields of each `PlantedInstance`.
"""

import dataclasses
import json
import struct
import time
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ItemError
from ..masks.rectangles import boxes_of
from ..masks.rle import crop_to_rle, rle_areas, rle_boxes_xyxy
from ..types import Category, Detections, Pixels, detection_order

PLANTED_CATEGORIES: Final = (
    Category(1, "plank"),
    Category(2, "coin"),
    Category(5, "leaf"),
)
"""The categories of planted instances; the ids have a gap, like COCO's."""

SIGNATURE: Final = b"maskrcnn-planted"
_HEADER: Final = struct.Struct("<16sII")
_COLORS: Final = np.array([[176, 132, 84], [212, 180, 60], [72, 148, 84]], np.uint8)


@dataclass(frozen=True, slots=True)
class PlantedInstance:
    """One object to plant: a rotated rectangle or ellipse, which may extend beyond the image."""

    shape: Literal["rectangle", "ellipse"]
    category_id: int
    score: float
    x: float
    """Column of the centre, pixels; pixel (0, 0) has its centre at (0.5, 0.5)."""
    y: float
    """Row of the centre, pixels."""
    width: float
    """Pixels, before the rotation."""
    height: float
    """Pixels, before the rotation."""
    degrees: float = 0.0
    """Rotation, clockwise."""

    def crop(self, image_height: int, image_width: int) -> tuple[NDArray[np.bool_], int, int]:
        """Return the mask cropped to its bounds within the image, (h, w), and the crop's left and top."""
        turn = np.deg2rad(self.degrees)
        cos, sin = np.cos(turn), np.sin(turn)
        reach_x = (abs(self.width * cos) + abs(self.height * sin)) / 2
        reach_y = (abs(self.width * sin) + abs(self.height * cos)) / 2
        left, right = np.clip([self.x - reach_x, self.x + reach_x + 1], 0, image_width).astype(int)
        top, bottom = np.clip([self.y - reach_y, self.y + reach_y + 1], 0, image_height).astype(int)
        dx = np.arange(left, right) + 0.5 - self.x
        dy = (np.arange(top, bottom) + 0.5 - self.y)[:, None]
        along = (dx * cos + dy * sin) / max(self.width / 2, 1e-9)
        across = (dy * cos - dx * sin) / max(self.height / 2, 1e-9)
        ellipse = self.shape == "ellipse"
        distance = along**2 + across**2 if ellipse else np.maximum(abs(along), abs(across))
        return distance <= 1, int(left), int(top)


def plant(
    image_size: tuple[int, int],
    instances: Sequence[PlantedInstance],
    background: tuple[int, int, int] = (96, 104, 112),
) -> Pixels:
    """Draw an image that contains its instances in its first pixels.

    Args:
        image_size: (height, width) in pixels.
        instances: the instances to draw, in any order; later ones cover earlier ones, but the ground truth is the
            whole mask of each.
        background: RGB.

    Raises:
        ValueError: the image has too few pixels for the data, about 25 for each instance.
    """
    height, width = image_size
    payload = json.dumps([dataclasses.astuple(i) for i in instances], separators=(",", ":")).encode()
    data = _HEADER.pack(SIGNATURE, len(payload), zlib.crc32(payload)) + payload
    if len(data) > height * width * 3:
        raise ValueError(f"{len(instances)} instances do not fit into {height} x {width} pixels")
    image = np.full((height, width, 3), background, np.uint8)
    for instance in instances:
        crop, left, top = instance.crop(height, width)
        h, w = crop.shape
        image[top : top + h, left : left + w][crop] = _COLORS[instance.category_id % len(_COLORS)]
    image.reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
    return image


def planted_instances(image: Pixels) -> list[PlantedInstance]:
    """Return the instances in an image; none if it is not planted, or was compressed with loss."""
    flat = image.reshape(-1)
    header = flat[: _HEADER.size].tobytes()
    if len(header) < _HEADER.size:
        return []
    signature, length, checksum = _HEADER.unpack(header)
    payload = flat[_HEADER.size : _HEADER.size + length].tobytes() if signature == SIGNATURE else b""
    if not payload or zlib.crc32(payload) != checksum:
        return []
    return [PlantedInstance(*fields) for fields in json.loads(payload)]


class PlantedSegmenter:
    """A `types.Segmenter` that detects exactly the planted instances, and nothing in any other image.

    Args:
        categories: the categories it detects; instances of others are ignored.
        sleep_s: seconds to sleep for each image, to simulate a slow network.
        min_score: instances that do not score above this are dropped.
        max_detections: the maximum number of detections per image, the best by score.
        keep: names of the categories to keep; empty: all.
        has_masks: whether its detections have masks; else they have boxes only.
    """

    def __init__(
        self,
        categories: Sequence[Category] = PLANTED_CATEGORIES,
        sleep_s: float = 0.0,
        min_score: float = 0.05,
        max_detections: int = 100,
        keep: Collection[str] = (),
        *,
        has_masks: bool = True,
    ) -> None:
        self._categories = tuple(categories)
        self._kept_ids = {c.id for c in categories if not keep or c.name in keep}
        self._sleep_s = sleep_s
        self._min_score = min_score
        self._max_detections = max_detections
        self._has_masks = has_masks

    @property
    def has_masks(self) -> bool:
        """Whether its detections have masks."""
        return self._has_masks

    @property
    def categories(self) -> tuple[Category, ...]:
        """The categories it detects."""
        return self._categories

    @property
    def batch_size(self) -> int:
        """One image at a time."""
        return 1

    @property
    def max_side(self) -> int:
        """Pixels; the value of torchvision's networks, so that the same aspect ratios fail."""
        return 1333

    @property
    def execution(self) -> dict[str, Any]:
        """The execution settings recorded in receipts; none of them affects the results."""
        return {"device": "cpu", "dtype": "planted", "batch_size": 1, "threads": 1}

    @property
    def lanes(self) -> int:
        """One: there is no concurrent computation."""
        return 1

    def canvas(self, height: int, width: int) -> None:
        """Return the same value for all sizes."""

    def segment(self, images: Sequence[Pixels]) -> list[Detections]:
        """Find the planted instances of each image."""
        found = [self._segment(image) for image in images]
        return found if self._has_masks else [boxes_of(each) for each in found]

    def outcomes(self, images: Sequence[Pixels]) -> list[Detections | ItemError]:
        """Find the planted instances of each image; no image fails."""
        return list(self.segment(images))

    def _sleep(self) -> None:
        if self._sleep_s:
            time.sleep(self._sleep_s)

    def _segment(self, image: Pixels) -> Detections:
        self._sleep()
        # A network compares its scores in float32.
        instances = [
            instance
            for instance in planted_instances(image)
            if instance.category_id in self._kept_ids
            and np.float32(instance.score) > np.float32(self._min_score)
        ]
        return _detections(instances, image.shape[0], image.shape[1], self._max_detections)


def _detections(instances: Sequence[PlantedInstance], height: int, width: int, limit: int) -> Detections:
    """Return the best `limit` instances, each with its exact mask, and the tight box of the mask as its box."""
    masks = [crop_to_rle(*instance.crop(height, width), height, width) for instance in instances]
    labels = np.array([instance.category_id for instance in instances], dtype=np.int32)
    scores = np.array([instance.score for instance in instances], dtype=np.float32)
    return best_of(masks, labels, scores, height, width, limit)


def best_of(
    masks: Sequence[bytes],
    labels: NDArray[np.int32],
    scores: NDArray[np.float32],
    height: int,
    width: int,
    limit: int,
    moved: Callable[[NDArray[np.int32]], NDArray[np.float32]] = lambda boxes: boxes.astype(np.float32),
) -> Detections:
    """Return the best instances, in the order of `detection_order`.

    Args:
        masks: COCO run lengths over an image of `height` x `width` pixels.
        labels: (N,) category ids.
        scores: (N,) in [0, 1].
        height: the height of the image, pixels.
        width: the width of the image, pixels.
        limit: the maximum number of instances.
        moved: a function from the masks' tight boxes, (N, 4), to the boxes.
    """
    rles = [{"size": [height, width], "counts": mask} for mask in masks]
    mask_boxes = rle_boxes_xyxy(rles)
    boxes = moved(mask_boxes)
    order = detection_order(boxes, labels, scores)[:limit]
    return Detections(
        height=height,
        width=width,
        boxes=boxes[order],
        labels=labels[order],
        scores=scores[order],
        masks=tuple(masks[i] for i in order),
        areas=rle_areas(rles)[order],
        mask_boxes=mask_boxes[order],
        capped=len(order) == limit,
    )


def png(image: Pixels) -> bytes:
    """Return the bytes of a PNG file, which depend on no installed library but zlib.

    Reference: https://www.w3.org/TR/png-3/, section 5: signature and chunks.
    """
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + width * 3), np.uint8)  # each row starts with its filter type, 0: none
    rows[:, 1:] = image.reshape(height, -1)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),  # 8 bits, RGB
        (b"IDAT", zlib.compress(rows.tobytes(), 1)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
