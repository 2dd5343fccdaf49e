"""Removes units: narrower weights, and the shape constants that would break on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.errors import LoweringError
from edgekit.stages.prune.context import arguments, kept_shape, wrapped
from edgekit.stages.prune.graphs import set_argument
from edgekit.stages.prune.trace import Structure
from edgekit.stages.prune.units import Axes, Labels
from edgekit_converters.program import Program

Mask = np.ndarray


@dataclass(frozen=True)
class _Edit:
    """One node, before and after.

    Attributes:
        node: in the new graph.
        before: arguments by name.
        axes: units of its first operand.
        shape: of its first operand, before.
        out: units of what it gives.
        size: shape of what it gives, afterwards; of the first result where there are several.
        sizes: shapes of all results, afterwards.
        keep: mask over units.
    """

    node: Node
    before: Mapping[str, Any]
    axes: Axes
    shape: tuple[int, ...]
    out: Axes
    size: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]
    keep: Mask

    def count(self, labels: Labels) -> int:
        """Positions that are left of these."""
        return int(self.keep[labels].sum())


def cut(program: Program, structure: Structure, keep: Mask) -> Program:
    """The program without some units.

    Args:
        program: the one that was traced; it is not changed.
        structure: of it.
        keep: bool per unit, and True at the end.

    Returns:
        A program whose nodes have the same names. Weights are copies.

    Raises:
        LoweringError: the narrower program does not run as planned.
    """
    if not keep[-1]:
        raise ValueError("the last entry of the mask stands for what stays")
    graph = copy.deepcopy(program.graph)
    _narrow(graph, structure, keep)
    for node in list(graph.graph.nodes):
        _rewrite(node, structure, keep)
    graph.graph.lint()
    graph.recompile()
    narrow = replace(program, graph=graph)
    _check(narrow, structure, keep)
    return narrow


def _narrow(graph: GraphModule, structure: Structure, keep: Mask) -> None:
    """Take the removed positions out of every weight and constant; what was one tensor stays one."""
    targets = sorted({target for target, _ in structure.parameters})
    made: dict[int, torch.Tensor] = {}
    for target in targets:
        owner, _, name = target.rpartition(".")
        module = graph.get_submodule(owner)
        old = getattr(module, name)
        if id(old) not in made:
            new = old.detach()
            for axis in range(old.dim()):
                units = structure.parameters.get((target, axis))
                if units is not None and not keep[units].all():
                    new = new.index_select(axis, torch.from_numpy(np.flatnonzero(keep[units])))
            made[id(old)] = (
                torch.nn.Parameter(new.clone(), requires_grad=old.requires_grad)
                if isinstance(old, torch.nn.Parameter)
                else new.clone()
            )
        setattr(module, name, made[id(old)])


def _rewrite(node: Node, structure: Structure, keep: Mask) -> None:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return
    rewrite = REWRITES.get(node.target._schema.name.split("::")[1])
    if rewrite is None:
        return
    results = structure.results(node.name)
    sizes = tuple(kept_shape(axes, shape, keep) for axes, shape in results)
    if sizes == tuple(tuple(shape) for _, shape in results) and _same_operands(node, structure, keep):
        return
    source = node.args[0] if node.args else None
    axes, shape = structure.results(source.name)[0] if isinstance(source, Node) else ((), ())
    rewrite(_Edit(node, arguments(node), axes, shape, results[0][0], sizes[0], sizes, keep))


def _same_operands(node: Node, structure: Structure, keep: Mask) -> bool:
    axes = [a for operand in node.all_input_nodes for a, _ in structure.results(operand.name)]
    return all(labels is None or bool(keep[labels].all()) for each in axes for labels in each)


def _sizes(name: str) -> Callable[[_Edit], None]:
    """Numbers of an argument that is a shape; -1 and sizes known at run time stay."""

    def rewrite(edit: _Edit) -> None:
        given = edit.before[name]
        offset = len(edit.size) - len(given)
        new = [edit.size[k + offset] if isinstance(n, int) and n != -1 else n for k, n in enumerate(given)]
        set_argument(edit.node, name, new)

    return rewrite


def _unflatten(edit: _Edit) -> None:
    given, dim = edit.before["sizes"], wrapped(edit.before["dim"], len(edit.axes))
    set_argument(edit.node, "sizes", [edit.size[dim + k] if n != -1 else n for k, n in enumerate(given)])


def _groups(edit: _Edit) -> None:
    """A depthwise convolution has as many groups as channels."""
    weight, groups = edit.before["weight"], int(edit.before["groups"])
    assert isinstance(weight, Node)
    channel = -1 - len(edit.before["stride"]) if isinstance(edit.before["stride"], (list, tuple)) else 1
    labels = edit.axes[channel]
    if labels is not None and len(labels) == groups > 1:
        set_argument(edit.node, "groups", edit.count(labels))


def _norm_groups(edit: _Edit) -> None:
    """A norm of single channels has as many groups as channels."""
    labels, groups = edit.axes[1], int(edit.before["num_groups"])
    if labels is not None and len(labels) == groups:
        set_argument(edit.node, "num_groups", edit.count(labels))


def _scale(edit: _Edit) -> None:
    """Scores stay as large as they were where queries and keys get narrower."""
    labels = edit.axes[-1]
    if edit.before["scale"] is None and labels is not None:
        set_argument(edit.node, "scale", len(labels) ** -0.5)


def _squeeze(edit: _Edit) -> None:
    """Only what was one position wide is dropped, and not what becomes so."""
    given = edit.before.get("dim")
    dims = range(len(edit.shape)) if given is None else given if isinstance(given, (list, tuple)) else [given]
    edit.node.target = torch.ops.aten.squeeze.dims
    edit.node.args = (edit.node.args[0], [wrapped(k, len(edit.shape)) for k in dims if edit.shape[k] == 1])
    edit.node.kwargs = {}


def _normalized(edit: _Edit) -> None:
    n = len(edit.before["normalized_shape"])
    set_argument(edit.node, "normalized_shape", list(edit.size[len(edit.size) - n :]))


def _parts(edit: _Edit) -> None:
    """Any kind of split becomes one with sizes: parts may differ now."""
    dim = wrapped(edit.before["dim"], len(edit.axes))
    if edit.axes[dim] is None:
        return
    edit.node.target = torch.ops.aten.split_with_sizes.default
    edit.node.args = (edit.node.args[0], [size[dim] for size in edit.sizes], dim)
    edit.node.kwargs = {}


def _slice(edit: _Edit) -> None:
    labels = edit.axes[wrapped(edit.before["dim"], len(edit.axes))]
    if labels is None:
        return
    start, end, _ = slice(edit.before["start"], edit.before["end"]).indices(len(labels))
    first = edit.count(labels[:start])
    set_argument(edit.node, "start", first)
    set_argument(edit.node, "end", first + edit.count(labels[start : max(start, end)]))


def _narrowed(edit: _Edit) -> None:
    dim = wrapped(edit.before["dim"], len(edit.axes))
    labels = edit.axes[dim]
    if labels is not None and isinstance(edit.before["start"], int):
        set_argument(edit.node, "start", edit.count(labels[: edit.before["start"] % len(labels)]))
        set_argument(edit.node, "length", edit.size[dim])


def _select(edit: _Edit) -> None:
    labels = edit.axes[wrapped(edit.before["dim"], len(edit.axes))]
    if labels is not None and isinstance(edit.before["index"], int):
        set_argument(edit.node, "index", edit.count(labels[: edit.before["index"] % len(labels)]))


def _pad(edit: _Edit) -> None:
    name = "pad" if "pad" in edit.before else "padding"
    new = list(edit.before[name])
    for i in range(len(new) // 2):
        labels = edit.out[len(edit.out) - 1 - i]
        low, high = new[2 * i : 2 * i + 2]
        if labels is not None and (low or high):
            new[2 * i : 2 * i + 2] = edit.count(labels[:low]), edit.count(labels[len(labels) - high :])
    set_argument(edit.node, name, new)


REWRITES: Final[Mapping[str, Callable[[_Edit], None]]] = {
    **dict.fromkeys(("view", "_unsafe_view", "view_copy", "expand", "broadcast_to", "zeros", "ones", "full", "empty",
                     "new_zeros", "new_ones", "new_full", "new_empty"), _sizes("size")),
    "reshape": _sizes("shape"),
    "unflatten": _unflatten,
    "squeeze": _squeeze,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
                    _groups),
    "group_norm": _norm_groups,
    **dict.fromkeys(("layer_norm", "rms_norm"), _normalized),
    "scaled_dot_product_attention": _scale,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"), _parts),
    "slice": _slice,
    "narrow": _narrowed,
    "select": _select,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
}  # fmt: skip


class _Checked(torch.fx.Interpreter):  # type: ignore[misc]
    """Runs the narrower program and compares every shape with the plan."""

    def __init__(self, program: Program, structure: Structure, keep: Mask) -> None:
        super().__init__(program.graph)
        self.structure, self.keep = structure, keep

    def run_node(self, n: Node) -> Any:
        try:
            result = super().run_node(n)
        except Exception as error:
            raise _broken(n, f"it does not run: {error}") from error
        if n.op == "output":
            return result
        results = result if isinstance(result, (tuple, list)) else [result]
        for value, (axes, shape) in zip(results, self.structure.results(n.name), strict=True):
            wanted = kept_shape(axes, shape, self.keep)
            if isinstance(value, torch.Tensor) and tuple(value.shape) != wanted:
                raise _broken(n, f"it gives {tuple(value.shape)} instead of {wanted}")
        return result


def _check(program: Program, structure: Structure, keep: Mask) -> None:
    with torch.no_grad():
        _Checked(program, structure, keep).run(*program.example)


def _broken(node: Node, why: str) -> LoweringError:
    return LoweringError(
        format="torch",
        op=str(node.target),
        where=node.name,
        why=f"after channels were removed, {why}",
        way_out="Keep the layers around it whole with [prune] keep in the recipe, and report the model.",
    )
