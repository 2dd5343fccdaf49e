"""Census of a `.onnx` file, from the graph that ONNX Runtime writes back after optimising it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.bench.counts import OpCensus
from edgekit.bench.runners import open_onnx

BOUNDARY = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
# Integer arithmetic whose output is not an 8-bit tensor: int32 sums, or float after a fused rescale.
INTEGER = frozenset({"ConvInteger", "MatMulInteger"})
HYBRID = frozenset(
    {"DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat", "QAttention", "MatMulNBits"}
)
FLOATS = (1, 10, 11, 16)  # TensorProto FLOAT, FLOAT16, DOUBLE, BFLOAT16
EIGHT_BITS = (2, 3)  # UINT8, INT8
INT32, INT64, BOOL = 6, 7, 9
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "IsNaN")
OUTPUT_TYPES: Mapping[str, int] = {
    **dict.fromkeys((*HYBRID, "DequantizeLinear"), FLOATS[0]),
    **dict.fromkeys(INTEGER, INT32),
    **dict.fromkeys(("Shape", "Size", "ArgMax", "ArgMin", "NonZero"), INT64),
    **dict.fromkeys(COMPARISONS, BOOL),
}


def census(path: Path) -> OpCensus:
    """Let ONNX Runtime optimise the file into a temporary one and count that."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="edgekit-census-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_onnx(path, optimized=optimized)
        # Weights do not matter here and may be gigabytes beside the graph.
        graph = onnx.load(str(optimized), load_external_data=False).graph
    kinds: dict[str, Counter[str]] = {
        kind: Counter() for kind in ("int8", "hybrid", "floating", "boundary", "other", "unfused")
    }
    _count(graph, {}, kinds)
    return OpCensus(**kinds, partitions=0)


def _count(graph: Any, outer: Mapping[str, int], kinds: Mapping[str, Counter[str]]) -> None:
    """Count a graph and its subgraphs; the optimised file carries few types, so they are carried along."""
    types = dict(outer)
    types.update({value.name: value.type.tensor_type.elem_type for value in graph.input})
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    constants = {tensor.name for tensor in graph.initializer}
    dequantized: set[str] = set()
    for node in graph.node:
        kind = _kind(node, types)
        kinds[kind][node.op_type] += 1
        if kind in ("floating", "hybrid") and dequantized.intersection(node.input):
            kinds["unfused"][node.op_type] += 1
        if node.op_type == "DequantizeLinear" and node.input[0] not in constants:
            dequantized.update(node.output)
        made = _output_type(node, types)
        types.update(dict.fromkeys(node.output, made))
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                if subgraph.node:
                    _count(subgraph, types, kinds)


def _kind(node: Any, types: Mapping[str, int]) -> str:
    name = node.op_type
    if name in BOUNDARY:
        return "boundary"
    if name in HYBRID:
        return "hybrid"
    if name.startswith("QLinear") or name == "QGemm" or name in INTEGER:
        return "int8"
    # SpaceToDepth is ours: it gathers the float image before anything is quantized.
    if name in ("Shape", "Size", "Constant", "SpaceToDepth"):
        return "other"
    ins = [types.get(each, 0) for each in node.input if each]
    if any(each in FLOATS for each in (*ins[:1], _output_type(node, types))):
        return "floating"
    return "int8" if any(each in EIGHT_BITS for each in ins[:1]) else "other"


def _output_type(node: Any, types: Mapping[str, int]) -> int:
    """Return the TensorProto element type of the first output, 0 when nothing tells."""
    name = node.op_type
    ins = [types.get(each, 0) for each in node.input if each]
    first = ins[0] if ins else 0
    if name in OUTPUT_TYPES:
        return OUTPUT_TYPES[name]
    if name.startswith("QLinear") or name == "DynamicQuantizeLinear":
        return next((each for each in ins if each in EIGHT_BITS), EIGHT_BITS[0])
    special = {
        "QuantizeLinear": ins[2] if len(ins) > 2 else EIGHT_BITS[0],
        # without an output scale it rescales to float itself
        "QGemm": first if len(node.input) > 7 and node.input[7] else FLOATS[0],
        "Where": ins[1] if len(ins) > 1 else 0,
        "Cast": next((int(each.i) for each in node.attribute if each.name == "to"), 0),
        "Constant": next((int(each.t.data_type) for each in node.attribute if each.name == "value"), 0),
    }
    return special.get(name, first)
