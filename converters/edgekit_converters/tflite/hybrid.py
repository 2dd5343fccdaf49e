"""Fully connected layers that quantize their input at each call, row by row: the hybrid kernels of LiteRT.

The converter makes hybrid ops of whatever it likes, or of nothing at all, so it is told to make none, and the layers
are given their int8 weights in the finished file. An older runtime would take the scale of the first output for all of
them, so the op gets the version that says so; a runtime that does not know it refuses the file.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any, Final

# Float input, int8 weight with a scale for each output, and the first runtime with it (LiteRT,
# tflite/tools/versioning/op_version.cc and runtime_version.cc).
OP_VERSION: Final = 12
MINIMUM_RUNTIME: Final = "2.17.0"
# How the converter spells it in the metadata: zeros behind, 16 bytes.
_METADATA, _METADATA_BYTES = b"min_runtime_version", 16


def dynamic_linears(content: bytes, weights: Collection[bytes]) -> bytes:
    """Let every FULLY_CONNECTED of a linear layer read its int8 weight as it is stored, without a DEQUANTIZE between.

    Args:
        content: of a `.tflite` file.
        weights: of the linear layers, int8 `[outputs, inputs]` row by row: the gates of an unrolled recurrent cell are
            fully connected layers, too, and stay float.

    Returns:
        The file with hybrid layers; ops whose outputs nothing reads any more are gone. The same bytes where there is
        no such layer.
    """
    from ai_edge_litert.tools import flatbuffer_utils as files

    model = files.read_model_from_bytearray(bytearray(content))
    layers = [
        (op, weight)
        for graph in model.subgraphs
        for op, weight in _layers(graph, model.operatorCodes)
        if _content(model, graph, weight) in weights
    ]
    if not layers:
        return content
    code = copy.copy(model.operatorCodes[layers[0][0].opcodeIndex])
    code.version = OP_VERSION
    for layer, weight in layers:
        layer.opcodeIndex, layer.inputs[1] = len(model.operatorCodes), weight
        # XNNPACK's kernels do so in any case; those that run without it do as they are told.
        layer.builtinOptions.asymmetricQuantizeInputs = True
    model.operatorCodes.append(code)
    for graph in model.subgraphs:
        _drop_unread(graph)
    for entry in model.metadata or ():
        if entry.name == _METADATA:
            model.buffers[entry.buffer].data = MINIMUM_RUNTIME.encode().ljust(_METADATA_BYTES, b"\0")
    return bytes(files.convert_object_to_bytearray(model))


def _layers(graph: Any, codes: Sequence[Any]) -> list[tuple[Any, int]]:
    """Fully connected layers whose weight is dequantized, with the int8 tensor that it is stored in."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    def kind(op: Any) -> int:
        return int(codes[op.opcodeIndex].builtinCode)

    stored = {
        int(op.outputs[0]): int(op.inputs[0])
        for op in graph.operators
        if kind(op) == BuiltinOperator.DEQUANTIZE
    }
    return [
        (op, stored[int(op.inputs[1])])
        for op in graph.operators
        if kind(op) == BuiltinOperator.FULLY_CONNECTED and int(op.inputs[1]) in stored
    ]


def _content(model: Any, graph: Any, tensor: int) -> bytes:
    return bytes(model.buffers[graph.tensors[tensor].buffer].data)


def _drop_unread(graph: Any) -> None:
    """Remove ops whose outputs nobody reads, until there are none."""
    while True:
        read = {int(i) for op in graph.operators for i in op.inputs} | {int(i) for i in graph.outputs}
        kept = [op for op in graph.operators if any(int(out) in read for out in op.outputs)]
        if len(kept) == len(graph.operators):
            return
        graph.operators = kept
