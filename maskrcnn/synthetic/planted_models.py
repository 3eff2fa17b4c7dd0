"""The planted segmenters by their names for `--model`: `planted[:SECONDS]` and `planted-mosaic[:PIXELS]`.

`planted-boxes` and `planted-mosaic-boxes` are the same, with boxes only.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from ..types import Category
from .planted import PLANTED_CATEGORIES, PlantedSegmenter
from .planted_mosaic import MosaicSegmenter

__all__ = ["PlantedModel", "parse_planted"]


@dataclass(frozen=True, slots=True)
class PlantedModel:
    """A planted segmenter that has not been built yet; it replaces a network in tests."""

    name: Literal["planted", "planted-boxes", "planted-mosaic", "planted-mosaic-boxes"]
    sleep_s: float = 0.0
    """Seconds to sleep for each image, to simulate a slow network."""
    jitter_px: int = 0
    """The maximum jitter of an object's mask in a window, pixels; for `planted-mosaic` only."""

    @property
    def sha256(self) -> str:
        """The hexadecimal SHA-256 of the settings that determine its detections; it has no weights file."""
        identity = f"{self.name} 1" + (f" {self.jitter_px}" if self.name == "planted-mosaic" else "")
        return hashlib.sha256(identity.encode()).hexdigest()

    @property
    def categories(self) -> tuple[Category, ...]:
        """All categories that it can detect."""
        return PLANTED_CATEGORIES

    @property
    def has_masks(self) -> bool:
        """Whether its detections have masks."""
        return not self.name.endswith("-boxes")

    def build(self, min_score: float, max_detections: int, categories: Collection[str]) -> PlantedSegmenter:
        """Build the segmenter.

        Args:
            min_score: detections with this score or less are dropped.
            max_detections: the maximum number of detections per image, the best by score.
            categories: names of the categories to keep; empty: all.
        """
        if self.name.startswith("planted-mosaic"):
            return MosaicSegmenter(
                self.jitter_px,
                min_score=min_score,
                max_detections=max_detections,
                keep=categories,
                has_masks=self.has_masks,
            )
        return PlantedSegmenter(
            PLANTED_CATEGORIES, self.sleep_s, min_score, max_detections, categories, has_masks=self.has_masks
        )


def parse_planted(name: str) -> PlantedModel | None:
    """Return the planted model with a name; None if no planted model has that name.

    Raises:
        UsageError: the argument after the colon is not valid.
    """
    kind, _, argument = name.partition(":")
    if kind == "planted":
        try:
            sleep_s = float(argument or 0)
        except ValueError:
            sleep_s = -1
        if not 0 <= sleep_s <= 3600:
            raise UsageError(f"--model {name}: give the seconds to sleep for each image, as in planted:0.05")
        return PlantedModel("planted", sleep_s=sleep_s)
    if name == "planted-boxes":
        return PlantedModel("planted-boxes")
    if name == "planted-mosaic-boxes":
        return PlantedModel("planted-mosaic-boxes")
    if kind == "planted-mosaic":
        if not ((argument or "0").isdecimal() and len(argument) <= 1):
            raise UsageError(f"--model {name}: give the pixels of jitter, 0 to 9, as in planted-mosaic:2")
        return PlantedModel("planted-mosaic", jitter_px=int(argument or 0))
    return None
