"""Synthetic aerial scenes with exact instance masks, deterministic by seed.

A scene is fields, roads, water, yards and plots seen from above, with seven kinds of objects in them. Colours
are shared between the kinds and with the ground on purpose (blue roofs, blue cars, pools and water; grey roofs,
trucks and asphalt; crowns and meadows), so that shape and context tell them apart, not a colour threshold.
The embedded model `maskrcnn/scenes.safetensors` is trained on these scenes and knows nothing else: whoever
changes the drawing must train it anew.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as coco_mask

from maskrcnn.types import Category

__all__ = ["CATEGORIES", "Scene", "render_scene", "write_scenes"]

CATEGORIES: tuple[Category, ...] = (
    Category(1, "building"),
    Category(2, "car"),
    Category(3, "truck"),
    Category(4, "boat"),
    Category(5, "pool"),
    Category(6, "tree"),
    Category(7, "tank"),
)
BUILDING, CAR, TRUCK, BOAT, POOL, TREE, TANK = (category.id for category in CATEGORIES)

LAND, ROAD, WATER, YARD = range(4)
"""Kinds of ground, which decide what may stand where."""

SCALE = 2
"""Supersampling of the drawing: pixels drawn per pixel kept, each way."""

CELL = 4
"""Pixels a cell of the occupancy grid is wide."""

MAX_OBJECTS = 60
MIN_VISIBLE_PX = 40
"""An object of which fewer pixels can be seen is scenery, not an instance."""

Points = NDArray[np.float64]
Color = NDArray[np.float64]

_FIELDS = np.array(
    [
        [96, 118, 66],
        [120, 132, 74],
        [84, 104, 62],
        [150, 140, 92],
        [136, 118, 84],
        [110, 124, 84],
        [88, 112, 78],
    ]
)
_ROOFS = np.array(
    [
        [150, 84, 66],
        [128, 76, 60],
        [120, 112, 108],
        [88, 88, 94],
        [172, 164, 154],
        [92, 108, 130],
        [108, 116, 92],
    ]
)
_PAINTS = np.array(
    [
        [218, 218, 214],
        [150, 152, 156],
        [52, 54, 60],
        [150, 50, 46],
        [56, 88, 136],
        [120, 108, 92],
        [70, 96, 74],
    ]
)
_DECKS = np.array([[186, 160, 120], [206, 204, 198], [132, 110, 84], [110, 130, 146]])
_TANKS = np.array([[206, 206, 200], [152, 148, 142], [138, 104, 82], [116, 130, 138]])
_BASINS = np.array([[88, 150, 172], [70, 116, 140], [112, 164, 168], [76, 112, 110]])
_WATERS = np.array([[58, 90, 112], [70, 104, 112], [62, 92, 92], [84, 100, 96]])
_CROWNS = np.array([[62, 88, 46], [78, 100, 54], [54, 76, 50], [100, 108, 58], [116, 96, 56]])
_LEAF = np.array([[1, 0.2], [0.5, 0.9], [-0.3, 1], [-1, 0.3], [-0.8, -0.6], [0, -1], [0.8, -0.7]])


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture and what stands in it."""

    image: NDArray[np.uint8]
    """Shape (height, width, 3), RGB."""

    labels: NDArray[np.uint8]
    """Shape (height, width): 0 is ground, i + 1 a visible pixel of instance i."""

    category_ids: NDArray[np.int64]
    """Shape (n,), ids of `CATEGORIES`."""

    @property
    def masks(self) -> NDArray[np.bool_]:
        """The visible pixels of each instance, shape (n, height, width); no two overlap."""
        numbers = np.arange(1, len(self.category_ids) + 1, dtype=np.uint8)
        return np.asarray(self.labels[None] == numbers[:, None, None])


