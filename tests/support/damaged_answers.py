"""Known answers that are none, and archives that are traps, by name."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from support.damage import HUGE, OTHER_CONTENT, Bytes, arrays_of, cut, npz


def with_array(name: str, change: Callable[[np.ndarray], np.ndarray] | None) -> Bytes:
    """Another array in the archive, or none."""

    def damage(data: bytes) -> bytes:
        arrays = arrays_of(data)
        if change is None:
            del arrays[name]
        else:
            arrays[name] = change(arrays.get(name, np.zeros(1, np.float32)))
        return npz(**arrays)

    return damage


def with_entry(name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> Bytes:
    """An archive with other bytes in the place of an array."""

    def damage(data: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as made:
            for entry in archive.namelist():
                if entry != name:
                    made.writestr(entry, archive.read(entry))
            made.writestr(name, content, method)
        return out.getvalue()

    return damage


def npy(
    header: str, payload: bytes = b"", version: tuple[int, int] = (1, 0), length: int | None = None
) -> bytes:
    """An array with any header."""
    text = header.encode() + b"\n"
    width = "<H" if version == (1, 0) else "<I"
    return (
        b"\x93NUMPY" + bytes(version) + struct.pack(width, len(text) if length is None else length) + text + payload
    )  # fmt: skip


def shaped(shape: object, dtype: str = "<f4") -> str:
    return f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"


def raw_zip(
    packed: bytes, *, method: int = 8, size: int | None = None, crc: int = 0, flags: int = 0, count: int = 1
) -> bytes:
    """An archive whose directory says whatever it is told to; all entries share the same bytes.

    See section 4 of PKWARE's APPNOTE for the records.
    """
    name, size = b"input_0.npy", len(packed) if size is None else size
    what = struct.pack("<HHHHHIII", 20, flags, method, 0, 33, crc, len(packed), size)
    local = b"PK\3\4" + what + struct.pack("<HH", len(name), 0) + name + packed
    entry = b"PK\1\2\x14\0" + what + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    directory = entry * count
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(local), 0)
    return local + directory + end


def bomb(mebibytes: int) -> bytes:
    """Zeros, deflated: one block, again and again, so that making it costs nothing."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first * mebibytes + packer.flush()


