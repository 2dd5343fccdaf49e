"""Makes deltas from one version of a file to the next; `edgekit_runtime.deltas` says what they are, and applies them.

Two ways are tried, and the smaller one is kept where it is worth anything. A patch of zstd finds whatever is in both
files. Subtracting tensor from tensor finds more in a network that was trained on: nearly all of its numbers changed,
but by little.

Both files are mapped, not read, and packed in blocks: what is held is the delta and, beside it, the tables of the
coders, about 100 MB; for files up to `MAX_ZSTD_BYTES` also those of zstd at its highest level, about 500 MB more. A
megabyte takes from one to three seconds, so that the largest files take some minutes: this is work for a queue, not for
a request.
"""

from __future__ import annotations

import hashlib
import lzma
import mmap
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.fleet.releases.tensor_bytes import Span, tensors
from edgekit_runtime import deltas as wire
from edgekit_runtime.deltas import BLOCK_BYTES, COPY, FILTERS, LITERAL, WIDTHS, Offer
from edgekit_runtime.disk import hash_file
from edgekit_runtime.errors import ArtifactError

# Smaller files are fetched whole: looking for a delta would cost as much.
LEAST_BYTES: Final = 64 << 10
MAX_BYTES: Final = 256 << 20
ZSTD_LEVEL: Final = 19
# Differences have no strings that repeat and no places in a word: no context but the one of a single byte.
PLAIN: Final = ({**FILTERS[0], "preset": 6, "lc": 0, "lp": 0, "pb": 0, "mf": lzma.MF_BT4, "nice_len": 64},)
TEXT: Final = ({**FILTERS[0], "preset": 9 | lzma.PRESET_EXTREME, "dict_size": FILTERS[0]["dict_size"]},)
OPERATION: Final = {width: op for op, width in WIDTHS.items() if op != LITERAL}

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Delta:
    """From one file to another.

    Attributes:
        sha256: hex digest of the new file.
        offer: how a device hears of it.
        content: of the delta.
    """

    sha256: str
    offer: Offer
    content: bytes

    @property
    def path(self) -> str:
        """On the server."""
        return wire.delta_path(self.sha256, self.offer)


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes of the new file, in the order of the file.

    Attributes:
        op: an operation of `edgekit_runtime.deltas`.
        at: first byte in the new file.
        size: bytes.
        base: first byte in the base; without meaning for a literal.
    """

    op: int
    at: int
    size: int
    base: int = 0


def make(base: Path, new: Path) -> Delta | None:
    """Make the smallest delta that is worth it.

    Args:
        base: file that a device has.
        new: file that it is to have.

    Returns:
        A delta of at most `WORTH` of the new file that was tried out; None where there is none.

    Raises:
        OSError: a file cannot be read.
    """
    size = new.stat().st_size
    if not LEAST_BYTES < size <= MAX_BYTES or not 0 < base.stat().st_size <= MAX_BYTES:
        return None
    digests = hash_file(base), hash_file(new)
    if digests[0] == digests[1]:
        return None
    tried = {"tensor": subtract(base, new), "zstd": patch(base, new)}
    fit = sorted((len(each), form, each) for form, each in tried.items() if each is not None)
    for length, form, content in fit:
        if length <= wire.WORTH * size and _comes_out(form, base, content, size, digests[1]):
            offer = Offer(digests[0], form, length, hashlib.sha256(content).hexdigest())
            return Delta(digests[1], offer, content)
    return None


def patch(base: Path, new: Path) -> bytes | None:
    """A frame of zstd after the base; None where the files are too large for it, or zstd is not installed."""
    if max(base.stat().st_size, new.stat().st_size) > wire.MAX_ZSTD_BYTES:
        return None
    try:
        import zstandard
    except ImportError:
        return None
    log = max(base.stat().st_size + new.stat().st_size, 1 << 17).bit_length()
    parameters = zstandard.ZstdCompressionParameters.from_level(
        ZSTD_LEVEL, window_log=min(log, zstandard.WINDOWLOG_MAX), enable_ldm=True, write_content_size=True
    )
    prefix = zstandard.ZstdCompressionDict(base.read_bytes(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(dict_data=prefix, compression_params=parameters).compress(
        new.read_bytes()
    )


def subtract(base: Path, new: Path) -> bytes | None:
    """A delta by tensors; None where the files have none in common."""
    with _mapped(base) as old_bytes, _mapped(new) as new_bytes:
        pairs = matched(tensors(old_bytes), tensors(new_bytes))
        if not pairs:
            return None
        old, fresh = np.frombuffer(old_bytes, np.uint8), np.frombuffer(new_bytes, np.uint8)
        try:
            return pack(plan(pairs, old, fresh), old, fresh)
        finally:
            del old, fresh


def matched(old: list[Span], new: list[Span]) -> list[tuple[Span, Span]]:
    """Tensors of the base beside those of the new file that are most likely the same ones.

    By name, type and shape; then, where names were given anew, by type and shape in the order of the files.
    """
    pairs: list[tuple[Span, Span]] = []
    left_old, left_new = old, new
    for by_name in (True, False):
        waiting = defaultdict(list)
        for span in reversed(left_old):
            waiting[_key(span, by_name)].append(span)
        rest = []
        for span in left_new:
            if there := waiting[_key(span, by_name)]:
                pairs.append((there.pop(), span))
            else:
                rest.append(span)
        left_old = sorted(chain.from_iterable(waiting.values()), key=lambda each: each.at)
        left_new = rest
    return sorted(pairs, key=lambda pair: pair[1].at)


def plan(pairs: list[tuple[Span, Span]], old: Bytes, new: Bytes) -> list[Segment]:
    """How every byte of the new file comes about.

    Args:
        pairs: of `matched`, in the order of the new file.
        old: content of the base.
        new: content of the new file.
    """
    found: list[Segment] = []
    old_end = new_end = 0
    for before, after in pairs:
        found += _between(old, (old_end, before.at), new, (new_end, after.at))
        found.append(_tensor(before, after, old, new))
        old_end, new_end = before.at + before.size, after.at + after.size
    found += _between(old, (old_end, len(old)), new, (new_end, len(new)))
    return list(_joined(found))


def pack(segments: list[Segment], old: Bytes, new: Bytes) -> bytes | None:
    """A delta in the format `tensor`; None where it would have too many segments.

    Args:
        segments: every byte of the new file once, in its order.
        old: content of the base.
        new: content of the new file.
    """
    if len(segments) > wire.MAX_SEGMENTS:
        return None
    coders = {
        op: lzma.LZMACompressor(lzma.FORMAT_RAW, filters=TEXT if op == LITERAL else PLAIN) for op in WIDTHS
    }
    streams: dict[int, list[bytes]] = {op: [] for op in WIDTHS}
    used = {each.op for each in segments}
    for each in segments:
        for block in _blocks(each, old, new):
            streams[each.op].append(coders[each.op].compress(block))
    packed = [b"".join((*streams[op], coders[op].flush())) if op in used else b"" for op in WIDTHS]
    table = lzma.compress(_table(segments), lzma.FORMAT_RAW, filters=TEXT)
    header = wire.HEADER.pack(wire.MAGIC, len(old), len(new), len(table), *map(len, packed))
    return b"".join((header, table, *packed))


def _key(span: Span, by_name: bool) -> tuple[Any, ...]:
    return (span.name if by_name else "", span.kind, span.shape, span.size)


def _tensor(before: Span, after: Span, old: Bytes, new: Bytes) -> Segment:
    """A tensor: as it was, as a difference, or as it is where nothing is left of what it was."""
    was, now = _part(old, before.at, before.size), _part(new, after.at, after.size)
    if np.array_equal(was, now):
        return Segment(COPY, after.at, after.size, before.at)
    op = OPERATION[after.width] if after.width in OPERATION else OPERATION[1]
    sample = slice(0, min(after.size, BLOCK_BYTES) // WIDTHS[op] * WIDTHS[op])
    changed = difference(was[sample], now[sample], WIDTHS[op])
    if bits(changed, WIDTHS[op]) > bits(now[sample].tobytes(), 1):
        return Segment(LITERAL, after.at, after.size)
    return Segment(op, after.at, after.size, before.at)


def _between(old: Bytes, was: tuple[int, int], new: Bytes, now: tuple[int, int]) -> list[Segment]:
    """What lies between two tensors: names, tables, numbers of the graph."""
    size, other = now[1] - now[0], max(0, was[1] - was[0])
    if not size:
        return []
    a, b = _part(old, was[0], other), _part(new, now[0], size)
    if size == other:
        return [Segment(COPY if np.array_equal(a, b) else OPERATION[1], now[0], size, was[0])]
    # Of another length: what is equal at both ends, and the rest as it is.
    short = min(size, other)
    front = _equal(a[:short], b[:short])
    back = min(short - front, _equal(a[::-1][:short], b[::-1][:short]))
    parts = [Segment(COPY, now[0], front, was[0]), Segment(LITERAL, now[0] + front, size - front - back)]
    parts.append(Segment(COPY, now[1] - back, back, was[1] - back))
    return [each for each in parts if each.size]


def _joined(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Neighbours that one operation makes, as one; numbers wider than a byte stay in their tensors."""
    last: Segment | None = None
    for each in segments:
        if last is None:
            last = each
        elif each.op == last.op and (
            each.op == LITERAL or (WIDTHS.get(each.op, 1) == 1 and each.base == last.base + last.size)
        ):
            last = Segment(last.op, last.at, last.size + each.size, last.base)
        else:
            yield last
            last = each
    if last is not None:
        yield last


