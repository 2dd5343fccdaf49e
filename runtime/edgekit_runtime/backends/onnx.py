"""ONNX files in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit_runtime.backends import BACKENDS, Array, Port, Settings, import_backend
from edgekit_runtime.backends.onnx_sessions import open_session, session_options
from edgekit_runtime.errors import BackendError

# What a Jetson has, in the order in which it is worth while; the CPU takes what is left.
PREFERRED: Final = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
DTYPES: Final = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64",
    "tensor(int8)": "int8", "tensor(uint8)": "uint8", "tensor(int16)": "int16", "tensor(uint16)": "uint16",
    "tensor(int32)": "int32", "tensor(uint32)": "uint32", "tensor(int64)": "int64", "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}  # fmt: skip


class _Session:
    """Calls from several threads run side by side."""

    __slots__ = ("_names", "_outputs", "_run", "inputs", "outputs")

    def __init__(self, session: Any) -> None:
        self.inputs = tuple(_port(each) for each in session.get_inputs())
        self.outputs = tuple(_port(each) for each in session.get_outputs())
        self._names = [port.name for port in self.inputs]
        self._outputs = [port.name for port in self.outputs]
        self._run = session.run

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        found: list[Array] = self._run(self._outputs, dict(zip(self._names, arrays, strict=True)))
        return found


def open_file(path: Path, settings: Settings) -> _Session:
    """Load a file.

    Raises:
        BackendError: ONNX Runtime is not installed, or lacks a provider that was asked for.
    """
    ort = import_backend(BACKENDS["onnx"])
    there = ort.get_available_providers()
    for name in settings.providers:
        if name not in there:
            raise BackendError(
                f"the provider {name} is not in this build of ONNX Runtime",
                expected=f"one of {', '.join(there)}",
                way_out="Install the build of onnxruntime for this board, or leave the provider out.",
                code="no_provider",
            )
    providers = list(settings.providers) or [name for name in PREFERRED if name in there]
    return _Session(open_session(path, session_options(settings.threads), providers))


def _port(value: Any) -> Port:
    dtype = DTYPES.get(value.type)
    if dtype is None:
        raise BackendError(
            f"{value.name!r} is a {value.type}",
            expected=f"one of {', '.join(DTYPES)}",
            way_out="Export the model with tensors of numbers at its ends; with skl2onnx, by `zipmap=False`.",
            code="ends",
        )
    shape = tuple(n if isinstance(n, int) else -1 for n in value.shape)
    return Port(value.name, np.dtype(dtype), shape)
