"""Metrics of a run on Ray, which Ray exports for Prometheus beside its own.

The driver makes them of what each finished shard reports anyway, so that they cost no traffic. Ray passes them to the
agent of the driver's node, which Prometheus reads. A Ray that is started for one command has no agent, and a run
without Ray exports nothing.
"""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from maskrcnn.io.url import Url

from .progress import State, Watcher

if TYPE_CHECKING:
    from .node_worker import Done

NAME_CHARACTERS: Final = 32
"""Of the run's directory, in the tag `output`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What is known of a metric before it has a value."""

    kind: Literal["counter", "gauge"]
    description: str
    tag: str | None = None
    """Its tag besides `output`."""


METRICS: Final[Mapping[str, Metric]] = {
    "maskrcnn_images": Metric("counter", "Images or windows of finished shards, by status.", "status"),
    "maskrcnn_instances": Metric("counter", "Instances of finished shards."),
    "maskrcnn_input_bytes": Metric(
        "counter", "Bytes of the files of images that did not fail; not of windows."
    ),
    "maskrcnn_failures": Metric(
        "counter", "Images or windows of finished shards that failed, by code.", "code"
    ),
    "maskrcnn_store_retries": Metric("counter", "Requests to stores and web servers that were repeated."),
    "maskrcnn_stage_seconds": Metric("counter", "Seconds of all actors, by stage; stages overlap.", "stage"),
    "maskrcnn_actors_ready": Metric("gauge", "Actors that have loaded the model."),
    "maskrcnn_shards_left": Metric("gauge", "Shards that are not finished."),
    "maskrcnn_images_left": Metric(
        "gauge", "Images or windows that are not done; those of running shards may be."
    ),
    "maskrcnn_images_per_second": Metric("gauge", "Images or windows per second in the latest two minutes."),
    "maskrcnn_images_per_second_forecast": Metric(
        "gauge", "Images or windows per second that maskrcnn plan --measure forecast."
    ),
    "maskrcnn_eta_seconds": Metric("gauge", "Seconds until the last image or window is done."),
    "maskrcnn_cost": Metric("gauge", "Cost since the start of the command, in the currency of --price."),
}
"""All metrics by name; Ray adds a prefix and, to counters, a suffix."""


def exported_name(name: str) -> str:
    """Return the name by which Prometheus knows a metric.

    >>> exported_name("maskrcnn_images"), exported_name("maskrcnn_cost")
    ('ray_maskrcnn_images_total', 'ray_maskrcnn_cost')
    """
    return f"ray_{name}{'_total' if METRICS[name].kind == 'counter' else ''}"


def output_tag(url: str) -> str:
    """Return a short name of a run's directory: what follows its last slash, and six digits of its digest.

    >>> output_tag("s3://bucket/photos/out"), output_tag("s3://bucket/scans/out/")
    ('out-98cdba', 'out-d848b4')
    """
    url = url.rstrip("/")
    parsed = Url.parse(url)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", parsed.name or parsed.bucket)[-NAME_CHARACTERS:]
    return f"{name}-{hashlib.sha256(url.encode(errors='surrogateescape')).hexdigest()[:6]}"


class RunMetrics(Watcher):
    """Exports the metrics of one run by the Ray that is connected.

    Args:
        url: the run's directory.
        cost: returns the cost so far; None without a price.
    """

    def __init__(self, url: str, cost: Callable[[], float | None]) -> None:
        from ray.util import (
            metrics,  # here, because the table above is of use without Ray, which takes a second
        )

        kinds: dict[str, Any] = {"counter": metrics.Counter, "gauge": metrics.Gauge}
        self._metrics: dict[str, Any] = {
            name: kinds[metric.kind](
                name,
                description=metric.description,
                tag_keys=("output", *([metric.tag] if metric.tag else [])),
            )
            for name, metric in METRICS.items()
        }
        self._output = output_tag(url)
        self._cost = cost

    def add(self, done: "Done") -> None:
        """Count a finished shard."""
        images = {name: count for name, count in done.counts.items() if name != "instances"}
        self._count("maskrcnn_images", images)
        self._count("maskrcnn_failures", done.errors)
        self._count("maskrcnn_stage_seconds", done.seconds)
        self._count("maskrcnn_instances", {"": done.counts.get("instances", 0)})
        self._count("maskrcnn_input_bytes", {"": done.input_bytes})
        self._count("maskrcnn_store_retries", {"": done.store_retries})

    def show(self, state: State) -> None:
        """Set what grows and shrinks."""
        values = {
            "maskrcnn_actors_ready": state.ready,
            "maskrcnn_shards_left": state.shards_left,
            "maskrcnn_images_left": state.total - state.done,
            "maskrcnn_images_per_second": state.rate,
            "maskrcnn_images_per_second_forecast": state.expected,
            "maskrcnn_eta_seconds": state.left_s,
            "maskrcnn_cost": self._cost(),
        }
        for name, value in values.items():
            if value is not None:
                self._metrics[name].set(value, {"output": self._output})

    def close(self) -> None:
        """Set to zero what the end of the map stage ends."""
        for name in ("maskrcnn_actors_ready", "maskrcnn_images_per_second", "maskrcnn_eta_seconds"):
            self._metrics[name].set(0, {"output": self._output})

    def _count(self, name: str, amounts: Mapping[str, float]) -> None:
        tag = METRICS[name].tag
        for value, amount in amounts.items():
            if amount > 0:  # Ray refuses to add nothing
                self._metrics[name].inc(amount, {"output": self._output} | ({tag: value} if tag else {}))


@contextlib.contextmanager
def run_metrics(url: str, cost: Callable[[], float | None]) -> Iterator[RunMetrics]:
    """Export the metrics of a run for the duration of a block; see `RunMetrics`."""
    metrics = RunMetrics(url, cost)
    try:
        yield metrics
    finally:
        metrics.close()
