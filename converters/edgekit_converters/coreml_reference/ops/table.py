"""MIL op type to the function that computes it. Control flow (`cond`, `while_loop`) is in the evaluator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from edgekit_converters.coreml_reference.ops import (
    activation,
    conv,
    elementwise,
    gather,
    linear,
    normalization,
    pool,
    quantization,
    recurrent,
    reduction,
    resize,
    shape,
)
from edgekit_converters.coreml_reference.ops.arguments import Tensor


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def op(x: Tensor) -> Tensor:
        return function(x)

    return op


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def op(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return op


OPS: dict[str, Callable[..., Any]] = {
    # elementwise: one operand
    "abs": _unary(torch.abs),
    "acos": _unary(torch.acos),
    "asin": _unary(torch.asin),
    "atan": _unary(torch.atan),
    "atanh": _unary(torch.atanh),
    "ceil": _unary(torch.ceil),
    "cos": _unary(torch.cos),
    "cosh": _unary(torch.cosh),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "exp2": _unary(torch.exp2),
    "floor": _unary(torch.floor),
    "logical_not": _unary(torch.logical_not),
    "round": _unary(torch.round),
    "sign": _unary(torch.sign),
    "sin": _unary(torch.sin),
    "sinh": _unary(torch.sinh),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "tan": _unary(torch.tan),
    "tanh": _unary(torch.tanh),
    "cast": elementwise.cast,
    "clip": elementwise.clip,
    "identity": elementwise.identity,
    "inverse": elementwise.inverse,
    "log": elementwise.log,
    "rsqrt": elementwise.rsqrt,
    "threshold": elementwise.threshold,
    # elementwise: two operands
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mod": _binary(torch.remainder),
    "pow": _binary(torch.pow),
    "equal": _binary(torch.eq),
    "not_equal": _binary(torch.ne),
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "logical_and": _binary(torch.logical_and),
    "logical_or": _binary(torch.logical_or),
    "logical_xor": _binary(torch.logical_xor),
    "floor_div": elementwise.floor_div,
    "real_div": elementwise.real_div,
    "select": elementwise.select,
    # activations
    "relu": _unary(torch.relu),
    "sigmoid": _unary(torch.sigmoid),
    "silu": _unary(F.silu),
    "softsign": _unary(F.softsign),
    "clamped_relu": activation.clamped_relu,
    "elu": activation.elu,
    "gelu": activation.gelu,
    "leaky_relu": activation.leaky_relu,
    "linear_activation": activation.linear_activation,
    "prelu": activation.prelu,
    "relu6": activation.relu6,
    "scaled_tanh": activation.scaled_tanh,
    "sigmoid_hard": activation.sigmoid_hard,
    "softmax": activation.softmax,
    "softplus": activation.softplus,
    "softplus_parametric": activation.softplus_parametric,
    "thresholded_relu": activation.thresholded_relu,
    # products
    "einsum": linear.einsum,
    "linear": linear.linear,
    "matmul": linear.matmul,
    # convolutions
    "conv": conv.conv,
    "conv_transpose": conv.conv_transpose,
    # pooling
    "avg_pool": pool.avg_pool,
    "l2_pool": pool.l2_pool,
    "max_pool": pool.max_pool,
    # reductions
    "reduce_argmax": reduction.reduce_argmax,
    "reduce_argmin": reduction.reduce_argmin,
    "reduce_l1_norm": reduction.reduce_l1_norm,
    "reduce_l2_norm": reduction.reduce_l2_norm,
    "reduce_log_sum": reduction.reduce_log_sum,
    "reduce_log_sum_exp": reduction.reduce_log_sum_exp,
    "reduce_max": reduction.reduce_max,
    "reduce_mean": reduction.reduce_mean,
    "reduce_min": reduction.reduce_min,
    "reduce_prod": reduction.reduce_prod,
    "reduce_sum": reduction.reduce_sum,
    "reduce_sum_square": reduction.reduce_sum_square,
    # normalizations
    "batch_norm": normalization.batch_norm,
    "instance_norm": normalization.instance_norm,
    "l2_norm": normalization.l2_norm,
    "layer_norm": normalization.layer_norm,
    "local_response_norm": normalization.local_response_norm,
    # shape
    "band_part": shape.band_part,
    "batch_to_space": shape.batch_to_space,
    "concat": shape.concat,
    "crop": shape.crop,
    "depth_to_space": shape.depth_to_space,
    "expand_dims": shape.expand_dims,
    "pad": shape.pad,
    "pixel_shuffle": shape.pixel_shuffle,
    "pixel_unshuffle": shape.pixel_unshuffle,
    "reshape": shape.reshape,
    "reverse": shape.reverse,
    "shape": shape.shape,
    "slice_by_index": shape.slice_by_index,
    "slice_by_size": shape.slice_by_size,
    "sliding_windows": shape.sliding_windows,
    "space_to_batch": shape.space_to_batch,
    "space_to_depth": shape.space_to_depth,
    "split": shape.split,
    "squeeze": shape.squeeze,
    "stack": shape.stack,
    "tile": shape.tile,
    "transpose": shape.transpose,
    # gathering, scattering, sorting, making
    "argsort": gather.argsort,
    "cumsum": gather.cumsum,
    "fill": gather.fill,
    "fill_like": gather.fill_like,
    "gather": gather.gather,
    "gather_along_axis": gather.gather_along_axis,
    "gather_nd": gather.gather_nd,
    "non_zero": gather.non_zero,
    "one_hot": gather.one_hot,
    "range_1d": gather.range_1d,
    "scatter": gather.scatter,
    "scatter_along_axis": gather.scatter_along_axis,
    "scatter_nd": gather.scatter_nd,
    "topk": gather.topk,
    # resizing
    "resample": resize.resample,
    "resize": resize.resize,
    "resize_bilinear": resize.resize_bilinear,
    "resize_nearest_neighbor": resize.resize_nearest_neighbor,
    "upsample_bilinear": resize.upsample_bilinear,
    "upsample_nearest_neighbor": resize.upsample_nearest_neighbor,
    # the integer grid
    "constexpr_affine_dequantize": quantization.constexpr_affine_dequantize,
    "dequantize": quantization.dequantize,
    "quantize": quantization.quantize,
    # recurrent
    "lstm": recurrent.lstm,
}
