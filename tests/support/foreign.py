"""Model files as others make them, tensor by tensor: what no exporter of ours would write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import NodeProto, TensorProto, ValueInfoProto, helper


@dataclass(frozen=True)
class T:
    """A tensor of a TFLite file.

    Attributes:
        name: in the graph.
        type: of TFLite.
        shape: axis lengths, and in `open` -1 for those that any length fits.
        data: of a constant.
        scale: of a grid.
        variable: its content outlives a call.
    """

    name: str
    type: str = "FLOAT32"
    shape: tuple[int, ...] = (1, 3)
    open: tuple[int, ...] | None = None
    data: Any = None
    scale: float | None = None
    variable: bool = False


@dataclass(frozen=True)
class Op:
    """An operator: its code, inputs, outputs, and options by their type."""

    code: str
    inputs: Sequence[int]
    outputs: Sequence[int]
    options: str


def tflite(
    path: Path, tensors: Sequence[T], ops: Sequence[Op], inputs: Sequence[int], outputs: Sequence[int],
    signature: tuple[Mapping[str, int], Mapping[str, int]] | None = None,
) -> Path:  # fmt: skip
    """Write a TFLite file of one graph."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.operatorCodes, model.buffers = 3, [], [schema.BufferT()]
    graph.tensors = [_tensor(model, each) for each in tensors]
    graph.inputs, graph.outputs, graph.operators = list(inputs), list(outputs), []
    for each in ops:
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = getattr(schema.BuiltinOperator, each.code)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
        operator.opcodeIndex = len(model.operatorCodes)
        model.operatorCodes.append(code)
        operator.inputs, operator.outputs = list(each.inputs), list(each.outputs)
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, each.options)
        operator.builtinOptions = getattr(schema, f"{each.options}T")()
        graph.operators.append(operator)
    model.subgraphs = [graph]
    if signature is not None:
        named = schema.SignatureDefT()
        named.signatureKey, named.subgraphIndex = b"serving_default", 0
        named.inputs, named.outputs = (_mapping(side) for side in signature)
        model.signatureDefs = [named]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _tensor(model: Any, of: T) -> Any:
    made = schema.TensorT()
    made.name, made.shape, made.hasRank = of.name.encode(), list(of.shape), True
    made.shapeSignature = None if of.open is None else list(of.open)
    made.type, made.isVariable, made.buffer = getattr(schema.TensorType, of.type), of.variable, 0
    if of.data is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(of.data).tobytes(), np.uint8)
        made.buffer = len(model.buffers)
        model.buffers.append(buffer)
    if of.scale is not None:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = [of.scale], [0]
    return made


def _mapping(side: Mapping[str, int]) -> list[Any]:
    found = []
    for name, index in side.items():
        one = schema.TensorMapT()
        one.name, one.tensorIndex = name.encode(), index
        found.append(one)
    return found


def end(name: str, shape: Sequence[int | str] | None, kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    """An input or output of an ONNX file."""
    return helper.make_tensor_value_info(name, kind, shape)


def onnx_file(
    path: Path, nodes: Sequence[NodeProto], inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto],
    weights: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write an ONNX file."""
    constants = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "foreign", list(inputs), list(outputs), constants)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path
