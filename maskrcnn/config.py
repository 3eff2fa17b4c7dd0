"""The configuration of a run, in three groups of frozen values.

`InferenceConfig` and `ShardingConfig` decide the rows: they enter the digest, and a resume with another digest is
refused. `ResourceConfig` does not; each receipt records it.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from .errors import UsageError

Device = Literal["auto", "cpu", "cuda"]


MAX_WINDOWS: Final = 10_000_000
"""The default limit on the windows of a run: at ten windows per second, eleven days."""


_MAX_LIMIT: Final = 2**63 - 1
"""The largest number of rows that a table can have."""

SCALES: Final = (0.8, 1.0, 1.25)
"""What `--tta scales` stands for: the sizes of the copies, in relation to the model's own size."""
_SCALE_RANGE: Final = (0.25, 4.0)
_MAX_SCALES: Final = 8


@dataclass(frozen=True, slots=True)
class Augmentations:
    """The copies of each image that a network runs on (test-time augmentation)."""

    flip: bool
    """Whether there is a horizontally flipped copy at each scale."""
    scales: tuple[float, ...]
    """The sizes of the copies in relation to the model's own size, ascending; (1.0,): that size alone."""

    @property
    def copies(self) -> tuple[tuple[float, bool], ...]:
        """Scale of each copy, and whether it is flipped."""
        flips = (False, True) if self.flip else (False,)
        return tuple((scale, flip) for scale in self.scales for flip in flips)

    def __str__(self) -> str:
        scales = "scales=" + "/".join(f"{scale:.12g}" for scale in self.scales)
        return ",".join(["flip"] * self.flip + [scales] * (not self.flip or self.scales != (1.0,)))


