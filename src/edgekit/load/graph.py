"""From the graph that `torch.export` makes to the graph that a `Program` promises.

The promise (see `edgekit_converters.program.Program`): flat inputs, flat tuple out, no guards, no in-place
ops, evaluation form, float32, high-level ATen ops. Every step here edits one `torch.fx` graph and is exact,
but for half-precision programs, which are computed in float32 from then on.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch.fx import GraphModule, Node

from edgekit.load.inplace import functionalize
from edgekit.load.restore import restore_high_level_ops
from edgekit_converters.errors import LoweringError

aten = torch.ops.aten

_CHECKS = (
    "_assert_tensor_metadata", "_assert_async", "_assert_scalar", "_check", "sym_constrain_range",
    "sym_constrain_range_for_size", "_functional_assert_async", "_functional_assert_scalar",
)  # fmt: skip
_HALF = (torch.float16, torch.bfloat16, torch.float64)


def flatten(module: GraphModule) -> tuple[GraphModule, tuple[str, ...]]:
    """A graph module with plain calling convention that keeps the promise of `Program.graph`.

    Args:
        module: `ExportedProgram.module(check_guards=False)`; it is not changed.

    Returns:
        The new graph module and notes for the report (what was switched to evaluation form, what was cast).

    Raises:
        LoweringError: the graph holds control flow or custom code that has no tensor op.
        NotFunctional: a value is changed in place while a view of it is still read.
    """
    graph = torch.fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    graph.set_codegen(torch.fx.graph.CodeGen())
    flat = GraphModule(module, graph)
    _inline_regions(flat)
    _erase_checks(flat)
    notes = restore_high_level_ops(flat)
    functionalize(flat)
    notes += _cast_to_float32(flat)
    _drop_constant_inputs(flat)
    _free_batch_views(flat)
    _tuple_output(flat)
    return tidy(flat), notes


def tidy(module: GraphModule) -> GraphModule:
    """Drop dead nodes and the attributes nobody reads; placeholders stay."""
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.delete_all_unused_submodules()
    fresh = GraphModule(module, module.graph)
    fresh.eval()
    return fresh


def _inline_regions(module: GraphModule) -> None:
    """Inline `torch.no_grad()` and `autocast` regions; anything else of a higher order cannot be lowered."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        name = node.target.__name__
        skip = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}.get(name)
        if skip is None:
            raise LoweringError(
                format="torch",
                op=name,
                where=source_line(node),
                why="control flow that depends on data cannot become a fixed graph",
                way_out="Replace it by tensor ops (torch.where) or take the branch out of the model.",
            )
        region = module.get_submodule(node.args[skip].target)
        _inline(module, region, node, node.args[skip + 1 :])


def _inline(module: GraphModule, region: GraphModule, node: Node, operands: tuple[object, ...]) -> None:
    _inline_regions(region)
    values: dict[Node, object] = {}
    inputs = iter(operands)
    with module.graph.inserting_before(node):
        for inner in region.graph.nodes:
            if inner.op == "placeholder":
                values[inner] = next(inputs)
            elif inner.op != "output":
                if inner.op == "get_attr":
                    _adopt(module, region, inner.target)
                values[inner] = module.graph.node_copy(inner, lambda n: values[n])
    (result,) = next(n for n in region.graph.nodes if n.op == "output").args
    results = [values.get(r, r) for r in (result if isinstance(result, (tuple, list)) else (result,))]
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(results[user.args[1]])
            module.graph.erase_node(user)
    if node.users:
        node.replace_all_uses_with(results[0])
    module.graph.erase_node(node)


def _adopt(module: GraphModule, region: GraphModule, target: str) -> None:
    """Give `module` the attribute that a region reads, under the same dotted name."""
    owner, _, leaf = target.rpartition(".")
    if not hasattr(module, target.split(".", maxsplit=1)[0]):
        value = getattr(region.get_submodule(owner) if owner else region, leaf)
        module.register_buffer(target, value) if not owner else setattr(
            module, owner, region.get_submodule(owner)
        )


