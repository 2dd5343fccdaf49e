"""How axes pass through what has weights: convolutions, products, norms, attention, recurrent cells, tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from torch.fx import Node

from edgekit.bench.layers import LayerShape
from edgekit.bench.layers.shape import AXES
from edgekit.stages.prune.context import Context, Value, wrapped
from edgekit.stages.prune.units import Axes, Labels

Rule = Callable[[Context, Node, Mapping[str, Any]], Value]
GATES: Final = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def convolution(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`[n, c_in, …]` with weights `[c_out, c_in / groups, …]`; a group keeps as many channels as any other."""
    x, weight, bias = t.of(a["input"]), t.of(a["weight"]), t.of(a["bias"])
    groups, rank = int(a["groups"]), len(t.shape(a["weight"]))
    batched = len(x) == rank
    channel = 1 if batched else 0
    for labels in x[channel + 1 :]:
        t.pin(labels, node, "its taps lie on this axis")
    c_out, per_group, *kernel = t.shape(a["weight"])
    inputs, outputs = x[channel], weight[0]
    if groups == 1:
        t.join(node, inputs, weight[1])
        t.reading(a["weight"], 1)
    elif per_group == 1:
        if inputs is not None and outputs is not None:
            t.atoms.join(np.repeat(inputs, c_out // groups), outputs)
        else:
            t.join(node, inputs, outputs)
    else:
        _alike(t, inputs, groups)
        _alike(t, outputs, groups)
        if inputs is not None:
            t.join(node, inputs[:per_group], weight[1])
        t.reading(a["weight"], 1)
    if bias:
        t.join(node, outputs, bias[0])
    size = t.shape(node)[channel + 1 :]
    macs = math.prod(size) * math.prod(kernel) * c_out * per_group
    axes = (outputs,) if groups > 1 and per_group == 1 else (outputs, weight[1])
    t.layer(node, _name(node), macs, axes, a["weight"], _convolution_shape(t, node, a, channel))
    return (*x[:channel], outputs, *(None for _ in size))


def _convolution_shape(t: Context, node: Node, a: Mapping[str, Any], channel: int) -> LayerShape | None:
    """What the latency of a convolution goes by; None for those that no table covers."""
    read, given = t.shape(a["input"]), t.shape(node)
    size = read[channel + 1 :]
    if _name(node) not in AXES:
        return None

    def each(value: int | Sequence[int]) -> tuple[int, ...]:
        numbers = [value] if isinstance(value, int) else list(value)
        return tuple(int(n) for n in (numbers if len(numbers) == len(size) else numbers * len(size)))

    kernel, dilation = t.shape(a["weight"])[2:], each(a["dilation"])
    if isinstance(a["padding"], str):
        whole = [d * (k - 1) if a["padding"] == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        padding = tuple(n // 2 for n in whole) + tuple(n - n // 2 for n in whole)
    else:
        padding = each(a["padding"])
    return LayerShape(
        _name(node), read[channel], given[channel], kernel, each(a["stride"]), dilation, padding,
        int(a["groups"]), size,
    )  # fmt: skip


def transposed_convolution(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`[n, c_in, …]` with weights `[c_in, c_out / groups, …]`."""
    x, weight, bias = t.of(a["input"]), t.of(a["weight"]), t.of(a["bias"])
    groups, rank = int(a["groups"]), len(t.shape(a["weight"]))
    channel = 1 if len(x) == rank else 0
    for labels in x[channel + 1 :]:
        t.pin(labels, node, "its taps lie on this axis")
    c_in, per_group, *kernel = t.shape(a["weight"])
    t.join(node, x[channel], weight[0])
    t.reading(a["weight"], 0)
    outputs = weight[1]
    if groups > 1:
        outputs = weight[0] if per_group == 1 else None
        if outputs is None:
            t.pin(weight[0], node, f"a transposed convolution of {groups} groups")
            t.pin(weight[1], node, f"a transposed convolution of {groups} groups")
    if bias:
        t.join(node, outputs, bias[0])
    size = t.shape(node)[channel + 1 :]
    read = math.prod(t.shape(a["input"])[channel + 1 :])
    axes = (outputs,) if groups > 1 else (outputs, weight[0])
    macs = read * math.prod(kernel) * c_in * per_group
    t.layer(node, _name(node), macs, axes, a["weight"], _convolution_shape(t, node, a, channel))
    return (*x[:channel], outputs, *(None for _ in size))


def _alike(t: Context, labels: Labels | None, groups: int) -> None:
    """The same positions of every group stay."""
    if labels is not None:
        by_group = labels.reshape(groups, -1)
        t.atoms.join(np.broadcast_to(by_group[:1], by_group.shape), by_group)


def linear(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`[…, k]` with weights `[n, k]`."""
    x, weight, bias = t.of(a["input"]), t.of(a["weight"]), t.of(a["bias"])
    t.join(node, x[-1], weight[1])
    t.reading(a["weight"], 1)
    if bias:
        t.join(node, weight[0], bias[0])
    rows = math.prod(t.shape(node)[:-1])
    n, k = t.shape(a["weight"])
    shape = LayerShape("linear", k, n, size=(rows,))
    t.layer(node, "linear", rows * n * k, (weight[0], weight[1]), a["weight"], shape)
    return (*x[:-1], weight[0])


def product(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`mm`, `bmm`, `matmul`: `[…, m, k]` by `[…, k, n]`."""
    left, right = (a[key] for key in ("self", "other" if "other" in a else "mat2"))
    return _product(t, node, left, right)


def added_product(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`addmm`, `baddbmm`: a product and a summand that broadcasts."""
    keys = ("mat1", "mat2") if "mat1" in a else ("batch1", "batch2")
    out = _product(t, node, a[keys[0]], a[keys[1]])
    summand = t.of(a["self"])
    for mine, theirs in zip(reversed(out), reversed(summand), strict=False):
        if theirs is not None and len(theirs) > 1:
            t.join(node, mine, theirs)
    return out


def _product(t: Context, node: Node, left: Any, right: Any) -> Axes:
    x, y = t.of(left), t.of(right)
    if len(x) == 1 or len(y) == 1:
        t.pin_all(node, left, "a product with a vector")
        t.pin_all(node, right, "a product with a vector")
        return tuple(None for _ in t.shape(node))
    inner = t.join(node, x[-1], y[-2])
    if isinstance(right, Node) and right.op == "get_attr":
        t.reading(right, len(y) - 2)
    outer = _broadcast(t, node, x[:-2], t.shape(left)[:-2], y[:-2], t.shape(right)[:-2])
    macs = math.prod(t.shape(node)) * t.shape(left)[-1]
    t.layer(node, "matmul", macs, (*outer, x[-2], y[-1], inner), right)
    return (*outer, x[-2], y[-1])


def _broadcast(t: Context, node: Node, x: Axes, xs: tuple[int, ...], y: Axes, ys: tuple[int, ...]) -> Axes:
    rank = max(len(x), len(y))
    x, xs = (None,) * (rank - len(x)) + x, (1,) * (rank - len(xs)) + xs
    y, ys = (None,) * (rank - len(y)) + y, (1,) * (rank - len(ys)) + ys
    out: list[Labels | None] = []
    for one, n, other, m in zip(x, xs, y, ys, strict=True):
        if n == m:
            out.append(t.join(node, one, other) if n > 1 else None)
        else:
            out.append(other if n == 1 else one)
    return tuple(out)


def elementwise(t: Context, node: Node, operands: list[Node]) -> Axes:
    """Values at the same place, after broadcasting."""
    out: Axes = ()
    shape: tuple[int, ...] = ()
    for operand in operands:
        axes, size = t.of(operand), t.shape(operand)
        out = _broadcast(t, node, out, shape, axes, size) if shape or out else axes
        rank = max(len(shape), len(size))
        padded = [(1,) * (rank - len(s)) + s for s in (shape, size)]
        shape = tuple(max(n, m) for n, m in zip(*padded, strict=True))
    return tuple(labels if n > 1 else None for labels, n in zip(out, t.shape(node), strict=True))


def attention(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`scaled_dot_product_attention`: q `[…, l, e]`, k `[…, s, e]`, v `[…, s, ev]`."""
    q, k, v = (t.of(a[key]) for key in ("query", "key", "value"))
    sizes = [t.shape(a[key]) for key in ("query", "key", "value")]
    inner = t.join(node, q[-1], k[-1])
    t.join(node, k[-2], v[-2])
    for labels in (q[-2], k[-2]):
        t.pin(labels, node, "attention mixes positions")
    outer = _broadcast(t, node, q[:-2], sizes[0][:-2], k[:-2], sizes[1][:-2])
    outer = _broadcast(t, node, outer, sizes[0][:-2], v[:-2], sizes[2][:-2])
    if isinstance(mask := a.get("attn_mask"), Node):
        heads = t.of(mask)
        for labels, mine in zip(reversed(heads[:-2]), reversed(outer), strict=False):
            if labels is not None and len(labels) > 1:
                t.join(node, mine, labels)
    scores = math.prod(sizes[0][:-1]) * sizes[1][-2]
    t.layer(node, "attention", scores * sizes[0][-1], (*outer, inner))
    t.layer(node, "attention", scores * sizes[2][-1], (*outer, v[-1]))
    return (*outer, None, v[-1])


def batch_norm(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """Per channel, by constants."""
    return _per_channel(t, node, a, ("weight", "bias", "running_mean", "running_var"))


def instance_norm(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """Per channel, by the statistics of the positions."""
    x = t.of(a["input"])
    for labels in x[2:]:
        t.pin(labels, node, "it takes the mean over this axis")
    return _per_channel(t, node, a, ("weight", "bias", "running_mean", "running_var"))


def _per_channel(t: Context, node: Node, a: Mapping[str, Any], names: tuple[str, ...]) -> Axes:
    x = t.of(a["input"])
    for name in names:
        if isinstance(a.get(name), Node):
            t.join(node, x[1], t.of(a[name])[0])
    return x


def layer_norm(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """Over the last axes; a narrower network normalises over fewer."""
    x = t.of(a["input"])
    for name in ("weight", "bias"):
        if isinstance(a.get(name), Node):
            scale = t.of(a[name])
            for mine, theirs in zip(x[len(x) - len(scale) :], scale, strict=True):
                t.join(node, mine, theirs)
    return x


def group_norm(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """Groups of channels; every group keeps the same positions."""
    x = t.of(a["input"])
    _alike(t, x[1], int(a["num_groups"]))
    return _per_channel(t, node, a, ("weight", "bias"))


def prelu(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """One slope, or one for every channel."""
    x, slope = t.of(a["self"]), t.of(a["weight"])
    if slope and t.shape(a["weight"]) != (1,):
        t.join(node, x[1], slope[0])
    return x


def embedding(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """Rows of a table by number."""
    table = t.of(a["weight"])
    t.pin(table[0], node, "numbers point to these rows")
    t.pin_all(node, a["indices"], "these are numbers")
    return (*(None for _ in t.shape(a["indices"])), table[1])


def recurrent(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """LSTM, GRU, RNN: one hidden size for all layers and directions, as in `torch.nn`.

    Weights come as `w_ih [gates * h, i]`, `w_hh [gates * h, h]` and two biases for every layer and direction.
    """
    if "input" not in a or not isinstance(a["params"], (list, tuple)):
        return refused(t, node, "a packed sequence")
    op, x = _name(node), t.of(a["input"])
    gates, directions = GATES[op], 2 if a["bidirectional"] else 1
    cells = int(a["num_layers"]) * directions
    per_cell = len(a["params"]) // cells
    if per_cell != (4 if a["has_biases"] else 2):
        return refused(t, node, "a recurrent layer with a projection")
    w_hh = a["params"][1]
    hidden = t.of(w_hh)[1]
    if hidden is None:
        return refused(t, node, "a hidden size of one")
    batch, time = _batch_and_time(t, node, a)
    below: Labels | None = x[-1]
    for layer in range(int(a["num_layers"])):
        for direction in range(directions):
            first = (layer * directions + direction) * per_cell
            w_ih, w_hh, *biases = a["params"][first : first + per_cell]
            t.join(node, below, t.of(w_ih)[1])
            t.join(node, hidden, t.of(w_hh)[1])
            for rows in (w_ih, w_hh, *biases):
                labels = t.of(rows)[0]
                if labels is not None:
                    t.atoms.join(np.tile(hidden, gates), labels)
            t.reading(w_ih, 1)
            t.reading(w_hh, 1)
            size = math.prod(t.shape(w_ih)), math.prod(t.shape(w_hh))
            t.layer(node, op, time * size[0], (t.of(w_ih)[0], t.of(w_ih)[1]), w_ih)
            t.layer(node, op, time * size[1], (t.of(w_hh)[0], t.of(w_hh)[1]), w_hh)
        below = np.tile(hidden, directions)
    states = a["hx"] if isinstance(a["hx"], (list, tuple)) else [a["hx"]]
    for state in states:
        t.join(node, t.of(state)[-1], hidden)
    state_axes: Axes = (None, batch, hidden)
    return [(*x[:-1], below), *(state_axes for _ in states)]


def _batch_and_time(t: Context, node: Node, a: Mapping[str, Any]) -> tuple[Labels | None, int]:
    x, shape = t.of(a["input"]), t.shape(a["input"])
    batch, time = (0, 1) if a["batch_first"] else (1, 0)
    t.pin(x[time], node, "time runs along this axis")
    return x[batch], shape[time]


def refused(t: Context, node: Node, why: str) -> Value:
    """Nothing that enters a node gets narrower."""
    for operand in node.all_input_nodes:
        value = t.values[operand.name]
        for axes in value if isinstance(value, list) else [value]:
            for labels in axes:
                t.pin(labels, node, why)
    return nothing(t, node)


def nothing(t: Context, node: Node) -> Value:
    """Every axis of what a node gives stays."""
    shape = t.shapes[node.name]
    if isinstance(shape, list):
        return [tuple(None for _ in s) for s in shape]
    return tuple(None for _ in shape)


def _name(node: Node) -> str:
    return str(node.target).split(".")[1]


LAYERS: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed_convolution),
    "linear": linear,
    **dict.fromkeys(("mm", "bmm", "matmul"), product),
    **dict.fromkeys(("addmm", "baddbmm"), added_product),
    "scaled_dot_product_attention": attention,
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    "group_norm": group_norm,
    "prelu": prelu,
    "embedding": embedding,
    **dict.fromkeys(GATES, recurrent),
}
__all__ = ["LAYERS", "Rule", "elementwise", "nothing", "refused", "wrapped"]
