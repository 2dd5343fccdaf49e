"""LSTM, GRU and plain RNN for coremltools' exported-program front end, which has none of them.

LSTM becomes MIL's `lstm`, one op a layer, both directions in it. GRU does not become MIL's `gru`: that op
adds the hidden bias outside of the reset gate (torch: inside), and is documented with one bias only, so it
computes another function. GRU and RNN are written out step by step instead, or as a loop past `UNROLL_LIMIT`
steps. Weights stay int8 with one scale a row in every case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Past this the written-out program is larger than its weights, and compiling it on a device takes seconds.
UNROLL_LIMIT = 128

Var = Any


def _builder() -> Any:
    from coremltools.converters.mil.mil import Builder

    return Builder


@dataclass(frozen=True, slots=True)
class Rows:
    """A constant matrix or vector whose rows (axis 0) can be put in another order, on the grid or in float.

    Attributes:
        data: int8 or float32, shape (rows, columns) or (rows,).
        scale: float32, one a row, None for float data.
    """

    data: NDArray[Any]
    scale: NDArray[np.float32] | None

    def take(self, order: NDArray[np.intp]) -> Rows:
        """Picks rows in the given order."""
        return Rows(self.data[order], None if self.scale is None else self.scale[order])

    def emit(self) -> Any:
        """Adds the constant to the MIL program being built; int8 data stays int8 in the file."""
        mb = _builder()
        if self.scale is None:
            return self.data.astype(np.float32)
        return mb.constexpr_affine_dequantize(
            quantized_data=self.data, scale=self.scale, zero_point=np.zeros(len(self.scale), np.int8), axis=0
        )


def _rows(var: Var) -> Rows:
    """Reads a weight that the converter made of `dequantize_per_channel(int8)` or of a float constant."""
    op = var.op
    if op is not None and op.op_type == "constexpr_affine_dequantize":
        data, zero_point = op.quantized_data.val, np.asarray(op.zero_point.val)
        scale = np.asarray(op.scale.val, np.float32)
        by_row = scale.ndim == 0 or int(op.axis.val) == 0
        if by_row and not zero_point.any():
            return Rows(data, np.broadcast_to(scale, (len(data),)).copy())
        scale, zero_point = (
            np.moveaxis(np.atleast_1d(v)[..., None], 0, op.axis.val) for v in (scale, zero_point)
        )
        return Rows((data.astype(np.float32) - zero_point) * scale, None)
    if var.val is None:
        raise ValueError("recurrent weights must be constants")
    return Rows(np.asarray(var.val, np.float32), None)


@dataclass(frozen=True, slots=True)
class Direction:
    """Weights of one direction of one layer, gates stacked along the rows in torch's order."""

    weight_ih: Rows
    weight_hh: Rows
    bias_ih: NDArray[np.float32]
    bias_hh: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of a recurrent op, the same for all of torch's.

    Attributes:
        x: (steps, batch, features), after `batch_first` has been undone.
        states: initial states, each (layers × directions, batch, hidden).
        layers: per layer the forward direction and, if there is one, the reverse.
        batch_first: layout of the caller.
    """

    x: Var
    states: tuple[Var, ...]
    layers: tuple[tuple[Direction, ...], ...]
    batch_first: bool


def _call(context: Any, node: Any) -> Call:
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    mb = _builder()
    arguments = _get_inputs(context, node, expected=9)
    x, states, weights = arguments[:3]
    has_bias, layer_count, _, _, bidirectional, batch_first = (_plain(a) for a in arguments[3:])
    per_direction = 4 if has_bias else 2
    directions = 2 if bidirectional else 1
    if len(weights) != per_direction * directions * layer_count:
        raise ValueError("LSTM projections (proj_size) do not exist in Core ML")
    groups = [weights[i : i + per_direction] for i in range(0, len(weights), per_direction)]
    parsed = [_direction(group) for group in groups]
    return Call(
        x=mb.transpose(x=x, perm=[1, 0, 2]) if batch_first else x,
        states=tuple(states) if isinstance(states, (list, tuple)) else (states,),
        layers=tuple(tuple(parsed[i : i + directions]) for i in range(0, len(parsed), directions)),
        batch_first=bool(batch_first),
    )


def _plain(value: Any) -> Any:
    return getattr(value, "val", value)


def _direction(group: Sequence[Var]) -> Direction:
    weight_ih, weight_hh = _rows(group[0]), _rows(group[1])
    rows = len(weight_ih.data)
    biases = [np.asarray(b.val, np.float32) for b in group[2:]] or [np.zeros(rows, np.float32)] * 2
    return Direction(weight_ih, weight_hh, *biases)


def _states_of(state: Var, count: int) -> list[Var]:
    """Splits (count, batch, hidden) into `count` tensors of (batch, hidden)."""
    mb = _builder()
    parts = [state] if count == 1 else mb.split(x=state, num_splits=count, axis=0)
    return [mb.squeeze(x=part, axes=[0]) for part in parts]


def _finish(context: Any, node: Any, call: Call, x: Var, states: Sequence[Sequence[Var]]) -> None:
    mb = _builder()
    sequence = mb.transpose(x=x, perm=[1, 0, 2]) if call.batch_first else x
    stacked = [mb.stack(values=list(parts), axis=0) for parts in states]
    context.add((sequence, *stacked), node.name)


def lstm(context: Any, node: Any) -> None:
    """Converts `aten.lstm.input` to one MIL `lstm` a layer."""
    call = _call(context, node)
    mb = _builder()
    directions = len(call.layers[0])
    h0, c0 = (_states_of(state, len(call.layers) * directions) for state in call.states)
    h_last: list[Var] = []
    c_last: list[Var] = []
    x = call.x
    for index, layer in enumerate(call.layers):
        own = slice(index * directions, (index + 1) * directions)
        x, h, c = mb.lstm(
            x=x, initial_h=_side_by_side(h0[own]), initial_c=_side_by_side(c0[own]), **_lstm_weights(layer)
        )
        h_last += mb.split(x=h, num_splits=directions, axis=1) if directions > 1 else [h]
        c_last += mb.split(x=c, num_splits=directions, axis=1) if directions > 1 else [c]
    _finish(context, node, call, x, (h_last, c_last))


def _side_by_side(states: Sequence[Var]) -> Var:
    mb = _builder()
    return states[0] if len(states) == 1 else mb.concat(values=list(states), axis=1)


def _lstm_weights(layer: Sequence[Direction]) -> dict[str, Any]:
    hidden = layer[0].weight_hh.data.shape[1]
    # torch stacks the gates input, forget, cell, output; MIL input, forget, output, cell.
    order = np.arange(4 * hidden).reshape(4, hidden)[[0, 1, 3, 2]].ravel()
    arguments: dict[str, Any] = {
        "direction": "forward" if len(layer) == 1 else "bidirectional",
        "output_sequence": True,
    }
    for direction, suffix in zip(layer, ("", "_back"), strict=False):
        arguments["weight_ih" + suffix] = direction.weight_ih.take(order).emit()
        arguments["weight_hh" + suffix] = direction.weight_hh.take(order).emit()
        arguments["bias" + suffix] = (direction.bias_ih + direction.bias_hh)[order]
    return arguments


Cell = Callable[[Var, Var, Var], Var]


def gru_cell(from_x: Var, from_h: Var, h: Var) -> Var:
    """One GRU step: `n = tanh(x_n + r·h_n)`, `h' = n + z·(h − n)`, with gates r, z, n side by side.

    Args:
        from_x: `W_ih x + b_ih`, (batch, 3 × hidden).
        from_h: `W_hh h + b_hh`, (batch, 3 × hidden).
        h: previous state, (batch, hidden).

    Returns:
        The next state, (batch, hidden).
    """
    mb = _builder()
    x_r, x_z, x_n = mb.split(x=from_x, num_splits=3, axis=1)
    h_r, h_z, h_n = mb.split(x=from_h, num_splits=3, axis=1)
    r = mb.sigmoid(x=mb.add(x=x_r, y=h_r))
    z = mb.sigmoid(x=mb.add(x=x_z, y=h_z))
    n = mb.tanh(x=mb.add(x=x_n, y=mb.mul(x=r, y=h_n)))
    return mb.add(x=n, y=mb.mul(x=z, y=mb.sub(x=h, y=n)))


def tanh_cell(from_x: Var, from_h: Var, h: Var) -> Var:  # noqa: ARG001 -- cells share one signature
    """One step of a plain RNN with tanh."""
    mb = _builder()
    return mb.tanh(x=mb.add(x=from_x, y=from_h))


def relu_cell(from_x: Var, from_h: Var, h: Var) -> Var:  # noqa: ARG001 -- cells share one signature
    """One step of a plain RNN with ReLU."""
    mb = _builder()
    return mb.relu(x=mb.add(x=from_x, y=from_h))


def _written_out(cell: Cell) -> Callable[[Any, Any], None]:
    def convert(context: Any, node: Any) -> None:
        call = _call(context, node)
        mb = _builder()
        directions = len(call.layers[0])
        h0 = _states_of(call.states[0], len(call.layers) * directions)
        h_last: list[Var] = []
        x = call.x
        for index, layer in enumerate(call.layers):
            sequences = []
            for side, direction in enumerate(layer):
                sequence, h = _run(cell, x, h0[index * directions + side], direction, reverse=side == 1)
                sequences.append(sequence)
                h_last.append(h)
            x = sequences[0] if directions == 1 else mb.concat(values=sequences, axis=2)
        _finish(context, node, call, x, (h_last,))

    return convert


def _run(cell: Cell, x: Var, h: Var, direction: Direction, *, reverse: bool) -> tuple[Var, Var]:
    """Runs one direction of one layer; returns (steps, batch, hidden) and the last state (batch, hidden)."""
    mb = _builder()
    # The input's share of every gate is one product over the whole sequence; only the hidden share is serial.
    from_x = mb.linear(x=x, weight=direction.weight_ih.emit(), bias=direction.bias_ih)
    weight_hh = direction.weight_hh.emit()
    steps = x.shape[0]
    if steps > UNROLL_LIMIT:
        return _loop(cell, from_x, h, weight_hh, direction.bias_hh, reverse=reverse)
    outputs: list[Var] = [None] * steps
    parts = mb.split(x=from_x, num_splits=steps, axis=0) if steps > 1 else [from_x]
    for step in reversed(range(steps)) if reverse else range(steps):
        from_h = mb.linear(x=h, weight=weight_hh, bias=direction.bias_hh)
        h = cell(mb.squeeze(x=parts[step], axes=[0]), from_h, h)
        outputs[step] = h
    return mb.stack(values=outputs, axis=0), h


def _loop(
    cell: Cell, from_x: Var, h: Var, weight_hh: Var, bias_hh: NDArray[np.float32], *, reverse: bool
) -> tuple[Var, Var]:
    mb = _builder()
    steps, batch, _ = from_x.shape
    ordered = mb.reverse(x=from_x, axes=[0]) if reverse else from_x
    empty = np.zeros((steps, batch, h.shape[-1]), np.float32)

    def more(step: Var, h: Var, outputs: Var) -> Var:  # noqa: ARG001 -- sees every loop variable
        return mb.less(x=step, y=np.int32(steps))

    def body(step: Var, h: Var, outputs: Var) -> tuple[Var, Var, Var]:
        now = mb.squeeze(x=mb.gather(x=ordered, indices=mb.expand_dims(x=step, axes=[0]), axis=0), axes=[0])
        following = cell(now, mb.linear(x=h, weight=weight_hh, bias=bias_hh), h)
        written = mb.scatter(
            data=outputs,
            indices=mb.expand_dims(x=step, axes=[0]),
            updates=mb.expand_dims(x=following, axes=[0]),
            axis=0,
            mode="update",
        )
        return mb.add(x=step, y=np.int32(1)), following, written

    _, last, outputs = mb.while_loop(_cond=more, _body=body, loop_vars=(np.int32(0), h, empty))
    return (mb.reverse(x=outputs, axes=[0]) if reverse else outputs), last


RECURRENT: dict[str, Callable[[Any, Any], None]] = {
    "lstm.input": lstm,
    "gru.input": _written_out(gru_cell),
    "rnn_tanh.input": _written_out(tanh_cell),
    "rnn_relu.input": _written_out(relu_cell),
}
