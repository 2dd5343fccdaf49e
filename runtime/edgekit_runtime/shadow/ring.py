"""Samples on their way from the live process to the candidate's: shared memory, and two pipes of slot numbers.

A slot holds one input and the live version's answer to it. Its number is in exactly one place: with the live process,
in the pipe of full slots, with the candidate's process, or in the pipe of free ones. Nobody waits for anybody: where
no number is free the sample is dropped and counted. A process that dies takes a slot along at most, and the memory
stays whole; reading and writing a pipe also orders the memory around it, on every processor.

In front of the slots are counters, each written by one side alone.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgekit_runtime.backends import Array
from edgekit_runtime.contract import Manifest, TensorSpec

ALIGN: Final = 64
# Whole numbers of 64 bits. The live process writes the first two, the candidate's the others.
SEEN, DROPPED, READY, BUSY_SINCE, COMPARED, AGREED, NANS, ERRORS, NOISE_SINCE = range(9)
HEADER_BYTES: Final = 2 * ALIGN
NANOSECONDS: Final = np.dtype(np.uint64)


@dataclass(frozen=True, slots=True)
class Place:
    """Of one tensor in a slot.

    Attributes:
        name: of the input or output.
        dtype: numpy.
        shape: of one sample, with its batch axis.
        at: byte in the slot.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    at: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What a slot holds; both processes make it from the manifest.

    Attributes:
        inputs: in the order of the manifest.
        outputs: in the order of the manifest.
        slot_bytes: of one slot; the first eight are the live version's nanoseconds.
        slots: how many.
    """

    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    slot_bytes: int
    slots: int

    @staticmethod
    def of(manifest: Manifest, slots: int, max_bytes: int = 1 << 30) -> Layout:
        """For one sample of a model.

        Args:
            manifest: of the model.
            slots: that are wanted.
            max_bytes: of all slots; there are fewer where they are large, but one at least.
        """
        at = ALIGN
        inputs, at = _placed(manifest.inputs, at)
        outputs, at = _placed(manifest.outputs, at)
        return Layout(inputs, outputs, at, max(1, min(slots, max_bytes // at)))

    @property
    def size_bytes(self) -> int:
        """Of the whole memory."""
        return HEADER_BYTES + self.slots * self.slot_bytes


class Memory:
    """The shared memory of a ring, as arrays.

    Args:
        layout: of its slots.
        handle: of the file that holds it, which may be closed after this.
    """

    def __init__(self, layout: Layout, handle: int) -> None:
        self._map = mmap.mmap(handle, layout.size_bytes)
        self.counters: Array = np.frombuffer(self._map, np.uint64, HEADER_BYTES // 8)
        self._slots = [
            self._arrays(layout, HEADER_BYTES + n * layout.slot_bytes) for n in range(layout.slots)
        ]

    def slot(self, number: int) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        """Nanoseconds [1], inputs and outputs of a slot, by name."""
        return self._slots[number]

    def _arrays(self, layout: Layout, at: int) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        def arrays(places: Iterable[Place]) -> dict[str, Array]:
            return {
                p.name: np.frombuffer(self._map, p.dtype, int(np.prod(p.shape)), at + p.at).reshape(p.shape)
                for p in places
            }

        took = np.frombuffer(self._map, NANOSECONDS, 1, at)
        return took, arrays(layout.inputs), arrays(layout.outputs)


class Sender:
    """The live process's side.

    Args:
        layout: of the slots.
    """

    def __init__(self, layout: Layout) -> None:
        self.handle = _anonymous_file(layout.size_bytes)
        self.memory = Memory(layout, self.handle)
        # Each side keeps one end of both pipes; the other two are for the candidate's process.
        self.full_for_reader, self._full = os.pipe()
        self._free, self.free_for_reader = os.pipe()
        for end in (self._full, self._free):
            os.set_blocking(end, False)
        self._numbers = list(range(layout.slots))

    @property
    def for_reader(self) -> tuple[int, int, int]:
        """Handles for the candidate's process: memory, full slots, free slots."""
        return self.handle, self.full_for_reader, self.free_for_reader

    def started(self) -> None:
        """The candidate's process has its handles: given up here, so that the end of this side shows there.

        But for the end of the pipe that it reads from: a write to a pipe that nobody reads would end this process,
        where the application has SIGPIPE do so.
        """
        for handle in (self.handle, self.free_for_reader):
            os.close(handle)

    def send(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], nanoseconds: int) -> bool:
        """Hand one sample over; one thread at a time calls this.

        Args:
            inputs: by name, with a batch axis of one.
            outputs: the live version's.
            nanoseconds: that it took.

        Returns:
            Whether there was room.
        """
        number = self._free_slot()
        if number is None:
            return False
        took, to_inputs, to_outputs = self.memory.slot(number)
        took[0] = nanoseconds
        try:
            for places, given in ((to_inputs, inputs), (to_outputs, outputs)):
                for name, place in places.items():
                    np.copyto(place, given[name])
        except BaseException:
            # A sample that does not fit must not take the slot along.
            self._numbers.append(number)
            raise
        os.write(self._full, bytes((number,)))
        return True

    def close(self) -> None:
        """Give the pipes up; the reader sees that as the end."""
        for end in (self._full, self._free, self.full_for_reader):
            os.close(end)

    def _free_slot(self) -> int | None:
        if not self._numbers:
            try:
                self._numbers.extend(os.read(self._free, 256))
            except OSError:  # none is free
                return None
        return self._numbers.pop() if self._numbers else None


def sample_of(specs: Sequence[Place], given: Mapping[str, Array], row: int) -> dict[str, Array]:
    """One sample of arrays with or without a batch axis."""
    return {spec.name: _row(given[spec.name], spec.shape, row) for spec in specs}


def _row(array: Array, shape: tuple[int, ...], row: int) -> Array:
    if array.ndim < len(shape):
        return array[None]
    return array if array.shape == shape else array[row : row + 1]


def _placed(specs: Sequence[TensorSpec], at: int) -> tuple[tuple[Place, ...], int]:
    places = []
    for spec in specs:
        # A file that takes whole batches only gets one.
        shape = tuple(1 if length == -1 else length for length in spec.shape)
        dtype = np.dtype(spec.dtype)
        places.append(Place(spec.name, dtype, shape, at))
        at += -(-int(np.prod(shape)) * dtype.itemsize // ALIGN) * ALIGN
    return tuple(places), at


def _anonymous_file(size_bytes: int) -> int:
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("edgekit-shadow", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, size_bytes)
    return handle
