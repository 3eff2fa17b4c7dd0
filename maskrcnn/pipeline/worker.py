"""The work on one shard: prefetch bytes, decode, segment, encode, write; one forward sweep, its stages at once.

A `ShardWorker` is built on the node where it runs, holds what is expensive (the segmenter), and knows nothing of
Ray. An item's fault becomes a row here, and nowhere else; whatever else is raised fails the attempt. Whoever runs
shards may have one *traced*, so that it is known which images were being computed if the process dies, may try an
image *alone*, and may have images *convicted* of killing their process recorded as failed without another look.
"""

import dataclasses
import functools
import math
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, Final

import pyarrow as pa

from ..errors import COSTLY_CODES, STORAGE_CODES, HandedBackError, ItemError, MaskrcnnError, SegmenterError
from ..imaging.decode import DecodedImage, Limits, decode_image
from ..imaging.geometry import RasterRegion, Rect
from ..io.inputs import read_input, stat_input
from ..io.local_store import LOCAL_ETAG
from ..io.retries import take_retries
from ..io.storage import Storage
from ..io.url import Url
from ..schema import ITEMS, ImageResult, images_table, instances_table
from ..stats import Stats
from ..tiling.reader import ReadRegion, read_windows
from ..types import Detections, Segmenter
from .circuit_breaker import Batch, CircuitBreaker
from .manifest import ShardReader
from .plan import Shard
from .prefetch import Pool, Stopwatch, Turns, prefetch
from .receipts import Receipt, commit, write_shard

GROUPED_BYTES: Final = 2**30
"""Of decoded pixels that may wait for others to fill their batch."""
FETCH_THREADS: Final = 4
"""At least, also where an actor has fewer CPUs: most of a fetch is waiting."""
WINDOW: Final = "window_id"
"""The column by which a shard's rows are known to be windows."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a traced shard says before it computes a group, in case these are its last words."""

    now: Sequence[int]
    """The rows of the group."""
    before: Sequence[int] = ()
    """Those of the group before: what ends a process may take effect a moment later."""
    verdicts: Mapping[int, ItemError] = field(default_factory=dict)
    """Rows whose decoding has ended so far as it would end again."""


