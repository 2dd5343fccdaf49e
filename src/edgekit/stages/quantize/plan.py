"""Decide, before anything is changed, which tensors live on the INT8 grid and which of them share one.

A plan is made from the graph alone; `GridQuantizer` turns it into annotations. The decisions:

1. Every op with a rule is a *seed* unless it is kept float by name or by its constants. Arithmetic without weights
   is worth the grid only between neighbours on the grid: the residual stream that feeds a layer norm, the scaling
   of attention scores, a norm spelled out by hand stay float.
2. A tensor is on the grid when an op next to it is a seed. Tensors joined by ops that only move values form one
   group with one scale, so the whole group is on the grid or none of it is.
3. A clamp disappears into the op before it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch.fx import GraphModule, Node

from edgekit.stages.quantize.rules import (
    FIXED_GRIDS,
    FUSES_CLAMP,
    RECURRENT,
    RULES,
    WEIGHT_AXIS,
    Kind,
    aten,
)
from edgekit_converters.program import Grid

BY_NAME = "asked for by name"
ELEMENTWISE = frozenset(
    {aten.mul.Tensor, aten.sigmoid.default, aten.tanh.default}
    | {op for op, kind in RULES.items() if kind is Kind.UNARY}
)
# A constant beyond this is a mask ("minus infinity"), not data: on an int8 grid it would swallow every other value.
MASK_MAGNITUDE = 1e4
# Shares of one among more places than this are too small for steps of 1/256, the grid that softmax has in LiteRT.
SOFTMAX_PLACES = 32
SOFTMAX = frozenset({aten.softmax.int, aten._softmax.default})
PRODUCTS = frozenset({aten.matmul.default, aten.bmm.default})


@dataclass(frozen=True)
class GridPlan:
    """What goes on the grid.

    Attributes:
        group: node name of a tensor on the grid to the name of the tensor whose observer it shares (its root).
        fixed: root name to its predetermined grid.
        weights: op name to (weight node name, output channel axis).
        constants: (constant node name, consuming op name) edges quantized with their own per-tensor grid.
        seeds: ops that compute on the grid.
        kept_float: op name to the reason why it stays float although a rule exists, or why no rule exists.
    """

    group: Mapping[str, str]
    fixed: Mapping[str, Grid]
    weights: Mapping[str, tuple[str, int]]
    constants: frozenset[tuple[str, str]]
    seeds: frozenset[str]
    kept_float: Mapping[str, str]

    def of_weights(self) -> GridPlan:
        """The same weights on the grid and nothing else."""
        float_ops = dict.fromkeys(self.seeds, "int8 weights, float compute")
        return GridPlan({}, {}, self.weights, frozenset(), frozenset(), {**self.kept_float, **float_ops})


def elementwise(graph: GraphModule, plan: GridPlan) -> tuple[str, ...]:
    """Ops on the grid that work value by value and have no weight: products, sums with a number, activations.

    Sums of two tensors are not among them: residual connections join layers that stay on the grid.
    """
    return tuple(
        n.name
        for n in graph.graph.nodes
        if n.name in plan.seeds
        and (
            n.target in ELEMENTWISE
            or (
                n.target in {aten.add.Tensor, aten.sub.Tensor}
                and any(a.op == "get_attr" for a in n.all_input_nodes)
            )
        )
    )


def make_plan(graph: GraphModule, *, keep_float: Iterable[str] = ()) -> GridPlan:
    """Plan the grid of a cleaned float graph.

    Args:
        graph: ATen graph whose nodes carry `meta["val"]`.
        keep_float: glob patterns of node or layer names that stay float32.

    Returns:
        The plan; the graph is not changed.
    """
    nodes = list(graph.graph.nodes)
    keep = tuple(keep_float)
    kept = {n.name: why for n in nodes if n.op == "call_function" and (why := _why_float(graph, n, keep))}
    seeds = {
        n.name: RULES[n.target]
        for n in nodes
        if n.op == "call_function" and n.name not in kept and _has_rule(n)
    }
    kept |= _demote_islands(nodes, seeds)
    hidden = {n.args[0].name for n in nodes if n.name in seeds and _fuses(n, seeds)}

    joins = _join_shared(nodes, seeds, hidden)
    touched = _touched(nodes, seeds, hidden)
    live = {joins[name] for name in touched if name in joins}
    order = {n.name: i for i, n in enumerate(nodes)}
    members: dict[str, list[str]] = {}
    for name, root in joins.items():
        if root in live:
            members.setdefault(root, []).append(name)
    group = {m: min(ms, key=order.__getitem__) for ms in members.values() for m in ms}
    fixed = {
        group[n.name]: FIXED_GRIDS[n.target]
        for n in nodes
        # Also where it stays float: LiteRT has one kernel between two integer tensors, and that has this grid.
        if n.name in group and n.target in FIXED_GRIDS
    }
    weights = {
        n.name: (_weight(n).name, WEIGHT_AXIS[n.target]) for n in nodes if seeds.get(n.name) is Kind.WEIGHTED
    }
    weights |= _recurrent_weights(nodes, keep)
    constants = frozenset(
        (a.name, n.name)
        for n in nodes
        if seeds.get(n.name) is Kind.COMPUTE or (seeds.get(n.name) is Kind.SHARED and n.name in group)
        for a in n.all_input_nodes
        if a.op == "get_attr" and is_float_tensor(a)
    )
    on_grid = frozenset(n for n, k in seeds.items() if k is not Kind.SHARED or n in group)
    return GridPlan(group, fixed, weights, constants, on_grid, kept)


def is_float_tensor(node: Node) -> bool:
    """True when the node yields one float32 tensor."""
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor) and val.dtype == torch.float32


def layer_name(node: Node) -> str:
    """Dotted module path of a node as the user wrote it, else the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, _ in reversed(list(stack.values())):
        cleaned = str(path).removeprefix("L['self'].").removeprefix("L__self__").strip(".")
        if cleaned:
            return cleaned
    return str(node.name)


