"""Python numbers inside arithmetic become constants of the graph, so that they can sit on the grid."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from edgekit.stages.quantize.rules import aten

ARITHMETIC = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor})


def lift_scalars(graph: GraphModule) -> int:
    """Replace the scalar operand of float `add`, `sub` and `mul` by a buffer of one value, in place.

    The buffer has as many axes as the tensor beside it: a converter that changes the layout of one side must be able
    to change it on the other.

    Every int8 arithmetic kernel takes two quantized tensors; a bare number would leave the op in float32.

    Returns:
        Number of operands replaced.
    """
    lifted = 0
    for node in list(graph.graph.nodes):
        val = node.meta.get("val")
        if node.target not in ARITHMETIC or not isinstance(val, torch.Tensor) or val.dtype != torch.float32:
            continue
        alpha = node.kwargs.get("alpha", 1)
        for i, arg in enumerate(node.args[:2]):
            if not isinstance(arg, (int, float)) or isinstance(arg, bool):
                continue
            name = f"_scalar_{lifted}"
            while hasattr(graph, name):
                name += "_"
            value = torch.full(
                [1] * max(val.dim(), 1), float(arg) * (alpha if i == 1 else 1), dtype=torch.float32
            )
            graph.register_buffer(name, value)
            with graph.graph.inserting_before(node):
                constant = graph.graph.get_attr(name)
            constant.meta["val"] = value
            node.update_arg(i, constant)
            if i == 1 and alpha != 1:
                node.kwargs = {k: v for k, v in node.kwargs.items() if k != "alpha"}
            lifted += 1
    if lifted:
        graph.recompile()
    return lifted
