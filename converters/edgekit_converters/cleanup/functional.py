"""In-place calls become functional ones, and later readers read the new value."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.edit import aten, insert
from edgekit_converters.errors import LoweringError
from edgekit_converters.source import find_source

# Results that may share memory with their first argument.
_VIEWS = frozenset(
    {
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "slice",
        "select",
        "transpose",
        "permute",
        "expand",
        "expand_as",
        "squeeze",
        "unsqueeze",
        "alias",
        "detach",
        "chunk",
        "split",
        "split_with_sizes",
        "unbind",
        "contiguous",
        "to",
        "t",
        "narrow",
        "movedim",
        "view_as",
        "unsafe_chunk",
        "numpy_T",
        "diagonal",
        "unfold",
        "type_as",
        "dropout",
    }
)


def run(graph: GraphModule) -> int:
    """Replaces every in-place call by its functional counterpart.

    A write through a `select` or `slice` (`x[:, 0] = 1`) becomes `select_scatter` or `slice_scatter`.

    Args:
        graph: program graph; edited.

    Returns:
        number of calls replaced.

    Raises:
        LoweringError: the call writes through a view that later code reads in another way, or has no
            functional counterpart.
    """
    count = 0
    for node in list(graph.graph.nodes):
        if _is_in_place(node):
            _make_functional(graph, node)
            count += 1
    return count


def _is_in_place(node: Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    # Batch norm is declared mutable for its training statistics only.
    return bool(node.target._schema.is_mutable) and node.target._schema.name.endswith("_")


def _make_functional(graph: GraphModule, node: Node) -> None:
    written = node.args[0]
    if not isinstance(written, Node):
        raise _refusal(node, "it writes to something that is not a tensor of the graph")
    functional = _counterpart(graph, node)
    base, new_base = _write_back(graph, node, written, functional)
    _refuse_other_views(node, base, written)
    later = _nodes_after(node)
    node.replace_all_uses_with(functional, propagate_meta=False)
    for user in list(base.users):
        if user in later and user is not new_base:
            user.replace_input_with(base, new_base)
    if written is not base:
        for user in list(written.users):
            if user in later:
                user.replace_input_with(written, functional)
    graph.graph.erase_node(node)


def _counterpart(graph: GraphModule, node: Node) -> Node:
    """Inserts the functional call in front of the in-place one."""
    packet = str(node.target._schema.name).removeprefix("aten::")
    overload = node.target._overloadname
    written = node.args[0]
    if packet in {"copy_", "zero_", "fill_"}:
        return _filled(graph, node, packet)
    functional = getattr(getattr(aten, packet.removesuffix("_"), None), overload, None)
    if functional is None:
        raise _refusal(node, "it has no functional counterpart")
    new = insert(graph, node, functional, written, *node.args[1:], **node.kwargs)
    if new.meta["val"].dtype != node.meta["val"].dtype:
        new = insert(graph, node, aten.to.dtype, new, node.meta["val"].dtype)
    return new


def _filled(graph: GraphModule, node: Node, packet: str) -> Node:
    written = node.args[0]
    if packet == "zero_":
        return insert(graph, node, aten.zeros_like.default, written)
    source = node.args[1]
    if packet == "fill_" and not isinstance(source, Node):
        return insert(graph, node, aten.full_like.default, written, source)
    cast = insert(graph, node, aten.to.dtype, source, node.meta["val"].dtype)
    return insert(graph, node, aten.expand_as.default, cast, written)


def _write_back(graph: GraphModule, node: Node, written: Node, value: Node) -> tuple[Node, Node]:
    """Follows a chain of `select` and `slice` up to its base and rebuilds the base with `value` in place.

    Returns:
        the base that later code reads, and what it has to read instead; `(written, value)` without a view.
    """
    if written.target in (aten.select.int, aten.slice.Tensor):
        scatter = (
            aten.select_scatter.default if written.target == aten.select.int else aten.slice_scatter.default
        )
        source = written.args[0]
        assert isinstance(source, Node)
        updated = insert(graph, node, scatter, source, value, *written.args[1:])
        return _write_back(graph, node, source, updated)
    return written, value


def _refuse_other_views(node: Node, base: Node, written: Node) -> None:
    """A later reader of another view of the same memory would miss the write."""
    own: set[Node] = set()
    link = written
    while link is not base:
        own.add(link)
        link = link.args[0]
    later = _nodes_after(node)
    relatives = [base]
    while _is_view(relatives[-1]) and isinstance(relatives[-1].args[0], Node):
        relatives.append(relatives[-1].args[0])
    root = relatives[-1]
    for view in _views_of(root):
        if view in own or view is base or view in later:
            continue
        if any(user in later for user in view.users):
            raise _refusal(node, "it writes through a view whose memory is read in another shape afterwards")
    if root is not base and any(user in later for user in root.users):
        raise _refusal(node, "it writes through a view whose memory is read in another shape afterwards")


def _views_of(root: Node) -> list[Node]:
    found: list[Node] = []
    queue = [root]
    while queue:
        for user in queue.pop().users:
            if _is_view(user):
                found.append(user)
                queue.append(user)
    return found


def _is_view(node: Node) -> bool:
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "").split(".")[0]
    return name in _VIEWS or name == "getitem"


def _nodes_after(node: Node) -> set[Node]:
    found: set[Node] = set()
    following = node.next
    while following.op != "root":
        found.add(following)
        following = following.next
    return found


def _refusal(node: Node, why: str) -> LoweringError:
    return LoweringError(
        format="torch",
        op=str(node.target),
        where=find_source(node),
        why=why,
        way_out="Write this line without the in-place operation (`y = f(x)` for `x.f_()`).",
    )
