"""A saved file in its own runtime, behind one function: real-valued batches in, real-valued batches out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit_converters.errors import LoweringError
from edgekit_converters.program import Grid, TensorInfo
from edgekit_converters.quiet import quiet_native
from edgekit_runtime.backends.onnx_sessions import open_session, session_options

Array = NDArray[Any]
Predict = Callable[[Sequence[Array]], tuple[Array, ...]]


@dataclass(frozen=True)
class SavedModel:
    """What is needed to feed a saved file.

    Attributes:
        format: "onnx", "tflite" or "coreml".
        path: the file or package.
        inputs: of the program, in order, in the axes of the torch model.
        outputs: of the program, in order.
        input_grids: int8 grid of each input, used when the file's ends are integers.
        output_grids: likewise.
        layout: "nhwc" when inputs of rank 4 have channels last in the file.
        threads: of the runtime.
    """

    format: str
    path: Path
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    input_grids: tuple[Grid | None, ...] = ()
    output_grids: tuple[Grid | None, ...] = ()
    layout: str = "nchw"
    threads: int = 1


def open_saved(model: SavedModel) -> Predict:
    """Load a saved file.

    Returns:
        A function from one array per input, each `[n, ...]` in the axes of the torch model, to one float or
        integer array `[n, ...]` per output. Batches larger than the file takes are run one sample at a time.

    Raises:
        LoweringError: the runtime is missing or refuses the file.
    """
    try:
        return _OPENERS[model.format](model)
    except Exception as error:
        # Every runtime has exceptions of its own, ONNX Runtime's not even below RuntimeError.
        raise LoweringError(
            format=model.format,
            op="the saved file",
            where=str(model.path),
            why=f"its runtime does not load it ({error})",
            way_out="Run `edgekit doctor`; if the runtime is there, "
            "leave this format out of --format and report it.",
        ) from error


def _open_onnx(model: SavedModel) -> Predict:
    session = open_session(model.path, session_options(model.threads))
    free = all(not isinstance(i.shape[0], int) if i.shape else True for i in session.get_inputs())
    names = [o.name for o in model.outputs]

    def run(arrays: Sequence[Array]) -> tuple[Array, ...]:
        feed = {i.name: x for i, x in zip(model.inputs, arrays, strict=True)}
        return tuple(session.run(names, feed))

    return run if free else _one_by_one(run)


def _open_tflite(model: SavedModel) -> Predict:
    # LiteRT announces its delegate on standard error each time.
    with quiet_native():
        interpreter = _interpreter(model)
        interpreter.allocate_tensors()
    signature = next(iter(interpreter.get_signature_list().values()))
    runner = interpreter.get_signature_runner()
    details_in, details_out = runner.get_input_details(), runner.get_output_details()
    names_in = _match([i.name for i in model.inputs], signature["inputs"])
    names_out = _match([o.name for o in model.outputs], signature["outputs"])

    def run(arrays: Sequence[Array]) -> tuple[Array, ...]:
        feed = {}
        for i, name in enumerate(names_in):
            x = _to_layout(arrays[i], model)
            feed[name] = _to_ends(x, details_in[name], _at(model.input_grids, i))
        results = runner(**feed)
        return tuple(
            _from_ends(results[name], details_out[name], _at(model.output_grids, i))
            for i, name in enumerate(names_out)
        )

    return _one_by_one(run)


def _open_coreml(model: SavedModel) -> Predict:
    from edgekit_converters.coreml_reference import CoreMLReference

    reference = CoreMLReference(model.path)
    names_in = _match([i.name for i in model.inputs], reference.input_names)
    names_out = _match([o.name for o in model.outputs], reference.output_names)

    def run(arrays: Sequence[Array]) -> tuple[Array, ...]:
        results = reference.predict({n: _narrow(x) for n, x in zip(names_in, arrays, strict=True)})
        return tuple(results[n] for n in names_out)

    return _one_by_one(run)


_OPENERS: Final[dict[str, Callable[[SavedModel], Predict]]] = {
    "onnx": _open_onnx,
    "tflite": _open_tflite,
    "coreml": _open_coreml,
}


def _interpreter(model: SavedModel) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter
    return Interpreter(str(model.path), num_threads=model.threads)


def _one_by_one(run: Predict) -> Predict:
    def batch(arrays: Sequence[Array]) -> tuple[Array, ...]:
        rows = [run([x[i : i + 1] for x in arrays]) for i in range(len(arrays[0]))]
        return tuple(np.concatenate(parts) for parts in zip(*rows, strict=True))

    return batch


def _match(wanted: Sequence[str], present: Sequence[str]) -> list[str]:
    """Names in the file for the names of the program; formats replace characters that they do not take."""
    by_form = {_form(name): name for name in present}
    found = [by_form.get(_form(name)) for name in wanted]
    if any(f is None for f in found):
        raise ValueError(f"names {sorted(present)}, expected {sorted(wanted)}")
    return [f for f in found if f is not None]


def _form(name: str) -> str:
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def _at(grids: tuple[Grid | None, ...], index: int) -> Grid | None:
    return grids[index] if grids else None


def _to_layout(x: Array, model: SavedModel) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if model.layout == "nhwc" and x.ndim == 4 else x


def _narrow(x: Array) -> Array:
    return x.astype(np.int32) if x.dtype == np.int64 else x


def _to_ends(x: Array, detail: dict[str, Any], grid: Grid | None) -> Array:
    if detail["dtype"] == np.int8 and x.dtype != np.int8 and grid is not None:
        return np.clip(np.rint(x / np.float32(grid.scale)) + grid.zero_point, -128, 127).astype(np.int8)
    return x.astype(detail["dtype"])


def _from_ends(y: Array, detail: dict[str, Any], grid: Grid | None) -> Array:
    if detail["dtype"] == np.int8 and grid is not None:
        return ((y.astype(np.float32) - grid.zero_point) * np.float32(grid.scale)).astype(np.float32)
    # The runner reuses its buffers at the next call.
    return np.array(y)
