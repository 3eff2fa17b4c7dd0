"""Decoding in processes of its own, so that a decoder's crash costs one image and never the model.

Image decoders are C code that reads hostile bytes: a process that hosts a network must not run them. A child has
one image at a time, and therefore is alone with whatever kills it. It ends by itself when the time is up (the
kernel's alarm needs no help from a decoder that hangs), when memory is short, and when its parent is gone.

Bytes and pixels pass through a socket pair. Reference: socketpair(2), setitimer(2), setrlimit(2).
"""

import contextlib
import ctypes
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from .decode import DecodedImage, Limits, decode_image
from .errors import ItemError, RunError

DECODE_TIMEOUT_S: Final = 60.0
"""For one image. The largest that the limits allow takes some five seconds."""
EXECUTIONS: Final = 2
"""Of an image that kills its decoder, each in a fresh process, before it is given up; see `Decoders.executions`."""

_REQUEST: Final = struct.Struct("<QQQdd")  # bytes, max_pixels, max_bytes, max_aspect, seconds
_REPLY: Final = struct.Struct("<I")  # bytes of the JSON that follows; then come the pixels
_READY: Final = b"!"
_SPARE_BYTES: Final = 2**30
_BUFFER_BYTES: Final = 2**20
_BYTES_PER_PIXEL: Final = 16  # of the worst path, 16-bit grey


class Decoders:
    """Up to `count` decoding processes, started when they are needed; for any number of threads.

    Args:
        count: how many images are decoded at once; further callers wait.
        timeout_s: seconds that one image may take.
    """

    def __init__(self, count: int, timeout_s: float = DECODE_TIMEOUT_S) -> None:
        self.executions = EXECUTIONS
        """Of an image from now on; one, where it may have had others before."""
        self._timeout_s = timeout_s
        self._idle: queue.SimpleQueue[_Decoder | None] = queue.SimpleQueue()
        self._count = count
        for _ in range(count):
            self._idle.put(None)

    def decode(self, data: bytes, limits: Limits) -> DecodedImage:
        """Do what `decode.decode_image` does, elsewhere.

        Raises:
            ItemError: as `decode_image`; also `worker_crash`, `timeout` and `out_of_memory`, where the image
                ended its decoder, alone, each of `executions` times.
            RunError: no decoder can be started.
        """
        decoder, executions = self._idle.get(), self.executions
        try:
            for _ in range(executions):
                decoder = decoder or _Decoder(limits)
                try:
                    return decoder.decode(data, limits, self._timeout_s)
                except _DecoderDiedError:
                    status, decoder = decoder.end(), None
            raise _verdict(status, self._timeout_s)
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """End the processes; call it when no thread decodes."""
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
    """The process ended before it answered."""


class _Decoder:
    """One process, and this end of its socket."""

    def __init__(self, limits: Limits) -> None:
        self._socket, theirs = socket.socketpair()
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        memory = _SPARE_BYTES + _BYTES_PER_PIXEL * limits.max_pixels + 2 * limits.max_bytes
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 (this interpreter and two numbers)
                    [sys.executable, "-m", "maskrcnn.sandbox", str(theirs.fileno()), str(memory)],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                )
            except OSError as error:
                self._socket.close()
                raise RunError(f"cannot start a process to decode images: {error}") from error
        try:
            _receive(self._socket, len(_READY))
        except _DecoderDiedError:
            raise RunError(
                f"a process to decode images ended at once (status {self.end()}); see the worker's log"
            ) from None

    def decode(self, data: bytes, limits: Limits, timeout_s: float) -> DecodedImage:
        """Have an image decoded. Raises ItemError, _DecoderDiedError."""
        request = _REQUEST.pack(len(data), limits.max_pixels, limits.max_bytes, limits.max_aspect, timeout_s)
        try:
            self._socket.sendall(request)
            self._socket.sendall(data)
        except OSError as error:
            raise _DecoderDiedError from error
        [length] = _REPLY.unpack(_receive(self._socket, _REPLY.size))
        reply: dict[str, Any] = json.loads(_receive(self._socket, length))
        if "code" in reply:
            raise ItemError(reply["code"], reply["message"], width=reply["width"], height=reply["height"])
        pixels = np.empty((reply["height"], reply["width"], 3), np.uint8)
        _receive_into(self._socket, pixels.data.cast("B"))
        return DecodedImage(pixels, reply["exif_orientation"])

    def end(self) -> int:
        """End the process, if it has not ended; return its status, negative for a signal."""
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(5.0)
        self._process.kill()
        return self._process.wait()


def _verdict(status: int, timeout_s: float) -> ItemError:
    """Return why an image is given up whose decoder ended with a status."""
    if status == -signal.SIGALRM:
        return ItemError("timeout", f"not decoded within {timeout_s:g} s")
    if status == -signal.SIGKILL:
        return ItemError("out_of_memory", "its decoder was killed, as the kernel does when memory is short")
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return ItemError("worker_crash", f"it ended its decoder ({how})")


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
    """Let glibc keep what is freed, where it is glibc.

    By default it returns every decoded image's memory to the kernel, which then clears as many pages for the next
    one: half of the time of decoding a small photo. One arena instead of one a thread, so that what one thread
    frees another can use.

    Reference: mallopt(3).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**30), (_M_ARENA_MAX, 1)):
            libc.mallopt(option, value)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


# In the child


def _serve(connection: socket.socket) -> None:
    """Answer requests until the parent is gone."""
    connection.sendall(_READY)
    while True:
        length, max_pixels, max_bytes, max_aspect, timeout_s = _REQUEST.unpack(
            _receive(connection, _REQUEST.size)
        )
        data = _receive(connection, length)
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        reply, pixels = _answer(data, Limits(max_pixels, max_bytes, max_aspect))
        signal.setitimer(signal.ITIMER_REAL, 0)
        header = json.dumps(reply).encode()
        connection.sendall(_REPLY.pack(len(header)) + header)
        connection.sendall(pixels)


def _answer(data: bytes, limits: Limits) -> tuple[dict[str, Any], memoryview]:
    try:
        image = decode_image(data, limits)
    except ItemError as error:
        reply = {"code": error.code, "message": error.message, "width": error.width, "height": error.height}
        return reply, memoryview(b"")
    height, width = image.pixels.shape[:2]
    reply = {"height": height, "width": width, "exif_orientation": image.exif_orientation}
    return reply, image.pixels.data.cast("B")


def _limit_memory(spare_bytes: int) -> None:
    """Let the process grow by so much, and then meet MemoryError; where the system can."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # noqa: PLC0415 (not on every system)

        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
            now = int(file.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (now + spare_bytes, hard))


def main() -> None:
    """Serve the socket that was inherited: `python -m maskrcnn.sandbox SOCKET SPARE_BYTES`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business, and the terminal tells both
    # libtiff prints a line for whatever it does not like, hundreds for one file; only Python's words are for the log.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    keep_freed_memory()
    descriptor, spare_bytes = map(int, sys.argv[1:])
    _limit_memory(spare_bytes)
    with (
        socket.socket(fileno=descriptor) as connection,
        contextlib.suppress(_DecoderDiedError, BrokenPipeError),
    ):
        _serve(connection)


if __name__ == "__main__":
    main()
