"""Synthetic aerial scenes with exact instance masks, deterministic by seed.

A scene shows fields, roads, water, yards and plots from above, with seven kinds of objects. Colours are
deliberately shared between the kinds and with the ground (blue roofs, cars, pools and water; grey roofs, trucks and
asphalt; crowns and meadows), so that shape and context distinguish them, not a colour threshold.
The embedded model `maskrcnn/models/scenes.safetensors` is trained on these scenes only: it must be trained again after
any change of the drawing, here or in `scene_parts`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as coco_mask

from ..imaging.geotiff import write_geotiff
from ..masks.rle import crop_to_rle
from .scene_parts import (
    CATEGORIES,
    CELL,
    LAND,
    MAX_OBJECTS,
    ROAD,
    SCALE,
    YARD,
    Canvas,
    Color,
    Points,
    draw_boat,
    draw_building,
    draw_car,
    draw_pool,
    draw_tank,
    draw_tree,
    draw_truck,
    flat,
    noise,
    rectangle,
    turned,
)

__all__ = [
    "Scene",
    "coco_dataset",
    "render_scene",
    "statistics",
    "write_mosaic",
    "write_scenes",
]

MIN_VISIBLE_PX = 40
"""The minimum number of visible pixels of an instance; an object with fewer belongs to the background."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One image with its ground truth."""

    image: NDArray[np.uint8]
    """Shape (height, width, 3), RGB."""

    labels: NDArray[np.uint8]
    """Shape (height, width): 0 for the ground, i + 1 for a visible pixel of instance i."""

    category_ids: NDArray[np.int64]
    """Shape (n,), ids of `CATEGORIES`."""

    @property
    def masks(self) -> NDArray[np.bool_]:
        """The visible pixels of each instance, shape (n, height, width); no two overlap."""
        numbers = np.arange(1, len(self.category_ids) + 1, dtype=np.uint8)
        return np.asarray(self.labels[None] == numbers[:, None, None])


def render_scene(seed: int, size: int = 384) -> Scene:
    """Draw the scene of a seed, a square with sides of `size` pixels.

    The size of objects in pixels is fixed; a larger scene contains more of them, up to 60.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    canvas = Canvas.of_ground(rng, size)
    roads = _draw_roads(canvas)
    _fill_yard(canvas)
    _fill_plots(canvas, roads)
    _fill_roads(canvas, roads)
    _fill_water(canvas)
    _fill_trees(canvas)
    return _finish(canvas)


def write_scenes(folder: str | Path, count: int, seed: int, size: int = 384) -> None:
    """Write the scenes of seeds `seed … seed + count - 1` as PNG files, and `instances.json` in the same folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def saved() -> Iterator[Scene]:
        for index in range(count):
            scene = render_scene(seed + index, size)
            Image.fromarray(scene.image).save(folder / _file_name(index))
            yield scene

    (folder / "instances.json").write_text(json.dumps(coco_dataset(saved())), encoding="utf-8")


