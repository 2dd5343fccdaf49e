"""How the passes read and edit a graph: bound arguments, constants, shapes, new nodes with their meta."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.node import map_arg

aten = torch.ops.aten

# Facts about the tensor itself; a replacement computes its own.
_OWN_META = frozenset({"val", "tensor_meta", "unbacked_bindings", "example_value"})


def calls(graph: GraphModule, *targets: Any) -> Iterator[Node]:
    """Yields the nodes that call one of `targets`, in graph order; nodes may be erased while iterating."""
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target in targets:
            yield node


def is_call(value: object, *targets: Any) -> bool:
    """Whether `value` is a node that calls one of `targets`."""
    return isinstance(value, Node) and value.op == "call_function" and value.target in targets


def bind(node: Node) -> dict[str, Any]:
    """Arguments of an ATen call by their schema name, defaults filled in."""
    schema = node.target._schema
    bound: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        else:
            bound[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return bound


def shape(value: object) -> tuple[Any, ...] | None:
    """Shape of a node's tensor (entries are `int` or `torch.SymInt`), None when it is not one tensor."""
    val = value.meta.get("val") if isinstance(value, Node) else None
    return tuple(val.shape) if isinstance(val, torch.Tensor) else None


def static_shape(value: object) -> tuple[int, ...] | None:
    """Shape of a node's tensor when every extent is a plain number."""
    extents = shape(value)
    if extents is None or not all(isinstance(extent, int) for extent in extents):
        return None
    return extents


def rank(value: object) -> int | None:
    """Number of dimensions of a node's tensor."""
    extents = shape(value)
    return None if extents is None else len(extents)


def dtype(value: object) -> torch.dtype | None:
    """Element type of a node's tensor, None when it is not one tensor."""
    val = value.meta.get("val") if isinstance(value, Node) else None
    return val.dtype if isinstance(val, torch.Tensor) else None


def is_float(value: object) -> bool:
    """Whether a node is one floating-point tensor."""
    kind = dtype(value)
    return kind is not None and kind.is_floating_point


def same_extents(left: Sequence[Any] | None, right: Sequence[Any] | None) -> bool:
    """Whether two shapes are equal for every batch size."""
    if left is None or right is None or len(left) != len(right):
        return False
    return all(statically_known_true(a == b) for a, b in zip(left, right, strict=True))


def same_tensor_type(left: Node, right: Node) -> bool:
    """Whether two nodes have one element type and one shape for every batch size."""
    return dtype(left) is not None and dtype(left) == dtype(right) and same_extents(shape(left), shape(right))


def only_user(node: Node) -> Node | None:
    """The single user of a node, None when there are more or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def constant(graph: GraphModule, value: object) -> torch.Tensor | None:
    """The tensor behind a `get_attr` node, detached; None for anything else."""
    if not isinstance(value, Node) or value.op != "get_attr":
        return None
    tensor = operator.attrgetter(str(value.target))(graph)
    return tensor.detach() if isinstance(tensor, torch.Tensor) else None


def number(graph: GraphModule, value: object) -> float | None:
    """A Python number, or the value of a one-element constant; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    tensor = constant(graph, value)
    if tensor is None or tensor.numel() != 1 or tensor.dtype == torch.bool:
        return None
    return float(tensor)


def add_constant(graph: GraphModule, before: Node, hint: str, tensor: torch.Tensor, *, like: Node) -> Node:
    """Adds a new constant; the tensors that other nodes read stay as they are.

    Args:
        graph: module that gets the attribute.
        before: the `get_attr` node is inserted before this one.
        hint: wished attribute name; dots become underscores and a number is added if it is taken.
        tensor: the value; it is made contiguous and is a parameter where `like` is one.
        like: node whose meta (module path, source line) and role the constant takes over.

    Returns:
        the new `get_attr` node with its `val`.
    """
    base = hint.replace(".", "_")
    name, count = base, 0
    while hasattr(graph, name):
        count += 1
        name = f"{base}_{count}"
    value = tensor.detach().contiguous()
    role = operator.attrgetter(str(like.target))(graph) if like.op == "get_attr" else None
    if isinstance(role, torch.nn.Parameter):
        graph.register_parameter(name, torch.nn.Parameter(value, requires_grad=role.requires_grad))
    else:
        graph.register_buffer(name, value)
    with graph.graph.inserting_before(before):
        node = graph.graph.get_attr(name)
    _inherit(node, like)
    mode = _fake_mode(graph)
    node.meta["val"] = value if mode is None else mode.from_tensor(value, static_shapes=True)
    return node


def insert(
    graph: GraphModule, before: Node, target: Any, *args: Any, like: Node | None = None, **kwargs: Any
) -> Node:
    """Inserts a call before `before`.

    Args:
        graph: module to edit.
        before: the node in front of which the call goes.
        target: ATen overload.
        *args: its positional arguments.
        like: node whose meta is copied; `before` when not given.
        **kwargs: its keyword arguments.

    Returns:
        the new node; its `val` is computed.
    """
    with graph.graph.inserting_before(before):
        node = graph.graph.call_function(target, args, kwargs)
    _inherit(node, before if like is None else like)
    infer(graph, node)
    return node


def replace(node: Node, new: Node) -> None:
    """Sends every user of `node` to `new` and erases `node`."""
    node.replace_all_uses_with(new, propagate_meta=False)
    node.graph.erase_node(node)


def infer(graph: GraphModule, node: Node) -> None:
    """Computes `node.meta["val"]` of a call from the `val` of its arguments, on fake tensors."""
    mode = _fake_mode(graph)
    args, kwargs = map_arg((node.args, node.kwargs), lambda argument: argument.meta.get("val"))
    assert callable(node.target)
    with torch.no_grad(), enable_python_dispatcher(), contextlib.nullcontext() if mode is None else mode:
        node.meta["val"] = node.target(*args, **kwargs)


def _inherit(node: Node, like: Node) -> None:
    node.meta.update({key: value for key, value in like.meta.items() if key not in _OWN_META})


def _fake_mode(graph: GraphModule) -> Any:
    for node in graph.graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None:
            return mode
    return None
