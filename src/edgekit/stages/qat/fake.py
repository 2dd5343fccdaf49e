"""Quantization that gradients pass: the forward arithmetic of the quantized graph, bit for bit, and a backward rule.

Rounding has the gradient of the identity, and none beyond the ends of the grid (the straight-through estimator with
clipped gradient). Where a scale is learned, its gradient is that of Esser et al., "Learned step size quantization"
(2020), equations 3 and 4.

Everything that is learned has no unit, so that one learning rate suits all of it: weights are multiples of the largest
weight that their channel can hold, divided by the square root of the number of weights of an output, so that equal
learning rates move outputs by equal shares; and a scale is the logarithm of its growth.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import Function

LOWEST: Final = -128
HIGHEST: Final = 127


def on_grid(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """`x` after quantization to int8 and back.

    Args:
        x: any shape; bfloat16 is taken to float32, which alone has the grid's values. NaN stays NaN.
        scale: of the grid.
        zero_point: of the grid.

    Returns:
        float32 of the same shape; its gradient is passed where `x` is within the grid.
    """
    result: Tensor = _OnGrid.apply(x.float(), scale, zero_point)
    return result


def on_learned_grid(x: Tensor, scale: float, zero_point: int, growth: Tensor) -> Tensor:
    """As `on_grid` with the scale `grown_scale(scale, growth)`, which has a gradient.

    Args:
        x: any shape, the batch first.
        scale: with which training began.
        zero_point: stays as it is.
        growth: logarithm of what became of the scale, one value.
    """
    values = x[0].numel() if x.dim() > 0 and x.shape[0] else 1
    damping = (max(values, 1) * HIGHEST) ** -0.5
    result: Tensor = _OnLearnedGrid.apply(x.float(), _grown(scale, growth), zero_point, damping)
    return result


def grown_scale(scale: float, growth: Tensor) -> float:
    """The float32 scale to which `growth` has brought `scale`."""
    return float(_grown(scale, growth.detach().cpu()))


def on_channel_grid(
    share: Tensor, scales: Tensor, growth: Tensor | None, axis: int, limit: int, unit: float
) -> Tensor:
    """Weights after quantization to `[-limit, limit]` per channel and back.

    Args:
        share: weights in units of `scales * unit`, any shape.
        scales: with which training began, float32 `[channels]`.
        growth: logarithm of what became of the scales, `[channels]`; None where they are frozen.
        axis: of the channels.
        limit: largest integer.
        unit: steps of the initial scale.
    """
    shape = [-1 if i == axis else 1 for i in range(share.dim())]
    if growth is None:
        integers = channel_integers(share, None, axis, limit, unit)
        return integers * scales.reshape(shape)
    damping = (max(share.numel() // max(scales.numel(), 1), 1) * limit) ** -0.5
    damped: Tensor = _Damped.apply(growth, damping)
    integers = channel_integers(share, damped, axis, limit, unit)
    return integers * (scales * damped.exp()).reshape(shape)


def channel_integers(share: Tensor, growth: Tensor | None, axis: int, limit: int, unit: float) -> Tensor:
    """The whole numbers that stand for weights, float32 in `[-limit, limit]`; arguments as for `on_channel_grid`."""
    steps = share * unit
    if growth is not None:
        steps = steps / growth.exp().reshape([-1 if i == axis else 1 for i in range(share.dim())])
    rounded: Tensor = _Rounded.apply(steps.clamp(-limit, limit))
    return rounded


def on_bias_grid(
    bias: Tensor, scales: Tensor, growth: Tensor | None, input_scale: float, input_growth: Tensor | None
) -> Tensor:
    """A bias at the nearest multiples of the scale of its inputs times those of its weights, float32 `[channels]`.

    Args:
        bias: float32 `[channels]`.
        scales: of the weights when training began.
        growth: of those; None where they are frozen.
        input_scale: of the inputs when training began.
        input_growth: of that; None where it is frozen.
    """
    with torch.no_grad():
        grown = scales if growth is None else scales * growth.exp()
        steps = grown.double() * (
            input_scale if input_growth is None else _grown(input_scale, input_growth).double()
        )
    result: Tensor = _Snapped.apply(bias, steps)
    return result


def in_units(share: Tensor, unit: Tensor) -> Tensor:
    """A tensor that is learned in shares of `unit`, which broadcasts."""
    return share * unit


def _grown(scale: float, growth: Tensor) -> Tensor:
    return growth.exp() * scale


class _Rounded(Function):  # type: ignore[misc]
    """The nearest whole number, the gradient of the identity."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _Snapped(Function):  # type: ignore[misc]
    """The nearest multiple of a step, the gradient of the identity."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor, steps: Tensor) -> Tensor:
        return ((x.double() / steps).round_() * steps).float()

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Damped(Function):  # type: ignore[misc]
    """The identity with a smaller gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, damping: float) -> Tensor:
        ctx.damping = damping
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.damping, None


class _OnGrid(Function):  # type: ignore[misc]
    """Half as long as `torch.fake_quantize_per_tensor_affine` takes on a CPU, and NaN is not hidden."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, zero_point: int) -> Tensor:
        integers = (x * (1.0 / scale)).round_().add_(zero_point)
        ctx.save_for_backward((integers >= LOWEST) & (integers <= HIGHEST))
        return integers.clamp_(LOWEST, HIGHEST).sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


class _OnLearnedGrid(Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: int, damping: float) -> Tensor:
        steps = x * (1.0 / scale)
        ctx.save_for_backward(steps)
        ctx.ends, ctx.damping = (LOWEST - zero_point, HIGHEST - zero_point), damping
        return steps.round().clamp_(*ctx.ends).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (steps,) = ctx.saved_tensors
        rounded = steps.round()
        inside = (rounded >= ctx.ends[0]) & (rounded <= ctx.ends[1])
        slope = torch.where(inside, rounded - steps, rounded.clamp_(*ctx.ends))
        return gradients[0] * inside, (gradients[0] * slope).sum() * ctx.damping, None, None
