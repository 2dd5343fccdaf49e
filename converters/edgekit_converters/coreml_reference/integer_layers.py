"""Layers between dequantize and quantize, computed as W8A8 kernels do: in integers, scaled once.

MIL spells an integer convolution as `dequantize → conv → quantize`. Evaluated literally in float32, a value close
to a rounding tie falls on a side that depends on the order of the sum. Here the sum is exact, and one float32
product by `s_in * s_w / s_out` follows: the same operations as in `edgekit_converters.reference`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

import torch

from edgekit_converters.coreml_reference.ops.arguments import TYPES, Tensor
from edgekit_converters.coreml_reference.steps import Name, Step, names_of

LAYERS: Final = frozenset({"conv", "linear"})


class IntegerWeight(NamedTuple):
    """A weight as the file stores it: integers as float32, and the scale of each output channel (axis 0)."""

    integers: Tensor
    scale: Tensor


def integer_weight(arguments: dict[str, Any]) -> IntegerWeight | None:
    """The arguments of `constexpr_affine_dequantize` as a weight with scales on axis 0; None for other forms."""
    scale, axis = arguments["scale"].reshape(-1), arguments.get("axis")
    integers = arguments["quantized_data"].to(torch.float32)
    if scale.numel() > 1 and (axis is None or int(axis) != 0):
        return None
    zero = arguments["zero_point"].to(torch.float32).reshape(-1)
    return IntegerWeight(integers - zero.reshape(-1, *[1] * (integers.ndim - 1)), scale.to(torch.float32))


def in_integers(
    steps: Sequence[Step], weights: dict[int, IntegerWeight], results: Sequence[Any]
) -> list[Step]:
    """Replace every `conv` or `linear` whose input, weight and all readers are on the grid.

    Args:
        steps: of one block, in order.
        weights: by `id` of the dequantized constant.
        results: outputs of the block; what leaves it stays a real number.

    Returns:
        As many steps; replaced layers hand on integer sums, and their quantize steps scale those.
    """
    made_by = {name: step for step in steps for name in step.outputs}
    reads = Counter(name for step in steps for name in names_of(step))
    reads.update(r.name for r in results if isinstance(r, Name))
    readers: dict[str, list[Step]] = {}
    for step in steps:
        bound = step.variables.get("input")
        if step.op == "quantize" and isinstance(bound, Name):
            readers.setdefault(bound.name, []).append(step)
    factors: dict[str, Tensor] = {}
    replaced: list[Step] = []
    for step in steps:
        layer = _layer(step, made_by, weights)
        if layer is not None and len(readers.get(step.outputs[0], ())) == reads[step.outputs[0]] > 0:
            summed, factors[step.outputs[0]] = layer
            replaced.append(summed)
        else:
            replaced.append(_scaled(step, factors) if step.op == "quantize" else step)
    return replaced


def _layer(
    step: Step, made_by: dict[str, Step], weights: dict[int, IntegerWeight]
) -> tuple[Step, Tensor] | None:
    """The layer in integers and `s_in * s_w`; None where something is not on the grid."""
    x = step.variables.get("x")
    weight = weights.get(id(step.constants.get("weight")))
    if step.op not in LAYERS or weight is None or not isinstance(x, Name) or set(step.variables) != {"x"}:
        return None
    source = made_by.get(x.name)
    if source is None or source.op != "dequantize" or source.constants["scale"].numel() != 1:
        return None
    scale = source.constants["scale"].to(torch.float32).reshape(())
    constants = {**step.constants, "weight": weight.integers}
    if step.constants.get("bias") is not None:
        steps = weight.scale.to(torch.float64) * float(scale)
        constants["bias"] = (step.constants["bias"].to(torch.float64) / steps).round().to(torch.float32)
    function = partial(_sum, step.function, float(scale))
    factor = scale * weight.scale
    if step.op == "conv":
        # Channels are on axis 1; those of a linear layer are on the last axis, where they broadcast by themselves.
        spatial = step.constants["weight"].ndim - 2
        factor = factor.reshape(-1, *[1] * spatial)
    return replace(step, function=function, constants=constants), factor


def _sum(function: Any, input_scale: float, x: Tensor, **constants: Any) -> Tensor:
    integers = torch.round(x / input_scale)
    result: Tensor = function(x=integers, **constants)
    return result.round_()


def _scaled(step: Step, factors: dict[str, Tensor]) -> Step:
    bound = step.variables.get("input")
    if not isinstance(bound, Name) or bound.name not in factors:
        return step
    factor = factors[bound.name] / step.constants["scale"].to(torch.float32).reshape(())
    return replace(step, function=partial(_requantize, factor))


def _requantize(
    factor: Tensor,
    *,
    input: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    **_: Any,
) -> Tensor:
    dtype = TYPES[output_dtype]
    limits = torch.iinfo(dtype)
    steps = torch.round(input * factor)
    if zero_point is not None:
        steps = steps + zero_point.to(steps.dtype).reshape(())
    return steps.clamp(limits.min, limits.max).to(dtype)
