"""A module and example inputs → a `Program`, with a free batch where the network has one.

The batch is tried free first and believed only after a test: the outputs for a batch of three must be the
three single outputs. What fails the test is captured at batch one, or as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from edgekit.load.failures import capture_failure
from edgekit.load.graph import flatten, index_bounds
from edgekit.load.inplace import NotFunctional
from edgekit.load.rebatch import Replay
from edgekit.load.reserved import without_reserved_names
from edgekit_converters.errors import LoweringError
from edgekit_converters.program import Program, TensorInfo
from edgekit_converters.source import find_source

# Relative to the largest magnitude of an output: summation order may change with the batch, values may not.
BATCH_TOLERANCE = 1e-4
# How the names of ops that draw random numbers begin.
CHANCE = ("rand", "normal", "bernoulli", "multinomial", "exponential")


@dataclass(frozen=True)
class Captured:
    """A program and what the report should say about how it came to be."""

    program: Program
    notes: tuple[str, ...] = ()


def capture(
    module: torch.nn.Module,
    example: Sequence[Any],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    reference: Callable[..., tuple[torch.Tensor, ...]] | None = None,
) -> Captured:
    """Capture `module` with `torch.export`.

    Args:
        module: in evaluation mode, on the CPU, float32.
        example: positional arguments; tensors, or tuples and dicts of tensors.
        input_names: flat names where the module itself does not carry good ones.
        output_names: the same for the outputs.
        reference: what one row (batch one) must give; without it the program is held against itself.

    Returns:
        The program: batch free if that is proven, else batch one if that is proven, else the given shapes.

    Raises:
        LoweringError: `torch.export` cannot turn the module into one graph.
    """
    flat = [value for value in pytree.tree_leaves(tuple(example)) if isinstance(value, torch.Tensor)]
    carriers = batch_carriers([tuple(value.shape) for value in flat])
    names = (input_names, output_names)
    own = next((value.shape[0] for value, carries in zip(flat, carriers, strict=True) if carries), 1)
    failure: Exception | None = None
    fixed: Captured | None = None
    drawn: Node | None = None
    for batch, free in ((2, True), (1, False), (own, False)):
        try:
            if batch == 1 < own and not _rows_are_samples(module, tuple(example), carriers, own):
                continue
            captured = _export(module, resize_batch(tuple(example), carriers, batch), carriers, free, names)
            drawn = drawn or _chance(captured.program)
            if _proven(captured.program, free, reference if free or batch == 1 else None):
                if free:
                    return captured
                fixed = captured
                break
        except Exception as error:  # noqa: BLE001 - the next route is tried; the last one reports
            failure = error
    if fixed is None and drawn is not None:
        raise LoweringError(
            format="torch",
            op=str(drawn.target).removesuffix(".default"),
            where=find_source(drawn),
            why="it draws random numbers, so that the model gives other results at every call",
            way_out="Use the mean instead of a sample in evaluation mode, or make the random tensor an input of "
            "the model.",
        )
    if fixed is None:
        failure = failure or RuntimeError("the exported graph does not give the results of the model")
        raise capture_failure(failure, module) from failure
    return fixed if isinstance(module, Replay) else _replayed(fixed, flat, batch)


def _rows_are_samples(
    module: torch.nn.Module, example: tuple[Any, ...], carriers: Sequence[bool], batch: int
) -> bool:
    """Does one row alone give what it gives among others? Not where axis 0 is time and attention looks along it."""
    random = torch.Generator().manual_seed(2)

    def drawn(value: Any) -> Any:
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return torch.randn(value.shape, generator=random) if is_float else value

    def row(value: Any, carries: bool, i: int) -> Any:
        return value[i : i + 1] if carries else value

    rows = pytree.tree_map(drawn, example)
    leaves, shape = pytree.tree_flatten(rows)
    flags = iter(carriers)
    carried = [isinstance(leaf, torch.Tensor) and next(flags) for leaf in leaves]
    with torch.no_grad():
        together = pytree.tree_leaves(module(*rows))
        for i in (0, batch - 1):
            one = [row(leaf, carries, i) for leaf, carries in zip(leaves, carried, strict=True)]
            alone = pytree.tree_leaves(module(*pytree.tree_unflatten(one, shape)))
            for many, single in zip(together, alone, strict=True):
                if not isinstance(many, torch.Tensor) or many.shape[:1] != (batch,):
                    continue
                if not close(many[i : i + 1], single, BATCH_TOLERANCE):
                    return False
    return True


def _chance(program: Program) -> Node | None:
    """The first op that draws random numbers which are used."""
    for node in program.graph.graph.nodes:
        name = getattr(node.target, "_opname", "") if node.op == "call_function" else ""
        if node.users and name.startswith(CHANCE):
            return node
    return None


def _replayed(fixed: Captured, example: Sequence[torch.Tensor], batch: int) -> Captured:
    """The batch that was written into a graph is set free, if that is proven to change nothing."""
    program = fixed.program
    inputs = [info.name for info in program.inputs]
    outputs = [info.name for info in program.outputs]
    carriers = batch_carriers([tuple(value.shape) for value in example])
    rows = resize_batch(tuple(v.float() if v.is_floating_point() else v for v in example), carriers, batch)
    reference = one_row(program.graph, rows)
    again = capture(
        Replay(program.graph, batch), rows, input_names=inputs, output_names=outputs, reference=reference
    )
    better = again.program.dynamic_batch or (batch != 1 and again.program.inputs[0].shape[:1] == (1,))
    return Captured(again.program, fixed.notes + again.notes) if better else fixed


def one_row(
    run: Callable[..., tuple[torch.Tensor, ...]], inputs: Sequence[torch.Tensor]
) -> Callable[..., tuple[torch.Tensor, ...]]:
    """What `run` gives for one row, though it may only take the batch of `inputs`.

    The row is repeated to that batch and the first row of each result is taken.
    """
    carriers = batch_carriers([tuple(v.shape) for v in inputs])
    batch = next((v.shape[0] for v, carries in zip(inputs, carriers, strict=True) if carries), 1)

    def one(*row: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = run(*resize_batch(row, carriers, batch))
        if batch == 1:
            return tuple(results)
        return tuple(r[:1] if r.shape[:1] == (batch,) else r for r in results)

    return one


def _proven(program: Program, free: bool, reference: Callable[..., tuple[torch.Tensor, ...]] | None) -> bool:
    if free and not batch_is_free(program):
        return False
    return reference is None or agrees(program.graph, reference, program)


def batch_carriers(shapes: Sequence[tuple[int, ...]]) -> tuple[bool, ...]:
    """Which inputs have a batch on axis 0: those that agree with the first input that has an axis."""
    sizes = [shape[0] for shape in shapes if shape]
    return tuple(bool(shape) and shape[0] == sizes[0] for shape in shapes)


def resize_batch(example: Any, carriers: Sequence[bool], batch: int) -> Any:
    """The same pytree with `batch` rows (repeated as needed) in every tensor that carries the batch."""
    flags = iter(carriers)

    def one(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not next(flags):
            return value
        repeats = -(-batch // value.shape[0])
        return value.repeat(repeats, *[1] * (value.dim() - 1))[:batch].contiguous()

    return pytree.tree_map(one, example)


def _export(
    module: torch.nn.Module,
    example: tuple[Any, ...],
    carriers: Sequence[bool],
    dynamic: bool,
    names: tuple[Sequence[str] | None, Sequence[str] | None],
) -> Captured:
    shapes = None
    if dynamic:
        flags = iter(carriers)
        shapes = pytree.tree_map(
            lambda v: {0: torch.export.Dim.AUTO} if isinstance(v, torch.Tensor) and next(flags) else None,
            example,
        )
    with torch.no_grad():
        exported = torch.export.export(
            module, example, dynamic_shapes=_for_varargs(module, shapes), strict=False
        )
    graph, notes = flatten_exported(exported)
    holders = graph.graph.find_nodes(op="placeholder")
    if names[0] is not None:
        for node, name in zip(holders, names[0], strict=True):
            node._rename(name)
            node.target = node.name
        graph.recompile()
    tensors = [v for v in pytree.tree_leaves(example) if isinstance(v, torch.Tensor)]
    count = len(next(n for n in graph.graph.nodes if n.op == "output").args[0])
    inputs = names[0] or [node.name for node in holders]
    return Captured(program_of(graph, tensors, inputs, names[1] or output_names_of(exported, count)), notes)


def _for_varargs(module: torch.nn.Module, shapes: Any) -> Any:
    """`forward(*args)` wants its dynamic shapes as one nested tuple."""
    if shapes is None:
        return None
    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    return (shapes,) if kinds == [inspect.Parameter.VAR_POSITIONAL] else shapes


def flatten_exported(exported: torch.export.ExportedProgram) -> tuple[GraphModule, tuple[str, ...]]:
    """Flat graph and notes; in-place ops tangled with views go through torch's own pass."""
    exported = without_reserved_names(exported)
    try:
        return flatten(exported.module(check_guards=False))
    except NotFunctional:
        return flatten(exported.run_decompositions({}).module(check_guards=False))


