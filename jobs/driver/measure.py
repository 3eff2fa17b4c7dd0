"""Measure a sample of a planned run on the machines that will process it, and forecast the whole.

The sample is computed by the same workers, through the same stages, into a folder of the output that is removed
afterwards. What an actor does is one shard after the other, while the next is fetched and the last is written; so its
rate is that of its shards' time, and the run's is as many times that as there are actors. The first shard of each actor
counts only if it has no other: the model warms up, and nothing was fetched ahead.
"""

import contextlib
import dataclasses
import itertools
import logging
import math
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from maskrcnn.config import ResourceConfig, default_shard_images
from maskrcnn.errors import RunError, plural
from maskrcnn.io.storage import Storage
from maskrcnn.io.stores.request_count import take_requests
from maskrcnn.io.url import Url
from maskrcnn.pipeline.manifest_file import ShardReader
from maskrcnn.pipeline.plan import Plan, read_run
from maskrcnn.pipeline.receipts import RECEIPTS, Receipt, read_receipt

from .driver_records import PROBES, read_drivers
from .node_worker import Done
from .planning import Request, is_begun, prepare
from .progress import Progress
from .request_forecast import GET, requests_to_come
from .run import left_of
from .sample import Sample
from .usage import Usage, cpu_use
from .where_to_run import check_resources
from .work import Work
from .worker_spec import worker_spec
from .workers import workers_for

log = logging.getLogger("maskrcnn")

TABLES_S: Final = 3.0
"""Seconds that starting Python and writing the tables take, plus …"""
TABLES_S_PER_ROW: Final = 36e-6
"""… so many for each image: `maskrcnn reduce` of 300 and of 30,000 planted images, three instances each, in one
process."""
FEW_SECONDS: Final = 10.0
"""A sample that is computed in less time says little."""
NETWORK, FETCH, DECODE, OUTPUT = "network", "fetch", "decode", "output"
_STAGES: Final = {NETWORK: ("model",), FETCH: ("fetch",), DECODE: ("decode",), OUTPUT: ("encode", "write")}


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will take, from a sample of it."""

    unit: str
    """What is counted: `image` or `window`."""
    rows: int
    """Images or windows that are left."""
    sampled: int
    failed: int
    """Of the sample."""
    actors: int
    """Processes that compute side by side."""
    measured_s: float
    """Time of the sample, without the start."""
    start_s: float
    """Time until the first image could be computed, and to end what was started: Ray, the model."""
    rate: float
    """Images or windows per second of all actors."""
    shard_rows: float
    """Images or windows of a shard of the run, on average."""
    stages_s: dict[str, float]
    """Seconds of a thread for each image or window, by stage; stages overlap."""
    waiting: float
    """Share of an actor's time in which its network waits for inputs."""
    instances: float
    """For each image or window."""
    table_bytes: float
    """Of the tables, for each image or window, COCO JSON apart."""
    input_bytes: int | None
    """Of all inputs; None if their sizes are not known."""
    cpu_use: float | None
    """Share of the workers' CPUs that was used; None if it is not known."""
    gpu_use: float | None
    """Share of the time in which the network had images to compute on the GPU; None on CPU."""
    requests: dict[str, int]
    """Requests to stores of the run, by method."""

    @property
    def seconds(self) -> float:
        """Time of the run from the command to the end, in seconds."""
        return self.start_s + self.rows / self.rate + TABLES_S + TABLES_S_PER_ROW * self.rows

    @property
    def shard_s(self) -> float:
        """Time of a shard in seconds: what is computed again if its worker is lost."""
        return self.shard_rows * self.actors / self.rate

    @property
    def bottleneck(self) -> str:
        """The stage that limits the rate: the network, unless it waits for a tenth of the time or more."""
        if self.waiting < 0.1:
            return NETWORK
        return max((DECODE, FETCH), key=self.stages_s.__getitem__)

    def to_json(self, resources: ResourceConfig) -> dict[str, Any]:
        """Return JSON values, with the cost if there is a price."""
        return {
            f"{self.unit}s": self.rows,
            "sampled": self.sampled,
            "failed_of_sample": self.failed,
            "measured_s": round(self.measured_s, 1),
            "actors": self.actors,
            f"{self.unit}s_per_s": float(f"{self.rate:.4g}"),
            "shard_s": round(self.shard_s, 1),
            "start_s": round(self.start_s, 1),
            "eta_s": round(self.seconds, 1),
            "bottleneck": self.bottleneck,
            "waiting": round(self.waiting, 3),
            "cpu_use": None if self.cpu_use is None else round(self.cpu_use, 3),
            "gpu_use": None if self.gpu_use is None else round(self.gpu_use, 3),
            "stages_s": {name: float(f"{seconds:.4g}") for name, seconds in self.stages_s.items()},
            "instances": round(self.instances * self.rows),
            "table_bytes": round(self.table_bytes * self.rows),
            "input_bytes": self.input_bytes,
            "requests": self.requests,
            "cost": resources.cost_of(self.seconds),
        }


