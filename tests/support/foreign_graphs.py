"""TFLite files of several graphs, out of files of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema


def joined(path: Path, parts: Sequence[Path], *, signature_of: int = 0) -> Path:
    """Write the graphs of several files into one.

    Args:
        path: to write.
        parts: files of one graph each; the first one runs, and its IF takes the second and the third.
        signature_of: the graph that the signature is of, where there is one.
    """
    whole = _read(parts[0])
    for part in map(_read, parts[1:]):
        codes, buffers = len(whole.operatorCodes), len(whole.buffers)
        (graph,) = part.subgraphs
        for operator in graph.operators:
            operator.opcodeIndex += codes
        for tensor in graph.tensors:
            tensor.buffer += buffers
        whole.operatorCodes += part.operatorCodes
        whole.buffers += part.buffers
        whole.subgraphs.append(graph)
        whole.signatureDefs = [*(whole.signatureDefs or []), *(part.signatureDefs or [])]
    for operator in whole.subgraphs[0].operators:
        if isinstance(operator.builtinOptions, schema.IfOptionsT):
            operator.builtinOptions.thenSubgraphIndex, operator.builtinOptions.elseSubgraphIndex = 1, 2
    for signature in whole.signatureDefs or []:
        signature.subgraphIndex = signature_of
    builder = flatbuffers.Builder(1024)
    builder.Finish(whole.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _read(path: Path) -> Any:
    return schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
