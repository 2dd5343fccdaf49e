"""Model files that are none, or do what they should not, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from support.adders import WIDTH
from support.damage import HUGE, MODEL, OTHER_CONTENT, Bytes, bytes_of, cut, onnx_of, tflite_of, whole


def _named(field: str, value: object) -> Callable[[ModelProto], object]:
    """Set a field by its path; the last part is set, or extended where it repeats."""

    def change(model: ModelProto) -> None:
        *above, last = field.split(".")
        place: Any = model
        for part in above:
            place = place[int(part)] if part.isdecimal() else getattr(place, part)
        if isinstance(value, list):
            getattr(place, last).clear()
            getattr(place, last).extend(value)
        else:
            setattr(place, last, value)

    return change


def _weight(value: object) -> Callable[[ModelProto], object]:
    def change(model: ModelProto) -> None:
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.asarray(value), "c"))

    return change


def _elsewhere(location: str, offset: int = 0) -> Callable[[ModelProto], object]:
    """The weight is in another file, as the format allows."""

    def change(model: ModelProto) -> None:
        weight = model.graph.initializer[0]
        weight.ClearField("float_data")
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(offset)), ("length", "4")):
            weight.external_data.add(key=key, value=value)

    return change


def _filling(*shape: int) -> Callable[[ModelProto], object]:
    """What is added is the largest of so many numbers, which the file does not hold."""

    def change(model: ModelProto) -> None:
        weights = [numpy_helper.from_array(np.array(shape, np.int64), "s")]
        value = helper.make_tensor("v", TensorProto.FLOAT, [1], [2.5])
        nodes = [
            helper.make_node("ConstantOfShape", ["s"], ["big"], value=value),
            helper.make_node("ReduceMax", ["big"], ["c"], keepdims=0),
            helper.make_node("Add", ["x", "c"], ["y"]),
        ]
        _replace(model, nodes, weights)

    return change


def _replace(model: ModelProto, nodes: list[Any], weights: list[Any]) -> None:
    del model.graph.node[:]
    del model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(weights)


def endless(model: ModelProto) -> None:
    """A loop that adds nothing, and never ends."""
    scalar = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still"]),
            helper.make_node("Mul", ["sum", "one"], ["more"]),
        ],
        "body",
        [
            scalar("i", TensorProto.INT64, []), scalar("on", TensorProto.BOOL, []),
            scalar("sum", TensorProto.FLOAT, None),
        ],
        [scalar("still", TensorProto.BOOL, []), scalar("more", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(1), "one")],
    )  # fmt: skip
    nodes = [
        helper.make_node("Add", ["x", "c"], ["z"]),
        helper.make_node("Loop", ["n", "true", "z"], ["y"], body=body),
    ]
    weights = [numpy_helper.from_array(np.float32(2.5), "c"), numpy_helper.from_array(np.int64(2**62), "n")]
    _replace(model, nodes, [*weights, numpy_helper.from_array(np.array(True), "true")])


def _sequence(model: ModelProto) -> None:
    del model.graph.output[:]
    model.graph.node[0].output[0] = "sum"
    model.graph.node.append(helper.make_node("SequenceConstruct", ["sum"], ["y"]))
    kind = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ["n", WIDTH])
    model.graph.output.append(kind)


def _nested(depth: int) -> Bytes:
    """Graphs in attributes of nodes of graphs, deeper than a parser may recurse: fields 7, 1, 5, 6 of onnx.proto."""

    def wrap(field: int, data: bytes) -> bytes:
        length, size = b"", len(data)
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([field << 3 | 2]) + length + bytes([size]) + data

    def damage(_: bytes) -> bytes:
        graph = b""
        for _level in range(depth):
            graph = wrap(1, wrap(5, wrap(6, graph)))
        return b"\x08\x09" + wrap(7, graph)

    return damage


ONNX: dict[str, Bytes] = {
    name: onnx_of(change)
    for name, change in {
        "operators of the far future": _named("opset_import.0.version", 9999),
        "a format of the far future": _named("ir_version", 999),
        "an operator that nobody has": _named("graph.node.0.op_type", "Teleport"),
        "operators of a domain that nobody has": _named("graph.node.0.domain", "com.example"),
        "another operator": _named("graph.node.0.op_type", "Mul"),
        "an operator with too many inputs": _named("graph.node.0.input", ["x", "c", "c"]),
        "an edge that leads nowhere": _named("graph.node.0.input", ["x", "nowhere"]),
        "a circle": _named("graph.node.0.input", ["y", "c"]),
        "no operators": lambda model: model.graph.ClearField("node"),
        "no output": lambda model: model.graph.ClearField("output"),
        "no graph": lambda model: model.ClearField("graph"),
        "another input": _named("graph.input.0.name", "z"),
        "an output too many": lambda model: model.graph.output.append(model.graph.input[0]),
        "input of 2^31 - 1 numbers": _named("graph.input.0.type.tensor_type.shape.dim.1.dim_value", HUGE),
        "input of 2^63 - 1 numbers": _named("graph.input.0.type.tensor_type.shape.dim.1.dim_value", 2**63 - 1),
        "input of whole numbers": _named("graph.input.0.type.tensor_type.elem_type", TensorProto.INT64),
        "input of text": _named("graph.input.0.type.tensor_type.elem_type", TensorProto.STRING),
        "output as a sequence": _sequence,
        "another weight": _weight(np.float32(7)),
        "a weight that is no number": _weight(np.float32("nan")),
        "weights that do not fit": _weight(np.zeros(5, np.float32)),
        "weights cut off": _named("graph.initializer.0.dims", [4]),
        "2^62 weights": _named("graph.initializer.0.dims", [HUGE, HUGE]),
        "weights in /etc/passwd": _elsewhere("/etc/passwd"),
        "weights further up": _elsewhere("../state.json"),
        "weights beyond the end": _elsewhere("manifest.json", 2**60),
        "2^42 numbers out of nothing": _filling(2**42),
        "2^93 numbers out of nothing": _filling(HUGE, HUGE, HUGE),
    }.items()
} | {"graphs in graphs in graphs": _nested(3000)}  # fmt: skip


# TFLite files that are none


def _set(field: str, value: object) -> Callable[[Any, Any], object]:
    """Set a field by its path from the model, or with a leading dot from its graph."""

    def change(model: Any, graph: Any) -> None:
        *above, last = field.removeprefix(".").split(".")
        place = graph if field.startswith(".") else model
        for part in above:
            place = place[int(part)] if part.isdecimal() else getattr(place, part)
        assert hasattr(place, last)
        setattr(place, last, value)

    return change


def _custom(model: Any, _: Any) -> None:
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = 32
    code.customCode = b"teleport"


def _other_code(builtin: int) -> Callable[[Any, Any], object]:
    def change(model: Any, _: Any) -> None:
        code = model.operatorCodes[0]
        code.builtinCode, code.deprecatedBuiltinCode = builtin, min(builtin, 127)

    return change


def _far(model: Any, _: Any) -> None:
    buffer = model.buffers[1]
    buffer.data, buffer.offset, buffer.size = None, 2**40, 2**40


def _rescaled(scale: float, zero_point: int = 0) -> Callable[[Any, Any], object]:
    def change(_: Any, graph: Any) -> None:
        graph.tensors[6].quantization.scale = [scale]
        graph.tensors[6].quantization.zeroPoint = [zero_point]

    return change


TFLITE: dict[str, Bytes] = {
    name: tflite_of(change)
    for name, change in {
        "a format of the far future": _set("version", 99),
        "no graph": _set("subgraphs", []),
        "no tensors": _set(".tensors", []),
        "no operators": _set(".operators", []),
        "no outputs": _set(".outputs", []),
        "an operator code out of range": _set(".operators.0.opcodeIndex", 77),
        "an operator that nobody has": _custom,
        "another operator": _other_code(18),  # MUL
        "a tensor out of range": _set(".operators.0.inputs", [99, 0]),
        "a tensor far out of range": _set(".operators.0.inputs", [HUGE, 0]),
        "an output out of range": _set(".operators.0.outputs", [99]),
        "an input of the graph out of range": _set(".inputs", [99]),
        "an output of the graph out of range": _set(".outputs", [-2]),
        "an operator that writes what it reads": _set(".operators.1.outputs", [1]),
        "a buffer out of range": _set(".tensors.4.buffer", 99),
        "an axis out of range": _set("buffers.1.data", bytes_of(np.int32(77))),
        "a buffer far beyond the file": _far,
        "an input of 2^31 - 1 rows": _set(".tensors.0.shape", [1, 4, 4, HUGE]),
        "an input of 2^124 numbers": _set(".tensors.0.shape", [HUGE] * 4),
        "an input below zero": _set(".tensors.0.shape", [-5, 4, 4, 8]),
        "an input of another rank": _set(".tensors.0.shape", [1, 128]),
        "an input of text": _set(".tensors.0.type", 5),
        "another input": _set(".tensors.0.name", b"other"),
        "a grid of another step": _rescaled(0.7),
        "a grid without a step": _rescaled(0.0),
        "a grid that is no number": _rescaled(float("nan")),
    }.items()
}  # fmt: skip


WRONG_FORMAT: Mapping[tuple[str, str], Bytes] = {
    **{
        (format, name): change
        for format in MODEL
        for name, change in OTHER_CONTENT.items()
        if name in {"a picture", "a program", "text", "an archive", "zeros", "backwards"}
    },
    **{(format, f"cut to {length}"): cut(length) for format in MODEL for length in (0, 0.5, -1)},
    ("onnx", "a TFLite file"): lambda _: whole("tflite")["model.tflite"],
    ("tflite", "an ONNX file"): lambda _: whole("onnx")["model.onnx"],
    ("tflite", "its identifier alone"): lambda data: data[:8],
    ("tflite", "zeros after its identifier"): lambda data: data[:8] + bytes(len(data) - 8),
    ("tflite", "ones after its identifier"): lambda data: data[:8] + b"\xff" * (len(data) - 8),
}
