"""The LSTM layer.

MIL's `gru` is not here, as we never emit it: its definition leaves open where the hidden bias goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from edgekit_converters.coreml_reference.ops.arguments import Tensor, flag, number

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "linear": lambda x: x,
}


class Weights(NamedTuple):
    """Of one direction: (4 × hidden, features), (4 × hidden, hidden), (4 × hidden,)."""

    ih: Tensor
    hh: Tensor
    bias: Tensor | None


class Gates(NamedTuple):
    """The functions inside of a cell, and the bound of its input."""

    gate: Activation
    cell: Activation
    output: Activation
    clip: float | None


def lstm(
    x: Tensor,
    *,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: Tensor | None = None,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM layer; gates are stacked input, forget, output, cell.

    Args:
        x: (steps, batch, features).
        initial_h: (batch, directions × hidden).
        initial_c: (batch, directions × hidden).
        weight_ih: (4 × hidden, features), as the other weights for the forward direction.
        weight_hh: (4 × hidden, hidden).
        bias: (4 × hidden,).
        weight_ih_back: the same three for the reverse direction.
        weight_hh_back: see above.
        bias_back: see above.
        direction: `forward`, `reverse` or `bidirectional`.
        output_sequence: all steps instead of the last.
        recurrent_activation: of the three gates.
        cell_activation: of the cell's input.
        activation: of the cell's output.
        clip: bound of the cell's input.

    Returns:
        Outputs (steps or 1, batch, directions × hidden), last hidden and last cell state.

    Raises:
        ValueError: the direction does not exist, or its weights are missing.
    """
    gates = Gates(
        gate=ACTIVATIONS[recurrent_activation],
        cell=ACTIVATIONS[cell_activation],
        output=ACTIVATIONS[activation],
        clip=None if clip is None else number(clip),
    )
    weights = [Weights(weight_ih, weight_hh, bias)]
    if weight_ih_back is not None and weight_hh_back is not None:
        weights.append(Weights(weight_ih_back, weight_hh_back, bias_back))
    runs = _runs(x, (initial_h, initial_c), weights, gates, direction)
    sequence, h_last, c_last = (torch.cat(parts, -1) for parts in zip(*runs, strict=True))
    return (sequence if flag(output_sequence) else h_last.unsqueeze(0)), h_last, c_last


def _runs(
    x: Tensor, states: tuple[Tensor, Tensor], weights: Sequence[Weights], gates: Gates, direction: str
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """One run per direction, each with its half of the states."""
    if direction in ("forward", "reverse"):
        return [_run(x, states, weights[0], gates, reverse=direction == "reverse")]
    if direction == "bidirectional" and len(weights) == 2:
        forth, back = zip(*(state.chunk(2, 1) for state in states), strict=True)
        return [
            _run(x, forth, weights[0], gates, reverse=False),
            _run(x, back, weights[1], gates, reverse=True),
        ]
    raise ValueError(f"lstm cannot run {direction!r} with the weights given")


def _run(
    x: Tensor,
    states: tuple[Tensor, ...],
    weights: Weights,
    gates: Gates,
    *,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    h, c = states
    from_x = F.linear(x, weights.ih, weights.bias)
    outputs = [h] * len(x)
    for step in reversed(range(len(x))) if reverse else range(len(x)):
        i, f, o, z = (from_x[step] + F.linear(h, weights.hh)).chunk(4, -1)
        candidate = gates.cell(z if gates.clip is None else z.clamp(-gates.clip, gates.clip))
        c = gates.gate(f) * c + gates.gate(i) * candidate
        h = gates.gate(o) * gates.output(c)
        outputs[step] = h
    return torch.stack(outputs), h, c
