"""What every rewrite of an ONNX graph needs: constants, replacing nodes, clearing what nobody reads."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def is_dq(node: ir.Node | None) -> bool:
    """A DequantizeLinear."""
    return node is not None and node.op_type == "DequantizeLinear"


def is_weight(node: ir.Node) -> bool:
    """Per channel: scales of rank one, also for a single channel."""
    return is_dq(node) and array(node.inputs[1]).ndim == 1


def array(value: ir.Value | None) -> np.ndarray:
    """The content of a constant."""
    assert value is not None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def initializer(model: ir.Model, name: str, content: np.ndarray) -> ir.Value:
    """A new constant of the graph; its name is `name`, with a number if that is taken."""
    unique, i = name, 0
    while unique in model.graph.initializers:
        i += 1
        unique = f"{name}_{i}"
    tensor = ir.tensor(np.asarray(content), name=unique)
    value = ir.Value(name=unique, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def replace(model: ir.Model, old: ir.Node, new: list[ir.Node]) -> None:
    """Put `new` in place of `old`; the last of them takes over the name and the readers of its output."""
    out, last = old.outputs[0], new[-1].outputs[0]
    last.name, last.dtype, last.shape = out.name, out.dtype if last.dtype is None else last.dtype, out.shape
    model.graph.insert_before(old, new)
    for i, graph_out in enumerate(model.graph.outputs):
        if graph_out is out:
            model.graph.outputs[i] = last
    ir.convenience.replace_all_uses_with(out, last)
    out.name = f"{out.name}_replaced"
    model.graph.remove(old, safe=True)


def drop_unused(model: ir.Model) -> None:
    """Remove nodes without readers and constants without users."""
    outputs = {id(o) for o in model.graph.outputs}
    for node in reversed(list(model.graph)):
        if all(not list(o.uses()) and id(o) not in outputs for o in node.outputs):
            model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not list(value.uses()) and id(value) not in outputs:
            del model.graph.initializers[name]
