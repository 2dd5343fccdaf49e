"""Names of values inside of an ONNX graph: none may be that of an input or output."""

from __future__ import annotations

from itertools import count
from typing import Any


def free_end_names(model: Any) -> int:
    """Renames inner values that are called as an input or output is.

    Torch names the result of `torch.cat` `cat`, and inputs and outputs as the user does: with an input `cat` the
    file is refused by every runtime.

    Args:
        model: `onnx_ir.Model`; edited.

    Returns:
        number of values renamed.
    """
    graph = model.graph
    ends = [*graph.inputs, *graph.outputs]
    kept = {id(value) for value in ends}
    taken = {value.name for value in ends}
    inner = [out for node in graph for out in node.outputs] + list(graph.initializers.values())
    used = taken | {value.name for value in inner}
    renamed = 0
    for value in inner:
        if id(value) in kept or value.name not in taken:
            continue
        fresh = next(n for i in count(1) if (n := f"{value.name}_{i}") not in used)
        used.add(fresh)
        value.name = fresh
        renamed += 1
    return renamed
