"""Census of a `.tflite` file, from the interpreter's own list of operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgekit.bench.counts import OpCensus
from edgekit.bench.runners import allocate, open_tflite

Op = Mapping[str, Any]

BOUNDARY = frozenset({"QUANTIZE", "DEQUANTIZE"})
# Float ends with int8 weights: LiteRT computes these in integers dynamically, or unpacks the weights.
WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"})


def census(path: Path) -> OpCensus:
    """Count the ops of the file as it is, then the partitions that the default delegate makes of it."""
    plain = open_tflite(path, delegate=False)
    allocate(path, plain)
    ops = [op for op in plain._get_ops_details() if op["op_name"] != "DELEGATE"]
    # dtype of a tensor that is not allocated (an optional input) has no entry
    dtypes = {detail["index"]: detail["dtype"].__name__ for detail in plain.get_tensor_details()}
    kinds: dict[str, Counter[str]] = {
        kind: Counter() for kind in ("int8", "hybrid", "floating", "boundary", "other")
    }
    for op in ops:
        kinds[_kind(op, dtypes)][op["op_name"]] += 1
    partitions, outside = _delegation(path)
    return OpCensus(**kinds, unfused=_unfused(ops, dtypes), partitions=partitions, outside=outside)


def _kind(op: Op, dtypes: Mapping[int, str]) -> str:
    if op["op_name"] in BOUNDARY:
        return "boundary"
    ins = [dtypes[index] for index in op["inputs"] if index in dtypes]
    outs = [dtypes[index] for index in op["outputs"] if index in dtypes]
    if any(dtype.startswith("float") for dtype in outs):
        return "hybrid" if op["op_name"] in WEIGHTED and "int8" in ins[1:] else "floating"
    if any(dtype in ("int8", "uint8", "int16") for dtype in (*outs, *ins[:1])):
        return "int8"
    return "floating" if any(dtype.startswith("float") for dtype in ins[:1]) else "other"


def _unfused(ops: Iterable[Op], dtypes: Mapping[int, str]) -> Counter[str]:
    """Count float kernels whose activation comes out of a DEQUANTIZE."""
    ops = list(ops)
    dequantized = {index for op in ops if op["op_name"] == "DEQUANTIZE" for index in op["outputs"]}
    return Counter(
        op["op_name"]
        for op in ops
        if _kind(op, dtypes) in ("floating", "hybrid") and dequantized.intersection(op["inputs"][:1])
    )


def _delegation(path: Path) -> tuple[int, Counter[str]]:
    """Return the number of DELEGATE nodes and the ops that none of them replaced.

    The interpreter lists replaced ops beside the DELEGATE nodes. A partition names all tensors that it reads
    and writes, so walking back from its outputs to its inputs finds the ops inside.
    """
    interpreter = open_tflite(path)
    allocate(path, interpreter)
    details = interpreter._get_ops_details()
    delegates = [op for op in details if op["op_name"] == "DELEGATE"]
    ops = [op for op in details if op["op_name"] != "DELEGATE"]
    maker = {int(tensor): position for position, op in enumerate(ops) for tensor in op["outputs"]}
    inside: set[int] = set()
    for delegate in delegates:
        stop = {int(tensor) for tensor in delegate["inputs"]}
        open_tensors = [int(tensor) for tensor in delegate["outputs"]]
        while open_tensors:
            tensor = open_tensors.pop()
            position = maker.get(tensor)
            if tensor in stop or position is None or position in inside:
                continue
            inside.add(position)
            open_tensors.extend(int(each) for each in ops[position]["inputs"])
    outside = Counter(op["op_name"] for position, op in enumerate(ops) if position not in inside)
    return len(delegates), outside
