"""A saved file as a call without arguments: inputs are set once, so that only inference is timed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import UsageError
from edgekit_converters.quiet import quiet_native
from edgekit_devices.harness import draw
from edgekit_runtime.backends.onnx_sessions import open_session, session_options

__all__ = [
    "allocate",
    "interpreter_module",
    "onnx_call",
    "onnx_runner",
    "open_onnx",
    "open_tflite",
    "runner",
    "tflite_runner",
]

Array = NDArray[Any]

_ONNX_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


def runner(
    path: Path, *, threads: int = 1, inputs: Sequence[Array] | None = None, seed: int = 0
) -> Callable[[], None]:
    """Return the runner for a file by its ending, `.onnx` or `.tflite`.

    Args:
        path: the saved file.
        threads: intra-op threads.
        inputs: one array per input in the file's order; None draws them from the file's own signature.
        seed: of the drawn inputs.

    Raises:
        UsageError: another ending, a file that its runtime refuses, or inputs that do not fit.
    """
    makers = {".onnx": onnx_runner, ".tflite": tflite_runner}
    if path.suffix not in makers:
        raise UsageError(
            f"{path}: cannot be timed here",
            expected="a .onnx or .tflite file",
            way_out="A .mlpackage is timed on macOS or on a device.",
        )
    return makers[path.suffix](path, threads=threads, inputs=inputs, seed=seed)


def onnx_runner(
    path: Path, *, threads: int = 1, inputs: Sequence[Array] | None = None, seed: int = 0
) -> Callable[[], None]:
    """Return a call that runs a `.onnx` file once in ONNX Runtime on the CPU; arguments as for `runner`."""
    return onnx_call(path, open_onnx(path, threads=threads), inputs=inputs, seed=seed)


def onnx_call(
    path: Path, session: Any, *, inputs: Sequence[Array] | None = None, seed: int = 0
) -> Callable[[], None]:
    """Return a call that runs an open session once.

    Args:
        path: of its file, for messages.
        session: from `open_onnx`.
        inputs: as for `runner`.
        seed: as for `runner`.
    """
    specs = session.get_inputs()
    unknown = [spec.type for spec in specs if spec.type not in _ONNX_DTYPES]
    if unknown:
        raise UsageError(
            f"{path}: input of type {unknown[0]}", expected="tensors of numbers", way_out="Time another file."
        )
    shapes = [
        tuple(axis if isinstance(axis, int) and axis > 0 else 1 for axis in spec.shape) for spec in specs
    ]
    dtypes = [np.dtype(_ONNX_DTYPES[spec.type]) for spec in specs]
    arrays = _inputs(path, shapes, dtypes, inputs, seed)
    feeds = {spec.name: array for spec, array in zip(specs, arrays, strict=True)}
    names = [output.name for output in session.get_outputs()]

    def run() -> None:
        session.run(names, feeds)

    return _tried(path, run)


def tflite_runner(
    path: Path, *, threads: int = 1, inputs: Sequence[Array] | None = None, seed: int = 0
) -> Callable[[], None]:
    """Return a call that runs a `.tflite` file once in LiteRT with XNNPACK; arguments as for `runner`."""
    interpreter = open_tflite(path, threads=threads)
    details = interpreter.get_input_details()
    for detail, array in zip(details, inputs or (), strict=False):
        if tuple(detail["shape"]) != array.shape:
            _resize(path, interpreter, detail, array.shape)
    allocate(path, interpreter)
    shapes = [tuple(int(axis) for axis in detail["shape"]) for detail in details]
    dtypes = [np.dtype(detail["dtype"]) for detail in details]
    # The arena keeps graph inputs alive, so they hold their values over all invocations.
    for detail, array in zip(details, _inputs(path, shapes, dtypes, inputs, seed), strict=True):
        interpreter.set_tensor(detail["index"], array)

    def run() -> None:
        interpreter.invoke()

    return _tried(path, run)


def open_onnx(
    path: Path, *, threads: int = 1, optimized: Path | None = None, profile: Path | None = None
) -> Any:
    """Open a `.onnx` file in ONNX Runtime on the CPU.

    Args:
        path: the saved file.
        threads: intra-op threads.
        optimized: where the session writes the graph that it really runs, None for nowhere.
        profile: beginning of the name of the file that the session's times go to, None for nowhere.

    Raises:
        UsageError: ONNX Runtime refuses the file.
    """
    # Errors are logged; the warning that an optimised graph fits this machine only is meant.
    options = session_options(threads, severity=3)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    _must_exist(path)
    try:
        return open_session(path, options)
    except Exception as error:
        raise _refused(path, "an ONNX file that ONNX Runtime can load", error) from error


def interpreter_module() -> Any:
    """Return the module of the TFLite interpreter: `ai_edge_litert`, or `tflite_runtime` on old systems.

    Raises:
        UsageError: none is installed.
    """
    for name in ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UsageError(
        "no TFLite interpreter is installed",
        expected="ai-edge-litert or tflite-runtime",
        way_out="pip install 'edgekit[tflite]'",
    )


def open_tflite(path: Path, *, threads: int = 1, delegate: bool = True) -> Any:
    """Open a `.tflite` file; tensors are not allocated yet.

    Args:
        path: the saved file.
        threads: of the interpreter.
        delegate: let XNNPACK take what it can, as the interpreter does by default.

    Raises:
        UsageError: the interpreter refuses the file, or none is installed.
    """
    module = interpreter_module()
    _must_exist(path)
    with path.open("rb") as file:
        head = file.read(8)
    # A file without the identifier can bring the C++ interpreter down, so it is not even tried.
    if head[4:8] != b"TFL3":
        raise _refused(path, "a TFLite file with the identifier TFL3", ValueError(repr(head)))
    resolver = (
        module.OpResolverType.AUTO if delegate else module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    try:
        with quiet_native():
            return module.Interpreter(
                model_path=str(path), num_threads=threads, experimental_op_resolver_type=resolver
            )
    except (ValueError, RuntimeError) as error:
        raise _refused(path, "a TFLite file that the interpreter can load", error) from error


def allocate(path: Path, interpreter: Any) -> None:
    """Allocate the tensors of an interpreter; this is where an op that the runtime lacks shows.

    Raises:
        UsageError: the interpreter cannot prepare the graph of `path`.
    """
    try:
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise _refused(path, "ops that this TFLite interpreter knows", error) from error


def _inputs(
    path: Path,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[np.dtype[Any]],
    inputs: Sequence[Array] | None,
    seed: int,
) -> list[Array]:
    """Draw the inputs, or check number and dtypes of the given ones; a trial run checks their shapes."""
    if inputs is None:
        generator = np.random.default_rng(seed)
        return [draw(generator, shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    if [array.dtype for array in inputs] != list(dtypes):
        raise UsageError(
            f"{path}: inputs of {[str(array.dtype) for array in inputs]}",
            expected=f"{[str(dtype) for dtype in dtypes]}",
            way_out="Give the inputs of this very file.",
        )
    return [np.ascontiguousarray(array) for array in inputs]


def _tried(path: Path, run: Callable[[], None]) -> Callable[[], None]:
    """Run once, so that what cannot run is refused before anything is timed."""
    try:
        run()
    except Exception as error:  # the runtimes raise whatever their C++ side threw
        raise _refused(path, "a model that runs on the inputs of its signature", error) from error
    return run


def _resize(path: Path, interpreter: Any, detail: Any, shape: tuple[int, ...]) -> None:
    try:
        interpreter.resize_tensor_input(detail["index"], shape, strict=True)
    except (ValueError, RuntimeError) as error:
        raise _refused(path, f"an input of shape {tuple(detail['shape_signature'])}", error) from error


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path}: no such file", expected="a model file", way_out="Check the path.")


def _refused(path: Path, expected: str, error: Exception) -> UsageError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UsageError(
        f"{path}: {first_line}", expected=expected, way_out="Write the file again, or give another."
    )
