"""Decide whether a JPEG without its last marker has all of its pixels, by reading its Huffman codes to the last one.

libjpeg fills missing pixels with grey and does not say so through Pillow. Here the codes of the last scan (of its last
restart interval, if it has any) are read without computing pixels: the data are complete if the last block ends in the
last byte. Of a progressive JPEG, every coefficient must also have all of its bits.

Reference: ITU-T T.81, annexes B (markers), F.2 (sequential) and G (progressive).
"""

import contextlib
import re
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

END: Final = b"\xff\xd9"
SEQUENTIAL: Final = frozenset([0xC0, 0xC1])
PROGRESSIVE: Final = 0xC2
FRAMES: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""The markers that begin a frame: SOF0 to SOF15, and SOF55 of JPEG-LS."""

_TABLES, _SCAN, _HEIGHT, _INTERVAL = 0xC4, 0xDA, 0xDC, 0xDD
_ALONE: Final = frozenset([0x01, *range(0xD0, 0xD9)])
_MARKER: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_RESTART: Final = re.compile(rb"\xff+[\xd0-\xd7]")
_END_OF_BLOCK: Final = 64
_AFTER_END: Final = 2**14  # bytes that the codes of an MCU may reach beyond the end
_INVALID: Final = 4096  # a run or a category that no valid code has

Table = list[int]
"""By the next 16 bits of the data: (a symbol, or the step to the next coefficient) * 32 + the bits to consume."""


Zeros = list[bytes]
"""By block: the positions from 1 to 63, in zigzag order, of the coefficients that are zero so far."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A marker segment."""

    marker: int
    """The second byte of the marker."""
    start: int
    """Where the marker begins in the file, in bytes."""
    stop: int
    """Where the segment ends."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The header of the pixels."""

    marker: int
    """The second byte of its marker."""
    height: int
    """Pixels."""
    width: int
    sampling: dict[int, tuple[int, int]]
    """By component: the horizontal and the vertical sampling factor."""

    def blocks(self, name: int) -> int:
        """Return the number of blocks of a scan of one component."""
        horizontal, vertical = self.sampling[name]
        columns = -(-self.width * horizontal // self._largest[0])
        rows = -(-self.height * vertical // self._largest[1])
        return -(-columns // 8) * -(-rows // 8)

    def units(self, names: tuple[int, ...]) -> int:
        """Return the number of MCUs of a scan."""
        if len(names) == 1:
            return self.blocks(names[0])
        return -(-self.width // (8 * self._largest[0])) * -(-self.height // (8 * self._largest[1]))

    @property
    def _largest(self) -> tuple[int, int]:
        factors = self.sampling.values()
        return max(h for h, _ in factors), max(v for _, v in factors)


@dataclass(frozen=True, slots=True)
class Scan:
    """The header of a scan."""

    names: tuple[int, ...]
    """Of the components."""
    dc: tuple[bytes, ...]
    """The Huffman table of each component, as in the file."""
    ac: tuple[bytes, ...]
    first: int
    """The first coefficient."""
    last: int
    high: int
    """The number of low bits that were missing before this scan; 0 if none had been read."""
    low: int
    """The number of low bits that are still missing after it."""
    interval: int
    """MCUs between restart markers; 0 without any."""
    start: int
    """Where its data start and stop in the file."""
    stop: int


def segments(data: bytes) -> Iterator[Segment]:
    """Yield the marker segments up to the end marker or the end of the file, without the data of scans."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] in (0x00, 0xFF):
            at += 1
            continue
        marker = data[at + 1]
        if marker in _ALONE:
            at += 2
            continue
        if marker == END[1]:
            return
        stop = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        yield Segment(marker, at, stop)
        at = _scan_stop(data, stop) if marker == _SCAN else stop


def _scan_stop(data: bytes, start: int) -> int:
    found = _MARKER.search(data, start)
    return found.start() if found else len(data)


def with_height(data: bytes) -> bytes:
    """Return a JPEG whose header states its height, if it is stated after the pixels (DNL); else unchanged."""
    found = {segment.marker: segment for segment in segments(data)}
    frame, height = next((found[marker] for marker in found if marker in FRAMES), None), found.get(_HEIGHT)
    if frame is None or height is None:
        return data
    return data[: frame.start + 5] + data[height.start + 4 : height.start + 6] + data[frame.start + 7 :]


def complete_length(data: bytes) -> int | None:
    """Return where the pixel data of a JPEG without an end marker end; None if they are not all there.

    Zeros may follow them, as in files of a fixed size. None also for a JPEG with an end marker, for codings other than
    Huffman's, and for files that contradict themselves.
    """
    for part in {data, data.rstrip(b"\0")}:
        with contextlib.suppress(LookupError, struct.error, ValueError):
            frame, scans = parse(part)
            if _has_all_scans(part, frame, scans) and _is_complete(part, frame, scans):
                return scans[-1].stop
    return None


def lacks_end(data: bytes) -> bool:
    """Return whether no end marker follows the last scan; the one of a thumbnail in the metadata does not count."""
    if data.endswith(END):
        return False
    last = max((segment.start for segment in segments(data) if segment.marker == _SCAN), default=0)
    return data.rfind(END) < last


def _has_all_scans(data: bytes, frame: Frame, scans: list[Scan]) -> bool:
    """Return whether there are scans of all components and bits, the last of which no end marker follows."""
    if data[scans[-1].stop : scans[-1].stop + 16].lstrip(b"\xff").startswith(END[1:]):
        return False
    if frame.marker == PROGRESSIVE:
        return not lacks_bits(frame, scans)
    return frame.marker in SEQUENTIAL and {name for scan in scans for name in scan.names} == set(
        frame.sampling
    )


def parse(data: bytes) -> tuple[Frame, list[Scan]]:
    """Return the frame and the scans. Raises LookupError, struct.error or ValueError."""
    frame, interval = None, 0
    tables: dict[int, bytes] = {}
    scans: list[Scan] = []
    for segment in segments(data):
        body = data[segment.start + 4 : segment.stop]
        if segment.marker == _TABLES:
            tables |= _huffman_tables(body)
        elif segment.marker == _INTERVAL:
            [interval] = struct.unpack_from(">H", body)
        elif segment.marker in FRAMES:
            _, height, width, count = struct.unpack_from(">BHHB", body)
            sampling = {body[i]: (body[i + 1] >> 4, body[i + 1] & 15) for i in range(6, 6 + 3 * count, 3)}
            if frame or not (height and width and all(map(all, sampling.values()))):
                raise ValueError("not one frame with a size")
            frame = Frame(segment.marker, height, width, sampling)
        elif segment.marker == _SCAN:
            count = body[0]
            first, last, bits = body[1 + 2 * count : 4 + 2 * count]
            stop = _scan_stop(data, segment.stop)
            if stop == len(data):
                stop = len(data.rstrip(b"\xff"))  # the first half of an end marker
            selectors = [body[i] for i in range(2, 2 + 2 * count, 2)]
            scans.append(
                Scan(
                    tuple(body[i] for i in range(1, 1 + 2 * count, 2)),
                    tuple(tables.get(selector >> 4, b"") for selector in selectors),
                    tuple(tables.get(16 + (selector & 15), b"") for selector in selectors),
                    *(first, last, bits >> 4, bits & 15, interval, segment.stop, stop),
                )
            )
    if frame is None or not scans:
        raise ValueError("no picture")
    return frame, scans


def _huffman_tables(body: bytes) -> dict[int, bytes]:
    """Return the tables of a DHT segment by class * 16 + identifier: 16 counts, and the symbols."""
    tables, at = {}, 0
    while at < len(body):
        size = 16 + sum(body[at + 1 : at + 17])
        tables[body[at]] = body[at + 1 : at + 1 + size]
        at += 1 + size
    return tables


def lacks_bits(frame: Frame, scans: list[Scan]) -> bool:
    """Return whether a coefficient of a progressive JPEG lacks some of its bits."""
    missing = {name: [_INVALID] * 64 for name in frame.sampling}
    for scan in scans:
        for name in scan.names:
            missing[name][scan.first : scan.last + 1] = [scan.low] * (scan.last - scan.first + 1)
    return any(map(any, missing.values()))


def _is_complete(data: bytes, frame: Frame, scans: list[Scan]) -> bool:
    """Return whether the last block of the last scan ends in the scan's last byte."""
    scan = scans[-1]
    intervals = _intervals(data, scan)
    units = frame.units(scan.names)
    per_interval = scan.interval or units
    if len(intervals) != -(-units // per_interval):
        return False
    before = (len(intervals) - 1) * per_interval
    bits = _Bits(intervals[-1])
    if frame.marker != PROGRESSIVE:
        is_read = _read_sequential(bits, units - before, frame, scan)
    elif scan.first == 0:
        is_read = _read_dc(bits, units - before, frame, scan)
    elif scan.high == 0:
        is_read = _read_first(bits, range(before, units), scan, None)
    else:
        zeros: Zeros = [bytes(range(1, 64))] * units
        for earlier in scans[:-1]:
            if earlier.names == scan.names and earlier.first:
                _read_history(data, earlier, units, zeros)
        is_read = _read_refinement(bits, range(before, units), scan, zeros)
    return is_read and bits.end_in_last_byte()


def _intervals(data: bytes, scan: Scan) -> list[bytes]:
    """Return the bytes of each restart interval, without the zeros that follow 0xFF."""
    parts = _RESTART.split(data[scan.start : scan.stop]) if scan.interval else [data[scan.start : scan.stop]]
    return [part.replace(b"\xff\0", b"\xff") for part in parts]


def _read_history(data: bytes, scan: Scan, units: int, zeros: Zeros) -> None:
    """Leave out the coefficients that a scan makes other than zero."""
    done = 0
    for interval in _intervals(data, scan):
        part = range(done, min(done + (scan.interval or units), units))
        read = _read_refinement if scan.high else _read_first
        if not read(_Bits(interval), part, scan, zeros):
            raise ValueError("a scan that is not the last one is incomplete")
        done = part.stop


class _Bits:
    """The bits of a restart interval; after its end come zeros."""

    def __init__(self, data: bytes) -> None:
        self.size = 8 * len(data)
        self.at = 0
        self._last = data[-1] if data else 0
        padded = np.frombuffer(data + bytes(_AFTER_END + 4), np.uint8).astype(np.uint32)
        words = padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:]
        self.words = array("I", words.astype(np.uintc).tobytes())
        """By byte: it and the next three. The 16 bits from `at` on are `words[at >> 3] >> 16 - (at & 7) & 0xFFFF`."""

    def end_in_last_byte(self) -> bool:
        """Return whether at most 7 bits remain, which all have one value, as encoders write them."""
        left = self.size - self.at
        return 0 <= left < 8 and self._last & (1 << left) - 1 in (0, (1 << left) - 1)


def _table(raw: bytes, entry: Callable[[int, int], int]) -> Table:
    """Return a Huffman table, given the entry of a symbol and the length of its code. Raises ValueError."""
    table, code, at = [_INVALID << 5] * 65536, 0, 16
    for length, count in enumerate(raw[:16], 1):
        for _ in range(count):
            span = 1 << (16 - length)
            if code + span > 65536:
                raise ValueError("more codes than there can be")
            table[code : code + span] = [entry(raw[at], length)] * span
            code, at = code + span, at + 1
    if not code:
        raise ValueError("a table is missing")
    return table


def _dc_entry(category: int, length: int) -> int:
    return length + min(category, 15)


def _ac_entry(symbol: int, length: int) -> int:
    run = (symbol >> 4) + 1 if symbol else _END_OF_BLOCK
    return run << 5 | length + (symbol & 15)


def _symbol_entry(symbol: int, length: int) -> int:
    return symbol << 5 | length


def _read_sequential(bits: _Bits, count: int, frame: Frame, scan: Scan) -> bool:
    """Read MCUs; return whether they are all there."""
    tables = []
    for name, dc, ac in zip(scan.names, scan.dc, scan.ac, strict=True):
        blocks = frame.sampling[name][0] * frame.sampling[name][1] if len(scan.names) > 1 else 1
        tables += [(_table(dc, _dc_entry), _table(ac, _ac_entry))] * blocks
    words, at = bits.words, bits.at
    for _ in range(count):
        if at > bits.size:
            return False
        for of_dc, of_ac in tables:
            code = of_dc[words[at >> 3] >> 16 - (at & 7) & 0xFFFF]
            at += code & 31
            if code >= _INVALID << 5:
                return False
            k = 1
            while k < 64:
                code = of_ac[words[at >> 3] >> 16 - (at & 7) & 0xFFFF]
                at += code & 31
                k += code >> 5
            if k >= _INVALID:
                return False
    bits.at = at
    return True


def _read_dc(bits: _Bits, count: int, frame: Frame, scan: Scan) -> bool:
    sampling = [frame.sampling[name] if len(scan.names) > 1 else (1, 1) for name in scan.names]
    if scan.high:
        bits.at += count * sum(horizontal * vertical for horizontal, vertical in sampling)
        return True
    tables = [
        table
        for raw, (horizontal, vertical) in zip(scan.dc, sampling, strict=True)
        for table in [_table(raw, _dc_entry)] * (horizontal * vertical)
    ]
    words, at = bits.words, bits.at
    for _ in range(count):
        if at > bits.size:
            return False
        for table in tables:
            code = table[words[at >> 3] >> 16 - (at & 7) & 0xFFFF]
            at += code & 31
            if code >= _INVALID << 5:
                return False
    bits.at = at
    return True


def _read_first(bits: _Bits, blocks: range, scan: Scan, zeros: Zeros | None) -> bool:
    """Read the first scan of some AC coefficients of blocks; return whether they are all there."""
    table, after = _table(scan.ac[0], _symbol_entry), blocks.start
    words, at, first, last = bits.words, bits.at, scan.first, scan.last
    while after < blocks.stop:
        block, after = after, after + 1
        k, found = first, bytearray()
        while k <= last:
            code = table[words[at >> 3] >> 16 - (at & 7) & 0xFFFF]
            at += code & 31
            if code >= _INVALID << 5 or at > bits.size:
                return False
            run, size = code >> 9, code >> 5 & 15
            if size:
                k += run
                at += size
                if k <= last:
                    found.append(k)
            elif run < 15:  # the end of 2**run blocks and more
                after = block + _count_of_ends(words, at, run)
                at += run
                break
            else:
                k += run
            k += 1
        if found and zeros is not None:
            zeros[block] = zeros[block].translate(None, found)
    bits.at = at
    return at <= bits.size and after == blocks.stop


def _read_refinement(bits: _Bits, blocks: range, scan: Scan, zeros: Zeros) -> bool:
    """Read a further bit of some AC coefficients of blocks; return whether they are all there.

    A symbol states a number of coefficients to leave zero. Each coefficient that is not zero and is passed has one bit.
    """
    table, ends = _table(scan.ac[0], _symbol_entry), 0
    words, at, first, last = bits.words, bits.at, scan.first, scan.last
    for block in blocks:
        own = zeros[block]
        i, stop = bisect_left(own, first), bisect_right(own, last)
        k, found = first, bytearray()
        while k <= last and not ends:
            code = table[words[at >> 3] >> 16 - (at & 7) & 0xFFFF]
            at += code & 31
            if code >= _INVALID << 5 or at > bits.size:
                return False
            run, size = code >> 9, code >> 5 & 15
            if size == 0 and run < 15:
                ends = _count_of_ends(words, at, run)
                at += run
                break
            at += size
            if i + run >= stop:
                at += last + 1 - k - (stop - i)
                i, k = stop, last + 1
                break
            at += own[i + run] - k - run
            i += run + 1
            k = own[i - 1] + 1
            if size:
                found.append(k - 1)
        if ends:
            at += last + 1 - k - (stop - i)
            ends -= 1
        if found:
            zeros[block] = own.translate(None, found)
    bits.at = at
    return at <= bits.size and ends == 0


def _count_of_ends(words: "array[int]", at: int, run: int) -> int:
    """Return the number of blocks that end, from the symbol's run and as many bits."""
    return (1 << run) + ((words[at >> 3] >> 16 - (at & 7) & 0xFFFF) >> 16 - run)
