"""Rewrites of the exported ONNX graph, each a function of the model, in the order of `REWRITES`.

What ONNX Runtime fuses is decided by its QDQ selectors (onnxruntime/core/optimizer/qdq_transformer): every
activation between DequantizeLinear and QuantizeLinear, int32 bias behind its own DequantizeLinear, nothing else
between. The rewrites bring the graph there without moving the grid by one step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from edgekit_converters.onnx.graph import array, drop_unused, initializer, is_dq, is_weight, replace
from edgekit_converters.onnx.moves import move_integers, shortcuts_as_convolutions
from edgekit_converters.onnx.stem import fill_channels, gather_blocks

SHIFT: Final = 128
FUSED_BEFORE_CLAMP: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "Add", "Mul", "GlobalAveragePool"})
# ConvTranspose has no integer kernel, but a float weight between quantized tensors would be quantized anew, per
# tensor, by ONNX Runtime's WeightBiasQuantization: another grid.
FUSED_WEIGHTS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
BIASED: Final = frozenset({"Conv", "ConvTranspose", "Gemm"})


def fold_casts(model: ir.Model) -> None:
    """Zero points of many channels become constants of their type; the exporter folds casts of short ones only."""
    for node in list(model.graph):
        x = node.inputs[0] if node.op_type == "Cast" else None
        if x is None or x.const_value is None or node.outputs[0] in model.graph.outputs:
            continue
        dtype = ir.DataType(node.attributes["to"].as_int())
        if dtype not in {ir.DataType.INT8, ir.DataType.INT32}:
            continue
        folded = initializer(model, f"{node.outputs[0].name}_folded", array(x).astype(dtype.numpy()))
        ir.convenience.replace_all_uses_with(node.outputs[0], folded)
    drop_unused(model)


def shift_to_uint8(model: ir.Model) -> None:
    """int8 activations become uint8: q + 128 with zero point + 128 is the same real number."""
    shifted: dict[str, ir.Value] = {}
    for node in model.graph:
        if node.op_type == "Clip":
            for i, limit in enumerate(node.inputs[1:], start=1):
                if limit is not None and limit.const_value is not None:
                    node.replace_input_with(i, _shifted(model, limit, shifted))
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"} or is_weight(node):
            continue
        node.attributes.pop("axis", None)
        x, _, zero_point = node.inputs
        if zero_point is None or zero_point.const_value is None:
            continue
        if node.op_type == "DequantizeLinear" and x.const_value is not None:
            node.replace_input_with(0, _shifted(model, x, shifted))
        node.replace_input_with(2, _shifted(model, zero_point, shifted))
    for node in model.graph:
        for out in node.outputs:
            if out.dtype == ir.DataType.INT8:
                out.dtype = ir.DataType.UINT8


def part_zero_points(model: ir.Model) -> None:
    """Each stored weight has a zero point of its own, where the exporter gives one to all of the same length.

    What turns weights into uint8 for x86 processors whose kernels clip (ONNX Runtime's Avx2WeightS8ToU8) replaces the
    zero point beside them, and fails on one that it has replaced already.
    """
    taken: set[str] = set()
    for node in model.graph:
        if not is_weight(node) or node.inputs[0].const_value is None:
            continue
        weight, _, zero_point = node.inputs
        if zero_point is None or zero_point.const_value is None:
            continue
        if zero_point.name in taken:
            node.replace_input_with(2, initializer(model, f"{weight.name}_zero_point", array(zero_point)))
        taken.add(zero_point.name)


def quantize_biases(model: ir.Model) -> None:
    """Float biases of integer ops become int32 initializers with scale `s_in * s_w`, dequantized."""
    done: dict[str, ir.Value] = {}
    for node in list(model.graph):
        if node.op_type not in BIASED or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        x, w, bias = (v.producer() if i < 2 else v for i, v in enumerate(node.inputs[:3]))
        if not (is_dq(x) and is_dq(w)) or bias.const_value is None:
            continue
        steps = array(x.inputs[1]).astype(np.float64).reshape(()) * array(w.inputs[1]).astype(
            np.float64
        ).reshape(-1)
        integers = np.rint(bias.const_value.numpy().astype(np.float64) / steps)
        limits = np.iinfo(np.int32)
        integers = np.clip(integers, limits.min, limits.max).astype(np.int32)
        name = f"{bias.name}_int32_{len(done)}"
        dq = ir.node(
            "DequantizeLinear",
            [
                initializer(model, name, integers),
                initializer(model, f"{name}_scale", steps.astype(np.float32)),
                initializer(model, f"{name}_zero_point", np.zeros(len(steps), np.int32)),
            ],
            attributes={"axis": 0},
        )
        dq.outputs[0].name = f"{name}_real"
        dq.outputs[0].dtype = ir.DataType.FLOAT
        model.graph.insert_before(node, dq)
        node.replace_input_with(2, dq.outputs[0])
        done[name] = dq.outputs[0]


def drop_relabelings(model: ir.Model) -> None:
    """`DQ → Mul(c) | Add(c) → Q` that maps every integer to itself goes; only its readers' grid differs.

    A hard-swish adds 3 and multiplies by 1/6, attention multiplies by 1/√d. On the grid the product has the same 256
    integers when its scale is the input's times the constant, the sum when the constant is a whole number of steps.
    """
    for quantize in list(model.graph):
        if quantize.op_type != "QuantizeLinear":
            continue
        op = quantize.inputs[0].producer()
        if op is None or op.op_type not in {"Mul", "Add"} or len(list(op.outputs[0].uses())) != 1:
            continue
        source = _relabelled(op, quantize)
        if source is not None:
            ir.convenience.replace_all_uses_with(quantize.outputs[0], source)
    drop_unused(model)


def _relabelled(op: ir.Node, quantize: ir.Node) -> ir.Value | None:
    """The integers that arithmetic with one constant hands on unchanged, if it does."""
    sides = [v.producer() for v in op.inputs]
    if not all(is_dq(side) and not is_weight(side) for side in sides):
        return None
    constant = next(
        (s for s in sides if s.inputs[0].const_value is not None and s.inputs[0].const_value.size == 1), None
    )
    other = next((s for s in sides if s.inputs[0].const_value is None), None)
    if constant is None or other is None:
        return None
    number = (float(array(constant.inputs[0]).reshape(())) - _number(constant, 2)) * _number(constant, 1)
    factor, offset = (number, 0.0) if op.op_type == "Mul" else (1.0, number)
    step = _number(quantize, 1)
    # An integer q becomes ratio * (q - zero) + shift; q is at most 255 steps from the zero point.
    ratio = factor * _number(other, 1) / step
    shift = offset / step + _number(quantize, 2) - _number(other, 2)
    # Less than half a step of drift there is no drift at all.
    return other.inputs[0] if abs(ratio - 1.0) * 255 + abs(shift) < 0.499 else None


def _number(node: ir.Node, index: int) -> float:
    return float(array(node.inputs[index]).reshape(()))


def clamp_in_integers(model: ir.Model) -> None:
    """`op → Relu|Clip → Q` becomes `op → Q → Clip` on integers.

    Clamping and rounding commute when the limits are rounded too, so not one value changes; the op in front meets
    its QuantizeLinear, which is what the fusion needs. Clamps that saturation performs anyway are gone by now.
    """
    for quantize in list(model.graph):
        if quantize.op_type != "QuantizeLinear":
            continue
        clamp = quantize.inputs[0].producer()
        if clamp is None or clamp.op_type not in {"Relu", "Clip"} or len(list(clamp.outputs[0].uses())) != 1:
            continue
        before = clamp.inputs[0].producer()
        if before is None or before.op_type not in FUSED_BEFORE_CLAMP:
            continue
        scale = np.float32(array(quantize.inputs[1]).reshape(()))
        zero_point = int(array(quantize.inputs[2]).reshape(()))
        low, high = _clamp_limits(clamp)
        limits = [
            # Divided in float32 like QuantizeLinear does: a tie there is none in float64.
            np.array(np.clip(np.rint(np.float32(v) / scale) + zero_point, -128, 127), dtype=np.int8)
            if np.isfinite(v)
            else None
            for v in (low, high)
        ]
        name = quantize.outputs[0].name
        bounds = [None if v is None else initializer(model, f"{name}_limit", v) for v in limits]
        q = ir.node("QuantizeLinear", [clamp.inputs[0], *quantize.inputs[1:]], attributes=quantize.attributes)
        q.outputs[0].name, q.outputs[0].dtype = f"{name}_unclamped", quantize.outputs[0].dtype
        clip = ir.node("Clip", [q.outputs[0], *bounds])
        clip.outputs[0].dtype = quantize.outputs[0].dtype
        replace(model, quantize, [q, clip])
        model.graph.remove(clamp, safe=True)


def _clamp_limits(clamp: ir.Node) -> tuple[float, float]:
    if clamp.op_type == "Relu":
        return 0.0, float("inf")
    ends = [float(array(v).reshape(())) if v is not None else None for v in clamp.inputs[1:3]]
    low, high = (*ends, None, None)[:2]
    return float("-inf") if low is None else low, float("inf") if high is None else high


def plain_float_weights(model: ir.Model) -> None:
    """int8 weights of float ops: `Cast → Mul` instead of DequantizeLinear.

    ONNX Runtime keeps every DequantizeLinear for its QDQ fusions and would dequantize at each call; Cast and Mul of
    constants it folds when the model is loaded, so the op runs at the speed of float and the file keeps its size.
    """
    for node in list(model.graph):
        if not (is_dq(node) and is_weight(node)) or node.inputs[0].const_value is None:
            continue
        readers = [use.node for use in node.outputs[0].uses()]
        if all(r.op_type in FUSED_WEIGHTS and is_dq(r.inputs[0].producer()) for r in readers):
            continue
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        scale = array(node.inputs[1])
        shape = [1] * len(node.inputs[0].const_value.shape)
        shape[axis] = -1
        name = node.outputs[0].name
        cast = ir.node("Cast", [node.inputs[0]], attributes={"to": int(ir.DataType.FLOAT)})
        cast.outputs[0].name, cast.outputs[0].dtype = f"{name}_cast", ir.DataType.FLOAT
        mul = ir.node("Mul", [cast.outputs[0], initializer(model, f"{name}_scale", scale.reshape(shape))])
        replace(model, node, [cast, mul])
    drop_unused(model)


def mean_to_global_pool(model: ir.Model) -> None:
    """A mean over both spatial axes becomes GlobalAveragePool, which has an integer kernel; ReduceMean has none."""
    for node in list(model.graph):
        if node.op_type != "ReduceMean" or len(node.inputs) < 2 or node.inputs[1] is None:
            continue
        x, axes = node.inputs[0], node.inputs[1].const_value
        if axes is None or x.shape is None or len(x.shape) != 4:
            continue
        if sorted(int(a) % 4 for a in axes.numpy().reshape(-1)) != [2, 3]:
            continue
        keep = node.attributes.get("keepdims")
        pool = ir.node("GlobalAveragePool", [x])
        pooled = pool.outputs[0]
        pooled.dtype, pooled.name = ir.DataType.FLOAT, f"{node.outputs[0].name}_pooled"
        new = [pool]
        if keep is not None and keep.as_int() == 0:
            # Flattened after the quantization: an integer reshape costs nothing, a float one breaks the fusion.
            new.append(
                ir.node("Squeeze", [pooled, initializer(model, f"{pooled.name}_axes", np.array([2, 3]))])
            )
        replace(model, node, new)
    _push_after_quantize(model)


def fold_pads(model: ir.Model) -> None:
    """A zero Pad before a convolution becomes its `pads`, which may be asymmetric."""
    for node in list(model.graph):
        if node.op_type != "Conv":
            continue
        chain = _pad_before(node)
        if chain is None:
            continue
        pad, source = chain
        pads = _spatial_pads(pad)
        if pads is None:
            continue
        own = node.attributes.get("pads")
        own_pads = np.array(own.as_ints() if own is not None else [0] * len(pads))
        node.attributes["pads"] = ir.AttrInt64s("pads", [int(v) for v in own_pads + pads])
        node.attributes.pop("auto_pad", None)
        node.replace_input_with(0, source)
    drop_unused(model)


def linear_as_gemm(model: ir.Model) -> None:
    """`MatMul(x, W) + b` over more than two axes becomes Gemm on flattened rows, the form that fuses with its bias."""
    for node in list(model.graph):
        if node.op_type != "MatMul" or not is_dq(node.inputs[0].producer()):
            continue
        weight, x = _transposed_weight(node.inputs[1]), node.inputs[0]
        if weight is not None and x.shape is not None and len(x.shape) >= 2:
            _rewrite_linear(model, node, weight)
    drop_unused(model)


def _transposed_weight(value: ir.Value) -> ir.Value | None:
    """The dequantized `[n, k]` weight behind the Transpose that torch puts before MatMul."""
    transpose = value.producer()
    if transpose is None or transpose.op_type != "Transpose" or not is_dq(transpose.inputs[0].producer()):
        return None
    stored = transpose.inputs[0].producer().inputs[0].const_value
    return transpose.inputs[0] if stored is not None and len(stored.shape) == 2 else None


def _rewrite_linear(model: ir.Model, node: ir.Node, weight: ir.Value) -> None:
    x = node.inputs[0]
    n, k = (int(s) for s in weight.producer().inputs[0].const_value.shape)
    users = list(node.outputs[0].uses())
    last, inputs = node, [x, weight]
    if len(users) == 1 and users[0].node.op_type == "Add":
        other = users[0].node.inputs[1 - users[0].idx]
        if other.const_value is not None and other.const_value.size == n:
            last = users[0].node
            inputs.append(other)
    name = last.outputs[0].name
    rank = len(x.shape)
    if rank == 2:
        gemm = ir.node("Gemm", inputs, attributes={"transB": 1})
        replace(model, last, [gemm])
        if last is not node:
            model.graph.remove(node, safe=True)
        return
    # The reshapes sit on the quantized side, where they are free: DQ(Reshape(q)) and Q(...) then Reshape.
    dq_x = x.producer()
    flat = ir.node(
        "Reshape", [dq_x.inputs[0], initializer(model, f"{name}_rows", np.array([-1, k], dtype=np.int64))]
    )
    flat.outputs[0].name, flat.outputs[0].dtype = f"{name}_flat", dq_x.inputs[0].dtype
    dq = ir.node("DequantizeLinear", [flat.outputs[0], *dq_x.inputs[1:]])
    dq.outputs[0].name, dq.outputs[0].dtype = f"{name}_flat_real", ir.DataType.FLOAT
    inputs[0] = dq.outputs[0]
    gemm = ir.node("Gemm", inputs, attributes={"transB": 1})
    gemm.outputs[0].name, gemm.outputs[0].dtype = f"{name}_gemm", ir.DataType.FLOAT
    shape_values = _row_shape(x, n)
    back = ir.node("Reshape", [gemm.outputs[0], initializer(model, f"{name}_shape", shape_values)])
    replace(model, last, [flat, dq, gemm, back])
    if last is not node:
        model.graph.remove(node, safe=True)


def _row_shape(x: ir.Value, n: int) -> np.ndarray:
    assert x.shape is not None
    dims = [d if isinstance(d, int) else -1 for d in x.shape[:-1]]
    if dims.count(-1) > 1:
        dims = [-1 if i == 0 else (0 if d == -1 else d) for i, d in enumerate(dims)]
    return np.array([*dims, n], dtype=np.int64)


def push_reshapes_after_quantize(model: ir.Model) -> None:
    """`op → Reshape → QuantizeLinear` becomes `op → QuantizeLinear → Reshape`, so that the op meets its Q."""
    _push_after_quantize(model)


MOVERS: Final = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"})


def _push_after_quantize(model: ir.Model) -> None:
    changed = True
    while changed:
        changed = False
        for quantize in list(model.graph):
            if quantize.op_type != "QuantizeLinear" or len(array(quantize.inputs[1]).reshape(-1)) != 1:
                continue
            mover = quantize.inputs[0].producer()
            if mover is None or mover.op_type not in MOVERS or len(list(mover.outputs[0].uses())) != 1:
                continue
            if is_dq(mover.inputs[0].producer()) or mover.inputs[0].producer() is None:
                continue
            _swap(model, mover, quantize)
            changed = True


def _swap(model: ir.Model, mover: ir.Node, quantize: ir.Node) -> None:
    name = quantize.outputs[0].name
    q = ir.node("QuantizeLinear", [mover.inputs[0], *quantize.inputs[1:]], attributes=quantize.attributes)
    q.outputs[0].name, q.outputs[0].dtype = f"{name}_first", quantize.outputs[0].dtype
    q.outputs[0].shape = mover.inputs[0].shape
    moved = ir.node(mover.op_type, [q.outputs[0], *mover.inputs[1:]], attributes=mover.attributes)
    moved.outputs[0].dtype = quantize.outputs[0].dtype
    replace(model, quantize, [q, moved])
    model.graph.remove(mover, safe=True)


def sort_nodes(model: ir.Model) -> None:
    """Topological order, stable."""
    model.graph.sort()


def _pad_before(conv: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Pad in front of a convolution and the tensor before it, also through a QDQ pair of the same grid."""
    source = conv.inputs[0].producer()
    if source is not None and source.op_type == "Pad":
        return source, source.inputs[0]
    if not is_dq(source):
        return None
    quantize = source.inputs[0].producer()
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    pad = quantize.inputs[0].producer()
    if pad is None or pad.op_type != "Pad" or not is_dq(pad.inputs[0].producer()):
        return None
    before = pad.inputs[0].producer()
    same = np.array_equal(array(before.inputs[1]), array(quantize.inputs[1])) and np.array_equal(
        array(before.inputs[2]), array(quantize.inputs[2])
    )
    return (pad, pad.inputs[0]) if same else None


def _spatial_pads(pad: ir.Node) -> np.ndarray | None:
    """Pads of the spatial axes, begins then ends; None unless a constant zero pad of spatial axes only."""
    mode = pad.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return None
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    if value is not None and (value.const_value is None or float(array(value).reshape(())) != 0.0):
        return None
    if pad.inputs[1].const_value is None or (len(pad.inputs) > 3 and pad.inputs[3] is not None):
        return None
    pads = array(pad.inputs[1]).reshape(2, -1)
    if (pads < 0).any() or pads[:, :2].any():
        return None
    return pads[:, 2:].reshape(-1)


def _shifted(model: ir.Model, value: ir.Value, done: dict[str, ir.Value]) -> ir.Value:
    assert value.name is not None
    if value.name not in done:
        content = array(value)
        if content.dtype != np.int8:
            return value
        done[value.name] = initializer(
            model, f"{value.name}_u8", (content.astype(np.int16) + SHIFT).astype(np.uint8)
        )
    return done[value.name]


REWRITES: Final[tuple[Callable[[Any], None], ...]] = (
    fold_casts,
    fold_pads,
    mean_to_global_pool,
    linear_as_gemm,
    push_reshapes_after_quantize,
    clamp_in_integers,
    drop_relabelings,
    plain_float_weights,
    gather_blocks,
    quantize_biases,
    shift_to_uint8,
    move_integers,
    shortcuts_as_convolutions,
    fill_channels,
    part_zero_points,
    drop_unused,
    sort_nodes,
)