def render_scene(seed: int, size: int = 384) -> Scene:
    """Draw the scene of a seed, a square of `size` pixels.

    Objects keep their size in pixels; a larger scene holds more of them, up to 60.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    canvas = _Canvas.of_ground(rng, size)
    roads = _draw_roads(canvas)
    _fill_yard(canvas)
    _fill_plots(canvas, roads)
    _fill_roads(canvas, roads)
    _fill_water(canvas)
    _fill_trees(canvas)
    return _finish(canvas)


def write_scenes(folder: str | Path, count: int, seed: int, size: int = 384) -> None:
    """Write the scenes of seeds `seed … seed + count - 1` as PNG files, and `instances.json` beside them.

    The JSON is a COCO dataset: compressed RLE, mask area, tight bbox, ids from 1.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index in range(count):
        scene = render_scene(seed + index, size)
        name = f"scene-{index:05d}.png"
        Image.fromarray(scene.image).save(folder / name)
        images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
        for category_id, mask in zip(scene.category_ids, scene.masks, strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": int(category_id),
                    "segmentation": {"size": [size, size], "counts": rle["counts"].decode("ascii")},
                    "area": int(mask.sum()),
                    "bbox": [float(edge) for edge in coco_mask.toBbox(rle)],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": category.id, "name": category.name} for category in CATEGORIES]
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(dataset), encoding="utf-8")


# --- the canvas -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Canvas:
    """A picture being drawn, its labels, and what stands where. Coordinates are pixels of the finished scene."""

    rng: np.random.Generator
    size: int
    image: Image.Image
    labels: Image.Image
    ground: Image.Image
    """Kinds of ground, one pixel a cell."""

    taken: Image.Image
    """Cells where an object stands, one pixel a cell."""

    sun: Points
    """Where a shadow falls, per pixel of height."""

    category_ids: list[int] = field(default_factory=list)

    @classmethod
    def of_ground(cls, rng: np.random.Generator, size: int) -> "_Canvas":
        """Paint fields and water."""
        cells = size // CELL
        pixels, water = _paint_ground(rng, size)
        image = Image.fromarray(pixels).resize((size * SCALE, size * SCALE), Image.Resampling.BILINEAR)
        offset = CELL // 2
        kinds = np.where(water[offset::CELL, offset::CELL][:cells, :cells], WATER, LAND).astype(np.uint8)
        angle = rng.uniform(0, 2 * np.pi)
        sun = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.5, 1.0)
        labels = Image.new("L", image.size)
        return cls(rng, size, image, labels, Image.fromarray(kinds), Image.new("L", (cells, cells)), sun)

    @property
    def full(self) -> bool:
        """Whether no further object may be placed."""
        return len(self.category_ids) >= MAX_OBJECTS

    def paint(self, points: Points, color: Color, alpha: float = 1.0) -> None:
        """Fill a polygon, blended with what is below."""
        red, green, blue = (int(value) for value in np.clip(color, 0, 255))
        draw = ImageDraw.Draw(self.image, "RGBA")
        draw.polygon(_flat(points, SCALE), fill=(red, green, blue, int(255 * alpha)))

    def shade(self, points: Points, height: float) -> None:
        """Darken where an object of that height throws its shadow."""
        steps = max(1, int(height / 3))
        hull = [points + self.sun * height * (step + 1) / steps for step in range(steps)]
        mask = Image.new("L", self.image.size)
        draw = ImageDraw.Draw(mask)
        for outline in hull:
            draw.polygon(_flat(outline, SCALE), fill=110)
        box = mask.getbbox()
        if box is not None:
            self.image.paste((16, 20, 30), box, mask.crop(box))

    def fits(self, outlines: list[Points], kinds: tuple[int, ...], overlap: float = 0.0) -> bool:
        """Whether the outlines lie on ground of these kinds, at most that share of them on other objects."""
        stamp = Image.new("L", self.taken.size)
        draw = ImageDraw.Draw(stamp)
        for outline in outlines:
            draw.polygon(_flat(outline, 1 / CELL), fill=1)
        inside = np.asarray(stamp) > 0
        if self.full or not inside.any():
            return False
        on_ground = np.isin(np.asarray(self.ground)[inside], kinds).mean()
        return bool(on_ground > 0.9 and (np.asarray(self.taken)[inside] > 0).mean() <= overlap)

    def claim(self, outlines: list[Points], category_id: int) -> None:
        """Make the outlines an instance: everything drawn there before is hidden by it."""
        self.category_ids.append(category_id)
        draw, cells = ImageDraw.Draw(self.labels), ImageDraw.Draw(self.taken)
        for outline in outlines:
            draw.polygon(_flat(outline, SCALE), fill=len(self.category_ids))
            cells.polygon(_flat(outline, 1 / CELL), fill=1)