def _erase_checks(module: GraphModule) -> None:
    """Run-time assertions guard shapes that are fixed from here on."""
    for node in reversed(list(module.graph.nodes)):
        if node.op != "call_function" or node.users:
            continue
        if getattr(node.target, "_opname", "") in _CHECKS or node.target in (
            torch._check,
            torch._check_is_size,
        ):
            module.graph.erase_node(node)


def _cast_to_float32(module: GraphModule) -> tuple[str, ...]:
    """Weights and dtype arguments of other floating types become float32."""
    weights = [*module.parameters(), *module.buffers()]
    found = {str(w.dtype).removeprefix("torch.") for w in weights if w.dtype in _HALF}
    for node in module.graph.nodes:
        if node.op == "call_function":
            node.args = torch.fx.map_arg(tuple(map(_as_float32, node.args)), lambda n: n)
            node.kwargs = {key: _as_float32(value) for key, value in node.kwargs.items()}
    if found:
        module.float()
    return (f"weights were {' and '.join(sorted(found))}; they are computed in float32",) if found else ()


def _as_float32(value: object) -> object:
    return torch.float32 if value in _HALF and isinstance(value, torch.dtype) else value


def _drop_constant_inputs(module: GraphModule) -> None:
    """Arguments of `forward` that are numbers or `None` are baked in by export: no longer inputs."""
    for node in list(module.graph.nodes):
        if node.op == "placeholder" and "val" in node.meta and not isinstance(node.meta["val"], torch.Tensor):
            if node.users:
                node.replace_all_uses_with(node.meta["val"])
            module.graph.erase_node(node)


def _free_batch_views(module: GraphModule) -> None:
    """`view(x, [batch, 3, 4])` → `view(x, [-1, 3, 4])`: one symbolic size is what -1 is for.

    Converters then need no integer arithmetic in the graph for the usual networks.
    """
    for node in module.graph.find_nodes(op="call_function", target=aten.view.default) + list(
        module.graph.find_nodes(op="call_function", target=aten.reshape.default)
    ):
        sizes = list(node.args[1])
        symbolic = [i for i, size in enumerate(sizes) if isinstance(size, Node)]
        if len(symbolic) == 1 and -1 not in sizes and 0 not in sizes:
            sizes[symbolic[0]] = -1
            node.args = (node.args[0], sizes)


def _tuple_output(module: GraphModule) -> None:
    output = next(node for node in module.graph.nodes if node.op == "output")
    values = output.args[0]
    values = tuple(values) if isinstance(values, (tuple, list)) else (values,)
    for value in values:
        if not isinstance(value, Node):
            raise LoweringError(
                format="torch",
                op="output",
                where="",
                why=f"the model returns {value!r}, which is not a tensor",
                way_out="Return tensors only from forward().",
            )
    output.args = (values,)


def source_line(node: Node) -> str:
    """`file:line` of the user's code that made `node`, or the module path, or ""."""
    frames = [
        line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if "File " in line
    ]
    if frames:
        parts = frames[-1].split(", ")
        return parts[0].removeprefix("File ").strip('"') + ":" + parts[1].removeprefix("line ").split(" ")[0]
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(list(stack.values())), ("",))[0])


def index_bounds(module: GraphModule) -> dict[str, int]:
    """Placeholder name to the number of rows of the smallest embedding that it indexes.

    Args:
        module: a flat graph.

    Returns:
        Only inputs that reach an embedding through ops that keep the values.
    """
    bounds: dict[str, int] = {}
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target is not aten.embedding.default:
            continue
        source = node.args[1]
        while source.op == "call_function" and _keeps_values(source.target):
            source = source.args[0]
        if source.op == "placeholder":
            rows = attribute(module, node.args[0]).shape[0]
            bounds[source.name] = min(rows, bounds.get(source.name, rows))
    return bounds


def _keeps_values(target: Callable[..., object]) -> bool:
    return getattr(target, "_opname", "") in (
        "view", "reshape", "flatten", "to", "_to_copy", "clone", "contiguous", "unsqueeze", "squeeze",
        "slice", "select", "transpose", "permute", "expand", "alias", "detach",
    )  # fmt: skip


def attribute(module: torch.nn.Module, node: Node) -> torch.Tensor:
    """The tensor behind a `get_attr` node."""
    value: object = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, torch.Tensor)
    return value