def write_mosaic(
    folder: str | Path, rows: int, columns: int, seed: int, size: int = 384, ground_m: float = 0.25
) -> None:
    """Write scenes side by side as one raster, `mosaic.tif`, and its ground truth, `instances.json`.

    It is georeferenced in UTM zone 36 north, near the equator, north up.

    Args:
        folder: the output folder, created if it does not exist.
        rows: the number of rows of scenes.
        columns: the number of columns of scenes.
        seed: the seed of the first scene; seeds are consecutive, row by row.
        size: the side of a scene, pixels.
        ground_m: the side of a pixel, metres.

    Raises:
        UsageError: the extra `geo` is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    height, width = rows * size, columns * size
    image = np.empty((height, width, 3), np.uint8)
    annotations: list[dict[str, Any]] = []
    for index in range(rows * columns):
        scene = render_scene(seed + index, size)
        top, left = index // columns * size, index % columns * size
        image[top : top + size, left : left + size] = scene.image
        for category_id, mask in zip(scene.category_ids, scene.masks, strict=True):
            counts = crop_to_rle(mask, left, top, height, width)
            rle = {"size": [height, width], "counts": counts}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 1,
                    "category_id": int(category_id),
                    "segmentation": rle | {"counts": counts.decode("ascii")},
                    "area": int(mask.sum()),
                    "bbox": [float(edge) for edge in coco_mask.toBbox(rle)],
                    "iscrowd": 0,
                }
            )
    transform = (ground_m, 0.0, 450_000.0, 0.0, -ground_m, 36_000.0)
    write_geotiff(folder / "mosaic.tif", image, "EPSG:32636", transform)
    dataset = {
        "images": [{"id": 1, "file_name": "mosaic.tif", "width": width, "height": height}],
        "annotations": annotations,
        "categories": [{"id": category.id, "name": category.name} for category in CATEGORIES],
    }
    (folder / "instances.json").write_text(json.dumps(dataset), encoding="utf-8")


def coco_dataset(scenes: Iterable[Scene]) -> dict[str, Any]:
    """Return scenes as a COCO dataset: compressed RLE, mask area, tight bbox, ids from 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, scene in enumerate(scenes):
        height, width = scene.labels.shape
        images.append({"id": index + 1, "file_name": _file_name(index), "width": width, "height": height})
        for category_id, mask in zip(scene.category_ids, scene.masks, strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": int(category_id),
                    "segmentation": {"size": [height, width], "counts": rle["counts"].decode("ascii")},
                    "area": int(mask.sum()),
                    "bbox": [float(edge) for edge in coco_mask.toBbox(rle)],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": category.id, "name": category.name} for category in CATEGORIES]
    return {"images": images, "annotations": annotations, "categories": categories}


def _file_name(index: int) -> str:
    return f"scene-{index:05d}.png"


# --- placement of objects ---


def _draw_roads(canvas: Canvas) -> list[tuple[Points, float]]:
    """Draw one or two curved roads from border to border; return the centre line (40 points) and width of each."""
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
            _stroke(canvas.image, line, width * share, color)
        draw = ImageDraw.Draw(canvas.image)
        for start, end in zip(line[::2], line[1::2], strict=True):
            draw.line(flat(np.stack([start, end]), SCALE), fill=(206, 204, 190), width=2)
        ImageDraw.Draw(canvas.ground).line(flat(line, 1 / CELL), fill=ROAD, width=round(width * 1.16 / CELL))
        roads.append((line, width))
    return roads


def _stroke(image: Image.Image, line: Points, width: float, color: Color) -> None:
    """Draw a curved line with a width in pixels."""
    red, green, blue = (int(value) for value in np.clip(color, 0, 255))
    draw = ImageDraw.Draw(image)
    draw.line(flat(line, SCALE), fill=(red, green, blue), width=round(width * SCALE), joint="curve")


def _fill_yard(canvas: Canvas) -> None:
    """Draw a paved yard with rows of parked cars and trucks, some with tanks."""
    rng = canvas.rng
    if rng.random() < 0.2:
        return
    width, depth, angle = rng.uniform(110, 160), rng.uniform(80, 120), rng.uniform(0, np.pi)
    for _ in range(25):
        centre = rng.uniform(0.15, 0.85, 2) * canvas.size
        pad = turned(rectangle(-width / 2, -depth / 2, width / 2, depth / 2), centre, angle)
        if canvas.fits([pad], (LAND,)):
            break
    else:
        return
    paving = np.array([138, 136, 132]) + rng.uniform(-26, 26)
    canvas.paint(pad, paving)
    ImageDraw.Draw(canvas.ground).polygon(flat(pad, 1 / CELL), fill=YARD)
    tanks = rng.random() < 0.65
    for row in (-1, 1):
        at = -width / 2 + rng.uniform(6, 14)
        while at < width / 2 - 14:
            spot = turned(np.array([[at + 10, row * depth / 4]]), centre, angle)[0]
            if tanks and row < 0:
                radius = rng.uniform(10, 20)
                spot = turned(np.array([[at + radius, row * depth / 4]]), centre, angle)[0]
                draw_tank(canvas, spot, radius)
                at += 2 * radius + rng.uniform(0, 6)
            elif rng.random() < 0.25:
                draw_truck(canvas, spot, angle + np.pi / 2 + rng.normal(scale=0.05), (YARD,), 0.35)
                at += rng.uniform(20, 25)
            else:
                turn = angle + np.pi * (rng.random() < 0.5) + np.pi / 2 + rng.normal(scale=0.07)
                if rng.random() < 0.75:
                    draw_car(canvas, spot, turn, (YARD,), 0.35)
                at += rng.uniform(16, 21)


def _fill_plots(canvas: Canvas, roads: list[tuple[Points, float]]) -> None:
    """Draw plots along the roads: a house, and in some of them a pool or a parked car."""
    rng = canvas.rng
    wanted = round(rng.uniform(4, 9) * (canvas.size / 384) ** 2) + 1
    for _ in range(8 * wanted):
        line, width = roads[rng.integers(len(roads))]
        step = int(rng.integers(1, len(line) - 1))
        along = line[step + 1] - line[step - 1]
        angle = float(np.arctan2(along[1], along[0]))
        side = np.array([-np.sin(angle), np.cos(angle)]) * rng.choice([-1, 1])
        spot = line[step] + side * (width / 2 + rng.uniform(24, 80))
        if not draw_building(canvas, spot, angle + rng.normal(scale=0.25)):
            continue
        for _ in range(3):
            beside = (
                spot + turned(np.array([[rng.uniform(34, 60), 0.0]]), np.zeros(2), rng.uniform(0, 6.28))[0]
            )
            choice = rng.random()
            if choice < 0.5:
                draw_pool(canvas, beside)
            elif choice < 0.65:
                draw_car(canvas, beside, rng.uniform(0, 2 * np.pi), (LAND,), 0.1)
        wanted -= 1
        if wanted == 0:
            return


def _fill_roads(canvas: Canvas, roads: list[tuple[Points, float]]) -> None:
    """Draw cars and trucks in the lanes of the roads."""
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
                draw_truck(canvas, spot, turn, (ROAD, YARD), 0.05)
            else:
                draw_car(canvas, spot, turn, (ROAD, YARD), 0.05)


def _fill_water(canvas: Canvas) -> None:
    """Draw boats on the water, some moored side by side."""
    rng = canvas.rng
    wanted = int(rng.integers(3, 9))
    for _ in range(60):
        spot, angle = rng.uniform(0, canvas.size, 2), rng.uniform(0, 2 * np.pi)
        moored = 1 + int(rng.integers(1, 4)) * (rng.random() < 0.3)
        length = rng.uniform(28, 62) if moored == 1 else rng.uniform(28, 44)
        for berth in range(moored):
            aside = np.array([-np.sin(angle), np.cos(angle)]) * berth * length * 0.37
            wanted -= draw_boat(canvas, spot + aside, angle, length, moored == 1)
        if wanted <= 0:
            return


def _fill_trees(canvas: Canvas) -> None:
    """Draw single trees and groves, some of them over roofs, cars and shores."""
    rng = canvas.rng
    room = MAX_OBJECTS - len(canvas.category_ids)
    wanted = min(room, max(12 - len(canvas.category_ids), int(rng.integers(5, 20))))
    for _ in range(6 * wanted):
        spot = rng.uniform(0, canvas.size, 2)
        for _ in range(1 + int(rng.integers(1, 5)) * (rng.random() < 0.35)):
            if wanted > 0:
                wanted -= draw_tree(canvas, spot)
            spot = spot + rng.normal(scale=22, size=2)
        if wanted <= 0:
            return


# --- simulation of the camera ---


def _finish(canvas: Canvas) -> Scene:
    """Reduce the drawing to its final size, add light, blur and noise, and number the visible instances."""
    rng, size = canvas.rng, canvas.size
    image = canvas.image.reduce(SCALE).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.8))))
    pixels = np.asarray(image, dtype=np.float32)
    slope = rng.uniform(-0.16, 0.16, 2).astype(np.float32)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    light = (
        np.float32(rng.uniform(0.85, 1.12))
        + slope[0] * ramp[:, None]
        + slope[1] * ramp[None]
        + 0.03 * noise(rng, size, 40)
    )
    tint = rng.normal(1, 0.025, 3).astype(np.float32)
    grain = rng.uniform(3, 8) * rng.standard_normal((size, size, 1), dtype=np.float32)
    grain = grain + rng.uniform(1, 4) * rng.standard_normal(pixels.shape, dtype=np.float32)
    pixels = np.clip(pixels * light[..., None].astype(np.float32) * tint + grain, 0, 255).astype(np.uint8)
    drawn = np.asarray(canvas.labels)[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE]
    visible = np.bincount(drawn.ravel(), minlength=len(canvas.category_ids) + 1) >= MIN_VISIBLE_PX
    visible[0] = False
    renumber = np.where(visible, np.cumsum(visible), 0).astype(np.uint8)
    return Scene(pixels, renumber[drawn], np.array(canvas.category_ids, dtype=np.int64)[visible[1:]])