def _flat(points: Points, scale: float) -> list[tuple[float, float]]:
    return [(x * scale, y * scale) for x, y in points.tolist()]


def _turned(points: Points, centre: Points, angle: float) -> Points:
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]]) + centre


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64)


def _vary(rng: np.random.Generator, colors: Color, shade: float = 14) -> Color:
    """Pick a row of a palette, made lighter or darker, its hue a little different."""
    return np.asarray(
        colors[rng.integers(len(colors))] + rng.normal(scale=shade) + rng.normal(scale=5, size=3)
    )


def _blob(rng: np.random.Generator, radius: float, rough: float, corners: int = 28) -> Points:
    """Draw a closed curve about the origin whose radius wanders by the share `rough`."""
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radii = np.ones(corners)
    for wave in range(2, 7):
        radii += rough * rng.normal() / wave**0.5 * np.cos(wave * turn + rng.uniform(0, 2 * np.pi))
    radii = radius * np.clip(radii, 0.55, 1.45)
    return np.stack([radii * np.cos(turn), radii * np.sin(turn)], axis=1)


def _noise(rng: np.random.Generator, size: int, grain: int) -> NDArray[np.float32]:
    """Draw smooth noise of unit strength whose spots are about `grain` pixels wide, shape (size, size)."""
    few = size // grain + 2
    coarse = Image.fromarray(rng.normal(size=(few, few)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


# --- the ground -----------------------------------------------------------------------------------------------


def _paint_ground(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Paint ploughed fields and meadows cut by lines, and in most scenes water along one side."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    parcel = np.zeros((size, size), dtype=np.intp)
    for _ in range(3):
        angle, at = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8, 2) * size
        parcel = parcel * 2 + ((x - at[0]) * np.cos(angle) + (y - at[1]) * np.sin(angle) > 0)
    palette = (
        _FIELDS[rng.integers(len(_FIELDS), size=8)]
        + rng.normal(scale=9, size=(8, 1))
        + rng.normal(scale=4, size=(8, 3))
    )
    angles, pitch = rng.uniform(0, np.pi, 8), rng.uniform(0.5, 1.4, 8)
    waves = (np.stack([np.cos(angles), np.sin(angles)]) * pitch).astype(np.float32)[:, parcel]
    strength = (rng.uniform(0, 9, 8) * (rng.random(8) < 0.6)).astype(np.float32)[parcel]
    stripes = strength * np.sin(x * waves[0] + y * waves[1])
    shade = stripes + 7 * _noise(rng, size, 48) + 5 * _noise(rng, size, 10) + 4 * _noise(rng, size, 3)
    pixels = palette.astype(np.float32)[parcel] + shade[..., None]
    water = np.zeros((size, size), dtype=np.bool_)
    if rng.random() < 0.75:
        angle = rng.uniform(0, 2 * np.pi)
        along = (x - size / 2) * np.cos(angle) + (y - size / 2) * np.sin(angle)
        shore = along + 12 * _noise(rng, size, 90) - rng.uniform(0.12, 0.3) * size
        water = np.asarray(shore > 0)
        tint = _vary(rng, _WATERS, 10).astype(np.float32)
        ripple = 3 * np.sin(along * 0.7 + 2 * _noise(rng, size, 24)) + 5 * _noise(rng, size, 30)
        sand = np.array([164, 150, 118], dtype=np.float32) + shade[..., None]
        pixels = np.where((shore > -5)[..., None], sand, pixels)
        pixels = np.where(water[..., None], tint + ripple[..., None], pixels)
    return np.clip(pixels, 0, 255).astype(np.uint8), water


def _draw_roads(canvas: _Canvas) -> list[tuple[Points, float]]:
    """Draw one or two bent roads from border to border; each is its centre line, 40 points, and its width."""
    rng, size, roads = canvas.rng, canvas.size, []
    heading = rng.uniform(0, np.pi)
    for number in range(1 + int(rng.random() < 0.5)):
        angle = heading + number * rng.uniform(1.1, 1.9)
        along = np.array([np.cos(angle), np.sin(angle)])
        middle = size * (0.5 + rng.uniform(-0.2, 0.2, 2))
        reach = np.linspace(-0.85, 0.85, 40)[:, None]
        bend = rng.uniform(-0.35, 0.35) * size
        line = middle + reach * size * along + bend * reach**2 * np.array([-along[1], along[0]])
        width = rng.uniform(36, 46)
        asphalt = np.array([112, 112, 114]) + rng.uniform(-24, 24) + rng.normal(scale=4, size=3)
        for share, color in ((1.16, asphalt + 34), (1.0, asphalt)):
            _stroke(canvas.image, line, width * share, color, SCALE)
        draw = ImageDraw.Draw(canvas.image)
        for start, end in zip(line[::2], line[1::2], strict=True):
            draw.line(_flat(np.stack([start, end]), SCALE), fill=(206, 204, 190), width=2)
        ImageDraw.Draw(canvas.ground).line(_flat(line, 1 / CELL), fill=ROAD, width=round(width * 1.16 / CELL))
        roads.append((line, width))
    return roads


def _stroke(image: Image.Image, line: Points, width: float, color: Color, scale: int) -> None:
    red, green, blue = (int(value) for value in np.clip(color, 0, 255))
    draw = ImageDraw.Draw(image)
    draw.line(_flat(line, scale), fill=(red, green, blue), width=round(width * scale), joint="curve")


# --- what stands where ----------------------------------------------------------------------------------------


def _fill_yard(canvas: _Canvas) -> None:
    """Lay a paved yard with rows of parked cars and trucks, or with tanks and a hall."""
    rng = canvas.rng
    if rng.random() < 0.2:
        return
    width, depth, angle = rng.uniform(110, 160), rng.uniform(80, 120), rng.uniform(0, np.pi)
    for _ in range(25):
        centre = rng.uniform(0.15, 0.85, 2) * canvas.size
        pad = _turned(_rectangle(-width / 2, -depth / 2, width / 2, depth / 2), centre, angle)
        if canvas.fits([pad], (LAND,)):
            break
    else:
        return
    paving = np.array([138, 136, 132]) + rng.uniform(-26, 26)
    canvas.paint(pad, paving)
    ImageDraw.Draw(canvas.ground).polygon(_flat(pad, 1 / CELL), fill=YARD)
    tanks = rng.random() < 0.65
    for row in (-1, 1):
        at = -width / 2 + rng.uniform(6, 14)
        while at < width / 2 - 14:
            spot = _turned(np.array([[at + 10, row * depth / 4]]), centre, angle)[0]
            if tanks and row < 0:
                radius = rng.uniform(10, 20)
                spot = _turned(np.array([[at + radius, row * depth / 4]]), centre, angle)[0]
                _tank(canvas, spot, radius)
                at += 2 * radius + rng.uniform(0, 6)
            elif rng.random() < 0.25:
                _truck(canvas, spot, angle + np.pi / 2 + rng.normal(scale=0.05), (YARD,), 0.35)
                at += rng.uniform(20, 25)
            else:
                turn = angle + np.pi * (rng.random() < 0.5) + np.pi / 2 + rng.normal(scale=0.07)
                if rng.random() < 0.75:
                    _car(canvas, spot, turn, (YARD,), 0.35)
                at += rng.uniform(16, 21)


def _fill_plots(canvas: _Canvas, roads: list[tuple[Points, float]]) -> None:
    """Line the roads with plots: a house, and perhaps a pool, a parked car and trees."""
    rng = canvas.rng
    wanted = round(rng.uniform(4, 9) * (canvas.size / 384) ** 2) + 1
    for _ in range(8 * wanted):
        line, width = roads[rng.integers(len(roads))]
        step = int(rng.integers(1, len(line) - 1))
        along = line[step + 1] - line[step - 1]
        angle = float(np.arctan2(along[1], along[0]))
        side = np.array([-np.sin(angle), np.cos(angle)]) * rng.choice([-1, 1])
        spot = line[step] + side * (width / 2 + rng.uniform(24, 80))
        if not _building(canvas, spot, angle + rng.normal(scale=0.25)):
            continue
        for _ in range(3):
            beside = (
                spot + _turned(np.array([[rng.uniform(34, 60), 0.0]]), np.zeros(2), rng.uniform(0, 6.28))[0]
            )
            thing = rng.random()
            if thing < 0.5:
                _pool(canvas, beside)
            elif thing < 0.65:
                _car(canvas, beside, rng.uniform(0, 2 * np.pi), (LAND,), 0.1)
        wanted -= 1
        if wanted == 0:
            return


def _fill_roads(canvas: _Canvas, roads: list[tuple[Points, float]]) -> None:
    """Put cars and trucks into the lanes."""
    rng = canvas.rng
    for line, width in roads:
        for _ in range(rng.integers(5, 12)):
            step = int(rng.integers(1, len(line) - 1))
            along = line[step + 1] - line[step - 1]
            lane = int(rng.choice([-1, 1]))
            angle = float(np.arctan2(along[1], along[0])) + np.pi * (lane < 0)
            aside = np.array([-along[1], along[0]]) / np.hypot(*along) * lane * width / 4
            spot, turn = line[step] + aside + rng.normal(scale=1.5, size=2), angle + rng.normal(scale=0.06)
            if rng.random() < 0.3:
                _truck(canvas, spot, turn, (ROAD, YARD), 0.05)
            else:
                _car(canvas, spot, turn, (ROAD, YARD), 0.05)


def _fill_water(canvas: _Canvas) -> None:
    """Put boats on the water, some moored side by side."""
    rng = canvas.rng
    wanted = int(rng.integers(3, 9))
    for _ in range(60):
        spot, angle = rng.uniform(0, canvas.size, 2), rng.uniform(0, 2 * np.pi)
        moored = 1 + int(rng.integers(1, 4)) * (rng.random() < 0.3)
        length = rng.uniform(28, 62) if moored == 1 else rng.uniform(28, 44)
        for berth in range(moored):
            aside = np.array([-np.sin(angle), np.cos(angle)]) * berth * length * 0.37
            wanted -= _boat(canvas, spot + aside, angle, length, moored == 1)
        if wanted <= 0:
            return


def _fill_trees(canvas: _Canvas) -> None:
    """Plant single trees and groves, some of them over roofs, cars and shores."""
    rng = canvas.rng
    room = MAX_OBJECTS - len(canvas.category_ids)
    wanted = min(room, max(12 - len(canvas.category_ids), int(rng.integers(5, 20))))
    for _ in range(6 * wanted):
        spot = rng.uniform(0, canvas.size, 2)
        for _ in range(1 + int(rng.integers(1, 5)) * (rng.random() < 0.35)):
            if wanted > 0:
                wanted -= _tree(canvas, spot)
            spot = spot + rng.normal(scale=22, size=2)
        if wanted <= 0:
            return


# --- the objects: each returns whether it found room ------------------------------------------------------------


def _building(canvas: _Canvas, centre: Points, angle: float) -> bool:
    """Draw a house of one or two wings (L or T), with a pitched or a flat roof, and its shadow."""
    rng = canvas.rng
    width, depth = rng.uniform(40, 84), rng.uniform(24, 38)
    wings = [_rectangle(-width / 2, -depth / 2, width / 2, depth / 2)]
    if rng.random() < 0.6:
        reach, broad = rng.uniform(16, 38), rng.uniform(0.6, 0.9) * depth
        left = rng.choice([-width / 2, width / 2 - broad, rng.uniform(-width / 2, width / 2 - broad)])
        wings.append(_rectangle(left, 0.0, left + broad, depth / 2 + reach))
    outlines = [_turned(wing, centre, angle) for wing in wings]
    if not canvas.fits(outlines, (LAND, YARD), 0.04):
        return False
    for outline in outlines:
        canvas.shade(outline, rng.uniform(7, 12))
    canvas.claim(outlines, BUILDING)
    roof = _vary(rng, _ROOFS)
    flat = rng.random() < 0.25
    for wing, outline in zip(wings, outlines, strict=True):
        if flat:
            canvas.paint(outline, roof + 26)
            canvas.paint(_turned(wing.mean(0) + (wing - wing.mean(0)) * 0.86, centre, angle), roof)
        else:
            _roof(canvas, wing, centre, angle, roof)
    for _ in range(int(rng.integers(0, 3))):
        x, y = rng.uniform(-0.4, 0.4, 2) * (width, depth)
        canvas.paint(_turned(_rectangle(x - 2, y - 2, x + 2.5, y + 2), centre, angle), roof * 0.55)
    return True


def _roof(canvas: _Canvas, wing: Points, centre: Points, angle: float, color: Color) -> None:
    """Paint a hipped roof: four faces, lit by how far they lean to the sun."""
    (x0, y0), (x1, y1) = wing[0], wing[2]
    inset = min(x1 - x0, y1 - y0) / 2
    if x1 - x0 >= y1 - y0:
        ridge = np.array([[x0 + inset * 0.8, (y0 + y1) / 2], [x1 - inset * 0.8, (y0 + y1) / 2]])
    else:
        ridge = np.array([[(x0 + x1) / 2, y0 + inset * 0.8], [(x0 + x1) / 2, y1 - inset * 0.8]])
    wide = x1 - x0 >= y1 - y0
    for side in range(4):
        start, end = wing[side], wing[(side + 1) % 4]
        tops = ridge if (side % 2 == 0) == wide else ridge[[0 if side in (0, 3) else 1]]
        order = np.argsort(np.linalg.norm(tops - end, axis=1))
        face = np.concatenate([[start, end], tops[order]])
        outward = _turned(((start + end) / 2 - wing.mean(0))[None], np.zeros(2), angle)[0]
        lit = -float(outward @ canvas.sun) / (np.hypot(*outward) * np.hypot(*canvas.sun))
        canvas.paint(_turned(face, centre, angle), color * (1 + 0.24 * lit))


def _car(canvas: _Canvas, centre: Points, angle: float, kinds: tuple[int, ...], overlap: float) -> bool:
    rng = canvas.rng
    length, width = rng.uniform(25, 33), rng.uniform(12, 15)
    nose, tail = length / 2, -length / 2
    half = width / 2
    body = np.array(
        [[tail, -half * 0.8], [tail + 3, -half], [nose - 5, -half], [nose, -half * 0.6]]
        + [[nose, half * 0.6], [nose - 5, half], [tail + 3, half], [tail, half * 0.8]]
    )
    outline = _turned(body, centre, angle)
    if not canvas.fits([outline], kinds, overlap):
        return False
    paint = _vary(rng, _PAINTS)
    canvas.shade(outline, 3)
    canvas.claim([outline], CAR)
    canvas.paint(outline, paint)
    cabin = _rectangle(tail + 4, -half * 0.78, nose - 7.5, half * 0.78)
    canvas.paint(_turned(cabin, centre, angle), np.array([44, 52, 62]))
    canvas.paint(
        _turned(_rectangle(tail + 7, -half * 0.7, nose - 11, half * 0.7), centre, angle), paint * 1.12
    )
    return True


def _truck(canvas: _Canvas, centre: Points, angle: float, kinds: tuple[int, ...], overlap: float) -> bool:
    rng = canvas.rng
    length, half = rng.uniform(46, 66), rng.uniform(7.5, 9)
    load = _rectangle(-length / 2, -half, length / 2 - 13, half)
    cab = _rectangle(length / 2 - 13, -half * 0.88, length / 2, half * 0.88)
    outlines = [_turned(load, centre, angle), _turned(cab, centre, angle)]
    if not canvas.fits(outlines, kinds, overlap):
        return False
    for outline in outlines:
        canvas.shade(outline, 6)
    canvas.claim(outlines, TRUCK)
    cargo = _vary(rng, _PAINTS) * 0.6 + 70
    canvas.paint(outlines[0], cargo)
    for x in np.arange(-length / 2 + 4, length / 2 - 15, rng.uniform(5, 9)):
        canvas.paint(_turned(_rectangle(x, -half, x + 1, half), centre, angle), cargo * 0.8)
    paint = _vary(rng, _PAINTS)
    canvas.paint(outlines[1], paint)
    canvas.paint(
        _turned(_rectangle(length / 2 - 13.5, -half, length / 2 - 12, half), centre, angle), cargo * 0.3
    )
    glass = _rectangle(length / 2 - 4.5, -half * 0.75, length / 2 - 1.5, half * 0.75)
    canvas.paint(_turned(glass, centre, angle), np.array([44, 52, 62]))
    return True


def _boat(canvas: _Canvas, centre: Points, angle: float, length: float, alone: bool) -> bool:
    rng = canvas.rng
    half = length * rng.uniform(0.15, 0.18)
    turn = np.linspace(-np.pi / 2, np.pi / 2, 11)
    bow = np.stack([length * (0.05 + 0.45 * np.cos(turn) ** 0.9), half * np.sin(turn)], axis=1)
    hull = np.concatenate([bow, [[-length / 2, half * 0.8], [-length / 2, -half * 0.8]]])
    outline = _turned(hull, centre, angle)
    if not canvas.fits([outline], (WATER,), 0.3):
        return False
    if alone and rng.random() < 0.5:
        far, near, broad = -length * 1.3, -length / 2, half * 1.5
        wake = np.array([[near, half * 0.6], [far, broad], [far, -broad], [near, -half * 0.6]])
        canvas.paint(_turned(wake, centre, angle), np.array([170, 190, 196]), 0.3)
    canvas.shade(outline, 2.5)
    canvas.claim([outline], BOAT)
    paint = _vary(rng, _PAINTS)
    deck = _vary(rng, _DECKS)
    canvas.paint(outline, paint)
    canvas.paint(_turned(hull * np.array([0.86, 0.68]), centre, angle), deck)
    cabin = _rectangle(-length * 0.22, -half * 0.5, length * 0.1, half * 0.5)
    canvas.paint(_turned(cabin, centre, angle), paint * 0.9 + 20)
    canvas.paint(
        _turned(_rectangle(length * 0.1, -half * 0.45, length * 0.17, half * 0.45), centre, angle),
        paint * 0.3,
    )
    return True


def _pool(canvas: _Canvas, centre: Points) -> bool:
    """Draw a pool with a paved rim: kidney, rectangle or L."""
    rng = canvas.rng
    length, width, angle = rng.uniform(26, 44), rng.uniform(14, 22), rng.uniform(0, 2 * np.pi)
    shape = rng.random()
    if shape < 0.5:
        turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        dent = 1 - 0.45 * np.exp(-((turn - np.pi / 2) ** 2) / 0.35)
        basin = np.stack([length / 2 * np.cos(turn), width * 0.62 * np.sin(turn) * dent], axis=1)
        basin[:, 1] += 0.1 * length * np.cos(2 * turn)
    else:
        basin = _rectangle(-length / 2, -width / 2, length / 2, width / 2)
        if shape < 0.7:
            foot = np.array([[length / 2, width], [length * 0.05, width], [length * 0.05, width / 2]])
            basin = np.concatenate([basin[:2], foot, basin[3:]])
    outline = _turned(basin, centre, angle)
    if not canvas.fits([outline], (LAND,), 0.0):
        return False
    middle = basin.mean(0)
    rim = _turned(middle + (basin - middle) * (1 + 7 / np.abs(basin - middle).max(0)), centre, angle)
    canvas.paint(rim, np.array([178, 170, 156]) + rng.normal(scale=16))
    canvas.claim([outline], POOL)
    water = _vary(rng, _BASINS, 10)
    canvas.paint(outline, water * 0.82)
    canvas.paint(_turned(middle + (basin - middle) * 0.84, centre, angle), water)
    return True


def _tree(canvas: _Canvas, centre: Points) -> bool:
    rng = canvas.rng
    radius = rng.uniform(10, 23)
    crown = _blob(rng, radius, 0.13) * (1.0, rng.uniform(0.72, 1.0))
    outline = _turned(crown, centre, rng.uniform(0, np.pi))
    if not canvas.fits([outline], (LAND, YARD, ROAD), 0.3):
        return False
    canvas.shade(outline, radius * 0.6)
    canvas.claim([outline], TREE)
    color = _vary(rng, _CROWNS, 8)
    canvas.paint(outline, color * 0.78)
    canvas.paint(centre + (outline - centre) * 0.8 - canvas.sun * radius * 0.12, color)
    for _ in range(int(radius * 0.9)):
        turn, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.62) * radius
        spot = centre + reach * np.array([np.cos(turn), np.sin(turn)]) * 0.9
        lit = -float((spot - centre) @ canvas.sun) / radius
        canvas.paint(spot + _LEAF * rng.uniform(2, 4), color * (1.05 + 0.3 * lit + rng.normal(scale=0.1)))
    return True


def _tank(canvas: _Canvas, centre: Points, radius: float) -> bool:
    """Draw a round storage tank, cut flat on one side now and then by its stair tower."""
    rng = canvas.rng
    turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1) * radius
    outline = circle + centre
    if not canvas.fits([outline], (YARD,), 0.2):
        return False
    canvas.shade(outline, radius * 0.5 + 3)
    canvas.claim([outline], TANK)
    paint = _vary(rng, _TANKS)
    canvas.paint(outline, paint * 0.72)
    for step, share in enumerate((0.88, 0.55, 0.2)):
        canvas.paint(circle * share - canvas.sun * radius * 0.05 * step + centre, paint * (0.92 + 0.1 * step))
    turn = rng.uniform(0, np.pi)
    canvas.paint(_turned(_rectangle(0, -1, radius * 0.9, 1), centre, turn), paint * 0.5)
    return True


