"""The parts of a generated scene: a canvas that records occupied cells, the ground, and each kind of object.

Everything is drawn with Pillow at twice the final size; coordinates are pixels of the final scene. All random numbers
come from the single generator of the canvas, in the order of the calls.
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..types import Category

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
"""Kinds of ground, which determine where objects may be placed."""

SCALE = 2
"""The supersampling factor of the drawing, per axis."""

CELL = 4
"""The side of a cell of the occupancy grid, pixels."""

MAX_OBJECTS = 60

Points = NDArray[np.float64]
Color = NDArray[np.float64]


def _palette(colors: str) -> Color:
    return np.array([list(bytes.fromhex(color)) for color in colors.split()])


_FIELDS = _palette("607642 78844a 54683e 968c5c 887654 6e7c54 58704e")
_ROOFS = _palette("965442 804c3c 78706c 58585e aca49a 5c6c82 6c745c")
_PAINTS = _palette("dadad6 96989c 34363c 96322e 385888 786c5c 46604a")
_DECKS = _palette("baa078 ceccc6 846e54 6e8292")
_TANKS = _palette("cecec8 98948e 8a6852 74828a")
_BASINS = _palette("5896ac 46748c 70a4a8 4c706e")
_WATERS = _palette("3a5a70 466870 3e5c5c 546460")
_CROWNS = _palette("3e582e 4e6436 364c32 646c3a 746038")
_LEAF = np.array([[1, 0.2], [0.5, 0.9], [-0.3, 1], [-1, 0.3], [-0.8, -0.6], [0, -1], [0.8, -0.7]])


@dataclass(slots=True)
class Canvas:
    """An image being drawn, its labels and its occupied cells; coordinates are pixels of the final scene."""

    rng: np.random.Generator
    size: int
    image: Image.Image
    labels: Image.Image
    ground: Image.Image
    """The kind of ground, one pixel per cell."""

    occupied: Image.Image
    """The cells occupied by objects, one pixel per cell."""

    sun: Points
    """The offset of a shadow per pixel of height, (2,)."""

    category_ids: list[int] = field(default_factory=list)

    @classmethod
    def of_ground(cls, rng: np.random.Generator, size: int) -> Self:
        """Return a canvas with fields and water."""
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
        """Whether the maximum number of objects is reached."""
        return len(self.category_ids) >= MAX_OBJECTS

    def paint(self, points: Points, color: Color, alpha: float = 1.0) -> None:
        """Fill a polygon, blended with the image below it by `alpha`."""
        red, green, blue = (int(value) for value in np.clip(color, 0, 255))
        draw = ImageDraw.Draw(self.image, "RGBA")
        draw.polygon(flat(points, SCALE), fill=(red, green, blue, int(255 * alpha)))

    def shade(self, points: Points, height: float) -> None:
        """Draw the shadow of an object with a height in pixels."""
        steps = max(1, int(height / 3))
        hull = [points + self.sun * height * (step + 1) / steps for step in range(steps)]
        mask = Image.new("L", self.image.size)
        draw = ImageDraw.Draw(mask)
        for outline in hull:
            draw.polygon(flat(outline, SCALE), fill=110)
        box = mask.getbbox()
        if box is not None:
            self.image.paste((16, 20, 30), box, mask.crop(box))

    def fits(self, outlines: list[Points], kinds: tuple[int, ...], overlap: float = 0.0) -> bool:
        """Return whether the outlines lie on ground of `kinds`, with at most a share `overlap` on other objects."""
        stamp = Image.new("L", self.occupied.size)
        draw = ImageDraw.Draw(stamp)
        for outline in outlines:
            draw.polygon(flat(outline, 1 / CELL), fill=1)
        inside = np.asarray(stamp) > 0
        if self.full or not inside.any():
            return False
        on_ground = np.isin(np.asarray(self.ground)[inside], kinds).mean()
        return bool(on_ground > 0.9 and (np.asarray(self.occupied)[inside] > 0).mean() <= overlap)

    def add_instance(self, outlines: list[Points], category_id: int) -> None:
        """Add the outlines as one instance, which covers everything drawn there before."""
        self.category_ids.append(category_id)
        draw, cells = ImageDraw.Draw(self.labels), ImageDraw.Draw(self.occupied)
        for outline in outlines:
            draw.polygon(flat(outline, SCALE), fill=len(self.category_ids))
            cells.polygon(flat(outline, 1 / CELL), fill=1)


def flat(points: Points, scale: float) -> list[tuple[float, float]]:
    """Return scaled points in the form that Pillow expects."""
    return [(x * scale, y * scale) for x, y in points.tolist()]


def turned(points: Points, centre: Points, angle: float) -> Points:
    """Rotate points clockwise on the screen by `angle`, in radians, and move their origin to `centre`."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(points @ np.array([[cos, sin], [-sin, cos]]) + centre)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Points:
    """Return the corners of a rectangle."""
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64)