# --- statistics ---


def statistics(scenes: Iterable[Scene]) -> dict[str, float]:
    """Return statistics of scenes: object counts, shares of small and of touching objects, mean mask-to-box ratio."""
    counts, areas, fills, touching = [], [], [], 0
    for scene in scenes:
        masks = scene.masks
        counts.append(len(masks))
        touching += len(_touching(scene.labels))
        for mask in masks:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            areas.append(int(mask.sum()))
            fills.append(areas[-1] / float(np.ptp(rows) + 1) / float(np.ptp(columns) + 1))
    return {
        "objects_least": min(counts),
        "objects_mean": round(float(np.mean(counts)), 2),
        "objects_most": max(counts),
        "share_under_32x32": round(float((np.array(areas) < 32**2).mean()), 4),
        "share_touching": round(touching / len(areas), 4),
        "mean_mask_of_box": round(float(np.mean(fills)), 4),
    }


def _touching(labels: NDArray[np.uint8]) -> set[int]:
    """Return the labels of instances with a pixel adjacent (8 neighbours) to a pixel of another."""
    height, width = labels.shape
    around = np.pad(labels, 1)
    found: set[int] = set()
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        other = around[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        meet = (labels > 0) & (other > 0) & (labels != other)
        found |= set(labels[meet].tolist()) | set(other[meet].tolist())
    return found
