"""Between what an application has, real values in the axes of the user's model, and what a file takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit_runtime.backends import Array, Port
from edgekit_runtime.contract import Artifact, Grid, Manifest, TensorSpec
from edgekit_runtime.errors import ArtifactError, InputError

Convert = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class End:
    """One input or output, as the application sees it and as the file does.

    Attributes:
        name: for the application.
        place: among the file's inputs or outputs.
        dtype: that the application gives or gets.
        shape: that the application gives or gets, -1 where any length is taken.
        convert: from the one to the other, None where they are the same.
        any_rank: the file may leave even the number of axes open; `shape` is empty then.
    """

    name: str
    place: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    convert: Convert | None
    any_rank: bool = False


def of_file(ports: Sequence[Port], *, into: bool) -> tuple[End, ...]:
    """Ends of a file that came without a manifest: real values where it has a grid, else its own."""
    return tuple(
        End(
            port.name,
            place,
            np.dtype(np.float32) if port.scale else port.dtype,
            port.shape,
            (_onto if into else _off)(port.scale, port.zero_point, port.dtype) if port.scale else None,
            # Backends say the same of a single number.
            any_rank=not port.shape,
        )
        for place, port in enumerate(ports)
    )


def of_manifest(
    manifest: Manifest, artifact: Artifact, ports: Sequence[Port], *, into: bool
) -> tuple[End, ...]:
    """Ends of an artifact, in the order of the manifest.

    Raises:
        ArtifactError: the file has other inputs or outputs than the manifest says.
    """
    specs = manifest.inputs if into else manifest.outputs
    grids = artifact.input_grids if into else artifact.output_grids
    places = {_form(port.name): place for place, port in enumerate(ports)}
    wanted = [_form(spec.name) for spec in specs]
    if sorted(places) != sorted(wanted) or len(ports) != len(specs):
        raise _lies(artifact, f"has {sorted(p.name for p in ports)}", f"{sorted(s.name for s in specs)}")
    return tuple(
        _end(artifact, spec, grid, places[form], ports[places[form]], into=into)
        for spec, grid, form in zip(specs, grids, wanted, strict=True)
    )


def fit(end: End, value: Any) -> Array:
    """An application's value as the array that `end.convert` or the file takes, with its batch axis.

    Raises:
        InputError: a shape or a dtype that does not fit.
    """
    array = _exactly(end, as_array(end.name, value))
    if end.any_rank:
        return array
    if array.ndim == len(end.shape) - 1 and end.shape[0] in (-1, 1):
        array = array[None]
    if array.ndim != len(end.shape) or any(
        want not in (-1, length) for want, length in zip(end.shape, array.shape, strict=True)
    ):
        raise misfit(end, f"has the shape {np.shape(value)}")
    return array


def as_array(name: str, value: Any) -> Array:
    """What an application gave for an input.

    Raises:
        InputError: it is no array.
    """
    try:
        return np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:
        # What makes an array of itself fails in ways of its own, such as tensors that wait for gradients.
        raise InputError(
            f"the input {name!r} is no array: {str(error)[:200]}",
            expected="numbers, in rows of the same length",
            way_out="Give a numpy array.",
            code="input",
        ) from error


def _exactly(end: End, array: Array) -> Array:
    """The same numbers in the dtype of an end."""
    if np.can_cast(array.dtype, end.dtype):
        return array.astype(end.dtype, copy=False)
    whole = array.dtype.kind in "iu" and end.dtype.kind in "iub"
    if not whole and not np.can_cast(array.dtype, end.dtype, "same_kind"):
        raise misfit(end, f"is {array.dtype}")
    if whole and array.size:
        low, high = (0, 1) if end.dtype.kind == "b" else (np.iinfo(end.dtype).min, np.iinfo(end.dtype).max)
        for number in (int(array.min()), int(array.max())):
            if not low <= number <= high:
                raise misfit(end, f"holds {number}, beyond {low}…{high}")
    with np.errstate(over="ignore"):
        found = array.astype(end.dtype)
    if found.dtype.kind == "f" and not np.isfinite(found).all() and np.isfinite(array).all():
        raise misfit(end, f"holds {array[~np.isfinite(found)].flat[0]}, beyond ±{np.finfo(end.dtype).max}")
    return found


def _end(
    artifact: Artifact, spec: TensorSpec, grid: Grid | None, place: int, port: Port, *, into: bool
) -> End:
    dtype = np.dtype(spec.dtype)
    steps: list[Convert] = []
    last = artifact.input_layout == "nhwc" and len(spec.shape) == 4 and into
    shape = (spec.shape[0], *spec.shape[2:], spec.shape[1]) if last else spec.shape
    if len(shape) != len(port.shape) or any(
        -1 not in (a, b) and a != b for a, b in zip(shape[1:], port.shape[1:], strict=True)
    ):
        raise _lies(artifact, f"has {port.name!r} with the shape {list(port.shape)}", f"{list(shape)}")
    if last:
        steps.append(_channels_last)
    if port.dtype != dtype:
        if grid is not None and port.dtype.name == artifact.io_dtype:
            make = _onto if into else _off
            steps.append(make(grid.scale, grid.zero_point, port.dtype))
        elif np.can_cast(dtype, port.dtype, "same_kind"):
            steps.append(_cast(port.dtype if into else dtype))
        else:
            raise _lies(artifact, f"has {port.name!r} as {port.dtype}", f"{dtype}")
    return End(spec.name, place, dtype, spec.shape, _chain(steps))


def _chain(steps: list[Convert]) -> Convert | None:
    if len(steps) < 2:
        return steps[0] if steps else None
    first, second = steps
    return lambda x: second(first(x))


def _onto(scale: float, zero_point: int, dtype: np.dtype[Any]) -> Convert:
    """`q = clip(round(x / scale) + zero_point)`, ties to even as the exporters round, in float32."""
    step, zero = np.float32(scale), np.float32(zero_point)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max

    def convert(x: Array) -> Array:
        # What leaves float32 is far beyond the grid, and lands on its end.
        with np.errstate(over="ignore"):
            q = np.divide(x, step, dtype=np.float32)
        np.rint(q, out=q)
        q += zero
        # NaN is no integer; the lowest one is what runtimes make of it on most processors, and here on all.
        np.clip(q, low, high, out=q)
        np.nan_to_num(q, copy=False, nan=low)
        return q.astype(dtype)

    return convert


def _off(scale: float, zero_point: int, dtype: np.dtype[Any]) -> Convert:
    """`x = scale * (q - zero_point)` in float32."""
    del dtype
    step, zero = np.float32(scale), np.float32(zero_point)

    def convert(q: Array) -> Array:
        x = np.subtract(q, zero, dtype=np.float32)
        x *= step
        return x

    return convert


def _channels_last(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def _cast(dtype: np.dtype[Any]) -> Convert:
    return lambda x: x.astype(dtype)


def _form(name: str) -> str:
    """Formats replace characters that they do not take."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def _lies(artifact: Artifact, found: str, expected: str) -> ArtifactError:
    return ArtifactError(
        f"{artifact.file}: {found}",
        expected=f"{expected}, as the manifest says",
        way_out="Write the bundle again with `edgekit compress`.",
        code="ends",
    )


def misfit(end: End, found: str) -> InputError:
    """The error for what an input was given."""
    shape = ", ".join("any" if n == -1 else str(n) for n in end.shape)
    number = f"{end.dtype}, " + ("of the axes that the file takes" if end.any_rank else "a single number")
    return InputError(
        f"the input {end.name!r} {found}",
        expected=f"{end.dtype} [{shape}], or one sample without the first axis" if end.shape else number,
        way_out="Give the values as the model was trained on them; `edgekit-runtime status` shows its inputs.",
        code="input",
    )