def difference(was: Bytes, now: Bytes, width: int) -> bytes:
    """A block as `edgekit_runtime.deltas.undo` takes it.

    Args:
        was: bytes of numbers, little-endian.
        now: as many bytes.
        width: bytes of a number.
    """
    unsigned, signed = np.dtype(f"<u{width}"), np.dtype(f"<i{width}")
    change = (now.view(unsigned) - was.view(unsigned)).view(signed)
    zigzag = (change << 1) ^ (change >> (8 * width - 1))
    return bytes(np.ascontiguousarray(zigzag.view(np.uint8).reshape(-1, width).T).data)


def bits(packed: bytes, planes: int) -> float:
    """Shannon's entropy of a block: bits that no coder without a context goes below.

    Args:
        packed: bytes, plane by plane.
        planes: number of them, each with a distribution of its own.
    """
    total = 0.0
    for plane in np.frombuffer(packed, np.uint8).reshape(planes, -1):
        counts = np.bincount(plane, minlength=256)
        share = counts[counts > 0] / len(plane)
        total -= len(plane) * float((share * np.log2(share)).sum())
    return total


def _blocks(segment: Segment, old: Bytes, new: Bytes) -> Iterator[bytes]:
    if segment.op == COPY:
        return
    for done in range(0, segment.size, BLOCK_BYTES):
        size = min(BLOCK_BYTES, segment.size - done)
        now = _part(new, segment.at + done, size)
        if segment.op == LITERAL:
            yield now.tobytes()
        else:
            yield difference(_part(old, segment.base + done, size), now, WIDTHS[segment.op])


def _table(segments: list[Segment]) -> bytes:
    taken = [each for each in segments if each.op != LITERAL]
    skips = {b: b.base - (a.base + a.size) for a, b in pairwise(taken)}
    if taken:
        skips[taken[0]] = taken[0].base
    return b"".join(
        (
            bytes(each.op for each in segments),
            np.array([skips.get(each, 0) for each in segments], "<i8").tobytes(),
            np.array([each.size for each in segments], "<i8").tobytes(),
        )
    )


def _comes_out(form: str, base: Path, content: bytes, size: int, sha256: str) -> bool:
    """Whether a device would get the new file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        total = hashlib.sha256()
        try:
            for part in wire.apply(form, base, Path(file.name), size):
                total.update(part)
        except ArtifactError:
            return False
    return total.hexdigest() == sha256


def _equal(a: Bytes, b: Bytes) -> int:
    """How many bytes at the front are equal."""
    unequal = np.flatnonzero(a != b)
    return int(unequal[0]) if len(unequal) else len(a)


def _part(content: Bytes, at: int, size: int) -> Bytes:
    """A copy, which begins where a number may."""
    return content[at : at + size].copy()


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        view = memoryview(content)
        try:
            yield view
        finally:
            view.release()
