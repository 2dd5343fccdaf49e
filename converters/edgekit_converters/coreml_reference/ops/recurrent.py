"""The LSTM layer. (MIL's `gru` is not emitted: its definition leaves open where the hidden bias goes.)"""

from __future__ import annotations

from collections.abc import Callable

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


def lstm(
    x: Tensor,
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
    functions = tuple(ACTIVATIONS[name] for name in (recurrent_activation, cell_activation, activation))
    bound = None if clip is None else number(clip)
    if direction in ("forward", "reverse"):
        runs = [
            _run(
                x, initial_h, initial_c, weight_ih, weight_hh, bias, functions, bound, direction == "reverse"
            )
        ]
    elif direction == "bidirectional" and weight_ih_back is not None and weight_hh_back is not None:
        h, c = initial_h.chunk(2, 1), initial_c.chunk(2, 1)
        runs = [
            _run(x, h[0], c[0], weight_ih, weight_hh, bias, functions, bound, False),
            _run(x, h[1], c[1], weight_ih_back, weight_hh_back, bias_back, functions, bound, True),
        ]
    else:
        raise ValueError(f"lstm cannot run {direction!r} with the weights given")
    sequence, h_last, c_last = (torch.cat(parts, -1) for parts in zip(*runs, strict=True))
    return (sequence if flag(output_sequence) else h_last.unsqueeze(0)), h_last, c_last


def _run(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    functions: tuple[Activation, ...],
    bound: float | None,
    reverse: bool,  # noqa: FBT001 -- internal
) -> tuple[Tensor, Tensor, Tensor]:
    gate, cell, output = functions
    from_x = F.linear(x, weight_ih, bias)
    outputs = [h] * len(x)
    for step in reversed(range(len(x))) if reverse else range(len(x)):
        i, f, o, z = (from_x[step] + F.linear(h, weight_hh)).chunk(4, -1)
        candidate = cell(z if bound is None else z.clamp(-bound, bound))
        c = gate(f) * c + gate(i) * candidate
        h = gate(o) * output(c)
        outputs[step] = h
    return torch.stack(outputs), h, c
