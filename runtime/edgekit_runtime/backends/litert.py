"""TFLite files in LiteRT, or in `tflite_runtime` on older images."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit_runtime.backends import BACKENDS, Array, Port, Settings, import_backend
from edgekit_runtime.errors import BackendError

MOST_GRID_BYTES: Final = 2


class _Session:
    """An interpreter has one set of buffers: calls from several threads take turns."""

    __slots__ = ("_fits", "_indices", "_interpreter", "_lock", "_results", "_shapes", "inputs", "outputs")

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        ends_in, ends_out = _ends(interpreter)
        self.inputs = tuple(_port(name, detail) for name, detail in ends_in)
        self.outputs = tuple(_port(name, detail) for name, detail in ends_out)
        self._indices = [detail["index"] for _, detail in ends_in]
        self._shapes = [tuple(int(n) for n in detail["shape"]) for _, detail in ends_in]
        self._results = [detail["index"] for _, detail in ends_out]
        self._lock, self._fits = threading.Lock(), True

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        interpreter = self._interpreter
        with self._lock:
            for k, array in enumerate(arrays):
                if array.shape != self._shapes[k] or not self._fits:
                    self._resize(arrays)
                    break
            # What a call leaves in variables is not for the next one, which may be of another thread.
            interpreter.reset_all_variables()
            for index, array in zip(self._indices, arrays, strict=True):
                interpreter.set_tensor(index, array)
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in self._results]

    def _resize(self, arrays: Sequence[Array]) -> None:
        # Where this fails half way, the next call has to begin anew, whatever its shapes.
        self._fits = False
        for index, array in zip(self._indices, arrays, strict=True):
            self._interpreter.resize_tensor_input(index, array.shape, strict=True)
        self._interpreter.allocate_tensors()
        self._shapes, self._fits = [array.shape for array in arrays], True


def open_file(path: Path, settings: Settings) -> _Session:
    """Load a file and allocate its tensors.

    Raises:
        BackendError: no interpreter is installed, a delegate cannot be loaded, it is no TFLite file, or one that
            remembers what it was given.
    """
    module = import_backend(BACKENDS["tflite"])
    with path.open("rb") as file:
        head = file.read(8)
    # A file without the identifier can bring the C++ interpreter down, so it is not even tried.
    if head[4:8] != b"TFL3":
        raise BackendError(
            f"{path}: begins with {head!r}",
            expected="a TFLite file, with the identifier TFL3",
            way_out="Give the file that the exporter wrote.",
            code="load",
        )
    more = {}
    if settings.delegates:
        more["experimental_delegates"] = [_delegate(module, library) for library in settings.delegates]
    interpreter = module.Interpreter(model_path=str(path), num_threads=settings.threads, **more)
    interpreter.allocate_tensors()
    # The one way to see operators, and private in both packages. Unlike variable tensors, what is assigned to
    # resources cannot be reset.
    if any(op["op_name"] == "ASSIGN_VARIABLE" for op in interpreter._get_ops_details()):
        raise BackendError(
            f"{path}: remembers from call to call what it was given",
            expected="a model whose answer depends on its inputs alone",
            way_out="Export the model with its state as an input and an output.",
            code="state",
        )
    return _Session(interpreter)


def _delegate(module: Any, library: str) -> Any:
    try:
        # The interpreter's own loader leaves a broken object behind where the library is not there.
        ctypes.CDLL(library)
        return module.load_delegate(library)
    except (OSError, ValueError) as error:
        raise BackendError(
            f"{library}: {error}",
            expected="a delegate for this board",
            way_out="Install the delegate's library, or leave it out.",
            code="no_delegate",
        ) from error


def _ends(interpreter: Any) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """(name, details) of inputs and outputs, by the names of the signature where there is one."""
    signatures = interpreter.get_signature_list()
    # A graph may list an input twice; it is one tensor all the same.
    plain_in = list({detail["index"]: detail for detail in interpreter.get_input_details()}.values())
    plain_out = interpreter.get_output_details()
    if len(signatures) == 1:
        runner = interpreter.get_signature_runner(next(iter(signatures)))
        named_in, named_out = runner.get_input_details(), runner.get_output_details()
        # What a signature leaves out would be computed from whatever lies in memory, and so would an input of two
        # names.
        whole = _tensors(named_in.values()) == _tensors(plain_in) and len(named_in) == len(plain_in)
        if whole and _tensors(named_out.values()) == _tensors(plain_out):
            return _named(named_in, plain_in), _named(named_out, plain_out)
    return _apart("input", plain_in), _apart("output", plain_out)


def _tensors(details: Iterable[Any]) -> set[tuple[int, str]]:
    """Index and name: a signature may be of another graph, whose indices begin anew."""
    return {(int(detail["index"]), str(detail["name"])) for detail in details}


def _apart(kind: str, details: Sequence[Any]) -> list[tuple[str, Any]]:
    """Names of the graph, which need not be there, nor be different."""
    taken = {detail["name"] for detail in details}
    found: dict[str, Any] = {}
    for place, detail in enumerate(details):
        name = detail["name"]
        if not name or name in found:
            numbers = count(1 if name else place)
            name = next(n for n in (f"{name or kind}_{k}" for k in numbers) if n not in taken | found.keys())
        found[name] = detail
    return list(found.items())


def _named(named: dict[str, Any], plain: Sequence[Any]) -> list[tuple[str, Any]]:
    """Names of the signature, in the order of the graph; two outputs may be one tensor."""
    order = {detail["index"]: place for place, detail in enumerate(plain)}
    return sorted(named.items(), key=lambda item: order[item[1]["index"]])


def _port(name: str, detail: Any) -> Port:
    dtype = np.dtype(detail["dtype"])
    if dtype.kind not in "biuf":
        raise BackendError(
            f"{name!r} holds {dtype}",
            expected="tensors of numbers at the ends of a model",
            way_out="Export the model without what makes numbers of texts.",
            code="ends",
        )
    scale, zero_point = detail["quantization"]
    if dtype.kind not in "iu" or dtype.itemsize > MOST_GRID_BYTES:
        # Real values, or whole ones too large for a float, whatever the file says of a grid.
        scale, zero_point = 0.0, 0
    shape = tuple(int(n) for n in detail.get("shape_signature", detail["shape"]))
    return Port(name, dtype, shape, float(scale), int(zero_point))
