"""From the quantized fx graph to the exported program that coremltools reads."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from edgekit_converters.coreml.rewrite import join_moves, spell_out_defaults, with_outputs_of_their_own
from edgekit_converters.errors import LoweringError
from edgekit_converters.program import Program
from edgekit_converters.source import find_source

WAY_OUT = (
    "Replace the op in the model by supported ones, keep it outside of the exported model, "
    "or leave coreml out of --format."
)


def capture(program: Program, supported: Collection[str]) -> ExportedProgram:
    """Exports a program so that every op is one that coremltools converts.

    Composite ops stay whole where there is a conversion (`linear`, `layer_norm`, `lstm.input`): decomposed,
    they come out as a longer program with other roundings. Only ops without a conversion are decomposed.

    Args:
        program: quantized or float program. Batch size one is fixed: a flexible batch would keep the program
            off the Neural Engine, which takes fixed and enumerated shapes only.
        supported: ops with a conversion, as coremltools spells them.

    Returns:
        Functional program in the ATen dialect.

    Raises:
        LoweringError: an op has no conversion and no decomposition into ops that have one.
    """
    graph = with_outputs_of_their_own(program.graph)
    exported = torch.export.export(graph, program.example).run_decompositions({})
    asked = _unsupported(exported.graph, supported)
    if asked:
        table = {op: rule for op, rule in _decompositions().items() if op_kind(op) not in supported}
        exported = exported.run_decompositions(table)
    if missing := _unsupported(exported.graph, supported):
        # What is left may be an inner part of a decomposition; the user knows the op that it came from.
        trace = missing[0].meta.get("stack_trace")
        node = next((n for n in asked if n.meta.get("stack_trace") == trace), missing[0])
        raise LoweringError(
            format="coreml",
            op=str(node.target).removesuffix(".default"),
            where=find_source(node),
            why="coremltools has no conversion for it, nor for what PyTorch decomposes it into",
            way_out=WAY_OUT,
        )
    spell_out_defaults(exported.graph)
    join_moves(exported.graph)
    return exported


def can_decompose(kind: str, exported: ExportedProgram) -> bool:
    """Tells whether PyTorch has a decomposition for the ops of a kind that occur in a program."""
    targets = {
        n.target for n in exported.graph.nodes if n.op == "call_function" and op_kind(n.target) == kind
    }
    return bool(targets) and targets <= _decompositions().keys()


@cache
def _decompositions() -> dict[Any, Any]:
    # PyTorch counts some ops as elementary (bilinear resizing, padding) that it can decompose all the same.
    return {**decomposition_table, **torch.export.default_decompositions()}


def op_kind(target: Any) -> str:
    """Spells an op the way coremltools looks it up, e.g. `conv2d`, `lstm.input`."""
    from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind

    name = target.name() if hasattr(target, "name") else getattr(target, "__name__", str(target))
    kind: str = sanitize_op_kind(name)
    return kind.removesuffix("_")


def _unsupported(graph: Graph, supported: Collection[str]) -> list[Node]:
    return [n for n in graph.nodes if n.op == "call_function" and op_kind(n.target) not in supported]
