"""Decode in separate processes, so that a crash of a decoder fails one image and does not end the model's process.

The processes decode images and regions of rasters, and read headers when a windowed run is planned.

Image decoders are C code that parses untrusted bytes: they must not run in a process that holds a network. A child
process handles one image at a time, so the image that ends it is known. It ends itself at the timeout (the kernel's
alarm also interrupts a decoder that hangs), at the memory limit, and when its parent has ended.

Bytes and pixels pass through a socket pair. Reference: socketpair(2), setitimer(2), setrlimit(2).
"""

import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin

from ..errors import ItemError, RunError, UsageError
from ..io.inputs import open_input
from ..io.refusals import Refusal
from ..io.stores.request_count import add_counts, take_requests, take_retries
from .decode import DecodedImage, Limits, decode_image, image_size
from .formats.sniff import format_of
from .geometry import ImageHeader, RasterRegion, Rect
from .geotiff import NO_CRS, fields_from_json, fields_to_json
from .radiometry import Radiometry
from .raster import RasterReader, raster_header, sample

DECODE_TIMEOUT_S: Final = 60.0
"""The timeout for one image. The largest image that the limits allow takes about five seconds."""
EXECUTIONS: Final = 2
"""Maximum number of attempts at an image that ends its decoder, each in a new process; see `Decoders.executions`."""

_HEADER: Final = struct.Struct("<I")  # the number of bytes of the JSON header that follows
_READY: Final = b"!"
_SPARE_BYTES: Final = 2**30
_BUFFER_BYTES: Final = 2**20
_BYTES_PER_PIXEL: Final = 16  # the maximum over all modes, for 16-bit grey
_REGION_BYTES: Final = 2**32


@dataclass(frozen=True, slots=True)
class RasterSource:
    """A raster, and how to read it."""

    uri: str
    etag: str | None
    """The etag at planning time; see `inputs.open_input`."""
    radiometry: Radiometry
    assume_crs: str | None = None


class Decoders:
    """Manage up to `count` decoding processes, started on demand; safe to use from several threads.

    Args:
        count: the number of images decoded at once; further callers wait.
        timeout_s: the timeout for one image, in seconds.
    """

    def __init__(self, count: int, timeout_s: float = DECODE_TIMEOUT_S) -> None:
        self.executions = EXECUTIONS
        """Maximum number of attempts at an image; set it to 1 if earlier executions are possible."""
        self._timeout_s = timeout_s
        self._idle: queue.SimpleQueue[_Decoder | None] = queue.SimpleQueue()
        self._count = count
        for _ in range(count):
            self._idle.put(None)

    def start(self, limits: Limits) -> None:
        """Start all processes, for images within the limits, before the first image needs one.

        Raises:
            RunError: a process cannot be started.
        """
        for _ in range(self._count):
            decoder = self._idle.get()
            try:
                decoder = decoder or _Decoder(_memory(limits))
            finally:
                self._idle.put(decoder)

    def decode(self, data: bytes, limits: Limits) -> DecodedImage:
        """Run `decode.decode_image` in a decoding process.

        Raises:
            ItemError: as `decode_image`; also `worker_crash`, `timeout` or `out_of_memory` if the image ended its
                decoding process in each of `executions` attempts.
            RunError: no decoding process can be started.
        """
        request = {"operation": "decode", "limits": dataclasses.astuple(limits)}
        reply, [pixels] = self._request(request, data, _memory(limits))
        return DecodedImage(pixels, reply["exif_orientation"])

    def read_region(self, source: RasterSource, rect: Rect) -> RasterRegion:
        """Run `raster.RasterReader.read_region` in a decoding process.

        Raises:
            ItemError: as `read_region` and `decode`.
            RunError: the store failed.
        """
        request = {"operation": "read_region", "source": dataclasses.asdict(source), "rect": rect}
        reply, [pixels, valid] = self._request(request, b"", _REGION_BYTES)
        broken = [(Rect(*part), ItemError(*error)) for *part, error in reply["broken"]]
        return RasterRegion(pixels, valid.view(np.bool_), tuple(broken), reply["orientation"])

    def read_header(
        self, uri: str, limits: Limits, radiometry: Radiometry, assume_crs: str | None
    ) -> ImageHeader:
        """Read the header of an image or a raster in a decoding process.

        Raises:
            ItemError: the header cannot be read, or the image does not meet the limits or the radiometry.
            RunError: the store failed.
        """
        request = {
            "operation": "read_header",
            "uri": uri,
            "limits": dataclasses.astuple(limits),
            "radiometry": radiometry.to_json(),
            "assume_crs": assume_crs,
        }
        reply, [blocks] = self._request(request, b"", _memory(limits))
        data_blocks = blocks.view(np.int64) if reply["sparse"] else None
        return ImageHeader(**fields_from_json(reply["header"]), data_blocks=data_blocks)

    def sample(
        self, uri: str, radiometry: Radiometry, count: int, assume_crs: str | None
    ) -> tuple[NDArray[np.float64], float]:
        """Run `raster.sample` in a decoding process.

        Raises:
            ItemError: the raster cannot be read.
            RunError: the store failed.
        """
        request = {
            "operation": "sample",
            "uri": uri,
            "radiometry": radiometry.to_json(),
            "count": count,
            "assume_crs": assume_crs,
        }
        reply, [values] = self._request(request, b"", _REGION_BYTES)
        return values.view(np.float64), reply["weight"]

    def _request(
        self, request: dict[str, Any], data: bytes, memory: int
    ) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
        """Send a request to the next idle process and return its reply. Raises ItemError, RunError, UsageError."""
        decoder, executions = self._idle.get(), self.executions
        try:
            for _ in range(executions):
                decoder = decoder or _Decoder(memory)
                try:
                    return decoder.ask(request | {"seconds": self._timeout_s, "bytes": len(data)}, data)
                except _DecoderDiedError:
                    status, decoder = decoder.end(), None
            raise _process_error(status, self._timeout_s)
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """End the processes. No thread may be decoding."""
        for _ in range(self._count):
            decoder = self._idle.get()
            if decoder is not None:
                decoder.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _DecoderDiedError(Exception):
    """The process ended before it replied."""