def program_of(
    graph: GraphModule,
    example: Sequence[torch.Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> Program:
    """The program around a flat graph, as it is: no shape is changed.

    Args:
        graph: placeholders and outputs carry `meta["val"]`.
        example: one tensor per placeholder, at the batch that a static graph was captured at.
        input_names: one per placeholder; the placeholders are renamed to match.
        output_names: one per output.
    """
    holders = graph.graph.find_nodes(op="placeholder")
    symbols = {_symbol(node.meta["val"]) for node in holders} - {None}
    symbol = next(iter(symbols)) if len(symbols) == 1 else None
    tensors = [v.float() if v.is_floating_point() else v for v in example]
    carriers = [
        _symbol(node.meta["val"]) == symbol if symbol else value.shape[:1] == (1,)
        for node, value in zip(holders, tensors, strict=True)
    ]
    one = resize_batch(tuple(tensors), carriers, 1)
    with torch.no_grad():
        results = graph(*one)
    sources = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    inputs = tuple(
        TensorInfo(name, tuple(v.shape), dtype_name(v), carries)
        for name, v, carries in zip(input_names, one, carriers, strict=True)
    )
    outputs = tuple(
        TensorInfo(
            name,
            tuple(result.shape),
            dtype_name(result),
            _symbol(node.meta.get("val")) == symbol if symbol else result.shape[:1] == (1,),
        )
        for name, result, node in zip(output_names, results, sources, strict=True)
    )
    return Program(graph, inputs, outputs, one, symbol is not None)


def _symbol(value: object) -> str | None:
    """The symbol of axis 0, or None when it is a number."""
    if not isinstance(value, torch.Tensor) or not value.dim() or isinstance(value.shape[0], int):
        return None
    return str(value.shape[0])


def dtype_name(tensor: torch.Tensor) -> str:
    """The numpy name of a tensor's dtype."""
    return str(tensor.dtype).removeprefix("torch.")


def output_names_of(exported: torch.export.ExportedProgram, count: int) -> list[str]:
    """Names of the flat outputs: keys of a dict or a named tuple, else `output`, `output_0`, …."""
    spec = exported.call_spec.out_spec
    if spec is None or spec.num_leaves != count:
        return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
    tree = pytree.tree_unflatten(list(range(count)), spec)
    names = []
    for path, _ in pytree.tree_flatten_with_path(tree)[0]:
        parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
        name = "_".join(part for part in parts if part)
        names.append("output" if not name else f"output_{name}" if name[0].isdigit() else name)
    return ["output"] if count == 1 and names[0] == "output_0" else names


def probe(program: Program, batch: int, *, seed: int) -> tuple[torch.Tensor, ...]:
    """Random inputs that the program accepts: unit normal, indices inside their embedding, fair booleans."""
    bounds = index_bounds(program.graph)
    holders = program.graph.graph.find_nodes(op="placeholder")
    random = torch.Generator().manual_seed(seed)
    values = []
    for info, node, like in zip(program.inputs, holders, program.example, strict=True):
        shape = (batch, *info.shape[1:]) if info.batch else info.shape
        if like.is_floating_point():
            values.append(torch.randn(shape, generator=random))
        else:
            high = 2 if like.dtype == torch.bool else bounds.get(node.name, 2)
            values.append(torch.randint(0, high, shape, generator=random).to(like.dtype))
    return tuple(values)


def batch_is_free(program: Program) -> bool:
    """True when the outputs for a batch of three are the three single outputs, one after the other."""
    return program.dynamic_batch and agrees(program.graph, program.graph, program)


def agrees(candidate: GraphModule, reference: Callable[..., Any], program: Program) -> bool:
    """Does `candidate` (at batch three where its batch is free) give what `reference` gives for each row?

    Args:
        candidate: flat graph with a free batch.
        reference: callable with the flat inputs at batch one, returning a flat tuple.
        program: says which inputs and outputs carry the batch.
    """
    rows = probe(program, 3 if program.dynamic_batch else program.inputs[0].shape[0], seed=1)
    with torch.no_grad():
        together = candidate(*rows)
        for i in range(3 if program.dynamic_batch else 1):
            single = [v[i : i + 1] if info.batch else v for v, info in zip(rows, program.inputs, strict=True)]
            for many, one, info in zip(together, reference(*single), program.outputs, strict=True):
                row = many[i : i + 1] if info.batch else many
                if not close(row, one, BATCH_TOLERANCE):
                    return False
    return True


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    """Same shape, and equal within `tolerance` of the largest finite magnitude of `b` (NaN equals NaN)."""
    if a.shape != b.shape:
        return False
    if not a.numel():
        return True
    a, b = a.double(), b.double()
    scale = b[torch.isfinite(b)].abs().max().item() if torch.isfinite(b).any() else 1.0
    return bool(torch.allclose(a, b, rtol=0.0, atol=tolerance * max(scale, 1e-6), equal_nan=True))