class _Trap:
    """What a pickle that is read would do."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('unpickled')",))


def _pickled(_: bytes) -> bytes:
    out = io.BytesIO()
    np.savez(out, input_0=np.array([_Trap()], object), allow_pickle=True)
    return out.getvalue()


GOLDEN: dict[str, Bytes] = {
    **{name: change for name, change in OTHER_CONTENT.items() if name not in {"one byte more", "twice"}},
    "no bytes": lambda _: b"",
    "half": cut(0.5),
    "without its directory": cut(-22),
    "an array and no archive": lambda _: npy(shaped((1,)), bytes(4)),
    "pickled objects": _pickled,
    "an object header": with_entry("input_0.npy", npy(shaped((1,), "|O"), b"cos\nsystem\n(S'true'\ntR.")),
    "records": with_array("input_0", lambda _: np.zeros(2, [("a", "<f4")])),
    "text": with_array("input_0", lambda _: np.array(["a", "b"])),
    "complex numbers": with_array("output_0", lambda y: y + 1j),
    "dates": with_array("input_0", lambda _: np.zeros(2, "datetime64[s]")),
    "a NaN among the inputs": with_array("input_0", lambda x: np.where(x == x.max(), np.nan, x)),
    "an infinity among the answers": with_array("output_0", lambda y: np.where(y == y.max(), np.inf, y)),
    "other answers": with_array("output_0", lambda y: y + np.float32(5)),
    "answers in another order": with_array("output_0", lambda y: y[::-1]),
    "answers of another shape": with_array("output_0", lambda y: y.reshape(len(y), -1)[:, 1:]),
    "no answers": with_array("output_0", None),
    "no inputs": with_array("input_0", None),
    "an input too many": with_array("input_1", lambda _: np.zeros((2, 4), np.float32)),
    "an output too many": with_array("output_1", lambda _: np.zeros((2, 4), np.float32)),
    "inputs of another shape": with_array("input_0", lambda x: x[..., 1:]),
    "inputs of another rank": with_array("input_0", lambda x: x[..., None, None, None]),
    "inputs without an axis": with_array("input_0", lambda _: np.float32(1)),
    "one input less": with_array("input_0", lambda x: x[1:]),
    "no samples": with_array("input_0", lambda x: x[:0]),
    "no steps": with_array("step", None),
    "a step of zero": with_array("step", lambda _: np.zeros(1)),
    "a step below zero": with_array("step", lambda s: -s),
    "a step that is no number": with_array("step", lambda _: np.array([np.nan])),
    "an endless step": with_array("step", lambda _: np.array([np.inf])),
    "a step without an axis": with_array("step", lambda _: np.float64(1)),
    "steps for two outputs": with_array("step", lambda _: np.ones(2)),
    "no tolerance": with_array("tolerance_steps", None),
    "a tolerance below zero": with_array("tolerance_steps", lambda t: -t),
    "a tolerance that is no number": with_array("tolerance_steps", lambda _: np.array([np.nan])),
    "a tolerance for anything": with_array("tolerance_steps", lambda _: np.array([np.inf])),
    "a shape of 2^31 - 1": with_entry("input_0.npy", npy(shaped((HUGE,)))),
    "a shape of 2^93": with_entry("input_0.npy", npy(shaped((HUGE, HUGE, HUGE)))),
    "a shape of 2^62 twice": with_entry("input_0.npy", npy(shaped((2**62, 4)))),
    "a shape of 400 digits": with_entry("input_0.npy", npy(shaped((10**400,)))),
    "a shape below zero": with_entry("input_0.npy", npy(shaped((-2, -8)), bytes(64))),
    "a shape of text": with_entry("input_0.npy", npy(shaped("('a',)"))),
    "a shape of truth": with_entry("input_0.npy", npy(shaped("(True, 16)"), bytes(64))),
    "a type of 2^31 bytes": with_entry("input_0.npy", npy(shaped((1,), f"|V{HUGE}"))),
    "a header of 4 GB": with_entry("input_0.npy", npy(shaped((1,)), version=(2, 0), length=2**32 - 1)),
    "a header that calls": with_entry("input_0.npy", npy("__import__('os').abort()")),
    "a header of brackets": with_entry("input_0.npy", npy("(" * 9000)),
    "a header of minus signs": with_entry("input_0.npy", npy("-" * 9000 + "1")),
    "a format of the future": with_entry("input_0.npy", npy(shaped((1,)), bytes(4), version=(9, 9))),
    "zeros that unpack to 2 GB": lambda _: raw_zip(bomb(2048), size=2048 << 20),
    "zeros that unpack to 2 GB and deny it": lambda _: raw_zip(bomb(2048), size=1000),
    "4096 entries of the same bytes": lambda _: raw_zip(npy(shaped((1,)), bytes(4)), method=0, count=4096),
    "entries of 4 GB": lambda _: raw_zip(b"", size=2**32 - 2, count=100),
    "less than it claims": lambda _: raw_zip(bomb(1), size=200 << 20),
    "packed bytes that are none": lambda _: raw_zip(b"\xff" * 100, size=1000),
    "another checksum": lambda _: raw_zip(npy(shaped((1,)), bytes(4)), method=0, crc=1),
    "a way of packing that nobody knows": lambda _: raw_zip(b"x" * 100, method=99),
    "bzip2 that is none": lambda _: raw_zip(b"x" * 100, method=12, size=1000),
    "LZMA that is none": lambda _: raw_zip(b"x" * 100, method=14, size=1000),
    "enciphered": lambda _: raw_zip(b"x" * 100, method=0, flags=1),
}  # fmt: skip
