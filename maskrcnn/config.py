"""What a run is told, in three groups of frozen values.

*What to compute* and *how to cut* decide the rows: they enter the digest, and a resume with another digest is
refused. *How fast* does not; each receipt records it.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from .errors import UsageError

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class InferenceConfig:
    """What to compute."""

    model: str
    """`coco`, `coco-v1`, `scenes`, `planted`, or the path or URL of a weights file."""
    labels: str | None = None
    """For `.pth` weights: a file that names the categories, one a line, in the order of the labels from 1."""
    min_score: float = 0.05
    """Weaker detections are not stored."""
    max_detections: int = 100
    """The most detections an image may have, the best by score."""
    categories: tuple[str, ...] = ()
    """Names of the categories to keep; empty: all."""
    limit: int | None = None
    """Only the first so many inputs, in the order of the manifest."""
    max_pixels: int = 178_956_970
    """Larger images fail with `too_many_pixels`. Pillow's own limit: 1/4 GiB of RGB, twice."""
    max_bytes: int = 512 * 2**20
    """Larger files fail with `too_many_bytes`."""
    allow_http: bool = False
    """Whether a manifest may name inputs on the web, see `web`."""
    window: int | None = None
    """Side in pixels of the square windows that large images are cut into; None: each image is seen as a whole."""
    overlap: int | None = None
    """Of neighbouring windows, pixels; by default an eighth of a window."""
    bands: str | None = None
    """Of rasters: the bands that are red, green and blue, see `raster.parse_radiometry`."""
    scale: str | None = None
    """Of rasters: how values become 0 to 255, see `raster.parse_radiometry`."""
    assume_crs: str | None = None
    """Of rasters that state none."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_score < 1.0:
            raise UsageError(f"--min-score must be in [0, 1), not {self.min_score}")
        if not 1 <= self.max_detections <= 10_000:
            raise UsageError(f"--max-detections must be from 1 to 10000, not {self.max_detections}")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit must be at least 1, not {self.limit}")
        if self.window is None:
            for name in ("overlap", "bands", "scale", "assume_crs"):
                if getattr(self, name) is not None:
                    raise UsageError(f"--{name.replace('_', '-')} goes with --window")
            return
        if not 32 <= self.window <= 16_384:
            raise UsageError(f"--window must be from 32 to 16384 pixels, not {self.window}")
        if self.overlap is None:
            object.__setattr__(self, "overlap", self.window // 8)
        elif not 0 <= self.overlap <= self.window // 2:
            raise UsageError(
                f"--overlap must be from 0 to half a window, {self.window // 2}, not {self.overlap}"
            )


@dataclass(frozen=True, slots=True)
class ShardingConfig:
    """How to cut the work."""

    shard_images: int
    """Images in a shard, the unit of work, commit and restart."""

    def __post_init__(self) -> None:
        if not 1 <= self.shard_images <= 100_000:
            raise UsageError(f"--shard-images must be from 1 to 100000, not {self.shard_images}")


@dataclass(frozen=True, slots=True)
class ResourceConfig:
    """How fast."""

    device: Device = "auto"
    batch_size: int | None = None
    """Images a forward pass; None: 1 on CPU, 8 on CUDA."""
    dtype: str | None = None
    """Of the network's convolutions: `float32`, `bfloat16` or `float16`; None: float32 on CPU, float16 on CUDA."""
    threads: int | None = None
    """CPUs of an actor; None: 1 on CPU, an equal share of the CPUs for each GPU on CUDA, at most 8."""
    actors: int | None = None
    """The most actors; None: one a GPU, or one a `threads` CPUs."""
    timeout_s: float = 300.0
    """An actor that makes no progress for so long is ended, and an image with which, alone, that happens again
    fails with `timeout`."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads", "actors"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if not self.timeout_s >= 1:
            raise UsageError(f"--timeout must be at least 1 second, not {self.timeout_s:g}")


def default_shard_images(rows: int) -> int:
    """Return the shard size where none is asked for: as many shards as images in one, of 16 to 1000.

    >>> default_shard_images(60), default_shard_images(50_000), default_shard_images(10_000_000)
    (16, 223, 1000)
    """
    return min(max(math.isqrt(rows), 16), 1000)


def digest_of(settings: dict[str, Any]) -> str:
    """Return the sha256 of settings that decide a run's rows, over canonical JSON."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def settings_of(compute: InferenceConfig, cut: ShardingConfig) -> dict[str, Any]:
    """Return the settings that enter the digest, as JSON values."""
    return {**dataclasses.asdict(compute), **dataclasses.asdict(cut), "categories": list(compute.categories)}
