"""Tiny model files, written op by op, so that what is in them is known and no converter has to run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SCALE, ZERO = np.float32(0.1), np.uint8(128)


def write_onnx(path: Path, *, quantized: bool, signed: bool = False, dynamic: bool = False) -> Path:
    """A convolution, a ReLU and an Erf: float, or quantized with uint8 (`signed`: int8) activations."""
    rng = np.random.default_rng(0)
    zero = np.int8(0) if signed else ZERO
    weights = rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    tensors = {
        "scale": SCALE,
        "zero": zero,
        # A ReLU vanishes into the quantization after it only where zero is the lowest integer.
        "lowest": np.int8(-128) if signed else np.uint8(0),
        "w_scale": np.full(4, 0.01, np.float32),
        "w_zero": np.zeros(4, np.int8),
        "w_int": weights,
        "b_int": np.zeros(4, np.int32),
        "b_scale": np.full(4, 0.001, np.float32),
        "b_zero": np.zeros(4, np.int32),
        "w": weights.astype(np.float32) * 0.01,
        "b": np.zeros(4, np.float32),
    }
    on_grid = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w_int", "w_scale", "w_zero"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b_int", "b_scale", "b_zero"], ["bd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "scale", "lowest"], ["rq"]),
        helper.make_node("DequantizeLinear", ["rq", "scale", "lowest"], ["rd"]),
        helper.make_node("Erf", ["rd"], ["y"]),
    ]
    floating = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Erf", ["r"], ["y"]),
    ]
    nodes = on_grid if quantized else floating
    used = {name for node in nodes for name in node.input}
    batch = "n" if dynamic else 1
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4, 8, 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items() if name in used],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def write_tflite(path: Path) -> Path:
    """ADD and CUMSUM and ADD in float, then QUANTIZE and an int8 ADD: XNNPACK leaves the CUMSUM out."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    codes = {name: index for index, name in enumerate(("ADD", "CUMSUM", "QUANTIZE"))}
    model = schema.ModelT()
    model.version = 3
    model.operatorCodes = []
    for name in codes:
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = 2 if name == "QUANTIZE" else 1
        model.operatorCodes.append(code)
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = np.frombuffer(np.int32(1).tobytes(), np.uint8)

    def tensor(name: str, dtype: str, shape: tuple[int, ...], buffer: int = 0) -> schema.TensorT:
        made = schema.TensorT()
        made.name, made.shape, made.buffer = name.encode(), list(shape), buffer
        made.shapeSignature = list(shape)
        made.type = getattr(schema.TensorType, dtype)
        if dtype == "INT8":
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [0.1], [0]
        return made

    def operator(name: str, inputs: list[int], outputs: list[int]) -> schema.OperatorT:
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = codes[name], inputs, outputs
        made.builtinOptionsType = getattr(schema.BuiltinOptions, f"{name.capitalize()}Options")
        made.builtinOptions = getattr(schema, f"{name.capitalize()}OptionsT")()
        return made

    graph = schema.SubGraphT()
    shape = (1, 4, 4, 8)
    floats = [tensor(name, "FLOAT32", shape) for name in ("x", "a", "c", "y")]
    graph.tensors = [
        *floats,
        tensor("axis", "INT32", (), 1),
        tensor("q", "INT8", shape),
        tensor("z", "INT8", shape),
    ]
    graph.inputs, graph.outputs = [0], [6]
    graph.operators = [
        operator("ADD", [0, 0], [1]),
        operator("CUMSUM", [1, 4], [2]),
        operator("ADD", [2, 2], [3]),
        operator("QUANTIZE", [3], [5]),
        operator("ADD", [5, 5], [6]),
    ]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path
