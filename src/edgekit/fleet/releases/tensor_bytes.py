"""Where the tensors lie in a model file: byte ranges in .onnx (protobuf) and .tflite (flatbuffer), by name.

The files come from publishers and are read with bounds: whatever leaves the file, repeats without end or makes no sense
ends the search with an `UnreadableError`, and the file then has no tensors, which costs size and nothing else. Nothing
is copied, and tensors outside of the file (external data) are not looked for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MAX_TENSORS: Final = 1 << 16
MAX_FIELDS: Final = 1_000_000
MAX_RANK: Final = 16

# https://onnx.ai/onnx/api/classes.html, TensorProto.DataType: bytes of a number; what is not here counts as bytes.
ONNX_WIDTHS: Final = {1: 4, 4: 2, 5: 2, 6: 4, 7: 8, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
# TensorType of schema.fbs of LiteRT, likewise.
TFLITE_WIDTHS: Final = {0: 4, 1: 2, 2: 4, 4: 8, 7: 2, 10: 8, 12: 8, 15: 4, 16: 2}


class UnreadableError(Exception):
    """The bytes are no file of this kind."""


@dataclass(frozen=True, slots=True)
class Span:
    """The numbers of one tensor.

    Attributes:
        name: of the tensor; scales and the like have the name of theirs, with a suffix.
        kind: number of its type, as the format has it.
        shape: axis lengths.
        at: first byte in the file.
        size: bytes.
        width: bytes of a number.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    at: int
    size: int
    width: int


def tensors(data: memoryview) -> list[Span]:
    """Tensors of a model file in the order in which they lie, none over another; none where it is something else.

    Args:
        data: the whole file.
    """
    find = _tflite if bytes(data[4:8]) == b"TFL3" else _onnx
    found: list[Span] = []
    try:
        for count, span in enumerate(find(data)):
            if count == MAX_TENSORS:
                return []
            if span.size and span.size % span.width == 0:
                found.append(span)
    except (UnreadableError, struct.error, UnicodeDecodeError):
        return []
    apart, end = [], 0
    for span in sorted(found, key=lambda each: (each.at, -each.size)):
        if span.at >= end:
            apart.append(span)
            end = span.at + span.size
    return apart


# Protobuf: https://protobuf.dev/programming-guides/encoding/


def _onnx(data: memoryview) -> Iterator[Span]:
    count = [0]
    for number, at, end in _fields(data, 0, len(data), count):
        if number != 7:  # ModelProto.graph
            continue
        for inner, begin, stop in _fields(data, at, end, count):
            if inner == 5:  # GraphProto.initializer
                yield from _initializer(data, begin, stop, count)


def _initializer(data: memoryview, at: int, end: int, count: list[int]) -> Iterator[Span]:
    name, kind, shape, raw = "", 0, list[int](), (0, 0)
    for number, begin, stop in _fields(data, at, end, count):
        if number == 1:  # dims, packed or not
            here = begin
            while here < stop:
                length, here = _varint(data, here, stop)
                shape.append(length)
                if len(shape) > MAX_RANK:
                    raise UnreadableError("a tensor of too many axes")
        elif number == 2:  # data_type
            kind, _ = _varint(data, begin, stop)
        elif number == 8:  # name
            name = bytes(data[begin : min(stop, begin + 1024)]).decode(errors="replace")
        elif number == 9:  # raw_data
            raw = (begin, stop)
    yield Span(name, kind, tuple(shape), raw[0], raw[1] - raw[0], ONNX_WIDTHS.get(kind, 1))


def _fields(data: memoryview, at: int, end: int, count: list[int]) -> Iterator[tuple[int, int, int]]:
    """(number, first byte, end) of each field of a message."""
    while at < end:
        count[0] += 1
        if count[0] > MAX_FIELDS:
            raise UnreadableError("too many fields")
        tag, at = _varint(data, at, end)
        wire, begin = tag & 7, at
        if wire == 0:
            _, at = _varint(data, at, end)
        elif wire == 2:
            length, begin = _varint(data, at, end)
            at = begin + length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise UnreadableError(f"wire type {wire}")
        if at > end:
            raise UnreadableError("a field that is longer than its message")
        yield tag >> 3, begin, at


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise UnreadableError("a number without an end")


