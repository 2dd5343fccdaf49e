"""Golden vectors: inputs whose outputs are known, to find out whether this chip computes what was evaluated."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib import format as npy

from edgekit_runtime.backends import Array
from edgekit_runtime.errors import ArtifactError

layout: Any = npy  # without types in numpy 2
# What golden vectors may take once they are read; a file of a few kilobytes may claim any size.
MAX_BYTES: Final = 256 << 20
MAX_ARRAYS: Final = 1024


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs with the outputs of the quantized reference, for the self-test on a device.

    Attributes:
        inputs: one array per input of the manifest, shape (n, *shape at batch one), in its own dtype.
        outputs: one array per output, shape (n, *shape at batch one), real values.
        step: real size of one step of each output's grid, 1/255 of the range where it stays float.
        tolerance_steps: largest difference of each output that passes, in steps.
    """

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    step: tuple[float, ...]
    tolerance_steps: tuple[float, ...]

    def __post_init__(self) -> None:
        arrays = (*self.inputs, *self.outputs)
        if not self.inputs or not self.outputs or any(array.ndim == 0 or not len(array) for array in arrays):
            raise ValueError("golden vectors: expected at least one sample of at least one input and output")
        if len({len(array) for array in arrays}) != 1:
            raise ValueError(
                f"golden vectors: {[len(array) for array in arrays]} samples, expected equal counts"
            )
        if any(array.dtype.kind not in "fiub" or not np.isfinite(array).all() for array in arrays):
            raise ValueError("golden vectors: expected finite numbers")
        if not len(self.outputs) == len(self.step) == len(self.tolerance_steps):
            raise ValueError("golden vectors: expected one step and one tolerance per output")
        steps_fit = all(0 < each < np.inf for each in self.step)
        if not steps_fit or not all(0 <= each < np.inf for each in self.tolerance_steps):
            raise ValueError(
                "golden vectors: expected steps above 0 and tolerances of at least 0, both finite"
            )


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What came of it.

    Attributes:
        n: samples.
        worst_steps: largest distance from the known answer, in steps of its output.
        allowed_steps: for that output.
        ok: every output is within its tolerance, and a number.
    """

    n: int
    worst_steps: float
    allowed_steps: float
    ok: bool


def read_golden(path: Path) -> Golden:
    """Read golden vectors; sizes are checked before anything is unpacked, and nothing is unpickled.

    Raises:
        ArtifactError: it is no such file.
    """
    try:
        arrays = _arrays(path)
        found = Golden(
            _numbered(arrays, "input_"),
            _numbered(arrays, "output_"),
            tuple(float(each) for each in arrays["step"]),
            tuple(float(each) for each in arrays["tolerance_steps"]),
        )
    except MemoryError:
        raise
    except Exception as error:
        # Archives, each way of packing and headers of arrays have exceptions of their own, and not of one tree.
        raise ArtifactError(
            f"{path}: {error}",
            expected="golden vectors in .npz",
            way_out="Write the bundle again with `edgekit compress`.",
            code="golden_file",
        ) from error
    return found


def compare(golden: Golden, outputs: Sequence[Array]) -> SelfTest:
    """Hold outputs against the known ones.

    Args:
        golden: known answers.
        outputs: one array `[n, ...]` per output.

    Returns:
        The output that is farthest off in relation to its tolerance; NaN is infinitely far.
    """
    worst, allowed = 0.0, golden.tolerance_steps[0]
    for known, found, step, tolerance in zip(
        golden.outputs, outputs, golden.step, golden.tolerance_steps, strict=True
    ):
        if known.shape != found.shape:
            return SelfTest(len(known), float("inf"), tolerance, ok=False)
        with np.errstate(invalid="ignore", over="ignore"):
            far = np.abs(found.astype(np.float64) - known.astype(np.float64)) / step
        steps = float(np.where(np.isnan(far), np.inf, far).max(initial=0.0))
        if steps - tolerance > worst - allowed:
            worst, allowed = steps, tolerance
    # The known answers are float32: their last digits are no difference.
    return SelfTest(len(golden.outputs[0]), worst, allowed, worst <= allowed + 1e-3)


def _arrays(path: Path) -> Mapping[str, Array]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_ARRAYS or sum(entry.file_size for entry in entries) > MAX_BYTES:
            raise ValueError(f"{len(entries)} arrays of {sum(e.file_size for e in entries):,} bytes")
        return {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in entries}


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    with archive.open(entry) as stream:
        version = layout.read_magic(stream)
        read = layout.read_array_header_1_0 if version == (1, 0) else layout.read_array_header_2_0
        try:
            shape, _, dtype = read(stream)
        except MemoryError as error:
            # Of ten thousand characters at most: it is Python's parser that says so of a header that nests too deep.
            raise ValueError(f"{entry.filename} has a header that nests too deep") from error
        if dtype.hasobject or dtype.kind not in "fiub":
            raise ValueError(f"{entry.filename} holds {dtype}")
        if dtype.itemsize * float(np.prod([float(n) for n in shape])) > entry.file_size:
            raise ValueError(f"{entry.filename} claims the shape {shape}")
    with archive.open(entry) as stream:
        found: Array = layout.read_array(stream, allow_pickle=False)
        return found


def _numbered(arrays: Mapping[str, Array], prefix: str) -> tuple[Array, ...]:
    count = sum(name.startswith(prefix) for name in arrays)
    return tuple(arrays[f"{prefix}{index}"] for index in range(count))
