"""How axes pass through recurrent cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from torch.fx import Node

from edgekit.stages.prune.basics import op_name, refused, several
from edgekit.stages.prune.context import Context, Value
from edgekit.stages.prune.units import Labels

GATES: Final = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
CELLS: Final = {f"{name}_cell": gates for name, gates in GATES.items()}


def recurrent(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """LSTM, GRU, RNN: one hidden size for all layers and directions, as in `torch.nn`.

    Weights come as `w_ih [gates * h, i]`, `w_hh [gates * h, h]` and two biases for every layer and direction.
    """
    if "input" not in a or not isinstance(a["params"], (list, tuple)):
        return refused(t, node, "a packed sequence")
    op, x = op_name(node), t.of(a["input"])
    if len(x) != 3:
        return refused(t, node, "a recurrent layer without a batch")
    gates, directions = GATES[op], 2 if a["bidirectional"] else 1
    cells = int(a["num_layers"]) * directions
    per_cell = len(a["params"]) // cells
    if per_cell != (4 if a["has_biases"] else 2):
        return refused(t, node, "a recurrent layer with a projection")
    w_hh = a["params"][1]
    hidden = t.of(w_hh)[1]
    if hidden is None:
        return refused(t, node, "a hidden size of one")
    batch, time = (0, 1) if a["batch_first"] else (1, 0)
    t.pin(x[batch], node, "samples lie along this axis")
    t.pin(x[time], node, "time runs along this axis")
    steps = t.shape(a["input"])[time]
    below: Labels | None = x[-1]
    for layer in range(int(a["num_layers"])):
        for direction in range(directions):
            first = (layer * directions + direction) * per_cell
            w_ih, w_hh, *biases = a["params"][first : first + per_cell]
            t.join(node, below, t.of(w_ih)[1])
            t.join(node, hidden, t.of(w_hh)[1])
            for rows in (w_ih, w_hh, *biases):
                t.join(node, np.tile(hidden, gates), t.of(rows)[0])
            t.reading(w_ih, 1)
            t.reading(w_hh, 1)
            size = math.prod(t.shape(w_ih)), math.prod(t.shape(w_hh))
            t.layer(node, op, steps * size[0], (t.of(w_ih)[0], t.of(w_ih)[1]), w_ih)
            t.layer(node, op, steps * size[1], (t.of(w_hh)[0], t.of(w_hh)[1]), w_hh)
        below = np.tile(hidden, directions)
    states = a["hx"] if isinstance(a["hx"], (list, tuple)) else [a["hx"]]
    for state in states:
        *others, last = t.of(state)
        t.join(node, last, hidden)
        for labels in others:
            t.pin(labels, node, "layers and samples lie along this axis")
    return [(None, None, below), *((None, None, hidden) for _ in states)]


def cell(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """One step of one layer: `lstm_cell` gives a hidden and a cell state, the others a hidden state."""
    w_ih, w_hh = t.of(a["w_ih"]), t.of(a["w_hh"])
    hidden = w_hh[1]
    if hidden is None:
        return refused(t, node, "a hidden size of one")
    t.join(node, t.of(a["input"])[-1], w_ih[1])
    biases = [a[name] for name in ("b_ih", "b_hh") if isinstance(a[name], Node)]
    for rows in (w_ih[0], w_hh[0], *(t.of(bias)[0] for bias in biases)):
        t.join(node, np.tile(hidden, CELLS[op_name(node)]), rows)
    states = a["hx"] if isinstance(a["hx"], (list, tuple)) else [a["hx"]]
    for state in states:
        t.join(node, t.of(state)[-1], hidden)
    for weight, axes in ((a["w_ih"], w_ih), (a["w_hh"], w_hh)):
        t.reading(weight, 1)
        t.layer(node, op_name(node), math.prod(t.shape(weight)), axes, weight)
    first = t.of(a["input"])[:-1]
    for labels in first:
        t.pin(labels, node, "samples lie along this axis")
    return several(t, node, (*(None for _ in first), hidden))
