"""Deltas: a new version of a file out of one that the device has, and the little that changed.

```
deltas/<sha256 of the new file>.json                                 which deltas there are: `Offer`s
deltas/<sha256 of the new file>/<sha256 of the base>.<format>        one of them
```

Nothing of this is signed, and nothing of it is trusted: what comes out is held against the hash of the new file, which
is. So a delta can be wrong, but not do wrong: its memory is bounded by this module, its result by the caller's size.

The format `zstd` is one frame whose prefix (its raw dictionary) is the base. The format `tensor` is

```
header       b"EKT1", bytes of the base, bytes of the new file, packed bytes of the segments and of each stream
segments     their operations, then their skips, then their sizes; packed
streams      one of each operation that reads something, in the order of `WIDTHS`; packed
```

Everything is little-endian, and packed as raw LZMA2 by `FILTERS`. A segment makes the next `size` bytes: from its
stream as they are (`LITERAL`), from the base (`COPY`), or as the sum, number by number, of the base and its stream
(`WIDTHS`). It begins `skip` bytes behind the end of what the segment before took of the base. In a stream, differences
are zigzag numbers (0, -1, 1, -2 … become 0, 1, 2, 3 …) and lie in blocks of `BLOCK_BYTES`, first the lowest byte of
every number, then the next one.
"""

from __future__ import annotations

import importlib
import json
import lzma
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from edgekit_runtime.errors import ArtifactError
from edgekit_runtime.strict_json import ContractError, Fields, check_pattern, check_whole, parse, within

SCHEMA: Final = 1
MAX_INDEX_BYTES: Final = 64 << 10
# Of the full file, beyond which a delta is not worth its risk.
WORTH: Final = 0.9
# zstd holds the base and the new file in memory; larger ones come as `tensor`, which holds neither.
MAX_ZSTD_BYTES: Final = 32 << 20

