"""Core ML packages, on macOS."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit_runtime.backends import BACKENDS, Array, Port, Settings, import_backend
from edgekit_runtime.errors import BackendError

# `ArrayFeatureType.ArrayDataType` of Core ML's protobuf.
DTYPES: Final = {65568: "float32", 65600: "float64", 65552: "float16", 131104: "int32"}


class _Session:
    __slots__ = ("_model", "inputs", "outputs")

    def __init__(self, model: Any) -> None:
        self._model = model
        description = model.get_spec().description
        self.inputs = tuple(_port(each) for each in description.input)
        self.outputs = tuple(_port(each) for each in description.output)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        feed = {port.name: array for port, array in zip(self.inputs, arrays, strict=True)}
        found = self._model.predict(feed)
        return [np.array(found[port.name]) for port in self.outputs]


def open_file(path: Path, settings: Settings) -> _Session:
    """Load a package.

    Raises:
        BackendError: this is not macOS, or coremltools is not installed.
    """
    del settings
    if platform.system() != "Darwin":
        raise BackendError(
            f"{path}: Core ML is not on {platform.system()}",
            expected="macOS",
            way_out="Publish the bundle with a TFLite or an ONNX file, too.",
            code="no_backend",
        )
    return _Session(import_backend(BACKENDS["coreml"]).models.MLModel(str(path)))


def _port(feature: Any) -> Port:
    kind = feature.type.WhichOneof("Type")
    if kind != "multiArrayType":
        raise BackendError(
            f"{feature.name!r} is a {kind}",
            expected="multi-arrays at the ends of a model",
            way_out="Convert the model with `ct.TensorType` for images, and without a classifier's configuration.",
            code="ends",
        )
    array = feature.type.multiArrayType
    return Port(feature.name, np.dtype(DTYPES.get(array.dataType, "float32")), tuple(array.shape))
