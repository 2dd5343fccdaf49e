"""Small rewrites of the exported graph that coremltools needs; values are unchanged bit for bit."""

from __future__ import annotations

import copy

import torch
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
POOLS = (aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
ALL_DEFAULTS = (
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
    aten.cosine_similarity.default,
)
MOVES = (
    aten._unsafe_view.default,  # half of a reshape that copies
    aten.clone.default,
    aten.expand.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.reshape.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.view.default,
)


def with_outputs_of_their_own(module: GraphModule) -> GraphModule:
    """Copies outputs that are inputs, constants or other outputs too; in Core ML one name is one tensor.

    Args:
        module: graph that returns a tuple; not changed.

    Returns:
        The module itself when nothing is shared, else a new one with the same tensors.
    """
    output = next(n for n in module.graph.nodes if n.op == "output")
    returned = output.args[0] if isinstance(output.args[0], (tuple, list)) else (output.args[0],)
    shared = [i for i, n in enumerate(returned) if n.op != "call_function" or n in returned[:i]]
    if not shared:
        return module
    module = GraphModule(module, copy.deepcopy(module.graph))
    output = next(n for n in module.graph.nodes if n.op == "output")
    own = list(output.args[0])
    with module.graph.inserting_before(output):
        for index in shared:
            own[index] = module.graph.call_function(aten.clone.default, (own[index],))
            own[index].meta["val"] = returned[index].meta.get("val")
    output.args = (tuple(own),)
    module.recompile()
    return module


def spell_out_defaults(graph: Graph) -> None:
    """Writes out, in place, default arguments that coremltools counts on."""
    for node in graph.nodes:
        if node.target in POOLS and not (node.args[2:3] and node.args[2]):
            # A pool without a stride steps by its kernel.
            node.args = (*node.args[:2], node.args[1], *node.args[3:])
        elif node.target in ALL_DEFAULTS:
            schema = node.target._schema.arguments
            given = len(node.args)
            node.args = (*node.args, *(node.kwargs.get(a.name, a.default_value) for a in schema[given:]))
            node.kwargs = {}


def join_moves(graph: Graph) -> None:
    """Takes out, in place, quantize and dequantize between two ops that only move elements on one grid.

    What comes from a grid and has only been moved is on that grid, so the pair does nothing there. Core ML
    stops at tensors of more than five axes, and coremltools replaces a chain reshape, transpose, reshape
    through six (window attention, pixel shuffling by hand) only when nothing stands between them.
    """
    for move in [n for n in graph.nodes if n.target in MOVES]:
        before = _source_of(move)
        after = _only_user(move)
        back = _only_user(after) if after is not None else None
        if (
            after is None
            or back is None
            or before.target != quantized.dequantize_per_tensor.default
            or after.target != quantized.quantize_per_tensor.default
            or back.target != quantized.dequantize_per_tensor.default
            or not before.args[1:] == after.args[1:] == back.args[1:]
            or not all(user.target in MOVES for user in back.users)
        ):
            continue
        # The next move then reads from the dequantize before this one, and is joined in its turn.
        back.replace_all_uses_with(move)
        graph.erase_node(back)
        graph.erase_node(after)


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _source_of(move: Node) -> Node:
    """Finds what a chain of moves starts from."""
    source = move.args[0]
    while source.target in MOVES:
        source = source.args[0]
    return source
