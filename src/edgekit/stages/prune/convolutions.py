"""How axes pass through convolutions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from edgekit.bench.layers import LayerShape
from edgekit.bench.layers.shape import AXES
from edgekit.stages.prune.basics import alike, op_name
from edgekit.stages.prune.context import Context, Value
from edgekit.stages.prune.units import Axes, Labels


def convolution(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`[n, c_in, …]` with weights `[c_out, c_in / groups, …]`; a group keeps as many channels as any other."""
    x, weight, channel = _operands(t, node, a)
    groups = int(a["groups"])
    c_out, per_group, *kernel = t.shape(a["weight"])
    inputs, outputs = x[channel], weight[0]
    if groups > 1 and per_group == 1:
        many = c_out // groups
        t.join(node, None if inputs is None else np.repeat(inputs, many), outputs)
    else:
        if groups > 1:
            alike(t, inputs, groups)
            alike(t, outputs, groups)
        t.join(node, inputs if inputs is None else inputs[:per_group], weight[1])
        t.reading(a["weight"], 1)
    axes = (outputs,) if groups > 1 and per_group == 1 else (outputs, weight[1])
    size = t.shape(node)[channel + 1 :]
    macs = math.prod(size) * math.prod(kernel) * c_out * per_group
    return _result(t, node, a, x, channel, outputs, axes, macs)


def transposed_convolution(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`[n, c_in, …]` with weights `[c_in, c_out / groups, …]`: one and the same second axis for every group."""
    x, weight, channel = _operands(t, node, a)
    groups = int(a["groups"])
    c_in, per_group, *kernel = t.shape(a["weight"])
    t.join(node, x[channel], weight[0])
    if c_in == groups > 1:
        # Depthwise: a group is gone with its input; its outputs are not told apart.
        t.pin(weight[1], node, "a depthwise transposed convolution")
        outputs = None if weight[0] is None else np.repeat(weight[0], per_group)
        axes: Axes = (outputs,)
    else:
        t.reading(a["weight"], 0)
        if groups > 1:
            alike(t, weight[0], groups)
        outputs = None if weight[1] is None else np.tile(weight[1], groups)
        axes = (outputs, weight[0])
    read = math.prod(t.shape(a["input"])[channel + 1 :])
    return _result(t, node, a, x, channel, outputs, axes, read * math.prod(kernel) * c_in * per_group)


def _operands(t: Context, node: Node, a: Mapping[str, Any]) -> tuple[Axes, Axes, int]:
    """Labels of the input and of the weight, and the axis of the channels."""
    x, weight = t.of(a["input"]), t.of(a["weight"])
    channel = 1 if len(x) == len(weight) else 0
    for labels in (*x[channel + 1 :], *weight[2:]):
        t.pin(labels, node, "its taps lie on this axis")
    return x, weight, channel


def _result(
    t: Context,
    node: Node,
    a: Mapping[str, Any],
    x: Axes,
    channel: int,
    outputs: Labels | None,
    axes: Axes,
    macs: int,
) -> Value:
    if isinstance(a["bias"], Node):
        t.join(node, outputs, t.of(a["bias"])[0])
    t.layer(node, op_name(node), macs, axes, a["weight"], _shape(t, node, a, channel))
    return (*x[:channel], outputs, *(None for _ in t.shape(node)[channel + 1 :]))


def _shape(t: Context, node: Node, a: Mapping[str, Any], channel: int) -> LayerShape | None:
    """What the latency of a convolution goes by; None for those that no table covers."""
    op, read, given = op_name(node), t.shape(a["input"]), t.shape(node)
    size = read[channel + 1 :]
    if op not in AXES:
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
        op,
        read[channel],
        given[channel],
        kernel,
        each(a["stride"]),
        dilation,
        padding,
        int(a["groups"]),
        size,
    )
