"""In-place ops become their functional twins."""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten

# Ops that hand back their input itself in evaluation mode although their schema does not say so.
_PASS_THROUGH = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "lift_fresh")
_MULTI_VIEW = ("split", "split_with_sizes", "chunk", "unbind", "tensor_split")


class NotFunctional(Exception):  # noqa: N818 - a signal to take the other route, never shown
    """A value is changed in place while another view of the same memory is read later."""


def functionalize(module: GraphModule) -> None:
    """Rewrite `relu_(x)` to `relu(x)` and let every later reader of `x` read the new value.

    This is exact when no *other* view of the memory of `x` is read after the change, which is what networks
    written by people look like (`ReLU(inplace=True)`, `x += y`).

    Args:
        module: flat graph, edited in place.

    Raises:
        NotFunctional: another view is read later, or an op has no functional twin.
    """
    graph = module.graph
    position = {node: i for i, node in enumerate(graph.nodes)}
    groups = _alias_groups(graph)
    for node in list(graph.nodes):
        target = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        if not target._schema.is_mutable:
            continue
        changed = node.args[0]
        here = position[node]
        others = [m for m in groups[changed] if m is not changed and position[m] < here]
        if any(position[user] > here for m in others for user in m.users):
            raise NotFunctional(str(target))
        with graph.inserting_before(node):
            new = _functional(graph, node)
        if isinstance(new, Node) and new is not changed:
            position[new] = here
            groups[new] = groups[changed]
        later = [user for user in changed.users if position.get(user, -1) > here]
        for user in later:
            user.replace_input_with(changed, new)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _functional(graph: Graph, node: Node) -> Node:
    """The value that the changed tensor holds after `node`."""
    target, changed = node.target, node.args[0]
    name, overload = target._schema.name.split("::")[1], target._overloadname
    if name == "detach_":
        return changed
    if name == "copy_":
        return _copied(graph, changed, node.args[1], node)
    if name in ("zero_", "fill_"):
        value = 0 if name == "zero_" else node.args[1]
        if isinstance(value, Node):
            raise NotFunctional(str(target))
        new = graph.call_function(aten.full_like.default, (changed, value))
    else:
        packet = getattr(aten, name.removesuffix("_"), None)
        if packet is None or overload not in packet.overloads():
            raise NotFunctional(str(target))
        new = graph.call_function(getattr(packet, overload), node.args, node.kwargs)
    new.meta = dict(node.meta)
    return new


def _copied(graph: Graph, changed: Node, source: Node, node: Node) -> Node:
    """`changed.copy_(source)`: the source, in the shape and dtype of the tensor that it overwrites."""
    to, of = changed.meta.get("val"), source.meta.get("val")
    if to is None or of is None or to.dtype != of.dtype:
        raise NotFunctional(str(node.target))
    if to.shape == of.shape:
        return source
    new = graph.call_function(aten.expand_as.default, (source, changed))
    new.meta = dict(node.meta)
    return new


def _alias_groups(graph: Graph) -> dict[Node, list[Node]]:
    """Nodes that may share memory, by the alias annotations of the op schemas."""
    groups: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        group = groups[_base(node)] if _base(node) is not None else []
        group.append(node)
        groups[node] = group
    return groups


def _base(node: Node) -> Node | None:
    """The node whose memory `node` may share, if any."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    first = node.args[0]
    if not isinstance(node.target, torch._ops.OpOverload):  # getitem of a list of views
        source = getattr(first.target, "_opname", "")
        return first if source in _MULTI_VIEW else None
    name = node.target._opname
    shares = name in _PASS_THROUGH or name in _MULTI_VIEW
    shares = shares or any(r.alias_info is not None for r in node.target._schema.returns)
    return first if shares else None
