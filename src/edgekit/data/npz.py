"""Arrays by name: an .npz file, or a dict in memory."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.data.rows import Batch, Rows, Sets, digest_of
from edgekit.errors import UsageError
from edgekit_converters.program import TensorInfo

# Prefixes of the keys, in order of preference.
_CALIBRATION = ("calib_", "train_")
_EVALUATION = ("eval_", "")


def open_npz(path: Path, inputs: Sequence[TensorInfo]) -> Sets:
    """Read an .npz; members that are stored plainly stay on disk.

    Args:
        path: the file.
        inputs: of the model.

    Raises:
        UsageError: not an .npz, pickled objects in it, or keys that are not understood.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {
                info.filename.removesuffix(".npy"): _member(path, archive, info)
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise _unreadable(path, error) from error
    return sets_of(arrays, inputs, str(path))


def _unreadable(path: Path, error: Exception) -> UsageError:
    with path.open("rb") as file:
        head = file.read(6)
    found, way_out = f"cannot be read as .npz: {error}", "np.savez('data.npz', x=inputs, y=labels)"
    if head == b"\x93NUMPY":
        found = "a single array (.npy)"
        way_out = f"np.savez('data.npz', x=np.load({path.name!r}))"
    elif head.startswith(b"PK") and isinstance(error, zipfile.BadZipFile):
        found = f"damaged or truncated ({path.stat().st_size} bytes): {error}"
    return UsageError(
        f"{path}: {found}",
        expected="numbers saved with np.savez or np.savez_compressed, no pickled objects",
        way_out=f"Save it again: {way_out}.",
    )


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array: mapped from disk if it is stored without compression, else read once."""
    layout: Any = np.lib.format  # numpy leaves this module without annotations
    with archive.open(info) as stream:
        version = layout.read_magic(stream)
        read = layout.read_array_header_1_0 if version == (1, 0) else layout.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        header = stream.tell()
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds pickled objects")
    if info.compress_type != zipfile.ZIP_STORED or 0 in shape:
        with archive.open(info) as stream:
            return np.asarray(layout.read_array(stream, allow_pickle=False))
    with path.open("rb") as raw:
        raw.seek(info.header_offset + 26)  # PKZIP local file header: lengths of the name and the extra field
        name, extra = (int.from_bytes(raw.read(2), "little") for _ in range(2))
    start = info.header_offset + 30 + name + extra + header
    return np.memmap(path, dtype, "r", offset=start, shape=shape, order="F" if fortran else "C")


def sets_of(arrays: Mapping[str, Any], inputs: Sequence[TensorInfo], where: str) -> Sets:
    """Sort arrays into calibration and evaluation by their names.

    Args:
        arrays: `x`, `y`, `train_x`, `train_y`, `calib_x`, `eval_x`, `eval_y`; with several inputs `x_<name>`
            and so on, or a tuple in model order under the plain key.
        inputs: of the model.
        where: for messages.

    Raises:
        UsageError: no inputs among the keys, or lengths that differ.
    """
    named = {prefix: _rows(arrays, prefix, inputs, where) for prefix in ("", "train_", "calib_", "eval_")}
    evaluation = next((named[p] for p in _EVALUATION if named[p] is not None), None)
    calibration = next((named[p] for p in _CALIBRATION if named[p] is not None), None)
    if evaluation is None and calibration is None:
        example = "x" if len(inputs) == 1 else ", ".join(f"x_{info.name}" for info in inputs)
        raise UsageError(
            f"{where}: has the keys {', '.join(sorted(arrays)) or '(none)'}",
            expected=f"{example} (and y), or train_x, train_y, calib_x, eval_x, eval_y",
            way_out="Save it again with these names.",
        )
    if evaluation is None:
        evaluation, calibration = calibration, None
    assert evaluation is not None
    # A set that is measured on as there is no other is shared out by the caller.
    training = named["train_"] if named["train_"] is not evaluation else None
    return Sets(calibration, evaluation, training, held_out=evaluation is named["eval_"])


def _rows(arrays: Mapping[str, Any], prefix: str, inputs: Sequence[TensorInfo], where: str) -> Rows | None:
    found = _inputs_of(arrays, prefix, inputs)
    if found is None:
        return None
    labels = arrays.get(f"{prefix}y")
    labels = None if labels is None else _numbers(labels, f"{prefix}y", where)
    columns = [_numbers(value, f"{prefix}x", where) for value in found]
    lengths = [
        len(column) if column.ndim else 0 for column in [*columns, *([] if labels is None else [labels])]
    ]
    if len(set(lengths)) != 1:
        raise UsageError(
            f"{where}: {prefix}x and {prefix}y have {', '.join(map(str, lengths))} rows",
            expected="one row per sample in each",
            way_out="Save arrays of the same length.",
        )

    def batches(order: np.ndarray, size: int) -> Iterator[Batch]:
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield tuple(c[rows] for c in columns), None if labels is None else np.asarray(labels[rows])

    def prints(order: np.ndarray) -> set[bytes]:
        return {_digest([c[i] for c in columns]) for i in order}

    return Rows(
        lengths[0],
        batches,
        labels is not None,
        f"{where} ({prefix}x)",
        "row {}".format,
        prints,
        digest=lambda order: digest_of(batches(order, 1024)),
    )


def _inputs_of(arrays: Mapping[str, Any], prefix: str, inputs: Sequence[TensorInfo]) -> list[Any] | None:
    plain = arrays.get(f"{prefix}x")
    if plain is not None:
        return list(plain) if isinstance(plain, tuple) else [plain]
    named = [arrays.get(f"{prefix}x_{info.name}") for info in inputs]
    if all(value is not None for value in named):
        return named
    if not prefix and all(info.name in arrays for info in inputs):
        return [arrays[info.name] for info in inputs]
    return None


def _numbers(value: Any, key: str, where: str) -> np.ndarray:
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise UsageError(
            f"{where}: {key} has the type {array.dtype}",
            expected="numbers",
            way_out="Save it as float32, uint8 or an integer type.",
        )
    return array


def _digest(values: Sequence[np.ndarray]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.digest()
