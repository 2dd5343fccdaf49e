"""The runtimes that run a file, each behind the same few lines: one file a backend, one row in a table.

A backend is imported when a file of its format is opened, never before: what is not installed costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit_runtime.errors import BackendError

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output as the file has it.

    Attributes:
        name: in the file.
        dtype: of the values in the file.
        shape: axis lengths, -1 where the file leaves one open.
        scale: of an 8-bit grid, 0.0 where there is none.
        zero_point: of the grid.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    scale: float = 0.0
    zero_point: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """How a file is run.

    Attributes:
        threads: of the runtime.
        providers: of ONNX Runtime, first choice first; empty: what is there, TensorRT and CUDA before the CPU.
        delegates: shared libraries for LiteRT, such as that of an accelerator; empty: XNNPACK.
    """

    threads: int = 1
    providers: tuple[str, ...] = ()
    delegates: tuple[str, ...] = ()


class Session(Protocol):
    """A file that is loaded."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """One array per input in the file's own dtype and axes → one per output, which the caller may keep."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """A row of the table.

    Attributes:
        format: of the files that it runs.
        distributions: that bring it, first choice first.
        modules: that they are imported as.
        opener: "module:function" that opens a file.
        suffix: of files that say nothing about themselves.
    """

    format: str
    distributions: tuple[str, ...]
    modules: tuple[str, ...]
    opener: str
    suffix: str


BACKENDS: Final[Mapping[str, Backend]] = MappingProxyType(
    {
        "tflite": Backend(
            "tflite",
            ("ai-edge-litert", "tflite-runtime"),
            ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"),
            "edgekit_runtime.backends.litert:open_file",
            ".tflite",
        ),
        "onnx": Backend(
            "onnx",
            ("onnxruntime", "onnxruntime-gpu"),
            ("onnxruntime",),
            "edgekit_runtime.backends.onnx:open_file",
            ".onnx",
        ),
        "coreml": Backend(
            "coreml",
            ("coremltools",),
            ("coremltools",),
            "edgekit_runtime.backends.coreml:open_file",
            ".mlpackage",
        ),
    }
)


# What C++ says where Python would raise MemoryError.
NO_MEMORY: Final = ("bad_alloc", "Failed to allocate memory", "bad allocation")


def open_session(format: str, path: Path, settings: Settings) -> Session:
    """Load a file in the backend of its format.

    Raises:
        BackendError: the backend is not installed, or refuses the file.
    """
    backend = BACKENDS[format]
    module, function = backend.opener.split(":")
    opener: Callable[[Path, Settings], Session] = getattr(importlib.import_module(module), function)
    try:
        return opener(path, settings)
    except (BackendError, MemoryError):
        raise
    except Exception as error:
        # Every runtime has exceptions of its own, ONNX Runtime's not even below RuntimeError.
        raise refused(path, backend, error) from error


def import_backend(backend: Backend) -> Any:
    """The first module of a backend that is installed.

    Raises:
        BackendError: none is.
    """
    for name in backend.modules:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise BackendError(
        f"no backend for {backend.format} files is installed",
        expected=f"one of {', '.join(backend.distributions)}",
        way_out=f"pip install 'edgekit-runtime[{backend.format}]'",
        code="no_backend",
    )


def installed(format: str) -> bool:
    """Whether a backend for a format can be imported; nothing is."""
    found = (_spec(module.split(".")[0]) for module in BACKENDS[format].modules)
    return any(found)


def _spec(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def refused(path: Path, backend: Backend, error: Exception) -> BackendError:
    """The error for a file that a backend does not load or run."""
    said = str(error).strip().splitlines() or [type(error).__name__]
    if any(each in str(error) for each in NO_MEMORY):
        return BackendError(
            f"{path}: {said[0][:300]}",
            expected="memory for the model",
            way_out="Stop other programs, or publish a smaller model.",
            code="no_memory",
        )
    return BackendError(
        f"{path}: {said[0][:300]}",
        expected=f"a {backend.format} file that this version of {backend.distributions[0]} runs",
        way_out="`edgekit-runtime doctor` tells the versions that are here; publish the bundle for them.",
        code="load",
    )
