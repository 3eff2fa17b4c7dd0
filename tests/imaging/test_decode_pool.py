"""Decoding in a process gives the same results as in this process; an image that ends a decoder fails alone."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from s3_servers import S3Server

from maskrcnn.errors import ItemError
from maskrcnn.imaging.decode import Limits, decode_image
from maskrcnn.imaging.decode_pool import EXECUTIONS, Decoders
from maskrcnn.imaging.radiometry import Radiometry
from maskrcnn.io.stores.request_count import take_requests

pytestmark = pytest.mark.slow

PILLOW_LIMIT = 2**30 // 4 // 3
LIMITS = Limits(10**7, 10**7, 1333.0)

POISON = '''
"""Imported by Python at its start: patch Pillow to fail on files with certain last bytes."""
import os, signal
import PIL.Image

opened = PIL.Image.open

def open_poison(file, *args, **options):
    kind = file.getvalue()[-4:]
    if kind in (b"segv", b"exit", b"hang", b"kill", b"much"):
        with open(os.environ["POISON_LOG"], "ab") as log:
            log.write(kind + b" ")
    if kind == b"segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == b"exit":
        os._exit(0)
    if kind == b"kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == b"much":
        held = [bytearray(2**27) for _ in range(10**6)]
    while kind == b"hang":
        pass
    return opened(file, *args, **options)

PIL.Image.open = open_poison
'''


def picture(color: int = 200, size: tuple[int, int] = (30, 20), kind: str = "PNG") -> bytes:
    file = BytesIO()
    Image.new("RGB", size, (color, 100, 50)).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with Decoders(2) as decoders:
        yield decoders


@pytest.fixture
def executions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Patch all decoders started from now on; return a function that lists the poison files executed so far."""
    (tmp_path / "sitecustomize.py").write_text(POISON)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("POISON_LOG", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    return lambda: (tmp_path / "log").read_text().split()


def outcome(decode: Callable[[bytes, Limits], object], data: bytes) -> object:
    try:
        image = decode(data, LIMITS)
    except ItemError as error:
        return str(error), error.width, error.height
    return image


@settings(max_examples=60)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]), st.binary(max_size=8), st.integers(0, 400)
)
def test_the_outcome_equals_that_of_decoding_in_this_process(
    decoders: Decoders, kind: str, put: bytes, at: int
) -> None:
    whole = picture(kind=kind)
    data = whole[:at] + put + whole[at + len(put) :]
    # Pillow's limit is global to a process, and other tests have raised it; a decoder starts with the default.
    Image.MAX_IMAGE_PIXELS = PILLOW_LIMIT
    here, there = outcome(decode_image, data), outcome(decoders.decode, data)
    if isinstance(here, tuple):
        assert there == here
    else:
        assert np.array_equal(there.pixels, here.pixels)  # type: ignore[attr-defined]
        assert there.exif_orientation == here.exif_orientation  # type: ignore[attr-defined]


def test_the_orientation_and_the_size_of_an_error_are_returned(decoders: Decoders) -> None:
    file = BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (30, 20)).save(file, "JPEG", exif=exif)
    image = decoders.decode(file.getvalue(), LIMITS)
    assert (image.exif_orientation, image.pixels.shape) == (6, (30, 20, 3))
    with pytest.raises(ItemError, match="aspect") as refused:
        decoders.decode(picture(size=(2000, 1)), LIMITS)
    assert (refused.value.width, refused.value.height) == (2000, 1)


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        (b"segv", "worker_crash", "SIGSEGV"),
        (b"exit", "worker_crash", "exit status 0"),
        (b"kill", "out_of_memory", "killed"),
        (b"hang", "timeout", "not decoded within 1 s"),
    ],
)
def test_an_image_that_ends_its_decoder_gets_an_error_code(
    executions: Callable[[], list[str]], kind: bytes, code: str, message: str
) -> None:
    with Decoders(1, timeout_s=1.0) as decoders:
        before = decoders.decode(picture(1), LIMITS).pixels
        with pytest.raises(ItemError, match=message) as error:
            decoders.decode(picture(2) + kind, LIMITS)
        assert error.value.code == code
        assert executions() == [kind.decode()] * EXECUTIONS
        assert EXECUTIONS <= 3
        assert np.array_equal(decoders.decode(picture(1), LIMITS).pixels, before)