def _has_rule(node: Node) -> bool:
    return node.target in RULES


def _why_float(graph: GraphModule, node: Node, keep: tuple[str, ...]) -> str:  # noqa: PLR0911 - a list of reasons
    """Reason for which an op stays float; "" when nothing speaks against the grid."""
    if any(fnmatchcase(node.name, p) or fnmatchcase(layer_name(node), p) for p in keep):
        return BY_NAME
    if node.target is operator.getitem or not _touches_floats(node):
        return ""
    if node.target in RECURRENT:
        return "recurrent cell: int8 weights, float compute"
    if not _has_rule(node):
        return "no int8 kernel that all three formats share"
    kind = RULES[node.target]
    if kind is Kind.WEIGHTED and not _weight_is_constant(graph, node):
        return "weight is computed at run time"
    if node.target is aten.conv_transpose2d.input and len(node.args) > 6 and node.args[6] != 1:
        return "grouped transposed convolution has no int8 kernel in LiteRT"
    if node.target in SOFTMAX and not (_ends_the_graph(node) or _weighs_on_the_grid(node)):
        return "softmax inside the network stays float32"
    if kind is Kind.COMPUTE:
        return _why_compute_float(graph, node)
    return ""


def _why_compute_float(graph: GraphModule, node: Node) -> str:
    if node.target in PRODUCTS:
        return "product of two activations has no static int8 kernel in LiteRT's delegate"
    for arg in node.all_input_nodes:
        if not is_float_tensor(arg):
            return "mixes integer and float tensors"
        if arg.op == "get_attr" and _constant(graph, arg).abs().max() > MASK_MAGNITUDE:
            return "adds a mask"
        if arg.target in SOFTMAX and not _weighs_on_the_grid(arg):
            return "weighs by a softmax that stays float32"
    return ""


def _demote_islands(nodes: list[Node], seeds: dict[str, Kind]) -> dict[str, str]:
    """Take arithmetic out of `seeds` that has no neighbour on the grid before it or none after it."""
    demoted: dict[str, str] = {}
    changed = True
    while changed:
        changed = False
        for n in nodes:
            kind = seeds.get(n.name)
            if kind is None or kind in {Kind.WEIGHTED, Kind.SHARED} or _ends_a_layer(n, seeds):
                continue
            if not any(_on_grid_before(a, seeds) for a in n.all_input_nodes):
                why = "its inputs are float32"
            elif not any(_on_grid_after(u, seeds) for u in n.users):
                why = "its only readers are float32"
            else:
                continue
            del seeds[n.name]
            demoted[n.name] = why
            changed = True
    return demoted


def _ends_a_layer(node: Node, seeds: Mapping[str, Kind]) -> bool:
    """A clamp right after a convolution or linear layer costs nothing, whoever reads it."""
    return (
        seeds[node.name] is Kind.CLAMP and _fuses(node, seeds) and seeds[_first(node).name] is Kind.WEIGHTED
    )


def _first(node: Node) -> Node:
    source = node.args[0]
    assert isinstance(source, Node)
    return source


def _on_grid_before(node: Node, seeds: Mapping[str, Kind]) -> bool:
    """The tensor comes from an op on the grid or is an input; ops that move values are looked through."""
    if node.op == "placeholder":
        return is_float_tensor(node)
    if node.target is operator.getitem or seeds.get(node.name) is Kind.SHARED:
        return any(_on_grid_before(a, seeds) for a in node.all_input_nodes)
    return node.name in seeds


