"""Process one shard: prefetch bytes, decode, segment, encode, write, with all stages running concurrently.

A `ShardWorker` is built on the node where it runs, holds the segmenter, which is expensive, and does not depend on Ray.
The failure of an image becomes a row here, and nowhere else; any other exception fails the attempt. The caller may
have a shard *traced*, so that it is known which images were being computed if the process dies, may process an image
*alone*, and may have *quarantined* images, which ended their process, recorded as failed without computing them.
"""

import dataclasses
import functools
import math
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, Final

import pyarrow as pa

from ..errors import COSTLY_CODES, HandedBackError, ItemError, MaskrcnnError, SegmenterError
from ..imaging.decode import DecodedImage, Limits, decode_image
from ..imaging.geometry import RasterRegion, Rect
from ..io.archives.member import split_member
from ..io.inputs import read_input, stat_input
from ..io.picture_tables.picture_uri import split_picture
from ..io.refusals import Refusal
from ..io.storage import Storage
from ..io.stores.local_store import LOCAL_ETAG
from ..io.stores.request_count import take_retries
from ..io.url import Url
from ..schema import ITEMS, MANIFEST, PLACE, ImageResult, images_table, instances_table
from ..stats import Stats
from ..tiling.reader import ReadRegion, read_windows
from ..types import Segmenter
from .batching import WINDOW, Loaded, check_store, filled_groups, result_of, storage_failures
from .manifest_file import ShardReader
from .plan import Shard
from .prefetch import Pool, Stopwatch, Turns, prefetch
from .receipts import Receipt, commit, write_shard
from .shard_inputs import ShardInputs

FETCH_THREADS: Final = 4
"""Minimum number of threads that fetch, even if an actor has fewer CPUs: most of a fetch is waiting."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a traced shard reports before it computes a group, in case the group ends the process."""

    now: Sequence[int]
    """The rows of the group."""
    before: Sequence[int] = ()
    """The rows of the previous group: the cause of a process's end may take effect a moment later."""
    failures: Mapping[int, ItemError] = field(default_factory=dict)
    """Failures of decoding so far that would happen again, by row."""