class _Observed(Progress):
    """Progress that notes when the first actor was ready, and what the workers used."""

    def __init__(self, total: int, unit: str) -> None:
        super().__init__(total, 0, unit=unit)
        self.ready: float | None = None
        self.usages: list[Usage] = []

    def add(self, done: Done) -> None:
        """Count a finished shard."""
        super().add(done)
        if done.usage is not None:
            self.usages.append(done.usage)

    def show(self, *, actors: tuple[int, int] | None = None, **options: Any) -> None:
        """Show the line as usual."""
        if self.ready is None and (actors is None or actors[0]):
            self.ready = time.monotonic()
        super().show(actors=actors, **options)


def measure(
    request: Request, plan: Plan, resources: ResourceConfig, address: str | None, count: int
) -> Forecast:
    """Compute a sample of a planned run, and forecast what is left of it.

    Args:
        request: the run, as it is planned.
        plan: its plan.
        resources: as the run will have them.
        address: of a Ray cluster.
        count: images or windows of the sample.

    Raises:
        RunError: inputs or output cannot be accessed.
        UsageError: the resources are not there.
    """
    check_resources(address, resources)
    storage = Storage(request.output)
    left = left_of(storage, plan)
    folder = f"{PROBES}/{uuid.uuid4().hex}"
    begun = time.monotonic()
    try:
        with workers_for(address, resources, left, read_drivers(storage)) as workers:
            actors = 1 if workers.lanes else workers.resources.actors or 1
            sample = Sample.of(storage, request, plan, f"{storage.url}/{folder}/run", count, actors)
            spec = worker_spec(sample.storage, request, sample.run, workers.resources, PROBES, workers.lanes)
            spec = dataclasses.replace(spec, metered=True)
            observed = _Observed(sum(map(len, sample.shards)), plan.unit)
            try:
                work = Work(iter(sample.shards), len(sample.shards))
                workers.map_shards(spec, sample.first_uri, observed, work)
            finally:
                observed.close()
            ended = time.monotonic()
        closing_s = time.monotonic() - ended
        receipts = [read_receipt(sample.storage, path) for path in sample.storage.list(RECEIPTS)]
        to_start = _requests_to_start(sample)
    finally:
        with contextlib.suppress(RunError):  # what ended it is what counts
            storage.remove_tree(folder)
    ready = begun if observed.ready is None else observed.ready
    if ended - ready < FEW_SECONDS and left.rows > sum(map(len, sample.shards)):
        log.warning(
            "the sample took %.1f s, too short for a good forecast: use a larger --measure", ended - ready
        )
    return _forecast(
        receipts,
        plan,
        left.rows,
        actors,
        ended - ready,
        ready - begun + closing_s,
        sample.input_bytes,
        _Used(observed.usages, to_start, in_store=not Url.parse(storage.url).is_local),
    )


def measure_each(
    request: Request,
    plan: Plan,
    resources: ResourceConfig,
    address: str | None,
    count: int,
    compared: Mapping[str, Sequence[int]],
) -> list[tuple[dict[str, int], Forecast]]:
    """Compute the sample with each combination of some settings.

    Args:
        request: the run, as it is planned.
        plan: its plan.
        resources: as requested; of the compared settings, each combination takes the place of what is requested.
        address: of a Ray cluster.
        count: images or windows of the sample.
        compared: values by the names of fields of `ResourceConfig`.

    Returns:
        The settings and the forecast of each combination; without any, one forecast.

    Raises:
        RunError, UsageError: as `measure`.
    """
    forecasts = []
    for values in itertools.product(*compared.values()):
        settings = dict(zip(compared, values, strict=True))
        if settings:
            log.info("measuring %s", ", ".join(f"{name} {value}" for name, value in settings.items()))
        chosen = dataclasses.replace(resources, **settings)  # type: ignore[arg-type]
        forecasts.append((settings, measure(request, plan, chosen, address, count)))
    return forecasts