def _on_grid_after(user: Node, seeds: Mapping[str, Kind]) -> bool:
    if user.op == "output":
        return True
    if user.target is operator.getitem or seeds.get(user.name) is Kind.SHARED:
        return any(_on_grid_after(u, seeds) for u in user.users)
    return user.name in seeds


def _touches_floats(node: Node) -> bool:
    return is_float_tensor(node) or any(is_float_tensor(a) for a in node.all_input_nodes)


def _ends_the_graph(node: Node) -> bool:
    return all(u.op == "output" for u in node.users)


def _weighs_on_the_grid(node: Node) -> bool:
    """A softmax over few places that a layer or an element-wise product reads: bins of a box, shares of branches."""
    axis = node.args[1]
    assert isinstance(axis, int)
    places = node.meta["val"].shape[axis]
    return isinstance(places, int) and places <= SOFTMAX_PLACES and any(map(_computes, node.users))


def _computes(user: Node) -> bool:
    kind = RULES.get(user.target)
    if kind is Kind.SHARED:
        return any(map(_computes, user.users))
    return kind is Kind.WEIGHTED or (kind is Kind.COMPUTE and user.target not in PRODUCTS)


def _constant(graph: GraphModule, node: Node) -> torch.Tensor:
    value = operator.attrgetter(str(node.target))(graph)
    assert isinstance(value, torch.Tensor)
    return value


def _weight(node: Node) -> Node:
    weight = node.args[1]
    assert isinstance(weight, Node)
    return weight


def _weight_is_constant(graph: GraphModule, node: Node) -> bool:
    weight = node.args[1]
    return (
        isinstance(weight, Node)
        and weight.op == "get_attr"
        and _constant(graph, weight).dtype == torch.float32
    )


def _recurrent_weights(nodes: list[Node], keep: tuple[str, ...]) -> dict[str, tuple[str, int]]:
    """One entry per weight matrix of a recurrent cell; rows of `W_ih` and `W_hh` are the channels."""
    found: dict[str, tuple[str, int]] = {}
    for n in nodes:
        if n.target not in RECURRENT or any(
            fnmatchcase(n.name, p) or fnmatchcase(layer_name(n), p) for p in keep
        ):
            continue
        params = n.args[2]
        assert isinstance(params, (list, tuple))
        for i, w in enumerate(p for p in params if isinstance(p, Node) and p.meta["val"].dim() == 2):
            found[f"{n.name}#{i}"] = (w.name, 0)
    return found


def _fuses(node: Node, seeds: Mapping[str, Kind]) -> bool:
    """A clamp right after an op that has no other reader."""
    if seeds[node.name] is not Kind.CLAMP:
        return False
    before = node.args[0]
    return isinstance(before, Node) and seeds.get(before.name) in FUSES_CLAMP and len(before.users) == 1


def _join_shared(nodes: list[Node], seeds: Mapping[str, Kind], hidden: set[str]) -> dict[str, str]:
    """Union-find over tensors that must share one grid; every float activation appears, hidden ones do not."""
    parent = {
        n.name: n.name for n in nodes if is_float_tensor(n) and n.op != "get_attr" and n.name not in hidden
    }

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    fixed_roots = {n.name for n in nodes if n.target in FIXED_GRIDS}
    for n in nodes:
        sources = _shares_with(n, seeds, hidden)
        for source in sources:
            if n.name not in parent or source.name not in parent:
                continue
            a, b = find(source.name), find(n.name)
            # Two predetermined grids never merge with a measured one through a concat: the edge requantizes.
            if a != b and not (len(sources) > 1 and (a in fixed_roots or b in fixed_roots)):
                parent[b] = a
    return {name: find(name) for name in parent}


def _shares_with(node: Node, seeds: Mapping[str, Kind], hidden: set[str]) -> list[Node]:
    if node.target is operator.getitem:
        source = node.args[0]
        if isinstance(source, Node) and seeds.get(source.name) is Kind.SHARED:
            return [a for a in source.all_input_nodes if a.op != "get_attr"][:1]
        return []
    kind = seeds.get(node.name)
    shares = kind is Kind.SHARED or (kind is Kind.CLAMP and not _hides(node, hidden))
    return [a for a in node.all_input_nodes if a.op != "get_attr"] if shares else []


def _hides(node: Node, hidden: set[str]) -> bool:
    before = node.args[0]
    return isinstance(before, Node) and before.name in hidden


def _touched(nodes: list[Node], seeds: Mapping[str, Kind], hidden: set[str]) -> set[str]:
    """Tensors next to an op that computes on the grid."""
    touched: set[str] = set()
    for n in nodes:
        kind = seeds.get(n.name)
        if kind is None or kind is Kind.SHARED or (kind is Kind.CLAMP and not _hides(n, hidden)):
            continue
        touched.add(n.name)
        touched.update(a.name for a in n.all_input_nodes)
    return touched - hidden
