"""Linear layers that quantize their input at each call: DynamicQuantizeLinear and MatMulInteger, rescaled to float.

The chain is the one that ONNX Runtime fuses to a single kernel (DynamicQuantizeMatMul): sums as float times the product
of both scales, and the bias after it. The range is taken over all of the input, so the file takes one sample at a
time: in a batch, the neighbours of a sample would decide how finely it is rounded.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit_converters.onnx.graph import array, drop_unused, initializer, is_dq, is_weight, replace


def dynamic_linears(model: ir.Model) -> None:
    """Rewrite every MatMul and Gemm of a float tensor by a dequantized `[n, k]` weight."""
    quantized: dict[ir.Value, tuple[ir.Value, ...]] = {}
    for node in list(model.graph):
        weight = _weight(node)
        if weight is None:
            continue
        x, last, bias = node.inputs[0], node, node.inputs[2] if len(node.inputs) > 2 else None
        if node.op_type == "MatMul" and (found := _bias_after(node)):
            last, bias = found
        if x not in quantized:
            quantized[x] = _quantize(model, node, x)
        _rewrite(model, node, last, quantized[x], weight, bias)
    drop_unused(model)


def _weight(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear of the weight, if the node is a linear layer of a float tensor."""
    if node.op_type not in {"MatMul", "Gemm"} or is_dq(node.inputs[0].producer()):
        return None
    made = node.inputs[1].producer()
    if node.op_type == "MatMul":
        if made is None or made.op_type != "Transpose":
            return None
        made = made.inputs[0].producer()
    elif "transB" not in node.attributes or node.attributes["transB"].as_int() != 1:
        return None
    if made is None or not is_dq(made) or not is_weight(made):
        return None
    stored = made.inputs[0].const_value
    return made if stored is not None and len(stored.shape) == 2 else None


def _bias_after(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The addition of a vector that alone reads a product, and that vector."""
    users = list(node.outputs[0].uses())
    if len(users) != 1 or users[0].node.op_type != "Add":
        return None
    add, other = users[0].node, users[0].node.inputs[1 - users[0].idx]
    constant = other.const_value
    return (add, other) if constant is not None and len(constant.shape) == 1 else None


def _quantize(model: ir.Model, before: ir.Node, x: ir.Value) -> tuple[ir.Value, ...]:
    quantize = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
    types = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
    for out, suffix, dtype in zip(quantize.outputs, ("", "_scale", "_zero_point"), types, strict=True):
        out.name, out.dtype = f"{x.name}_quantized{suffix}", dtype
    model.graph.insert_before(before, quantize)
    return tuple(quantize.outputs)


def _rewrite(
    model: ir.Model,
    node: ir.Node,
    last: ir.Node,
    x: tuple[ir.Value, ...],
    weight: ir.Node,
    bias: ir.Value | None,
) -> None:
    name = last.outputs[0].name
    stored, scales = array(weight.inputs[0]), array(weight.inputs[1]).astype(np.float32)
    turned = initializer(model, f"{name}_weight", np.ascontiguousarray(stored.T))
    total = ir.node("MatMulInteger", [x[0], turned, x[2]])
    total.outputs[0].name, total.outputs[0].dtype = f"{name}_sums", ir.DataType.INT32
    real = ir.node("Cast", [total.outputs[0]], attributes={"to": int(ir.DataType.FLOAT)})
    real.outputs[0].name, real.outputs[0].dtype = f"{name}_sums_real", ir.DataType.FLOAT
    both = ir.node("Mul", [x[1], initializer(model, f"{name}_weight_scales", scales)])
    both.outputs[0].name, both.outputs[0].dtype = f"{name}_scales", ir.DataType.FLOAT
    scaled = ir.node("Mul", [real.outputs[0], both.outputs[0]])
    new = [total, real, both, scaled]
    if bias is not None:
        scaled.outputs[0].name, scaled.outputs[0].dtype = f"{name}_scaled", ir.DataType.FLOAT
        new.append(ir.node("Add", [scaled.outputs[0], bias]))
    replace(model, last, new)
    if last is not node:
        model.graph.remove(node, safe=True)