def sized(request: Request, plan: Plan, forecast: Forecast) -> tuple[Plan, Forecast]:
    """Plan anew with shards of the size that `reclaim_minutes` asks for at the measured pace.

    A run that has begun keeps its shards.

    Args:
        request: the run, with `reclaim_minutes`.
        plan: its plan.
        forecast: by a sample of it.

    Returns:
        The plan that is in effect, and the forecast for it.

    Raises:
        RunError, UsageError: as `planning.prepare`.
    """
    storage = Storage(request.output)
    images = read_run(storage)["inputs"]["rows"]
    image_s = forecast.actors / forecast.rate * plan.rows / images
    size = default_shard_images(images, request.reclaim_minutes, image_s)
    if size != plan.shard_images:
        if plan.generation > 1 or is_begun(storage):
            log.info("the run has begun: its shards keep their %s", plural(plan.shard_images, "image"))
        else:
            plan = prepare(dataclasses.replace(request, shard_images=size))
    return plan, dataclasses.replace(forecast, shard_rows=plan.rows / len(plan))


@dataclass(frozen=True, slots=True)
class _Used:
    """What the workers of a sample used."""

    usages: Sequence[Usage]
    to_start: int
    """Requests by GET of each worker for other things than inputs."""
    in_store: bool
    """Whether the output is in an object store."""


def _requests_to_start(sample: Sample) -> int:
    """Return the requests by GET by which a worker, once it is ready, reads what its shards consist of."""
    with ShardReader(sample.storage) as reader:
        take_requests()
        reader.rows(sample.shards[0])
    return take_requests().get(GET, 0)


def _forecast(
    receipts: Sequence[Receipt],
    plan: Plan,
    rows: int,
    actors: int,
    measured_s: float,
    start_s: float,
    input_bytes: int | None,
    used: "_Used",
) -> Forecast:
    of_worker: dict[tuple[str, int], list[Receipt]] = defaultdict(list)
    for receipt in receipts:
        of_worker[receipt.execution["node"], receipt.execution["pid"]].append(receipt)
    counted = [
        one for some in of_worker.values() for one in (_without_first(some) if len(some) > 2 else some)
    ]
    n_counted = sum(one.stop - one.start for one in counted)
    sampled = sum(one.stop - one.start for one in receipts)
    busy = sum(map(_seconds_of, counted))
    seconds: dict[str, float] = defaultdict(float)
    for one in counted:
        for name, value in one.timings.items():
            seconds[name] += value
    waiting = min(seconds["wait"] / max(busy, 1e-6), 1.0)
    table_bytes = sum(one.images.bytes + one.instances.bytes for one in receipts) / sampled
    shard_rows = plan.rows / len(plan)
    on_gpu = any(receipt.execution.get("device", "cpu") != "cpu" for receipt in receipts)
    return Forecast(
        unit=plan.unit,
        rows=rows,
        sampled=sampled,
        failed=sum(one.counts["failed"] for one in receipts),
        actors=actors,
        measured_s=measured_s,
        start_s=start_s,
        rate=actors * n_counted / max(busy, 1e-6),
        shard_rows=shard_rows,
        stages_s={
            stage: sum(seconds[name] for name in names) / n_counted for stage, names in _STAGES.items()
        },
        waiting=waiting,
        instances=sum(one.counts["instances"] for one in receipts) / sampled,
        table_bytes=table_bytes,
        input_bytes=input_bytes,
        cpu_use=cpu_use(used.usages, measured_s),
        gpu_use=1 - waiting if on_gpu else None,
        requests=requests_to_come(
            used.usages,
            sampled,
            rows,
            math.ceil(rows / shard_rows),
            table_bytes * rows,
            used.to_start,
            in_store=used.in_store,
        ),
    )


def _seconds_of(receipt: Receipt) -> float:
    """Return for how long a shard keeps its worker, which holds two: one is computed while the other is written."""
    timings = receipt.timings
    computing = timings["wall"] - timings["encode"] - timings["write"]
    return max(computing, timings["wall"] / 2)


def _without_first(receipts: Sequence[Receipt]) -> Sequence[Receipt]:
    """Return the receipts of a worker but for the shard that it computed first."""
    return sorted(receipts, key=lambda one: one.shard)[1:]
