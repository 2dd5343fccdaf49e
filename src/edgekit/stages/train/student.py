"""Another network to train in the place of the original, built by the user's own code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from edgekit.errors import UsageError
from edgekit.load import load_candidate
from edgekit.usercode import imported
from edgekit_converters.program import Program, TensorInfo

_KEY = "train.student"
_BUILDS = "a callable without arguments that builds a torch.nn.Module"


def load_student(spec: str, teacher: Program, *, seed: int) -> Program:
    """Build and capture the network behind `student` of the recipe.

    Args:
        spec: "module:callable", called without arguments; gives a torch.nn.Module, trained before or not.
        teacher: whose inputs it takes and whose outputs it has to give.
        seed: of the weights that the callable draws.

    Returns:
        The student in evaluation mode, with the names of the teacher's inputs and outputs.

    Raises:
        UsageError: it cannot be built, or its inputs or outputs are not the teacher's.
        LoweringError: it cannot become one graph.
    """
    module = _built(spec, seed)
    batch = 2 if teacher.dynamic_batch else 1
    example = [
        x.repeat(batch, *[1] * (x.dim() - 1)) if info.batch else x
        for x, info in zip(teacher.example, teacher.inputs, strict=True)
    ]
    program = load_candidate(module, example=example).program
    _same(spec, "inputs", program.inputs, teacher.inputs)
    _same(spec, "outputs", program.outputs, teacher.outputs)
    return replace(program, inputs=teacher.inputs, outputs=teacher.outputs)


def _built(spec: str, seed: int) -> torch.nn.Module:
    build = imported(
        spec,
        named=f"recipe: {_KEY} = {spec!r}",
        expected=_BUILDS,
        way_out="Run in the folder of the module, or install it; and check the spelling.",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = build()
        except Exception as error:  # the user's code may raise anything
            raise UsageError(
                f"recipe: {_KEY} = {spec!r} raised {type(error).__name__}: {error}",
                expected=_BUILDS,
                way_out="Run it by itself and mend it; give it defaults for all its arguments.",
            ) from error
    if not isinstance(module, torch.nn.Module):
        raise UsageError(
            f"recipe: {_KEY} = {spec!r} gave a {type(module).__name__}",
            expected=_BUILDS,
            way_out="Return the network itself.",
        )
    return module


def _same(spec: str, kind: str, found: Sequence[TensorInfo], wanted: Sequence[TensorInfo]) -> None:
    if [(i.shape, i.dtype) for i in found] == [(i.shape, i.dtype) for i in wanted]:
        return
    raise UsageError(
        f"recipe: {_KEY} = {spec!r} has the {kind} {_listed(found)}",
        expected=f"those of the original network, {_listed(wanted)}",
        way_out=f"Give the student the same {kind}; what lies between is up to it.",
    )


def _listed(infos: Sequence[TensorInfo]) -> str:
    return ", ".join(f"{i.dtype} {i.shape}" for i in infos)