# --- the camera -----------------------------------------------------------------------------------------------


def _finish(canvas: _Canvas) -> Scene:
    """Bring the drawing to its size, add light, blur and noise, and number the instances that can be seen."""
    rng, size = canvas.rng, canvas.size
    image = canvas.image.reduce(SCALE).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.8))))
    pixels = np.asarray(image, dtype=np.float32)
    slope = rng.uniform(-0.16, 0.16, 2).astype(np.float32)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    light = (
        np.float32(rng.uniform(0.85, 1.12))
        + slope[0] * ramp[:, None]
        + slope[1] * ramp[None]
        + 0.03 * _noise(rng, size, 40)
    )
    tint = rng.normal(1, 0.025, 3).astype(np.float32)
    grain = rng.uniform(3, 8) * rng.standard_normal((size, size, 1), dtype=np.float32)
    grain = grain + rng.uniform(1, 4) * rng.standard_normal(pixels.shape, dtype=np.float32)
    pixels = np.clip(pixels * light[..., None].astype(np.float32) * tint + grain, 0, 255).astype(np.uint8)
    drawn = np.asarray(canvas.labels)[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE]
    seen = np.bincount(drawn.ravel(), minlength=len(canvas.category_ids) + 1) >= MIN_VISIBLE_PX
    seen[0] = False
    renumber = np.where(seen, np.cumsum(seen), 0).astype(np.uint8)
    return Scene(pixels, renumber[drawn], np.array(canvas.category_ids, dtype=np.int64)[seen[1:]])