MAGIC: Final = b"EKT1"
LITERAL, COPY = 0, 1
# Operation to bytes of a number; a literal is a number on nothing.
WIDTHS: Final[Mapping[int, int]] = MappingProxyType({LITERAL: 1, 2: 1, 3: 2, 4: 4, 5: 8})
HEADER: Final = struct.Struct(f"<4s{3 + len(WIDTHS)}Q")
SEGMENT_BYTES, MAX_SEGMENTS = 17, 1 << 16
BLOCK_BYTES: Final = 64 << 10
FILTERS: Final = ({"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20},)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FORMAT = re.compile(r"[a-z][a-z0-9]{0,15}")


@dataclass(frozen=True, slots=True)
class Offer:
    """A delta that a server says it has.

    Attributes:
        base: sha256 (hex) of the file that it is applied to.
        format: one of `FORMATS`, or one that a later version knows.
        size_bytes: of the delta.
        sha256: (hex) of the delta.
    """

    base: str
    format: str
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        for name in ("base", "sha256"):
            check_pattern(name, getattr(self, name), _SHA256, "64 lower-case hexadecimal digits")
        check_pattern("format", self.format, _FORMAT, "a name such as tensor")
        check_whole("size_bytes", self.size_bytes, 1, 2**53)


def index_path(sha256: str) -> str:
    """Of the list of deltas to a file, on the server."""
    return f"deltas/{sha256}.json"


def delta_path(sha256: str, offer: Offer) -> str:
    """Of a delta to a file, on the server."""
    return f"deltas/{sha256}/{offer.base}.{offer.format}"


def write_index(offers: Iterable[Offer]) -> bytes:
    """The list of deltas to a file."""
    tree = {"schema": SCHEMA, "deltas": [asdict(offer) for offer in offers]}
    return (json.dumps(tree, sort_keys=True, indent=1) + "\n").encode()


def read_index(document: bytes) -> tuple[Offer, ...]:
    """Read such a list.

    Raises:
        ContractError: it is none.
    """
    if len(document) > MAX_INDEX_BYTES:
        raise ContractError("", f"{len(document)} bytes", f"at most {MAX_INDEX_BYTES}")
    top = Fields(parse(document), "", required=("schema", "deltas"))
    if (schema := top.whole("schema")) != SCHEMA:
        raise ContractError("schema", str(schema), f"{SCHEMA}; a newer edgekit-runtime may read it")
    return top.each("deltas", _read_offer)


def choose(offers: Iterable[Offer], bases: Set[str], size_bytes: int) -> Offer | None:
    """The smallest delta that this device can apply and that is worth it.

    Args:
        offers: of the server.
        bases: sha256 (hex) of the files that are here.
        size_bytes: of the full file.
    """
    known, most = usable(), WORTH * size_bytes
    fit = [each for each in offers if each.base in bases and each.format in known and each.size_bytes <= most]
    return min(fit, key=lambda each: each.size_bytes, default=None)


def usable() -> frozenset[str]:
    """Formats that can be applied here: `zstd` needs Python 3.14 or the package `zstandard`."""
    return frozenset(FORMATS) if _open_zstd() else frozenset(FORMATS) - {"zstd"}


def apply(form: str, base: Path, delta: Path, size_bytes: int) -> Iterator[bytes]:
    """Make a file.

    Args:
        form: one of `usable()`.
        base: the file that the delta was made for.
        delta: of nobody who is trusted.
        size_bytes: that the new file has.

    Yields:
        Parts of it, together never more than `size_bytes`; they are to be held against its hash.

    Raises:
        ArtifactError: the delta is damaged, is for another base or makes another file.
    """
    left = size_bytes
    try:
        for part in FORMATS[form](base, delta, size_bytes):
            left -= len(part)
            if left < 0:
                break
            yield part
    except ArtifactError:
        raise
    except Exception as error:
        # Three libraries read bytes that nobody vouches for; whatever they say, the full file is the way out.
        raise _bad(f"{type(error).__name__}: {str(error)[:200]}") from error
    if left:
        raise _bad(f"it makes {'more' if left < 0 else 'less'} than {size_bytes:,} bytes")


def undo(packed: bytes, base: bytes, width: int) -> bytes:
    """Numbers from a block of their differences.

    Args:
        packed: differences, zigzag, the lowest byte of every number first.
        base: as many bytes.
        width: bytes of a number.
    """
    kind = np.dtype(f"<u{width}")
    zigzag = np.frombuffer(packed, np.uint8).reshape(width, -1).T.copy().view(kind).ravel()
    one = kind.type(1)
    change = (zigzag >> one) ^ np.negative(zigzag & one)
    return bytes((np.frombuffer(base, kind) + change).data)


def _tensor(base: Path, delta: Path, size_bytes: int) -> Iterator[bytes]:
    with ExitStack() as stack, delta.open("rb") as file:
        magic, base_bytes, new_bytes, *packed = HEADER.unpack(file.read(HEADER.size))
        if magic != MAGIC or new_bytes != size_bytes or base_bytes != base.stat().st_size:
            raise _bad("it is for another file")
        if HEADER.size + sum(packed) != delta.stat().st_size:
            raise _bad("its parts are not as long as it says")
        at, streams = HEADER.size, {}
        for name, size in zip((COPY, *WIDTHS), packed, strict=True):
            if size:
                streams[name] = stack.enter_context(_Packed(delta, at, size))
            at += size
        segments = _segments(streams.pop(COPY).rest(SEGMENT_BYTES * MAX_SEGMENTS), base_bytes, size_bytes)
        source = stack.enter_context(base.open("rb"))
        for op, begin, size in segments:
            source.seek(begin)
            for done in range(0, size, BLOCK_BYTES):
                length = min(BLOCK_BYTES, size - done)
                if op == COPY:
                    yield source.read(length)
                elif op == LITERAL:
                    yield streams[op].read(length)
                else:
                    yield undo(streams[op].read(length), source.read(length), WIDTHS[op])


def _segments(table: bytes, base_bytes: int, new_bytes: int) -> list[tuple[int, int, int]]:
    """(operation, first byte in the base, bytes) of each, checked before the first is carried out."""
    count, rest = divmod(len(table), SEGMENT_BYTES)
    skips = np.frombuffer(table, "<i8", count, count).tolist()
    sizes = np.frombuffer(table, "<i8", count, count + 8 * count).tolist()
    at, total, found = 0, 0, []
    for op, skip, size in zip(table[:count], skips, sizes, strict=True):
        if op not in WIDTHS and op != COPY:
            raise _bad(f"an operation {op}")
        if op != LITERAL:
            at += skip
        begin, at = at, at if op == LITERAL else at + size
        if size <= 0 or size % WIDTHS.get(op, 1) or not 0 <= begin <= at <= base_bytes:
            raise _bad("a segment that is not in the base")
        total += size
        found.append((op, begin, size))
    if rest or total != new_bytes:
        raise _bad("segments that do not make the file")
    return found


class _Packed:
    """A packed part of a file, unpacked as far as somebody asks."""

    def __init__(self, path: Path, at: int, size: int) -> None:
        self._file, self._left = path.open("rb", buffering=0), size
        self._file.seek(at)
        self._unpack = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS)

    def __enter__(self) -> _Packed:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        found = self._up_to(size)
        if len(found) < size:
            raise _bad("a stream that ends early")
        return found

    def rest(self, most: int) -> bytes:
        """All there is."""
        found = self._up_to(most + 1)
        if len(found) > most:
            raise _bad(f"more than {most:,} bytes of segments")
        return found

    def _up_to(self, size: int) -> bytes:
        parts = []
        while size and not self._unpack.eof:
            raw = b""
            if self._unpack.needs_input:
                raw = self._file.read(min(self._left, BLOCK_BYTES))
                if not raw:
                    break
                self._left -= len(raw)
            parts.append(self._unpack.decompress(raw, size))
            size -= len(parts[-1])
        return b"".join(parts)


def _zstd(base: Path, delta: Path, size_bytes: int) -> Iterator[bytes]:
    open_zstd = _open_zstd()
    if open_zstd is None:
        raise _bad("zstd is not installed")
    if max(base.stat().st_size, size_bytes) > MAX_ZSTD_BYTES:
        raise _bad(f"zstd beyond {MAX_ZSTD_BYTES:,} bytes")
    with delta.open("rb") as packed, open_zstd(packed, base.read_bytes()) as reader:
        while part := reader.read(BLOCK_BYTES):
            yield part


def _open_zstd() -> Callable[[Any, bytes], Any] | None:
    """(file, prefix) → a reader of what it unpacks to; None where nothing here does that."""
    log = MAX_ZSTD_BYTES.bit_length() - 1
    for name in ("compression.zstd", "zstandard"):
        try:
            module: Any = importlib.import_module(name)
        except ImportError:
            continue
        if name == "zstandard":
            return lambda file, prefix: module.ZstdDecompressor(
                dict_data=module.ZstdCompressionDict(prefix, dict_type=module.DICT_TYPE_RAWCONTENT),
                max_window_size=1 << log,
            ).stream_reader(file)
        return lambda file, prefix: module.ZstdFile(
            file,
            zstd_dict=module.ZstdDict(prefix, is_raw=True),
            options={module.DecompressionParameter.window_log_max: log},
        )
    return None


def _read_offer(value: object, path: str) -> Offer:
    fields = Fields(value, path, required=("base", "format", "size_bytes", "sha256"))
    base, form, size, sha256 = (
        fields.text("base"), fields.text("format"), fields.whole("size_bytes"), fields.text("sha256"),
    )  # fmt: skip
    return within(path, lambda: Offer(base, form, size, sha256))


def _bad(found: str) -> ArtifactError:
    return ArtifactError(
        f"the delta cannot be used: {found}",
        expected="a delta from the file that is here to the file that the release names",
        way_out="There is nothing to do: the full file comes instead.",
        code="delta",
    )


FORMATS: Final[Mapping[str, Callable[[Path, Path, int], Iterator[bytes]]]] = MappingProxyType(
    {"zstd": _zstd, "tensor": _tensor}
)
