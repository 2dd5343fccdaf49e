"""The LSTM layer.

MIL's `gru` is not here, as we never emit it: its definition leaves open where the hidden bias goes.
"""

from __future__ import annotations

from collections.abc import Callable
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
    if direction in ("forward", "reverse"):
        weights = (weight_ih, weight_hh, bias)
        runs = [_run(x, (initial_h, initial_c), weights, gates, reverse=direction == "reverse")]
    elif direction == "bidirectional" and weight_ih_back is not None and weight_hh_back is not None:
        forth, back = zip(initial_h.chunk(2, 1), initial_c.chunk(2, 1), strict=True)
        runs = [
            _run(x, forth, (weight_ih, weight_hh, bias), gates, reverse=False),
            _run(x, back, (weight_ih_back, weight_hh_back, bias_back), gates, reverse=True),
        ]
    else:
        raise ValueError(f"lstm cannot run {direction!r} with the weights given")
    sequence, h_last, c_last = (torch.cat(parts, -1) for parts in zip(*runs, strict=True))
    return (sequence if flag(output_sequence) else h_last.unsqueeze(0)), h_last, c_last


def _run(
    x: Tensor,
    states: tuple[Tensor, ...],
    weights: tuple[Tensor, Tensor, Tensor | None],
    gates: Gates,
    *,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    h, c = states
    weight_ih, weight_hh, bias = weights
    from_x = F.linear(x, weight_ih, bias)
    outputs = [h] * len(x)
    for step in reversed(range(len(x))) if reverse else range(len(x)):
        i, f, o, z = (from_x[step] + F.linear(h, weight_hh)).chunk(4, -1)
        candidate = gates.cell(z if gates.clip is None else z.clamp(-gates.clip, gates.clip))
        c = gates.gate(f) * c + gates.gate(i) * candidate
        h = gates.gate(o) * gates.output(c)
        outputs[step] = h
    return torch.stack(outputs), h, c
