"""Submodules whose names `torch.fx.GraphModule` has for itself, such as `code`: torch cannot unlift their weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Final

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

RESERVED: Final = frozenset(dir(GraphModule)) - frozenset(dir(torch.nn.Module))


def without_reserved_names(exported: ExportedProgram) -> ExportedProgram:
    """The same program, its weights under names that are free: `code.weight` becomes `code_.weight`.

    Args:
        exported: left as it is; given back where there is nothing to rename.
    """
    names = [*exported.state_dict, *exported.constants]
    heads = {name.split(".")[0] for name in names}
    other = {head: _free(head, heads) for head in heads & RESERVED}
    if not other:
        return exported

    def renamed(name: str) -> str:
        head, dot, rest = name.partition(".")
        return f"{other.get(head, head)}{dot}{rest}"

    signature = copy.copy(exported.graph_signature)
    signature.input_specs = [
        replace(spec, target=renamed(spec.target)) if spec.target else spec for spec in signature.input_specs
    ]
    signature.output_specs = [
        replace(spec, target=renamed(spec.target)) if spec.target in names else spec
        for spec in signature.output_specs
    ]
    return ExportedProgram(
        root=exported.graph_module,
        graph=exported.graph,
        graph_signature=signature,
        state_dict={renamed(name): value for name, value in exported.state_dict.items()},
        range_constraints=exported.range_constraints,
        module_call_graph=exported.module_call_graph,
        example_inputs=exported.example_inputs,
        constants={renamed(name): value for name, value in exported.constants.items()},
        verifiers=exported.verifiers,
    )


def _free(head: str, taken: set[str]) -> str:
    while head in taken or head in RESERVED:
        head += "_"
    return head