def _vary(rng: np.random.Generator, colors: Color, shade: float = 14) -> Color:
    """Return a random row of a palette with random changes of brightness and hue."""
    color = colors[rng.integers(len(colors))]
    return np.asarray(color + rng.normal(scale=shade) + rng.normal(scale=5, size=3))


def _blob(rng: np.random.Generator, radius: float, rough: float, corners: int = 28) -> Points:
    """Return a closed curve around the origin whose radius varies by about the share `rough`."""
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radii = np.ones(corners)
    for wave in range(2, 7):
        radii += rough * rng.normal() / wave**0.5 * np.cos(wave * turn + rng.uniform(0, 2 * np.pi))
    radii = radius * np.clip(radii, 0.55, 1.45)
    return np.stack([radii * np.cos(turn), radii * np.sin(turn)], axis=1)


def noise(rng: np.random.Generator, size: int, grain: int) -> NDArray[np.float32]:
    """Return smooth noise, (size, size) float32, of unit variance, with features about `grain` pixels wide."""
    few = size // grain + 2
    coarse = Image.fromarray(rng.normal(size=(few, few)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


# --- the ground ---


def _paint_ground(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return an image of fields and meadows, in most scenes with water along one side, and the mask of the water."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    parcel = np.zeros((size, size), dtype=np.intp)
    for _ in range(3):
        angle, at = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8, 2) * size
        parcel = parcel * 2 + ((x - at[0]) * np.cos(angle) + (y - at[1]) * np.sin(angle) > 0)
    palette = _FIELDS[rng.integers(len(_FIELDS), size=8)] + rng.normal(scale=9, size=(8, 1))
    palette = (palette + rng.normal(scale=4, size=(8, 3))).astype(np.float32)
    angles, pitch = rng.uniform(0, np.pi, 8), rng.uniform(0.5, 1.4, 8)
    waves = (np.stack([np.cos(angles), np.sin(angles)]) * pitch).astype(np.float32)[:, parcel]
    strength = (rng.uniform(0, 9, 8) * (rng.random(8) < 0.6)).astype(np.float32)[parcel]
    stripes = strength * np.sin(x * waves[0] + y * waves[1])
    shade = stripes + 7 * noise(rng, size, 48) + 5 * noise(rng, size, 10) + 4 * noise(rng, size, 3)
    pixels = palette[parcel] + shade[..., None]
    water = np.zeros((size, size), dtype=np.bool_)
    if rng.random() < 0.75:
        angle = rng.uniform(0, 2 * np.pi)
        along = (x - size / 2) * np.cos(angle) + (y - size / 2) * np.sin(angle)
        shore = along + 12 * noise(rng, size, 90) - rng.uniform(0.12, 0.3) * size
        water = np.asarray(shore > 0)
        tint = _vary(rng, _WATERS, 10).astype(np.float32)
        ripple = 3 * np.sin(along * 0.7 + 2 * noise(rng, size, 24)) + 5 * noise(rng, size, 30)
        sand = np.array([164, 150, 118], dtype=np.float32) + shade[..., None]
        pixels = np.where((shore > -5)[..., None], sand, pixels)
        pixels = np.where(water[..., None], tint + ripple[..., None], pixels)
    return np.clip(pixels, 0, 255).astype(np.uint8), water


# --- the objects: each function returns whether the object could be placed ---


def draw_building(canvas: Canvas, centre: Points, angle: float) -> bool:
    """Draw a house of one or two wings (L or T), with a pitched or a flat roof, and its shadow."""
    rng = canvas.rng
    width, depth = rng.uniform(40, 84), rng.uniform(24, 38)
    wings = [rectangle(-width / 2, -depth / 2, width / 2, depth / 2)]
    if rng.random() < 0.6:
        reach, broad = rng.uniform(16, 38), rng.uniform(0.6, 0.9) * depth
        left = rng.choice([-width / 2, width / 2 - broad, rng.uniform(-width / 2, width / 2 - broad)])
        wings.append(rectangle(left, 0.0, left + broad, depth / 2 + reach))
    outlines = [turned(wing, centre, angle) for wing in wings]
    if not canvas.fits(outlines, (LAND, YARD), 0.04):
        return False
    for outline in outlines:
        canvas.shade(outline, rng.uniform(7, 12))
    canvas.add_instance(outlines, BUILDING)
    roof = _vary(rng, _ROOFS)
    level = rng.random() < 0.25
    for wing, outline in zip(wings, outlines, strict=True):
        if level:
            canvas.paint(outline, roof + 26)
            canvas.paint(turned(wing.mean(0) + (wing - wing.mean(0)) * 0.86, centre, angle), roof)
        else:
            _roof(canvas, wing, centre, angle, roof)
    for _ in range(int(rng.integers(0, 3))):
        x, y = rng.uniform(-0.4, 0.4, 2) * (width, depth)
        canvas.paint(turned(rectangle(x - 2, y - 2, x + 2.5, y + 2), centre, angle), roof * 0.55)
    return True


def _roof(canvas: Canvas, wing: Points, centre: Points, angle: float, color: Color) -> None:
    """Draw a hipped roof: four faces, brighter towards the sun."""
    (x0, y0), (x1, y1) = wing[0], wing[2]
    inset = min(x1 - x0, y1 - y0) / 2
    wide = x1 - x0 >= y1 - y0
    if wide:
        ridge = np.array([[x0 + inset * 0.8, (y0 + y1) / 2], [x1 - inset * 0.8, (y0 + y1) / 2]])
    else:
        ridge = np.array([[(x0 + x1) / 2, y0 + inset * 0.8], [(x0 + x1) / 2, y1 - inset * 0.8]])
    for side in range(4):
        start, end = wing[side], wing[(side + 1) % 4]
        tops = ridge if (side % 2 == 0) == wide else ridge[[0 if side in (0, 3) else 1]]
        order = np.argsort(np.linalg.norm(tops - end, axis=1))
        face = np.concatenate([[start, end], tops[order]])
        outward = turned(((start + end) / 2 - wing.mean(0))[None], np.zeros(2), angle)[0]
        lit = -float(outward @ canvas.sun) / (np.hypot(*outward) * np.hypot(*canvas.sun))
        canvas.paint(turned(face, centre, angle), color * (1 + 0.24 * lit))


def draw_car(canvas: Canvas, centre: Points, angle: float, kinds: tuple[int, ...], overlap: float) -> bool:
    """Draw a car from above: body, windows and roof."""
    rng = canvas.rng
    length, width = rng.uniform(25, 33), rng.uniform(12, 15)
    nose, tail = length / 2, -length / 2
    half = width / 2
    flank = np.array([[tail, half * 0.8], [tail + 3, half], [nose - 5, half], [nose, half * 0.6]])
    body = np.concatenate([flank * (1, -1), flank[::-1]])
    outline = turned(body, centre, angle)
    if not canvas.fits([outline], kinds, overlap):
        return False
    paint = _vary(rng, _PAINTS)
    canvas.shade(outline, 3)
    canvas.add_instance([outline], CAR)
    canvas.paint(outline, paint)
    cabin = rectangle(tail + 4, -half * 0.78, nose - 7.5, half * 0.78)
    canvas.paint(turned(cabin, centre, angle), np.array([44, 52, 62]))
    canvas.paint(turned(rectangle(tail + 7, -half * 0.7, nose - 11, half * 0.7), centre, angle), paint * 1.12)
    return True


def draw_truck(canvas: Canvas, centre: Points, angle: float, kinds: tuple[int, ...], overlap: float) -> bool:
    """Draw a truck: a ribbed load and a cab with a different colour."""
    rng = canvas.rng
    length, half = rng.uniform(46, 66), rng.uniform(7.5, 9)
    load = rectangle(-length / 2, -half, length / 2 - 13, half)
    cab = rectangle(length / 2 - 13, -half * 0.88, length / 2, half * 0.88)
    outlines = [turned(load, centre, angle), turned(cab, centre, angle)]
    if not canvas.fits(outlines, kinds, overlap):
        return False
    for outline in outlines:
        canvas.shade(outline, 6)
    canvas.add_instance(outlines, TRUCK)
    cargo = _vary(rng, _PAINTS) * 0.6 + 70
    canvas.paint(outlines[0], cargo)
    for x in np.arange(-length / 2 + 4, length / 2 - 15, rng.uniform(5, 9)):
        canvas.paint(turned(rectangle(x, -half, x + 1, half), centre, angle), cargo * 0.8)
    paint = _vary(rng, _PAINTS)
    canvas.paint(outlines[1], paint)
    gap = rectangle(length / 2 - 13.5, -half, length / 2 - 12, half)
    canvas.paint(turned(gap, centre, angle), cargo * 0.3)
    glass = rectangle(length / 2 - 4.5, -half * 0.75, length / 2 - 1.5, half * 0.75)
    canvas.paint(turned(glass, centre, angle), np.array([44, 52, 62]))
    return True


def draw_boat(canvas: Canvas, centre: Points, angle: float, length: float, alone: bool) -> bool:
    """Draw a boat with a pointed bow, a deck and a cabin; a boat that is `alone` may have a wake."""
    rng = canvas.rng
    half = length * rng.uniform(0.15, 0.18)
    turn = np.linspace(-np.pi / 2, np.pi / 2, 11)
    bow = np.stack([length * (0.05 + 0.45 * np.cos(turn) ** 0.9), half * np.sin(turn)], axis=1)
    hull = np.concatenate([bow, [[-length / 2, half * 0.8], [-length / 2, -half * 0.8]]])
    outline = turned(hull, centre, angle)
    if not canvas.fits([outline], (WATER,), 0.3):
        return False
    if alone and rng.random() < 0.5:
        far, near, broad = -length * 1.3, -length / 2, half * 1.5
        wake = np.array([[near, half * 0.6], [far, broad], [far, -broad], [near, -half * 0.6]])
        canvas.paint(turned(wake, centre, angle), np.array([170, 190, 196]), 0.3)
    canvas.shade(outline, 2.5)
    canvas.add_instance([outline], BOAT)
    paint = _vary(rng, _PAINTS)
    deck = _vary(rng, _DECKS)
    canvas.paint(outline, paint)
    canvas.paint(turned(hull * np.array([0.86, 0.68]), centre, angle), deck)
    cabin = rectangle(-length * 0.22, -half * 0.5, length * 0.1, half * 0.5)
    canvas.paint(turned(cabin, centre, angle), paint * 0.9 + 20)
    window = rectangle(length * 0.1, -half * 0.45, length * 0.17, half * 0.45)
    canvas.paint(turned(window, centre, angle), paint * 0.3)
    return True


def draw_pool(canvas: Canvas, centre: Points) -> bool:
    """Draw a pool with a paved rim, in the shape of a kidney, a rectangle or an L."""
    rng = canvas.rng
    length, width, angle = rng.uniform(26, 44), rng.uniform(14, 22), rng.uniform(0, 2 * np.pi)
    shape = rng.random()
    if shape < 0.5:
        turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        dent = 1 - 0.45 * np.exp(-((turn - np.pi / 2) ** 2) / 0.35)
        basin = np.stack([length / 2 * np.cos(turn), width * 0.62 * np.sin(turn) * dent], axis=1)
        basin[:, 1] += 0.1 * length * np.cos(2 * turn)
    else:
        basin = rectangle(-length / 2, -width / 2, length / 2, width / 2)
        if shape < 0.7:
            foot = np.array([[length / 2, width], [length * 0.05, width], [length * 0.05, width / 2]])
            basin = np.concatenate([basin[:2], foot, basin[3:]])
    outline = turned(basin, centre, angle)
    if not canvas.fits([outline], (LAND,), 0.0):
        return False
    middle = basin.mean(0)
    rim = turned(middle + (basin - middle) * (1 + 7 / np.abs(basin - middle).max(0)), centre, angle)
    canvas.paint(rim, np.array([178, 170, 156]) + rng.normal(scale=16))
    canvas.add_instance([outline], POOL)
    water = _vary(rng, _BASINS, 10)
    canvas.paint(outline, water * 0.82)
    canvas.paint(turned(middle + (basin - middle) * 0.84, centre, angle), water)
    return True


def draw_tree(canvas: Canvas, centre: Points) -> bool:
    """Draw a tree crown: an irregular outline with leaves, brighter towards the sun."""
    rng = canvas.rng
    radius = rng.uniform(10, 23)
    crown = _blob(rng, radius, 0.13) * (1.0, rng.uniform(0.72, 1.0))
    outline = turned(crown, centre, rng.uniform(0, np.pi))
    if not canvas.fits([outline], (LAND, YARD, ROAD), 0.3):
        return False
    canvas.shade(outline, radius * 0.6)
    canvas.add_instance([outline], TREE)
    color = _vary(rng, _CROWNS, 8)
    canvas.paint(outline, color * 0.78)
    canvas.paint(centre + (outline - centre) * 0.8 - canvas.sun * radius * 0.12, color)
    for _ in range(int(radius * 0.9)):
        turn, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.62) * radius
        spot = centre + reach * np.array([np.cos(turn), np.sin(turn)]) * 0.9
        lit = -float((spot - centre) @ canvas.sun) / radius
        canvas.paint(spot + _LEAF * rng.uniform(2, 4), color * (1.05 + 0.3 * lit + rng.normal(scale=0.1)))
    return True


def draw_tank(canvas: Canvas, centre: Points, radius: float) -> bool:
    """Draw a round storage tank with a conical roof and a ladder."""
    rng = canvas.rng
    turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1) * radius
    outline = circle + centre
    if not canvas.fits([outline], (YARD,), 0.2):
        return False
    canvas.shade(outline, radius * 0.5 + 3)
    canvas.add_instance([outline], TANK)
    paint = _vary(rng, _TANKS)
    canvas.paint(outline, paint * 0.72)
    for step, share in enumerate((0.88, 0.55, 0.2)):
        canvas.paint(circle * share - canvas.sun * radius * 0.05 * step + centre, paint * (0.92 + 0.1 * step))
    ladder = turned(rectangle(0, -1, radius * 0.9, 1), centre, rng.uniform(0, np.pi))
    canvas.paint(ladder, paint * 0.5)
    return True