COUNTED: Final = ("ok", "empty", "failed", "skipped", "instances")
"""What is counted of a shard that is running: its images by status, and their instances."""
Announce = Callable[[Announcement], None]
_NO_ROWS: Final[Mapping[int, ItemError]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Finished:
    """The result of an attempt at a shard that ran to its end."""

    receipt: Receipt
    committed: bool
    """Whether the receipt is stored; if not, the caller decides whether to store it."""
    storage_failures: Mapping[str, int]
    """Number of images by error code, of `errors.STORAGE_CODES` only."""
    example: str
    """Message of one of these failures, or ""."""
    errors: Mapping[str, int]
    """Number of images or windows by error code, of all codes."""
    input_bytes: int
    """Sizes of the files of the images that did not fail; 0 in windows, which are parts of files."""


class ShardWorker:
    """Runs shards with one segmenter.

    Two threads may each run a shard: one shard is computed at a time, while the inputs of the next are fetched and the
    results of the previous one are written. A batch contains images of one shard only.

    Args:
        storage: the run's output.
        segmenter: finds the instances.
        limits: limits on decoded images; the aspect ratio is the segmenter's.
        execution: values that the receipts record besides the segmenter's own.
        threads: number of CPUs to use.
        decode: decodes an image, in any thread; raises ItemError.
        patience_s: an input that takes longer to read, while the shard waits for it, fails with `timeout`.
        read_region: reads a region of a raster; needed for windows.
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
        self._running: dict[str, Counter[str]] = {}
        self._stopping = False
        self._reading = threading.Lock()
        self._decoding = threading.Semaphore(threads)
        self._turns = Turns()
        self._n_fetchers = max(FETCH_THREADS, threads)
        self._fetchers = Pool(self._n_fetchers)
        self._read_region = read_region
        self._tiles = Pool(1)  # windows are read in order, each from the regions of the one before
        self._patience_s = patience_s
        self._read_since: dict[int, float] = {}
        self._lanes = ThreadPoolExecutor(segmenter.lanes, thread_name_prefix="lane")

    @property
    def steps(self) -> int:
        """A number that grows as long as there is progress: loaded inputs and computed groups."""
        return self._steps

    @property
    def running(self) -> dict[str, int]:
        """What is done in the shards that are running: images by status, and `instances`."""
        shards = tuple(self._running.values())
        return {name: sum(counts[name] for counts in shards) for name in COUNTED}

    def stop(self) -> None:
        """Abandon the running shards, each before its next group, and start no other: they raise HandedBackError."""
        self._stopping = True

    def run_shard(
        self,
        shard: Shard,
        *,
        quarantined: Mapping[int, ItemError] = _NO_ROWS,
        announce: Announce | None = None,
        withhold: bool = False,
    ) -> Finished:
        """Process the rows of a shard and commit them.

        Args:
            shard: the shard.
            quarantined: rows of the manifest to record as failed without computing them.
            announce: is called before each group is computed; loading and computing then do not overlap.
            withhold: leave it to the caller to commit a shard in which inputs failed with a storage code.

        Raises:
            SegmenterError: the network raised something unexpected.
            StoreFailingError: half of 200 consecutive inputs failed with one storage code.
            HandedBackError: this worker was asked to stop.
            RunError: the output cannot be written, or the manifest cannot be read.
        """
        counts = self._running[shard.name] = Counter(dict.fromkeys(COUNTED, 0))
        watch = Stopwatch()
        try:
            images, instances, stats, results = self._results(shard, quarantined, announce, counts, watch)
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
            by_code, example = storage_failures(results)
            committed = not (withhold and by_code)
            if committed:
                commit(self._storage, receipt)
            self._steps += 1
            errors = Counter(result.error for result in results if result.error)
            whole = [] if WINDOW in images.schema.names else results
            input_bytes = sum(result.bytes or 0 for result in whole if not result.error)
            return Finished(receipt, committed, by_code, example, dict(errors), input_bytes)
        finally:
            del self._running[shard.name]

    def compute(
        self, shard: Shard, quarantined: Mapping[int, ItemError]
    ) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
        """Process the rows of a shard and store nothing.

        Args:
            shard: the shard.
            quarantined: as of `run_shard`.

        Returns:
            Its images, its instances, and how they were computed, as receipts record it.

        Raises:
            SegmenterError, StoreFailingError, RunError: as `run_shard`.
        """
        images, instances, _, _ = self._results(shard, quarantined, None, Counter(), Stopwatch())
        return images, instances, self._execution | self._segmenter.execution

    def _results(
        self,
        shard: Shard,
        quarantined: Mapping[int, ItemError],
        announce: Announce | None,
        counts: Counter[str],
        watch: Stopwatch,
    ) -> tuple[pa.Table, pa.Table, Stats, list[ImageResult]]:
        """Return a shard's tables and statistics, and the results that they are made of."""
        with self._turns.queue() as my_turn:
            with self._reading:
                numbers, rows = self._shards.rows(shard)
            failures = dict(quarantined)
            # Nothing is decoded while a traced group is computed: its failure would be missing from the announcement.
            # Windows are loaded by one thread: loading more than the next groups would only take memory.
            windowed = WINDOW in rows.schema.names
            most = 2 * self._segmenter.batch_size + 2 if windowed else 2 * self._n_fetchers
            ahead = 1 if announce else most
            loaded = self._loaded(numbers.tolist(), rows, watch, failures, ahead)
            first = list(islice(loaded, 2))  # starts the prefetch before it is this shard's turn
            my_turn()
            results = self._computed(chain(first, loaded), watch, announce, failures, counts)
        with watch.stage("wall"), watch.stage("encode"):
            images, instances, stats = self._tables(results, rows)
        return images, instances, stats, results

    def try_alone(self, shard: Shard, row: int) -> None:
        """Compute one row of a shard and nothing else at the same time, and discard the result.

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
        failures: Mapping[int, ItemError] = _NO_ROWS,
        counts: Counter[str] | None = None,
    ) -> list[ImageResult]:
        """Return the results of a shard's inputs, in order; add them to its counts one group after the other."""
        with watch.stage("wall"):
            groups = filled_groups(check_store(loaded), self._segmenter)
            results: list[ImageResult] = []
            for group in self._outcomes(groups, watch, announce, failures):
                results += group
                if counts is not None:
                    counts.update(result.status for result in group)
                    counts["instances"] += sum(len(result.detections or ()) for result in group)
            return sorted(results, key=lambda result: result.row)

    def _tables(self, results: Sequence[ImageResult], rows: pa.Table) -> tuple[pa.Table, pa.Table, Stats]:
        """Return a shard's tables and statistics."""
        images = images_table(results, rows)
        instances = instances_table(results, self._segmenter.categories, masks=self._segmenter.has_masks)
        if WINDOW in rows.schema.names:  # the reduce makes the statistics, of whole images
            return images, instances, Stats.zero(self._segmenter.categories)
        return images, instances, Stats.of_tables(images, instances, self._segmenter.categories)

    def _loaded(
        self,
        numbers: Sequence[int],
        rows: pa.Table,
        watch: Stopwatch,
        failures: dict[int, ItemError],
        ahead: int = 1,
    ) -> Iterator[Loaded]:
        """Yield loaded inputs in the order of their rows; skip those in `failures`, and add costly ones to it."""
        if WINDOW in rows.schema.names:
            return self._windows(numbers, rows, watch, failures, ahead)
        names = [name for name in (*MANIFEST.names, PLACE.name) if name in rows.schema.names]
        entries = rows.select(names).to_pylist()
        inputs = ShardInputs(entries, self._limits.max_bytes)

        def load(position: int) -> Loaded:
            row, entry = numbers[position], entries[position]
            if row in failures:
                return Loaded(row, entry, entry["bytes"], failures[row])
            loaded = self._load(row, entry, watch, functools.partial(inputs.read, position))
            if isinstance(loaded.image, ItemError) and loaded.image.code in COSTLY_CODES:
                failures[row] = loaded.image
            return loaded

        def late(position: int) -> Loaded | None:
            row, entry = numbers[position], entries[position]
            began = self._read_since.get(row)
            if began is None or time.monotonic() - began <= self._patience_s:
                return None
            failures[row] = Refusal.READ_TIMED_OUT.error(seconds=self._patience_s)
            return Loaded(row, entry, entry["bytes"], failures[row])

        return prefetch(load, range(len(entries)), watch, self._fetchers, late=late, ahead=ahead)

    def _windows(
        self,
        numbers: Sequence[int],
        rows: pa.Table,
        watch: Stopwatch,
        failures: dict[int, ItemError],
        ahead: int,
    ) -> Iterator[Loaded]:
        """Yield loaded windows in the order of their numbers; skip those in `failures`, and add costly ones to it."""
        entries = rows.select(ITEMS.names).to_pylist()
        to_read = [index for index, number in enumerate(numbers) if number not in failures]
        windows = read_windows(
            [entries[index] for index in to_read],
            functools.partial(self._read_whole, watch),
            functools.partial(self._read_part, watch),
        )

        def load(position: int) -> Loaded:
            number, entry = numbers[position], entries[position]
            if number in quarantined:
                return Loaded(number, entry, entry["bytes"], failures[number])
            self._check_stopping()
            image = next(windows)
            if isinstance(image, ItemError) and image.code in COSTLY_CODES:
                failures[number] = image
            self._steps += 1
            return Loaded(number, entry, entry["bytes"], image)

        quarantined = frozenset(failures)
        return prefetch(load, range(len(entries)), watch, self._tiles, ahead=ahead)

    def _read_whole(self, watch: Stopwatch, entry: dict[str, Any]) -> DecodedImage:
        with watch.stage("fetch"):
            data = read_input(entry["uri"], self._limits.max_bytes, entry["etag"])
            _check_unchanged(entry, len(data))
        with watch.stage("decode"):
            return self._decode(data, self._limits)

    def _read_part(self, watch: Stopwatch, entry: dict[str, Any], rect: Rect) -> RasterRegion:
        if self._read_region is None:
            raise RuntimeError("rasters cannot be read: pass read_region")
        self._steps += 1
        with watch.stage("decode"):
            return self._read_region(entry, rect)

    def _outcomes(
        self,
        groups: Iterator[list[Loaded]],
        watch: Stopwatch,
        announce: Announce | None,
        failures: Mapping[int, ItemError],
    ) -> Iterator[list[ImageResult]]:
        """Yield the results of each group, in their order; as many run at once as the segmenter has lanes."""
        if self._segmenter.lanes == 1 or announce:  # nothing would overlap except this thread's own waiting
            before: list[int] = []
            for group in groups:
                rows = [item.row for item in group]
                if announce:
                    announce(Announcement(rows, before, dict(failures)))
                yield self._segment(group, watch)
                before = rows
            return
        running: deque[Future[list[ImageResult]]] = deque()
        for group in groups:
            running.append(self._lanes.submit(self._segment, group, watch))
            if len(running) > self._segmenter.lanes:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    def _load(self, row: int, entry: dict[str, Any], watch: Stopwatch, read: Callable[[], bytes]) -> Loaded:
        self._check_stopping()
        n_bytes = entry["bytes"]
        image: DecodedImage | ItemError
        try:
            with watch.stage("fetch"):
                self._read_since[row] = time.monotonic()
                try:
                    data = read()
                    _check_unchanged(entry, len(data))
                finally:
                    del self._read_since[row]
            n_bytes = len(data)
            with self._decoding, watch.stage("decode"):
                image = self._decode(data, self._limits)
        except ItemError as error:
            image = error
        self._steps += 1  # concurrent increments may be lost; any growth is enough
        return Loaded(row, entry, n_bytes, image)

    def _check_stopping(self) -> None:
        if self._stopping:
            raise HandedBackError("the worker was asked to stop; its shard is handed back")

    def _segment(self, group: Sequence[Loaded], watch: Stopwatch) -> list[ImageResult]:
        """Return the result of each input of a group, in their order."""
        self._check_stopping()
        images = [item.image.pixels for item in group if isinstance(item.image, DecodedImage)]
        with watch.stage("model"):
            try:
                outcomes = iter(self._segmenter.outcomes(images) if images else [])
            except MaskrcnnError:
                raise
            except MemoryError as error:
                raise SegmenterError("out_of_memory", f"the network ran out of memory: {error}") from error
            except Exception as error:  # a network may raise anything; the caller finds the image
                what = f"the network raised {type(error).__name__}: {error}"
                raise SegmenterError("worker_crash", what) from error
        self._steps += 1
        return [
            result_of(item, next(outcomes) if isinstance(item.image, DecodedImage) else item.image)
            for item in group
        ]


def _check_unchanged(entry: dict[str, Any], n_bytes: int) -> None:
    """Compare an object with the manifest: its size, and the modification time of a local file.

    Raises:
        ItemError: `changed`.
    """
    planned = entry["etag"]
    if entry["bytes"] not in (None, n_bytes):
        raise Refusal.CHANGED_SIZE.error(count=n_bytes, planned=entry["bytes"])
    if split_member(entry["uri"]) or split_picture(
        entry["uri"]
    ):  # their file's etag is compared whenever it is read
        return
    if planned is not None and LOCAL_ETAG.fullmatch(planned) and Url.parse(entry["uri"]).is_local:
        now = stat_input(entry["uri"]).etag
        if now != planned:
            raise Refusal.CHANGED_ETAG.error(etag=now, planned=planned)
