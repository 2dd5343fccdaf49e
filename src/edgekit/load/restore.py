"""Puts ops back to the level that a person wrote, and training forms to evaluation forms.

A program may arrive decomposed to core ATen (`convolution`, `addmm`, `native_layer_norm`, …). Quantizers and
converters know `conv2d`, `linear`, `layer_norm`: one spelling of each op keeps every later pass small.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten

Call = tuple[Callable[..., object], tuple[object, ...]]

EVALUATION_NOTE = "the program was exported in training mode; it was switched to evaluation form"


def restore_high_level_ops(module: GraphModule) -> tuple[str, ...]:
    """Rewrite decomposed and training-mode ops.

    Args:
        module: flat graph, edited in place.

    Returns:
        Notes for the report.
    """
    trained = _forget_running_updates(module)
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        trained = _evaluation_form(node) or trained
        rule = _SINGLE.get(node.target._opname)
        if rule is not None:
            _retarget(node, rule(node))
        rule = _FIRST_OF_TUPLE.get(node.target._opname)
        if rule is not None and _only_first_is_used(node):
            _collapse(node, rule(node))
    return (EVALUATION_NOTE,) if trained else ()


_TRAINING_NORMS = ("_native_batch_norm_legit_functional", "native_dropout")


def _forget_running_updates(module: GraphModule) -> bool:
    """Training forms also compute new running statistics and write them back; evaluation does neither."""
    found = False
    for node in reversed(list(module.graph.nodes)):
        name = getattr(node.target, "_opname", "")
        if name in ("copy_", "add_", "copy") and node.args[0].op == "get_attr" and not node.users:
            source = node.args[1]
            norm = (
                source.args[0] if isinstance(source, Node) and source.target is operator.getitem else source
            )
            if not isinstance(norm, Node) or getattr(norm.target, "_opname", "") in (*_TRAINING_NORMS, "add"):
                module.graph.erase_node(node)
        elif name in _TRAINING_NORMS:
            found = True
            for user in list(node.users):
                if not user.users:
                    module.graph.erase_node(user)
    return found


def _retarget(node: Node, call: Call | None) -> None:
    if call is not None:
        node.target, node.args, node.kwargs = call[0], call[1], {}


def _only_first_is_used(node: Node) -> bool:
    return all(u.target is operator.getitem and (u.args[1] == 0 or not u.users) for u in node.users)


def _collapse(node: Node, call: Call | None) -> None:
    """Replace `getitem(node, 0)` by an op that returns one tensor."""
    if call is None:
        return
    graph = node.graph
    with graph.inserting_before(node):
        new = graph.call_function(call[0], call[1])
    new.meta = dict(node.meta)
    for user in list(node.users):
        new.meta["val"] = user.meta.get("val") if user.args[1] == 0 else new.meta.get("val")
        if user.args[1] == 0:
            user.replace_all_uses_with(new)
        graph.erase_node(user)
    graph.erase_node(node)


def _evaluation_form(node: Node) -> bool:
    """Set the `train` argument of an op to False; true when that changed the program."""
    name, args = node.target._opname, list(node.args)
    if name == "scaled_dot_product_attention":
        if len(args) > 4 and args[4] != 0.0:
            args[4] = 0.0
            node.args = tuple(args)
            return True
        return False
    index = {
        "batch_norm": 5,
        "dropout": 2,
        "feature_dropout": 2,
        "alpha_dropout": 2,
        "lstm": 6,
        "gru": 6,
    }.get(name)
    if name in ("dropout", "feature_dropout", "alpha_dropout") and len(args) > 2:
        index = 2
    if index is None or len(args) <= index or args[index] is not True:
        return False
    if name == "batch_norm" and args[3] is None:
        return False  # no running statistics: normalising by the batch is what evaluation does, too
    args[index] = False
    node.args = tuple(args)
    return True


def _arg(node: Node, index: int, default: object = None) -> object:
    return node.args[index] if len(node.args) > index else default


def _convolution(node: Node) -> Call | None:
    x, w, b, stride, pad, dilation, transposed, output_pad, groups = node.args[:9]
    shape = w.meta["val"].shape if "val" in w.meta else ()
    dims = len(shape) - 2 if shape else len(stride)
    if transposed:
        ops = {
            1: aten.conv_transpose1d.default,
            2: aten.conv_transpose2d.input,
            3: aten.conv_transpose3d.input,
        }
        return ops[dims], (x, w, b, stride, pad, output_pad, groups, dilation)
    ops = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
    return ops[dims], (x, w, b, stride, pad, dilation, groups)


def _transposed_weight(node: object) -> Node | None:
    """`w` of `t(w)`, `permute(w, [1, 0])` or `transpose(w, 0, 1)`."""
    if not isinstance(node, Node) or node.op != "call_function":
        return None
    name = getattr(node.target, "_opname", "")
    swaps = (
        name == "t"
        or (name == "permute" and list(node.args[1]) == [1, 0])
        or (name == "transpose" and sorted(node.args[1:3]) in ([0, 1], [-2, -1]))
    )
    return node.args[0] if swaps and node.args[0].op == "get_attr" else None


def _addmm(node: Node) -> Call | None:
    weight = _transposed_weight(node.args[2])
    return (
        None if weight is None or node.kwargs else (aten.linear.default, (node.args[1], weight, node.args[0]))
    )


def _mm(node: Node) -> Call | None:
    weight = _transposed_weight(node.args[1])
    return None if weight is None else (aten.linear.default, (node.args[0], weight))


def _batch_norm(node: Node) -> Call | None:
    x, w, b, mean, var = node.args[:5]
    momentum, eps = node.args[-2:]
    return aten.batch_norm.default, (x, w, b, mean, var, False, momentum, eps, False)


def _dropout(node: Node) -> Call | None:
    return aten.dropout.default, (node.args[0], node.args[1], False)


def _copy(node: Node) -> Call | None:
    """`copy(into, source)` is the source where shape and dtype are already right."""
    into, source = (arg.meta.get("val") for arg in node.args[:2])
    same = (
        into is not None and source is not None and into.dtype == source.dtype and into.shape == source.shape
    )
    return (aten.alias.default, (node.args[1],)) if same else None


def _layer_norm(node: Node) -> Call | None:
    return aten.layer_norm.default, (*node.args[:5], False)


def _group_norm(node: Node) -> Call | None:
    x, w, b, _, _, _, groups, eps = node.args
    return aten.group_norm.default, (x, groups, w, b, eps, False)


def _max_pool2d(node: Node) -> Call | None:
    return aten.max_pool2d.default, node.args


def _attention(node: Node) -> Call | None:
    q, k, v = node.args[:3]
    causal, mask, scale = _arg(node, 4, False), node.kwargs.get("attn_mask"), node.kwargs.get("scale")
    if scale is not None:
        return None
    return aten.scaled_dot_product_attention.default, (q, k, v, mask, 0.0, causal)


def _softmax(node: Node) -> Call | None:
    return aten.softmax.int, node.args[:2]


def _log_softmax(node: Node) -> Call | None:
    return aten.log_softmax.int, node.args[:2]


def _adaptive_pool(node: Node) -> Call | None:
    return aten.adaptive_avg_pool2d.default, node.args


_SINGLE: dict[str, Callable[[Node], Call | None]] = {
    "convolution": _convolution,
    "_convolution": _convolution,
    "addmm": _addmm,
    "mm": _mm,
    "copy": _copy,
    "_softmax": _softmax,
    "_log_softmax": _log_softmax,
    "_adaptive_avg_pool2d": _adaptive_pool,
}

_FIRST_OF_TUPLE: dict[str, Callable[[Node], Call | None]] = {
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_native_batch_norm_legit_functional": _batch_norm,
    "native_dropout": _dropout,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "max_pool2d_with_indices": _max_pool2d,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
}
