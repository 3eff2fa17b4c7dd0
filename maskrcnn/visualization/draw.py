"""Draw detections on an image: masks, outlines, boxes and labels.

Deterministic: the same pixels and detections give the same picture. Lines and type scale with the picture.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from ..types import Category, Detections, Pixels

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]
"""left, top, right, bottom in pixels, the last two exclusive."""

MASK_OPACITY: Final = 0.38
LABEL_CHARACTERS: Final = 28
LABELLED_PX: Final = 160
"""Smaller pictures get no labels, which would hide the objects."""

# Colors

_GOLDEN_TURN: Final = 360 / 1.618033988749895**2
_LIGHTNESS: Final = (0.74, 0.64, 0.82)


@functools.cache
def instance_color(index: int) -> Color:
    """Return the color of the instance with this number, sRGB.

    Hues advance by the golden angle in OKLCH, where equal steps look equal. Three lightnesses, bright enough for dark
    pictures and dark enough for light ones, separate successive colors further.

    Reference: https://bottosson.github.io/posts/oklab/
    """
    hue = np.deg2rad(25 + index * _GOLDEN_TURN)
    lightness, chroma = _LIGHTNESS[index % 3], 0.17
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    lms = np.array(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(to_linear @ lms**3, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (int(value) for value in np.round(encoded * 255))
    return red, green, blue


def _ink_on(color: Color) -> Color:
    """Return black or white, whichever has more contrast with `color` (WCAG's relative luminance)."""
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (17, 17, 17) if luminance > 0.179 else (255, 255, 255)


# From the image to the picture


@dataclass(frozen=True, slots=True)
class _View:
    """A rectangle of the image, and the size at which it is drawn."""

    left: int
    top: int
    width: int
    height: int
    out_width: int
    out_height: int
    scale: float = 1.0
    """Of lines and type."""

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        *,
        min_side: int = 1,
        max_side: int | None = None,
        region: Rectangle | None = None,
        scale: float = 1.0,
    ) -> "_View":
        left, top, right, bottom = region or (0, 0, shape[1], shape[0])
        if not (0 <= left < right <= shape[1] and 0 <= top < bottom <= shape[0]):
            raise ValueError(f"region {region} is not inside an image of {shape[1]} x {shape[0]} pixels")
        width, height = right - left, bottom - top
        longest = max(width, height)
        side = max(longest, min_side)
        side = side if max_side is None else min(side, max_side)
        out_width, out_height = (max(1, round(side * extent / longest)) for extent in (width, height))
        return cls(left, top, width, height, out_width, out_height, scale)

    @property
    def line_px(self) -> int:
        """Width of lines: 1 in small pictures, 2 at 640 pixels, 10 at 4000; times `scale`."""
        return max(1, round(self.scale * max(self.out_width, self.out_height) / 400))

    @property
    def type_px(self) -> int:
        """Height of type: 9 in small pictures, 13 at 640 pixels, 80 at 4000; times `scale`."""
        return max(9, round(self.scale * max(self.out_width, self.out_height) / 50))

    def crop(self, pixels: Pixels) -> Image.Image:
        region = np.ascontiguousarray(
            pixels[self.top : self.top + self.height, self.left : self.left + self.width]
        )
        picture = Image.fromarray(region)
        if picture.size == (self.out_width, self.out_height):
            return picture
        return picture.resize((self.out_width, self.out_height), Image.Resampling.LANCZOS)

    def x(self, x: float) -> float:
        return (x - self.left) * self.out_width / self.width

    def y(self, y: float) -> float:
        return (y - self.top) * self.out_height / self.height

    def coverage(self, rle: Mapping[str, Any]) -> tuple[Image.Image, tuple[int, int]] | None:
        """Return the coverage of the picture's pixels by a mask, as an 8-bit image around it, and its top left corner.

        None if the mask is empty here. The image has a margin of one pixel where the picture has room.
        """
        x, y, width, height = (int(value) for value in coco_mask.toBbox(dict(rle)))
        left, right = max(x, self.left), min(x + width, self.left + self.width)
        top, bottom = max(y, self.top), min(y + height, self.top + self.height)
        if left >= right or top >= bottom:
            return None
        mask = coco_mask.decode(dict(rle))[
            self.top : self.top + self.height, self.left : self.left + self.width
        ]
        out_left, out_top = max(int(self.x(left)) - 1, 0), max(int(self.y(top)) - 1, 0)
        out_right = min(-int(-self.x(right) // 1) + 1, self.out_width)
        out_bottom = min(-int(-self.y(bottom) // 1) + 1, self.out_height)
        scale_x, scale_y = self.width / self.out_width, self.height / self.out_height
        box = (out_left * scale_x, out_top * scale_y, out_right * scale_x, out_bottom * scale_y)
        size = (out_right - out_left, out_bottom - out_top)

        # Only the visible part of the mask: the cost depends on the object, not on the image.
        x0, y0 = int(box[0]), int(box[1])
        x1, y1 = min(int(box[2]) + 1, self.width), min(int(box[3]) + 1, self.height)
        part = Image.fromarray(np.ascontiguousarray(mask[y0:y1, x0:x1]) * np.uint8(255))
        box = (box[0] - x0, box[1] - y0, min(box[2], x1) - x0, min(box[3], y1) - y0)
        return part.resize(size, Image.Resampling.BOX, box=box), (out_left, out_top)


def _outline(coverage: NDArray[np.uint8], line_px: int) -> NDArray[np.uint8]:
    """Return the inner border of a mask, `line_px` wide; not drawn where the picture crops the mask."""
    eroded = np.pad(coverage, line_px, mode="edge")
    for _ in range(2):
        # The minimum over 2 * line_px + 1 neighbours in a column, by doubling; then the same in rows.
        window = 1
        while window < 2 * line_px + 1:
            step = min(window, 2 * line_px + 1 - window)
            eroded = np.minimum(eroded[:-step], eroded[step:])
            window += step
        eroded = np.ascontiguousarray(eroded.T)
    return coverage - eroded


# Drawing


def draw_instances(
    pixels: Pixels,
    detections: Detections,
    categories: Sequence[Category],
    *,
    min_score: float = 0.5,
    max_side: int | None = None,
    min_side: int = 1,
    region: Rectangle | None = None,
    scale: float = 1.0,
    colors: Sequence[Color] | None = None,
    texts: Sequence[str] | None = None,
) -> Pixels:
    """Return the image with its instances drawn: translucent masks, outlines, boxes, and labels with scores.

    Without masks, boxes and labels alone. The color of an instance does not depend on `min_score` or `region`. Pictures
    with a longest side below 160 pixels are drawn without labels; `min_side` makes room for them. Where there is only
    one category, labels are scores alone, and are left out where they would cover more than the boxes do.

    Args:
        pixels: (height, width, 3) uint8, RGB; not changed.
        detections: of this image.
        categories: the categories of the labels; an unknown label is shown as a number.
        min_score: instances with lower scores are left out.
        max_side: the longest side of the picture in pixels; larger ones are reduced. None: no limit.
        min_side: smaller pictures are enlarged to this longest side.
        region: the rectangle of the image to draw: left, top, right, bottom. None: the whole image.
        scale: of lines and type; above 1 for pictures that will be displayed at a smaller size.
        colors: of the instances, N; None: `instance_color` of each.
        texts: of the labels, N, "" for none; None: category and score.

    Returns:
        (h, w, 3) uint8, RGB.

    Raises:
        ValueError: `detections` belong to an image of another size, or `region` is not inside the image.
    """
    if pixels.shape[:2] != (detections.height, detections.width):
        raise ValueError(
            f"detections of an image of {detections.width} x {detections.height} pixels, "
            f"but this one has {pixels.shape[1]} x {pixels.shape[0]}"
        )
    view = _View.of(pixels.shape, min_side=min_side, max_side=max_side, region=region, scale=scale)
    canvas = view.crop(pixels)
    names = {category.id: category.name for category in categories}
    shown = [int(i) for i in np.flatnonzero(detections.scores >= np.float32(min_score))]
    color_of = instance_color if colors is None else colors.__getitem__

    # Large masks first, so that small objects in front of them remain visible.
    if detections.masks is not None:
        rles = detections.rles()
        for i in sorted(shown, key=lambda i: (-int(detections.areas[i]), i)):
            _paint_mask(canvas, view, rles[i], color_of(i), MASK_OPACITY)

    # Boxes and labels last, those with the highest scores on top.
    draw = ImageDraw.Draw(canvas)
    placed = _Labels(draw, view)
    boxes = [_box_on(view, detections.boxes[i]) for i in shown]
    for i, box in reversed(list(zip(shown, boxes, strict=True))):
        if box is not None:
            draw.rectangle(box, outline=color_of(i), width=view.line_px)
    for i, box in zip(shown, boxes, strict=True):
        if box is not None and max(canvas.size) >= LABELLED_PX:
            label, score = int(detections.labels[i]), f"{detections.scores[i]:.2f}"
            named = score if len(categories) == 1 else f"{short(names.get(label, f'#{label}'))} {score}"
            placed.add(named if texts is None else texts[i], box, color_of(i))
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in filter(None, boxes))
    if len(categories) > 1 or texts is not None or placed.area <= covered:
        placed.paint()
    return np.asarray(canvas).copy()


def draw_mask(
    pixels: Pixels, rle: Mapping[str, Any], *, max_side: int | None = None, min_side: int = 1
) -> Pixels:
    """Return the image with one instance highlighted: in color, outlined, on a dimmed grey background.

    Args:
        pixels: (height, width, 3) uint8, RGB; not changed.
        rle: {"size": [height, width], "counts": bytes or str}, as `pycocotools.mask` takes it.
        max_side: the longest side of the picture in pixels; larger ones are reduced.
        min_side: smaller pictures are enlarged to this longest side.

    Raises:
        ValueError: the RLE belongs to an image of another size.
    """
    if tuple(rle["size"]) != pixels.shape[:2]:
        raise ValueError(f"the mask has the size {list(rle['size'])}, the image {list(pixels.shape[:2])}")
    view = _View.of(pixels.shape, min_side=min_side, max_side=max_side)
    original = view.crop(pixels)
    grey = original.convert("L").point([round(70 + value * 0.35) for value in range(256)])
    canvas = grey.convert("RGB")
    covered = view.coverage(rle)
    if covered is not None:
        coverage, (left, top) = covered
        inside = original.crop((left, top, left + coverage.width, top + coverage.height))
        canvas.paste(inside, (left, top), coverage)
        _paint_mask(canvas, view, rle, (255, 214, 10), 0.0)
    return np.asarray(canvas).copy()


def contact_sheet(
    images: Iterable[Pixels],
    columns: int,
    *,
    cell_px: int = 320,
    gap_px: int = 8,
    ground: Color = (255, 255, 255),
) -> Pixels:
    """Return one picture of many images, row by row in columns of equal width.

    Args:
        images: (height, width, 3) uint8 each, of any sizes.
        columns: cells per row, at least 1.
        cell_px: width of a column and maximum height of an image, in pixels; larger images are reduced, smaller ones
            are not enlarged.
        gap_px: space around the images.
        ground: the background color.

    Returns:
        (h, w, 3) uint8; one empty cell if there are no images.
    """
    if columns < 1:
        raise ValueError(f"a contact sheet of {columns} columns: there must be at least 1")
    cells = [_View.of(image.shape, max_side=cell_px).crop(image) for image in images]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows] or [cell_px]
    across = min(columns, max(len(cells), 1))
    size = (across * (cell_px + gap_px) + gap_px, sum(heights) + gap_px * (len(heights) + 1))
    sheet = Image.new("RGB", size, ground)
    top = gap_px
    for row, height in zip(rows, heights, strict=False):
        for column, cell in enumerate(row):
            left = gap_px + column * (cell_px + gap_px) + (cell_px - cell.width) // 2
            sheet.paste(cell, (left, top + (height - cell.height) // 2))
        top += height + gap_px
    return np.asarray(sheet).copy()


def _paint_mask(
    canvas: Image.Image, view: _View, rle: Mapping[str, Any], color: Color, opacity: float
) -> None:
    covered = view.coverage(rle)
    if covered is None:
        return
    coverage, corner = covered
    covered_by = np.asarray(coverage)
    fill = np.round(np.arange(256) * opacity).astype(np.uint8)[covered_by]
    strength = np.maximum(fill, _outline(covered_by, view.line_px))
    canvas.paste(color, corner, Image.fromarray(strength))


def _box_on(view: _View, box: NDArray[np.float32]) -> tuple[float, float, float, float] | None:
    """Return the corners of a box in the picture, inclusive; None if it is outside."""
    left, top, right, bottom = view.x(box[0]), view.y(box[1]), view.x(box[2]) - 1, view.y(box[3]) - 1
    if right < 0 or bottom < 0 or left >= view.out_width or top >= view.out_height:
        return None
    return left, top, max(left, right), max(top, bottom)


class _Labels:
    """Labels on colored plates, each placed where it hides no earlier one, if there is such a place."""

    def __init__(self, draw: ImageDraw.ImageDraw, view: _View) -> None:
        self._draw = draw
        self._view = view
        self._font = ImageFont.load_default(view.type_px)
        self._plates: list[tuple[Rectangle, str, Color]] = []

    def add(self, text: str, box: tuple[float, float, float, float], color: Color) -> None:
        if not text:
            return
        pad = max(1, self._view.type_px // 5)
        width = round(self._draw.textlength(text, font=self._font)) + 2 * pad
        height = self._view.type_px + 2 * pad
        left, top, right, bottom = (round(value) for value in box)

        # Above the box, inside at its top, below, inside at its bottom; first on the left, then on the right.
        places = [(x, y) for x in (left, right - width) for y in (top - height, top, bottom, bottom - height)]
        inside = [(self._clamp(x, width, self._view.out_width), self._clamp(y, height, self._view.out_height))
                  for x, y in places]  # fmt: skip
        free = (place for place in inside if not self._hides((*place, place[0] + width, place[1] + height)))
        x, y = next(free, inside[0])
        self._plates.append(((x, y, x + width, y + height), text, color))

    @property
    def area(self) -> int:
        """The area of all labels together, pixels of the picture."""
        return sum((right - left) * (bottom - top) for (left, top, right, bottom), _, _ in self._plates)

    def paint(self) -> None:
        """Draw all labels, the first added on top."""
        for (left, top, right, bottom), text, color in reversed(self._plates):
            self._draw.rectangle((left, top, right - 1, bottom - 1), fill=color)
            middle = ((left + right) / 2, (top + bottom) / 2)
            self._draw.text(middle, text, fill=_ink_on(color), font=self._font, anchor="mm")

    def _hides(self, plate: Rectangle) -> bool:
        left, top, right, bottom = plate
        return any(left < r and l < right and top < b and t < bottom for (l, t, r, b), _, _ in self._plates)  # noqa: E741

    @staticmethod
    def _clamp(start: int, extent: int, limit: int) -> int:
        return max(0, min(start, limit - extent))


def short(name: str) -> str:
    """Return a name on one line, shortened if it is long."""
    line = " ".join(name.split())
    return line if len(line) <= LABEL_CHARACTERS else f"{line[: LABEL_CHARACTERS - 1]}…"