def test_the_number_of_executions_can_be_limited_to_one(executions: Callable[[], list[str]]) -> None:
    with Decoders(1) as decoders:
        decoders.executions = 1
        with pytest.raises(ItemError, match="worker_crash"):
            decoders.decode(picture() + b"segv", LIMITS)
        assert executions() == ["segv"]


def test_unlimited_allocation_reaches_the_memory_limit(executions: Callable[[], list[str]]) -> None:
    with Decoders(1) as decoders:
        with pytest.raises(ItemError, match="out_of_memory"):
            decoders.decode(picture() + b"much", LIMITS)
        assert executions() == ["much"]
        assert decoders.decode(picture(), LIMITS).pixels.shape == (20, 30, 3)


def test_images_of_other_threads_survive_a_poison_image(executions: Callable[[], list[str]]) -> None:
    images = [picture(n) + (b"segv" if n % 10 == 0 else b"") for n in range(40)]
    with Decoders(3) as decoders, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda data: outcome(decoders.decode, data), images))
    failed = [n for n, image in enumerate(found) if isinstance(image, tuple)]
    assert failed == [0, 10, 20, 30]
    for n, image in enumerate(found):
        if n not in failed:
            assert (image.pixels == (n, 100, 50)).all()  # type: ignore[attr-defined]
    assert len(executions()) == EXECUTIONS * 4


def test_a_decoder_ends_with_its_parent() -> None:
    decoders = Decoders(1)
    decoders.decode(picture(), LIMITS)
    decoder = decoders._idle.get()
    assert decoder is not None
    decoder._socket.shutdown(2)  # as the kernel does for a process that ends
    assert decoder._process.wait(10) == 0


def test_a_decoder_ignores_an_interrupt_from_the_terminal() -> None:
    with Decoders(1) as decoders:
        decoders.decode(picture(), LIMITS)
        decoder = decoders._idle.get()
        assert decoder is not None
        decoder._process.send_signal(signal.SIGINT)
        decoders._idle.put(decoder)
        assert decoders.decode(picture(), LIMITS).pixels.shape == (20, 30, 3)
        assert decoder._process.poll() is None


def test_callers_beyond_the_number_of_decoders_wait(decoders: Decoders) -> None:
    results: list[tuple[int, ...]] = []
    threads = [
        threading.Thread(target=lambda: results.append(decoders.decode(picture(), LIMITS).pixels.shape))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(20, 30, 3)] * 12


def test_ctrl_c_in_a_terminal_is_not_for_a_decoder_not_even_while_it_starts() -> None:
    before = set(psutil.Process().children())

    def interrupt() -> None:
        while not (started := set(psutil.Process().children()) - before):
            pass
        for process in started:
            process.send_signal(signal.SIGINT)

    signals = threading.Thread(target=interrupt)
    signals.start()
    with Decoders(1) as decoders:
        decoders.start(LIMITS)
        signals.join()
        assert decoders.decode(picture(), LIMITS).pixels.shape == (20, 30, 3)


@pytest.mark.s3
def test_what_a_decoder_reads_from_a_store_is_counted_here(moto_server: S3Server) -> None:
    """It opens rasters itself, to read only some of their blocks."""
    content = BytesIO()
    Image.new("RGB", (30, 20)).save(content, "PNG")
    prefix = moto_server.prefix()
    moto_server.behind(prefix).put("a.png", content.getvalue())
    take_requests()
    with Decoders(1) as decoders:
        header = decoders.read_header(f"{prefix}/a.png", LIMITS, Radiometry(), "none")
        assert (header.width, header.height) == (30, 20)
        counts = take_requests()
        assert counts["GET"] >= 1
        decoders.read_header(f"{prefix}/a.png", LIMITS, Radiometry(), "none")
        assert take_requests() == counts, "each reply says what was done for it"
