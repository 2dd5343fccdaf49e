"""How axes pass through norms, and through what else has a number per channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from edgekit.stages.prune.basics import alike, refused
from edgekit.stages.prune.context import Context, Value
from edgekit.stages.prune.units import Axes


def batch_norm(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """Per channel, by constants."""
    if a["training"]:
        return refused(t, node, "a batch norm in training mode")
    return _per_channel(t, node, a, ("weight", "bias", "running_mean", "running_var"))


def instance_norm(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """Per channel, by the statistics of the positions."""
    for labels in t.of(a["input"])[2:]:
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
    """Groups of channels; every group keeps the same positions, or goes whole where it is one channel."""
    x, groups = t.of(a["input"]), int(a["num_groups"])
    for labels in x[2:]:
        t.pin(labels, node, "it takes the mean over this axis")
    if groups < t.shape(a["input"])[1]:
        alike(t, x[1], groups)
    return _per_channel(t, node, a, ("weight", "bias"))


def prelu(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """One slope, or one for every channel."""
    x, slope = t.of(a["self"]), t.of(a["weight"])
    if t.shape(a["weight"]) not in ((), (1,)):
        t.join(node, x[1], slope[0])
    return x


def embedding(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """Rows of a table by number."""
    table = t.of(a["weight"])
    t.pin(table[0], node, "numbers point to these rows")
    t.pin_all(node, a["indices"], "these are numbers")
    # It multiplies nothing, but it is a layer: its columns are worth removing for those who read them.
    t.layer(node, "embedding", 0, (table[1],), a["weight"])
    return (*(None for _ in t.shape(a["indices"])), table[1])