class _Decoder:
    """One decoding process, and the parent's end of its socket."""

    def __init__(self, memory: int) -> None:
        self._socket, theirs = socket.socketpair()
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        with theirs:
            # The terminal signals Ctrl-C to both processes, and the parent handles it.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                self._process = subprocess.Popen(  # noqa: S603 (only this interpreter and two numbers)
                    [
                        sys.executable,
                        "-P",
                        "-m",
                        "maskrcnn.imaging.decode_pool",
                        str(theirs.fileno()),
                        str(memory),
                    ],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                )
            except OSError as error:
                self._socket.close()
                raise RunError(f"cannot start a process to decode images: {error}") from error
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            _receive(self._socket, len(_READY))
        except _DecoderDiedError:
            raise RunError(
                f"a process to decode images ended at its start (status {self.end()}); see the worker's log"
            ) from None

    def ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
        """Send a request and return the reply. Raises ItemError, RunError, UsageError, _DecoderDiedError."""
        try:
            _send(self._socket, request, [data])
        except OSError as error:
            raise _DecoderDiedError from error
        reply = _receive_json(self._socket)
        add_counts(reply["requests"], reply["retries"])
        if "code" in reply:
            raise ItemError(reply["code"], reply["message"], width=reply["width"], height=reply["height"])
        if "run_error" in reply:
            raise RunError(reply["run_error"])
        if "usage_error" in reply:
            raise UsageError(reply["usage_error"])
        arrays = [np.empty(shape, np.uint8) for shape in reply["shapes"]]
        for array in arrays:
            if array.size:
                _receive_into(self._socket, array.data.cast("B"))
        return reply, arrays

    def end(self) -> int:
        """End the process if it is still running; return its exit status, negative for a signal."""
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(5.0)
        self._process.kill()
        return self._process.wait()


def _memory(limits: Limits) -> int:
    return _SPARE_BYTES + _BYTES_PER_PIXEL * limits.max_pixels + 2 * limits.max_bytes


def _process_error(status: int, timeout_s: float) -> ItemError:
    """Return the error of an image whose decoding process ended with `status`."""
    if status == -signal.SIGALRM:
        return Refusal.PROCESS_TIMED_OUT.error(seconds=timeout_s)
    if status == -signal.SIGKILL:
        return Refusal.PROCESS_KILLED.error()
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return Refusal.PROCESS_CRASHED.error(how=how)


def _send(connection: socket.socket, header: dict[str, Any], contents: Sequence[bytes | memoryview]) -> None:
    text = json.dumps(header).encode()
    connection.sendall(_HEADER.pack(len(text)) + text)
    for content in contents:
        connection.sendall(content)


def _receive_json(connection: socket.socket) -> dict[str, Any]:
    [length] = _HEADER.unpack(_receive(connection, _HEADER.size))
    header: dict[str, Any] = json.loads(_receive(connection, length))
    return header


def _receive(connection: socket.socket, length: int) -> bytes:
    buffer = bytearray(length)
    _receive_into(connection, memoryview(buffer))
    return bytes(buffer)


def _receive_into(connection: socket.socket, view: memoryview) -> None:
    while view:
        try:
            received = connection.recv_into(view)
        except OSError as error:
            raise _DecoderDiedError from error
        if received == 0:
            raise _DecoderDiedError
        view = view[received:]