Announce = Callable[[Announcement], None]
_NOBODY: Final[Mapping[int, ItemError]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Loaded:
    """One input on its way to the segmenter: its manifest row, and its image or the reason for its absence."""

    row: int
    entry: dict[str, Any]
    n_bytes: int | None
    image: DecodedImage | ItemError | None
    """None where no pixel of a window is valid."""

    @property
    def held_bytes(self) -> int:
        """Memory that the pixels take."""
        return self.image.pixels.nbytes if isinstance(self.image, DecodedImage) else 0


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of an attempt at a shard that ran to its end."""

    receipt: Receipt
    committed: bool
    """Whether the receipt is stored; if not, that is for the caller to do, or to leave."""
    storage_failures: Mapping[str, int]
    """Images by the code of their failure, of `errors.STORAGE_CODES` only."""
    example: str
    """One of these failures in words, or ""."""


class ShardWorker:
    """Runs shards with one segmenter.

    Two threads may each run a shard: one is computed at a time, while the inputs of the next are fetched and the
    results of the one before are written. What shares a batch is of one shard.

    Args:
        storage: the run's output.
        segmenter: finds the instances.
        limits: what may be decoded; the aspect ratio is the segmenter's.
        execution: what the receipts record beside the segmenter's own record.
        threads: CPUs that it may use.
        decode: decodes an image, in any thread; raises ItemError.
        patience_s: an input that takes longer to be read, and for which the shard waits, fails with `timeout`.
        read_strip: reads a part of a raster, where windows are asked for.
    """

    def __init__(
        self,
        storage: Storage,
        segmenter: Segmenter,
        limits: Limits,
        execution: dict[str, Any],
        threads: int = 1,
        decode: Callable[[bytes, Limits], DecodedImage] = decode_image,
        patience_s: float = math.inf,
        read_region: ReadRegion | None = None,
    ) -> None:
        self._storage = storage
        self._segmenter = segmenter
        self._limits = limits
        self._execution = execution
        self._decode = decode
        self._shards = ShardReader(storage)
        self._steps = 0
        self._told_to_go = False
        self._reading = threading.Lock()
        self._decoding = threading.Semaphore(threads)
        self._turns = Turns()
        self._n_fetchers = max(FETCH_THREADS, threads)
        self._fetchers = Pool(self._n_fetchers)
        self._read_region = read_region
        self._tiles = Pool(1)  # windows follow from one another
        self._patience_s = patience_s
        self._read_since: dict[int, float] = {}
        self._lanes = ThreadPoolExecutor(segmenter.lanes, thread_name_prefix="lane")

    @property
    def steps(self) -> int:
        """A number that grows as long as there is progress: inputs that were loaded, groups that were computed."""
        return self._steps

    def go(self) -> None:
        """Give up the shards under way, each before its next group, and begin no other: HandedBackError."""
        self._told_to_go = True

    def run_shard(
        self,
        shard: Shard,
        *,
        quarantined: Mapping[int, ItemError] = _NOBODY,
        announce: Announce | None = None,
        withhold: bool = False,
    ) -> Finished:
        """Process the rows of a shard and commit them.

        Args:
            convicted: rows of the manifest to record as failed without another look.
            announce: is told of each group before it is computed; and one thing is done after the other.
            withhold: leave it to the caller to commit a shard in which inputs failed with a storage code.

        Raises:
            SegmenterError: the network raised something unexpected.
            StoreFailingError: half of 200 inputs in a row failed with one storage code.
            HandedBackError: this worker was told to go.
            RunError: the output cannot be written, or the manifest not read.
        """
        watch = Stopwatch()
        with self._turns.queue() as my_turn:
            with self._reading:
                numbers, rows = self._shards.rows(shard)
            verdicts = dict(quarantined)
            # Nothing is decoded while a traced group is computed: its verdict would not be among the last words.
            # Windows are loaded by one thread: more than the next groups are only memory.
            cut = WINDOW in rows.schema.names
            most = 2 * self._segmenter.batch_size + 2 if cut else 2 * self._n_fetchers
            ahead = 1 if announce else most
            loaded = self._loaded(numbers.tolist(), rows, watch, verdicts, ahead)
            first = list(islice(loaded, 2))  # with which the others are begun, before it is this shard's turn
            my_turn()
            results = self._computed(chain(first, loaded), watch, announce, verdicts)
        with watch.stage("wall"), watch.stage("encode"):
            images, instances, stats = self._tables(results, rows)
        receipt = write_shard(
            self._storage,
            shard,
            uuid.uuid4().hex,
            images,
            instances,
            stats=stats.to_json(),
            timings={name: round(seconds, 6) for name, seconds in watch.seconds.items()},
            execution=self._execution | self._segmenter.execution,
        )
        receipt = dataclasses.replace(receipt, storage_retries=take_retries())
        failures, example = _storage_failures(results)
        committed = not (withhold and failures)
        if committed:
            commit(self._storage, receipt)
        self._steps += 1
        return Finished(receipt, committed, failures, example)

    def try_alone(self, shard: Shard, row: int) -> None:
        """Compute one row of a shard and nothing else at the time, and drop what comes out.

        Raises:
            SegmenterError: the network raised something unexpected.
        """
        with self._reading:
            numbers, rows = self._shards.rows(shard)
        position = numbers.tolist().index(row)
        rows, watch = rows.slice(position, 1), Stopwatch()
        results = self._computed(self._loaded([row], rows, watch, {}), watch)
        self._tables(results, rows)

    def _computed(
        self,
        loaded: Iterator[Loaded],
        watch: Stopwatch,
        announce: Announce | None = None,
        verdicts: Mapping[int, ItemError] = _NOBODY,
    ) -> list[ImageResult]:
        """Return what became of a shard's inputs, in order."""
        with watch.stage("wall"):
            groups = filled_groups(_watched(loaded), self._segmenter)
            results = [
                result for group in self._outcomes(groups, watch, announce, verdicts) for result in group
            ]
            return sorted(results, key=lambda result: result.row)

    def _tables(self, results: Sequence[ImageResult], rows: pa.Table) -> tuple[pa.Table, pa.Table, Stats]:
        """Return a shard's tables and statistics."""
        images = images_table(results, rows)
        instances = instances_table(results, self._segmenter.categories)
        if WINDOW in rows.schema.names:  # of whole images the reduce makes statistics
            return images, instances, Stats.zero(self._segmenter.categories)
        return images, instances, Stats.of_tables(images, instances, self._segmenter.categories)

    def _loaded(
        self,
        numbers: Sequence[int],
        rows: pa.Table,
        watch: Stopwatch,
        verdicts: dict[int, ItemError],
        ahead: int = 1,
    ) -> Iterator[Loaded]:
        """Yield inputs, loaded, in the order of their rows; those with a verdict are not touched, new ones enter."""
        if WINDOW in rows.schema.names:
            return self._windows(numbers, rows, watch, verdicts, ahead)
        entries = rows.select(["image_id", "name", "uri", "bytes", "etag"]).to_pylist()

        def load(position: int) -> Loaded:
            row, entry = numbers[position], entries[position]
            if row in verdicts:
                return Loaded(row, entry, entry["bytes"], verdicts[row])
            loaded = self._load(row, entry, watch)
            if isinstance(loaded.image, ItemError) and loaded.image.code in COSTLY_CODES:
                verdicts[row] = loaded.image
            return loaded

        def late(position: int) -> Loaded | None:
            row, entry = numbers[position], entries[position]
            began = self._read_since.get(row)
            if began is None or time.monotonic() - began <= self._patience_s:
                return None
            verdicts[row] = ItemError("timeout", f"not read within {self._patience_s:g} s")
            return Loaded(row, entry, entry["bytes"], verdicts[row])

        return prefetch(load, range(len(entries)), watch, self._fetchers, late=late, ahead=ahead)

    def _windows(
        self,
        numbers: Sequence[int],
        rows: pa.Table,
        watch: Stopwatch,
        verdicts: dict[int, ItemError],
        ahead: int,
    ) -> Iterator[Loaded]:
        """Yield windows, loaded, in the order of their numbers; those with a verdict are not touched."""
        entries = rows.select(ITEMS.names).to_pylist()
        looked_at = [index for index, number in enumerate(numbers) if number not in verdicts]
        windows = read_windows(
            [entries[index] for index in looked_at],
            functools.partial(self._read_whole, watch),
            functools.partial(self._read_part, watch),
        )

        def load(position: int) -> Loaded:
            number, entry = numbers[position], entries[position]
            if number in quarantined:
                return Loaded(number, entry, entry["bytes"], verdicts[number])
            self._check_stays()
            image = next(windows)
            if isinstance(image, ItemError) and image.code in COSTLY_CODES:
                verdicts[number] = image
            self._steps += 1
            return Loaded(number, entry, entry["bytes"], image)

        quarantined = frozenset(verdicts)
        return prefetch(load, range(len(entries)), watch, self._tiles, ahead=ahead)

    def _read_whole(self, watch: Stopwatch, entry: dict[str, Any]) -> DecodedImage:
        with watch.stage("fetch"):
            data = read_input(entry["uri"], self._limits.max_bytes, entry["etag"])
            _check_unchanged(entry, len(data))
        with watch.stage("decode"):
            return self._decode(data, self._limits)

    def _read_part(self, watch: Stopwatch, entry: dict[str, Any], rect: Rect) -> RasterRegion:
        if self._read_region is None:
            raise RuntimeError("there is nothing that reads rasters")
        self._steps += 1
        with watch.stage("decode"):
            return self._read_region(entry, rect)

    def _outcomes(
        self,
        groups: Iterator[list[Loaded]],
        watch: Stopwatch,
        announce: Announce | None,
        verdicts: Mapping[int, ItemError],
    ) -> Iterator[list[ImageResult]]:
        """Yield what became of each group, in their order; as many at once as the segmenter has lanes."""
        if self._segmenter.lanes == 1 or announce:  # nothing to overlap but this thread's own waiting
            before: list[int] = []
            for group in groups:
                rows = [item.row for item in group]
                if announce:
                    announce(Announcement(rows, before, dict(verdicts)))
                yield self._segment(group, watch)
                before = rows
            return
        under_way: deque[Future[list[ImageResult]]] = deque()
        for group in groups:
            under_way.append(self._lanes.submit(self._segment, group, watch))
            if len(under_way) > self._segmenter.lanes:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def _load(self, row: int, entry: dict[str, Any], watch: Stopwatch) -> Loaded:
        self._check_stays()
        n_bytes = entry["bytes"]
        image: DecodedImage | ItemError
        try:
            with watch.stage("fetch"):
                self._read_since[row] = time.monotonic()
                try:
                    data = read_input(entry["uri"], self._limits.max_bytes, entry["etag"])
                    _check_unchanged(entry, len(data))
                finally:
                    del self._read_since[row]
            n_bytes = len(data)
            with self._decoding, watch.stage("decode"):
                image = self._decode(data, self._limits)
        except ItemError as error:
            image = error
        self._steps += 1  # it need not be exact
        return Loaded(row, entry, n_bytes, image)

    def _check_stays(self) -> None:
        if self._told_to_go:
            raise HandedBackError("the worker was told to go; its shard is handed back")

    def _segment(self, group: Sequence[Loaded], watch: Stopwatch) -> list[ImageResult]:
        """Return what became of each input of a group, in its order."""
        self._check_stays()
        images = [item.image.pixels for item in group if isinstance(item.image, DecodedImage)]
        with watch.stage("model"):
            try:
                found = iter(self._segmenter.outcomes(images) if images else [])
            except MaskrcnnError:
                raise
            except MemoryError as error:
                raise SegmenterError("out_of_memory", f"the network ran out of memory: {error}") from error
            except Exception as error:  # a network may raise anything; it is the caller's to find the image
                what = f"the network raised {type(error).__name__}: {error}"
                raise SegmenterError("worker_crash", what) from error
        self._steps += 1
        return [
            _result(item, next(found) if isinstance(item.image, DecodedImage) else item.image)
            for item in group
        ]


def _watched(loaded: Iterator[Loaded]) -> Iterator[Loaded]:
    """Pass inputs on; raise StoreFailingError where half of 200 in a row failed with one storage code."""
    circuit_breaker = CircuitBreaker()
    for item in loaded:
        failure = (
            item.image
            if isinstance(item.image, ItemError) and not Url.parse(item.entry["uri"]).is_web
            else None
        )
        circuit_breaker.add(
            Batch(1, {failure.code: 1}, f"{item.entry['uri']}: {failure.message}") if failure else Batch(1)
        )
        yield item


def _storage_failures(results: Iterable[ImageResult]) -> tuple[dict[str, int], str]:
    """Return how many images failed with each storage code, and the last of these failures in words."""
    failed = [
        result for result in results if result.error in STORAGE_CODES and not Url.parse(result.uri).is_web
    ]
    example = f"{failed[-1].uri}: {failed[-1].message}" if failed else ""
    return dict(Counter(str(result.error) for result in failed)), example


def filled_groups(
    items: Iterable[Loaded], segmenter: Segmenter, *, max_bytes: int = GROUPED_BYTES
) -> Iterator[list[Loaded]]:
    """Yield inputs in groups that share a forward pass: of one canvas, filled to the segmenter's batch size.

    What is in a group follows from the order of the inputs and their sizes alone. A canvas's last group is not
    filled, nor are those that are given up, the largest first, when more than `max_bytes` of pixels wait.
    """
    waiting: dict[Hashable, list[Loaded]] = {}
    held = 0
    for item in items:
        if not isinstance(item.image, DecodedImage):
            yield [item]
            continue
        canvas = segmenter.canvas(*item.image.pixels.shape[:2])
        waiting.setdefault(canvas, []).append(item)
        held += item.held_bytes
        if len(waiting[canvas]) < segmenter.batch_size and held <= max_bytes:
            continue
        if len(waiting[canvas]) < segmenter.batch_size:
            canvas = max(waiting, key=lambda key: sum(one.held_bytes for one in waiting[key]))
        group = waiting.pop(canvas)
        held -= sum(one.held_bytes for one in group)
        yield group
    yield from waiting.values()


def _check_unchanged(entry: dict[str, Any], n_bytes: int) -> None:
    """Compare an object with what was planned: its size, and of a local file the time of its change.

    Raises:
        ItemError: `changed`.
    """
    planned = entry["etag"]
    if entry["bytes"] not in (None, n_bytes):
        raise ItemError("changed", f"{n_bytes} bytes, planned were {entry['bytes']}")
    if planned is not None and LOCAL_ETAG.fullmatch(planned) and Url.parse(entry["uri"]).is_local:
        now = stat_input(entry["uri"]).etag
        if now != planned:
            raise ItemError("changed", f"its etag is {now}, planned was {planned}")


def _result(item: Loaded, outcome: Detections | ItemError | None) -> ImageResult:
    failure = outcome if isinstance(outcome, ItemError) else None
    height = width = orientation = None
    if isinstance(item.image, DecodedImage):
        height, width = item.image.pixels.shape[:2]
        orientation = item.image.exif_orientation
    elif WINDOW in item.entry:
        height, width = item.entry["window_height"], item.entry["window_width"]
    elif item.image is not None:
        height, width = item.image.height, item.image.width
    return ImageResult(
        row=item.row,
        image_id=item.entry["image_id"],
        name=item.entry["name"],
        uri=item.entry["uri"],
        bytes=item.n_bytes,
        etag=item.entry["etag"],
        detections=outcome if isinstance(outcome, Detections) else None,
        error=None if failure is None else failure.code,
        message=None if failure is None else failure.message,
        width=width,
        height=height,
        exif_orientation=orientation,
        skipped=outcome is None,
    )
