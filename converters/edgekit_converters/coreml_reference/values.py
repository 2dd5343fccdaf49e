"""Turns protobuf values into tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit_converters.coreml_reference.package import Package, broken_package

# DataType of MIL.proto to numpy.
NUMPY_TYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.bool_),
    10: np.dtype(np.float16),
    11: np.dtype(np.float32),
    12: np.dtype(np.float64),
    21: np.dtype(np.int8),
    22: np.dtype(np.int16),
    23: np.dtype(np.int32),
    24: np.dtype(np.int64),
    31: np.dtype(np.uint8),
    32: np.dtype(np.uint16),
    33: np.dtype(np.uint32),
}
STRING = 2
MAX_ELEMENTS = 2**31


def value_of(value: Any, package: Package) -> torch.Tensor | str:
    """Reads a constant.

    Args:
        value: `Value` message, immediate or in the weight file.
        package: where it comes from.

    Returns:
        A string, or a tensor of the declared shape. Unsigned 16 and 32 bit integers come as int32 and int64,
        in which torch can compute.

    Raises:
        LoweringError: the value is not of its declared type and shape.
    """
    declared = value.type.tensorType
    if declared.dataType == STRING:
        strings = value.immediateValue.tensor.strings.values
        if len(strings) != 1:
            raise broken_package(package.path, f"a string constant has {len(strings)} values")
        return str(strings[0])
    dtype = NUMPY_TYPES.get(declared.dataType)
    if dtype is None:
        raise broken_package(package.path, f"a constant has the unknown type {declared.dataType}")
    shape = tuple(int(d.constant.size) for d in declared.dimensions)
    count = math.prod(shape)
    if count > MAX_ELEMENTS:
        raise broken_package(package.path, f"a constant of shape {shape} is too large")
    if value.WhichOneof("value") == "blobFileValue":
        flat = package.blob(value.blobFileValue.offset, dtype, count)
    else:
        flat = _immediate(value.immediateValue.tensor, dtype)
    if flat.size != count:
        raise broken_package(package.path, f"a constant of shape {shape} has {flat.size} values")
    return torch.from_numpy(_computable(flat.reshape(shape)))


def _immediate(tensor: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    kind = tensor.WhichOneof("value")
    if kind is None:
        return np.empty(0, dtype)
    values = getattr(tensor, kind).values
    # Types without a field of their own (float16, int8, uint8, …) are raw little-endian bytes.
    return np.frombuffer(values, dtype) if kind == "bytes" else np.array(values, dtype)


def _computable(array: NDArray[Any]) -> NDArray[Any]:
    wider = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}.get(array.dtype)
    return array.astype(wider) if wider else array.copy()