def keep_freed_memory() -> None:
    """Configure glibc to keep freed memory for reuse; do nothing with another C library.

    By default glibc returns the memory of each decoded image to the kernel, which then clears as many pages for the
    next image: half of the time of decoding a small photo. One arena is used instead of one per thread, so that
    memory freed by one thread can be reused by another.

    Reference: mallopt(3).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**30), (_M_ARENA_MAX, 1)):
            libc.mallopt(option, value)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


# In the child process


def _serve(connection: socket.socket) -> None:
    """Reply to requests until the parent has ended."""
    connection.sendall(_READY)
    while True:
        request = _receive_json(connection)
        data = _receive(connection, request["bytes"])
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        arrays: list[NDArray[Any]] = []
        try:
            reply, arrays = _HANDLERS[request["operation"]](request, data)
        except ItemError as error:
            reply = {
                "code": error.code,
                "message": error.message,
                "width": error.width,
                "height": error.height,
            }
        except RunError as error:
            reply = {"run_error": str(error)}
        except UsageError as error:
            reply = {"usage_error": str(error)}
        signal.setitimer(signal.ITIMER_REAL, 0)
        arrays = [np.ascontiguousarray(array).view(np.uint8) for array in arrays]
        counts = {"requests": take_requests(), "retries": take_retries()}
        _send(
            connection,
            reply | counts | {"shapes": [array.shape for array in arrays]},
            [array.data.cast("B") if array.size else b"" for array in arrays],
        )


_Reply = tuple[dict[str, Any], list[NDArray[Any]]]


def _decode(request: dict[str, Any], data: bytes) -> _Reply:
    image = decode_image(data, Limits(*request["limits"]))
    return {"exif_orientation": image.exif_orientation}, [image.pixels]


def _read_region(request: dict[str, Any], _: bytes) -> _Reply:
    reader = _reader(json.dumps(request["source"]))
    pixels, valid, broken = reader.read_region(Rect(*request["rect"]))
    errors = [(*rect, (error.code, error.message)) for rect, error in broken]
    return {"broken": errors, "orientation": reader.info.orientation}, [pixels, valid]


@functools.lru_cache(maxsize=1)
def _reader(source: str) -> RasterReader:
    """Return a reader of a raster; the last one is kept open."""
    fields = json.loads(source)
    raster = RasterSource(**fields | {"radiometry": Radiometry.from_json(fields["radiometry"])})
    file = open_input(raster.uri, raster.etag)
    return RasterReader(file, raster.radiometry, assume_crs=raster.assume_crs)


def _read_header(request: dict[str, Any], _: bytes) -> _Reply:
    with open_input(request["uri"]) as file:
        if format_of(file.read(1024)) == "TIFF":
            header = raster_header(file, Radiometry.from_json(request["radiometry"]), request["assume_crs"])
        else:
            file.seek(0)
            is_plain = request["assume_crs"] == NO_CRS
            header = ImageHeader(*image_size(file, Limits(*request["limits"]), ignore_coordinates=is_plain))
        fields = fields_to_json(header)
        del fields["data_blocks"]
        blocks = header.data_blocks
        return {"header": fields, "sparse": blocks is not None}, [
            np.zeros(0, np.int64) if blocks is None else blocks
        ]


def _sample(request: dict[str, Any], _: bytes) -> _Reply:
    radiometry = Radiometry.from_json(request["radiometry"])
    with open_input(request["uri"]) as file:
        values, weight = sample(file, radiometry, request["count"], request["assume_crs"])
    return {"weight": weight}, [values]


_HANDLERS: Final[dict[str, Callable[[dict[str, Any], bytes], _Reply]]] = {
    "decode": _decode,
    "read_region": _read_region,
    "read_header": _read_header,
    "sample": _sample,
}


def _limit_memory(spare_bytes: int) -> None:
    """Let the process allocate `spare_bytes` more before a MemoryError, if the system supports the limit."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # noqa: PLC0415 (missing on some systems)

        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
            now = int(file.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (now + spare_bytes, hard))


def main() -> None:
    """Serve requests on the inherited socket: `python -m maskrcnn.imaging.decode_pool SOCKET SPARE_BYTES`."""
    # libtiff and other C libraries print a line per problem, hundreds for one file; only Python's own output goes to
    # the log.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    keep_freed_memory()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the images of a shard are decoded side by side
    descriptor, spare_bytes = map(int, sys.argv[1:])
    _limit_memory(spare_bytes)
    with (
        socket.socket(fileno=descriptor) as connection,
        contextlib.suppress(_DecoderDiedError, BrokenPipeError),
    ):
        _serve(connection)


if __name__ == "__main__":
    main()