def parse_tta(text: str) -> Augmentations:
    """Return the augmentations that `--tta` names.

    >>> str(parse_tta("scales, flip")), str(parse_tta("flip")), str(parse_tta("scales=1.5/1"))
    ('flip,scales=0.8/1/1.25', 'flip', 'scales=1/1.5')

    Raises:
        UsageError: it names none, one that does not exist, or one of them twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not any(parts):
        raise UsageError("--tta names no augmentation: give flip, scales or flip,scales, or leave it out")
    found: dict[str, str | None] = {}
    for part in parts:
        name, sign, value = part.partition("=")
        if name not in ("flip", "scales") or (name == "flip" and sign):
            raise UsageError(f"--tta {text}: {_no_augmentation(text, part)}")
        if name in found:
            raise UsageError(f"--tta {text} names {name} twice: name it once")
        found[name] = value if sign else None
    if "scales" not in found:
        return Augmentations(flip=True, scales=(1.0,))
    factors = found["scales"]
    return Augmentations("flip" in found, SCALES if factors is None else _parse_scales(factors))


def _no_augmentation(text: str, part: str) -> str:
    """Return what is wrong with a part that names no augmentation, and what to write."""
    slashes = re.sub(r"(?<=[0-9.])\s*[,;]\s*(?=[0-9.])", "/", text)
    if "scales=" in text and slashes != text:
        return f"scales are separated by slashes: write --tta {slashes}"
    scales = "/".join(f"{scale:g}" for scale in SCALES)
    return f"there is no augmentation {part!r}: give flip, scales or flip,scales, as in flip,scales={scales}"


def _parse_scales(text: str) -> tuple[float, ...]:
    low, high = _SCALE_RANGE
    try:
        scales = [float(part) for part in text.split("/")]
    except ValueError:
        scales = []
    if not scales or not all(low <= scale <= high for scale in scales):
        raise UsageError(
            f"--tta scales={text}: give factors of the model's own size from {low} to {high:g}, as in "
            f"scales={'/'.join(f'{scale:g}' for scale in SCALES)}"
        )
    if len(set(scales)) < len(scales):
        raise UsageError(f"--tta scales={text} names a scale twice: name it once")
    if len(scales) > _MAX_SCALES:
        raise UsageError(f"--tta scales={text} names {len(scales)} scales: give at most {_MAX_SCALES}")
    return tuple(sorted(scales))


@dataclass(frozen=True, slots=True)
class InferenceConfig:
    """What to compute from the inputs."""

    model: str
    """`coco`, `coco-v1`, `scenes`, `planted`, the path or URL of a weights file, or `package.module:factory`."""
    labels: str | None = None
    """For `.pth` weights: a file with the names of the categories, one per line, in the order of the labels from 1."""
    min_score: float = 0.05
    """Detections with lower scores are not stored."""
    max_detections: int = 100
    """Maximum number of detections per image; those with the highest scores are kept."""
    categories: tuple[str, ...] = ()
    """Names of the categories to keep; empty: all."""
    limit: int | None = None
    """Only this many inputs, the first in the order of the manifest."""
    max_pixels: int = 178_956_970
    """Larger images fail with `too_many_pixels`. Pillow's own limit: 1/4 GiB of RGB, twice."""
    max_bytes: int = 512 * 2**20
    """Larger files fail with `too_many_bytes`."""
    allow_http: bool = False
    """Whether a manifest may name inputs on the web, see `io.stores.http_store`."""
    window: int | None = None
    """Side in pixels of the square windows that large images are cut into; None: each image is processed as a whole."""
    overlap: int | None = None
    """Overlap of adjacent windows in pixels; None: an eighth of a window."""
    bands: str | None = None
    """Bands of rasters for red, green and blue, see `radiometry.parse_radiometry`."""
    scale: str | None = None
    """How values of rasters are mapped to 0 to 255, see `radiometry.parse_radiometry`."""
    assume_crs: str | None = None
    """CRS of rasters that state none."""
    alpha: str | None = None
    """Number of the alpha band of rasters, or `none`, see `radiometry.parse_radiometry`."""
    max_windows: int | None = None
    """A run of more windows is refused when it is planned; None: `MAX_WINDOWS`."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the factory of `package.module:factory`: JSON values."""
    tta: str | None = None
    """Test-time augmentation, see `parse_tta`; None: the network runs once on each image."""
    image_column: str | None = None
    """Column of Parquet files with the pictures; None: each file has one, or is a manifest."""
    sidecars: tuple[str, ...] = ()
    """Suffixes of files in archives that become columns of the pictures beside them, see `io.archives.sidecars`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tta", None if self.tta is None else str(parse_tta(self.tta)))
        if not 0.0 <= self.min_score < 1.0:
            raise UsageError(f"--min-score must be in [0, 1), not {self.min_score}")
        if not 1 <= self.max_detections <= 10_000:
            raise UsageError(f"--max-detections must be from 1 to 10000, not {self.max_detections}")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit must be at least 1, not {self.limit}")
        if self.limit is not None and self.limit > _MAX_LIMIT:
            raise UsageError(f"--limit must be at most {_MAX_LIMIT}: leave it out to take all inputs")
        if self.window is None:
            for name in ("overlap", "bands", "scale", "assume_crs", "alpha", "max_windows"):
                if getattr(self, name) is not None:
                    raise UsageError(f"--{name.replace('_', '-')} needs --window: add it")
            return
        if not 32 <= self.window <= 16_384:
            raise UsageError(f"--window must be from 32 to 16384 pixels, not {self.window}")
        if self.max_windows is None:
            object.__setattr__(self, "max_windows", MAX_WINDOWS)
        elif self.max_windows < 1:
            raise UsageError(f"--max-windows must be at least 1, not {self.max_windows}")
        if self.overlap is None:
            object.__setattr__(self, "overlap", self.window // 8)
        elif not 0 <= self.overlap <= self.window // 2:
            raise UsageError(
                f"--overlap must be from 0 to half a window, {self.window // 2}, not {self.overlap}"
            )


@dataclass(frozen=True, slots=True)
class ShardingConfig:
    """How to divide the inputs into shards."""

    shard_images: int
    """Images per shard, the unit of work, commit and restart."""

    def __post_init__(self) -> None:
        if not 1 <= self.shard_images <= 100_000:
            raise UsageError(f"--shard-images must be from 1 to 100000, not {self.shard_images}")


@dataclass(frozen=True, slots=True)
class ResourceConfig:
    """Devices, processes and threads to use."""

    device: Device = "auto"
    batch_size: int | None = None
    """Images per forward pass; None: 1 on CPU, 8 on CUDA."""
    dtype: str | None = None
    """Data type of the convolutions: `float32`, `bfloat16` or `float16`; None: float32 on CPU, float16 on CUDA."""
    threads: int | None = None
    """CPUs per actor; None: 1 on CPU, an equal share of the CPUs per GPU on CUDA, at most 8."""
    actors: int | None = None
    """Maximum number of actors; None: one per GPU, or one per `threads` CPUs."""
    timeout_s: float = 300.0
    """An actor that makes no progress for this long, in seconds, is ended; an image with which this happens again while
    it is processed alone fails with `timeout`."""
    ray: bool | None = None
    """Whether to run on Ray, or in the process of the command; None: by the size of the run."""
    max_hours: float | None = None
    """The run starts no shard after so many hours, and stops; None: without a limit."""
    max_cost: float | None = None
    """The run starts no shard once it has cost so much, and stops; None: without a limit."""
    price: str | None = None
    """Of all machines together, as in `2.10/h`; see `parse_price`."""

    def __post_init__(self) -> None:
        price = None if self.price is None else parse_price(self.price)
        if self.max_cost is not None and price is None:
            raise UsageError("--max-cost needs the price of the machines: add --price, as in --price 2.10/h")
        for name in ("max_hours", "max_cost"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} must be more than 0, not {value:.12g}")
        for name in ("batch_size", "threads", "actors"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if self.ray is False and self.actors is not None:
            raise UsageError("--no-ray runs in one process, without actors: leave out --actors or --no-ray")
        if not self.timeout_s >= 1:
            raise UsageError(f"--timeout must be at least 1 second, not {self.timeout_s:.12g}")

    def max_seconds(self) -> float:
        """Return the number of seconds after which no shard is started; infinity without a limit."""
        hours = math.inf if self.max_hours is None else self.max_hours
        if self.max_cost is not None and self.price is not None:
            hours = min(hours, self.max_cost / parse_price(self.price))
        return hours * 3600

    def cost_of(self, seconds: float) -> float | None:
        """Return what so many seconds cost, in the unit of the price; None without a price."""
        return None if self.price is None else parse_price(self.price) * seconds / 3600


def parse_price(text: str) -> float:
    """Return what an hour costs.

    Raises:
        UsageError: it is not a positive number and a unit of time.

    >>> parse_price("2.10/h"), parse_price("0.001/s")
    (2.1, 3.6)
    """
    number, _, unit = text.partition("/")
    hours = {"h": 1, "hour": 1, "min": 1 / 60, "s": 1 / 3600, "day": 24, "d": 24}.get(unit.strip())
    with contextlib.suppress(ValueError):
        if hours is not None and 0 < float(number) < math.inf:
            return round(float(number) / hours, 12)
    raise UsageError(
        f"--price takes a number above 0 and a unit of time (h, min, s, day), as in 2.10/h, not {text!r}"
    )


SHARDS_IN_TIME: Final = 50
"""A machine that is taken away once in some minutes computes at least so many shards in them. It loses half of a shard
on average, which is then 1 % of its work."""
ASSUMED_IMAGE_S: Final = 2.0
"""Time of an image in seconds, as long as none was measured: about that of ResNet-50 on a CPU."""


def default_shard_images(
    rows: int, reclaim_minutes: float | None = None, image_s: float = ASSUMED_IMAGE_S
) -> int:
    """Return the default shard size: about as many shards as images per shard, at least 16 and at most 1000 images.

    Args:
        rows: number of images.
        reclaim_minutes: after which a machine is taken away, on average; the size is then at most what one worker
            computes in 1/50 of them, and at least 1. None: machines stay.
        image_s: time of an image in one worker, in seconds.

    >>> default_shard_images(60), default_shard_images(50_000), default_shard_images(10_000_000)
    (16, 223, 1000)
    >>> default_shard_images(50_000, 60), default_shard_images(50_000, 60, 0.05), default_shard_images(50_000, 1, 9)
    (36, 223, 1)
    """
    size = min(max(math.isqrt(rows), 16), 1000)
    if reclaim_minutes is None:
        return size
    return max(int(min(60 * reclaim_minutes / SHARDS_IN_TIME / image_s, size)), 1)


def digest_of(settings: dict[str, Any]) -> str:
    """Return the sha256 of settings that decide a run's rows, over canonical JSON."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def settings_of(inference: InferenceConfig, sharding: ShardingConfig) -> dict[str, Any]:
    """Return the settings that enter the digest, as JSON values.

    Arguments of a factory, augmentations, the column of pictures and sidecars are left out if there are none: earlier
    versions did not have them.
    """
    settings = {
        **dataclasses.asdict(inference),
        **dataclasses.asdict(sharding),
        "categories": list(inference.categories),
        "sidecars": list(inference.sidecars),
    }
    later = ("model_args", "tta", "image_column", "sidecars")
    return {name: value for name, value in settings.items() if name not in later or value}
