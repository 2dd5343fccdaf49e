"""Fully connected layers that quantize their input at each call, row by row: the hybrid kernels of LiteRT.

The converter makes hybrid ops of whatever it likes, or of nothing at all, so it is told to make none, and the layers
are given their int8 weights in the finished file.
"""

from __future__ import annotations

from typing import Any


def dynamic_linears(content: bytes) -> bytes:
    """Let every FULLY_CONNECTED of a float tensor read its int8 weight as it is stored, without a DEQUANTIZE between.

    Args:
        content: of a `.tflite` file.

    Returns:
        The file with hybrid layers; ops whose outputs nothing reads any more are gone.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils as files

    model = files.read_model_from_bytearray(bytearray(content))
    codes = [code.builtinCode for code in model.operatorCodes]
    for graph in model.subgraphs:
        made = {int(out): op for op in graph.operators for out in op.outputs}
        for op in graph.operators:
            if codes[op.opcodeIndex] != schema.BuiltinOperator.FULLY_CONNECTED:
                continue
            source = made.get(int(op.inputs[1]))
            if source is None or codes[source.opcodeIndex] != schema.BuiltinOperator.DEQUANTIZE:
                continue
            op.inputs[1] = source.inputs[0]
            # XNNPACK's kernels do so in any case; those that run without it do as they are told.
            op.builtinOptions.asymmetricQuantizeInputs = True
        _drop_unread(graph)
    return bytes(files.convert_object_to_bytearray(model))


def _drop_unread(graph: Any) -> None:
    """Remove ops whose outputs nobody reads, until there are none."""
    while True:
        read = {int(i) for op in graph.operators for i in op.inputs} | {int(i) for i in graph.outputs}
        kept = [op for op in graph.operators if any(int(out) in read for out in op.outputs)]
        if len(kept) == len(graph.operators):
            return
        graph.operators = kept
