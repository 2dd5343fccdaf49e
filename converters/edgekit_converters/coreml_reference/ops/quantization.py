"""The integer grid: quantize, dequantize, and weights kept as integers."""

from __future__ import annotations

import torch

from edgekit_converters.coreml_reference.ops.arguments import TYPES, Tensor, along, integer


def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: Tensor | None = None,
) -> Tensor:
    """`clip(round(input / scale) + zero_point)`, rounding half to even, saturating to int8 or uint8.

    What becomes of NaN is left open by MIL; here it is the zero point.
    """
    dtype = TYPES[output_dtype]
    limits = torch.iinfo(dtype)
    at = integer(axis)
    steps = torch.round(input / along(scale, at, input.ndim))
    if steps.isnan().any():
        steps = torch.where(steps.isnan(), torch.zeros((), dtype=steps.dtype), steps)
    if zero_point is not None:
        steps += along(zero_point, at, input.ndim).to(steps.dtype)
    return steps.clamp_(limits.min, limits.max).to(dtype)


def dequantize(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: Tensor | None = None,
) -> Tensor:
    """`scale·(input − zero_point)` in the scale's type."""
    at = integer(axis)
    steps = input.to(scale.dtype)
    if zero_point is not None:
        # Differences of 8-bit integers are exact in float16 and float32.
        steps = steps - along(zero_point, at, input.ndim).to(scale.dtype)
    return steps * along(scale, at, input.ndim)


def constexpr_affine_dequantize(
    quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor
) -> Tensor:
    """`scale·(quantized_data − zero_point)` along one axis; a weight kept as int8 or uint8."""
    return dequantize(quantized_data, scale, zero_point, axis)