# Flatbuffers: https://flatbuffers.dev/internals/


def _tflite(data: memoryview) -> Iterator[Span]:
    (root,) = _at(data, "<I", 0)
    buffers = _vector(data, _field(data, root, 4))
    for subgraph in _vector(data, _field(data, root, 2)):
        for tensor in _vector(data, _field(data, subgraph, 0)):
            kind, buffer = _scalar(data, tensor, 1, "<b"), _scalar(data, tensor, 2, "<I")
            name = _text(data, _field(data, tensor, 3))
            shape = tuple(_ints(data, _field(data, tensor, 0)))
            # Empty ones are counted, too: subgraphs may share their tensors without end.
            at, size = _content(data, buffers[buffer]) if 0 < buffer < len(buffers) else (0, 0)
            yield Span(name, kind, shape, at, size, TFLITE_WIDTHS.get(kind, 1))
            if (grid := _table(data, _field(data, tensor, 4))) is not None:
                # QuantizationParameters: min, max and scale are float32, zero points int64.
                for field, width in ((0, 4), (1, 4), (2, 4), (3, 8)):
                    at, length = _extent(data, _field(data, grid, field), width)
                    yield Span(f"{name}#{field}", -1 - field, (length,), at, length * width, width)


def _content(data: memoryview, buffer: int) -> tuple[int, int]:
    """Buffer.data, or what lies at Buffer.offset where files are larger than 2 GB."""
    if at := _field(data, buffer, 0):
        return _extent(data, at, 1)
    at, size = _scalar(data, buffer, 1, "<Q"), _scalar(data, buffer, 2, "<Q")
    if at + size > len(data):
        raise UnreadableError("a buffer that leaves the file")
    return at, size


def _at(data: memoryview, kind: str, at: int) -> tuple[int, ...]:
    if at < 0:
        raise UnreadableError("an offset before the file")
    found: tuple[int, ...] = struct.unpack_from(kind, data, at)
    return found


def _field(data: memoryview, table: int, index: int) -> int:
    """Where a field of a table lies; 0 where it is left out."""
    vtable = table - _at(data, "<i", table)[0]
    if 4 + 2 * index + 2 > _at(data, "<H", vtable)[0]:
        return 0
    offset = _at(data, "<H", vtable + 4 + 2 * index)[0]
    return table + offset if offset else 0


def _scalar(data: memoryview, table: int, index: int, kind: str) -> int:
    at = _field(data, table, index)
    return _at(data, kind, at)[0] if at else 0


def _table(data: memoryview, at: int) -> int | None:
    return at + _at(data, "<I", at)[0] if at else None


def _extent(data: memoryview, at: int, width: int) -> tuple[int, int]:
    """First byte and length of the vector that a field points at."""
    if not at:
        return 0, 0
    begin = at + _at(data, "<I", at)[0]
    length = _at(data, "<I", begin)[0]
    if begin + 4 + length * width > len(data):
        raise UnreadableError("a vector that leaves the file")
    return begin + 4, length


def _vector(data: memoryview, at: int) -> list[int]:
    """Tables that a vector of offsets points at."""
    begin, length = _extent(data, at, 4)
    if length > MAX_TENSORS:
        raise UnreadableError("too many tables")
    return [begin + 4 * i + _at(data, "<I", begin + 4 * i)[0] for i in range(length)]


def _ints(data: memoryview, at: int) -> tuple[int, ...]:
    begin, length = _extent(data, at, 4)
    if length > MAX_RANK:
        raise UnreadableError("a tensor of too many axes")
    return _at(data, f"<{length}i", begin)


def _text(data: memoryview, at: int) -> str:
    begin, length = _extent(data, at, 1)
    return bytes(data[begin : begin + min(length, 1024)]).decode(errors="replace")
