"""An exported program → a `Program`, with the batch set free where that is proven to be right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils import _pytree as pytree

from edgekit.errors import UsageError
from edgekit.load.capture import (
    Captured,
    batch_carriers,
    batch_is_free,
    capture,
    flatten_exported,
    one_row,
    output_names_of,
    program_of,
)
from edgekit.load.rebatch import Replay

Shapes = tuple[tuple[int, ...], ...]


def from_user_export(
    exported: torch.export.ExportedProgram,
    shapes: Shapes | None,
    example: Sequence[torch.Tensor] | None,
) -> Captured:
    """The program of an exported program that the user made.

    Args:
        exported: on any device, training or evaluation form, any batch.
        shapes: what the user says about the inputs; needed only for sizes that the program leaves open.
        example: tensors of those shapes, if there are any.

    Returns:
        A free batch if proven; else batch one if proven; else the program as it was exported.

    Raises:
        UsageError: `shapes` contradict the program.
        LoweringError: the program holds what no fixed graph can.
    """
    graph, notes = flatten_exported(_on_cpu(exported))
    holders = graph.graph.find_nodes(op="placeholder")
    values = [node.meta["val"] for node in holders]
    names = [node.name for node in holders]
    outputs = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    output_names = output_names_of(exported, len(outputs))
    concrete = _concrete_shapes(exported, values, names, shapes)
    inputs = tuple(_zeros(shape, value) for shape, value in zip(concrete, values, strict=True))
    if example is not None:
        inputs = tuple(
            e.to(z.dtype) if e.shape == z.shape else z for e, z in zip(example, inputs, strict=True)
        )
    if _only_the_batch_is_open(values):
        open_already = program_of(graph, inputs, names, output_names)
        if batch_is_free(open_already):
            return Captured(open_already, notes)
    carriers = batch_carriers(concrete)
    batch = next((shape[0] for shape, carries in zip(concrete, carriers, strict=True) if carries), 1)
    captured = capture(
        Replay(graph, batch),
        inputs,
        input_names=names,
        output_names=output_names,
        reference=one_row(graph, inputs),
    )
    return Captured(captured.program, notes + captured.notes)


def _on_cpu(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Programs that were exported on a GPU name it in their graph, not only in their weights."""
    devices = {str(t.device) for t in exported.state_dict.values()}
    for node in exported.graph.nodes:
        if isinstance(node.meta.get("val"), torch.Tensor):
            devices.add(str(node.meta["val"].device))
    if devices <= {"cpu"}:
        return exported
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(exported, "cpu")


def _concrete_shapes(
    exported: torch.export.ExportedProgram,
    values: Sequence[torch.Tensor],
    names: Sequence[str],
    wished: Shapes | None,
) -> list[tuple[int, ...]]:
    """Numbers for every axis: the user's, else the program's, else those of the example saved with it."""
    if wished is not None and len(wished) != len(values):
        raise UsageError(
            f"{len(wished)} input shapes were given for a program with {len(values)} inputs "
            f"({', '.join(names)})",
            expected=f"{len(values)} shapes",
            way_out="Give --input-shape once for every input, or leave it out: the program knows its shapes.",
        )
    saved = _saved_shapes(exported, len(values))
    carriers = batch_carriers([tuple(v.shape) for v in values])
    shapes = []
    for i, (value, name) in enumerate(zip(values, names, strict=True)):
        own = tuple(s if isinstance(s, int) else None for s in value.shape)
        given = wished[i] if wished is not None else None
        if given is not None and not _allows(own, given, carriers[i]):
            known = "×".join("any" if s is None else str(s) for s in own)
            raise UsageError(
                f"input {name!r} was given the shape {given}",
                expected=f"the shape that the program was exported with, {known}",
                way_out="Leave --input-shape out, or export the program again with that shape.",
            )
        fallback = given or saved[i]
        shapes.append(
            tuple(s if s is not None else _open_size(fallback, axis, name) for axis, s in enumerate(own))
        )
    return shapes


def _allows(own: tuple[int | None, ...], given: tuple[int, ...], batched: bool) -> bool:
    if len(own) != len(given):
        return False
    start = 1 if batched else 0
    return all(a is None or a == b for a, b in zip(own[start:], given[start:], strict=True))


def _open_size(shape: tuple[int, ...] | None, axis: int, name: str) -> int:
    if shape is not None and axis < len(shape):
        return shape[axis]
    if axis == 0:
        return 1
    raise UsageError(
        f"input {name!r} has an open size on axis {axis}",
        expected="a number for every axis",
        way_out="Pass --input-shape with the size that the device will use.",
    )


def _saved_shapes(exported: torch.export.ExportedProgram, count: int) -> list[tuple[int, ...] | None]:
    leaves = [v for v in pytree.tree_leaves(exported.example_inputs) if isinstance(v, torch.Tensor)]
    return [tuple(v.shape) for v in leaves] if len(leaves) == count else [None] * count


def _zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    dtype = torch.float32 if like.is_floating_point() else like.dtype
    return torch.zeros(shape, dtype=dtype)


def _only_the_batch_is_open(values: Sequence[torch.Tensor]) -> bool:
    tails_fixed = all(isinstance(s, int) for v in values for s in v.shape[1:])
    heads = {str(v.shape[0]) for v in values if v.dim() and not isinstance(v.shape[0], int)}
    return tails_fixed and len(heads) == 1
