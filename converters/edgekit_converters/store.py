"""A program on disk: what passes between processes and survives an interrupt."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from edgekit_converters.program import Grid, Program, QuantizedProgram, TensorInfo
from edgekit_converters.quiet import quiet_torch

_META = "edgekit.json"


def save_program(program: Program | QuantizedProgram, path: Path) -> None:
    """Write a program as a torch.export archive; float or on the grid.

    Args:
        program: what to write; its example is not kept, as its shapes tell all.
        path: file, by custom `.pt2`.

    Raises:
        OSError: `path` cannot be written.
    """
    source = program.program if isinstance(program, QuantizedProgram) else program
    meta: dict[str, Any] = {
        "inputs": [asdict(i) for i in source.inputs],
        "outputs": [asdict(o) for o in source.outputs],
        "dynamic_batch": source.dynamic_batch,
    }
    if isinstance(program, QuantizedProgram):
        meta["grid"] = {
            "inputs": [asdict(g) if g else None for g in program.input_grids],
            "outputs": [asdict(g) if g else None for g in program.output_grids],
            "kept_float": program.kept_float,
            "weight_bits": program.weight_bits,
            "dynamic": program.dynamic,
        }
    # torch's own writer ends the process when the disk is full; Python's raises.
    buffer = io.BytesIO()
    with quiet_torch():
        torch.export.save(capture(source), buffer, extra_files={_META: json.dumps(meta)})
    with path.open("wb") as file:
        file.write(buffer.getbuffer())


def load_program(path: Path) -> Program | QuantizedProgram:
    """Read what `save_program` wrote; float or on the grid."""
    import torch.ao.quantization.fx._decomposed  # registers the ops that the archive names

    extra = {_META: ""}
    with quiet_torch():
        exported = torch.export.load(path, extra_files=extra)
    meta = json.loads(extra[_META])
    inputs = tuple(_info(i) for i in meta["inputs"])
    example = tuple(
        torch.zeros(i.shape, dtype=getattr(torch, i.dtype))
        if i.dtype != "bool"
        else torch.zeros(i.shape).bool()
        for i in inputs
    )
    program = Program(
        graph=exported.module(check_guards=False),
        inputs=inputs,
        outputs=tuple(_info(o) for o in meta["outputs"]),
        example=example,
        dynamic_batch=meta["dynamic_batch"],
    )
    grid = meta.get("grid")
    if grid is None:
        return program
    return QuantizedProgram(
        program=program,
        input_grids=tuple(_grid(g) for g in grid["inputs"]),
        output_grids=tuple(_grid(g) for g in grid["outputs"]),
        kept_float=grid["kept_float"],
        weight_bits=grid["weight_bits"],
        dynamic=grid["dynamic"],
    )


def capture(program: Program) -> torch.export.ExportedProgram:
    """Export a program's graph, with a free batch dimension where it has one."""
    if not program.dynamic_batch:
        return torch.export.export(program.graph, program.example)
    args, shapes = batched(program)
    return torch.export.export(program.graph, args, dynamic_shapes=shapes)


def batched(program: Program) -> tuple[tuple[torch.Tensor, ...], tuple[dict[int, Any], ...]]:
    """Example inputs at batch two (one would be specialised to a constant) and their dynamic shapes."""
    args = tuple(
        torch.cat([x, x]) if i.batch else x for x, i in zip(program.example, program.inputs, strict=True)
    )
    batch = torch.export.Dim("batch", min=1)
    return args, tuple({0: batch} if i.batch else {} for i in program.inputs)


def _info(meta: dict[str, Any]) -> TensorInfo:
    return TensorInfo(meta["name"], tuple(meta["shape"]), meta["dtype"], meta["batch"])


def _grid(meta: dict[str, Any] | None) -> Grid | None:
    return None if meta is None else Grid(meta["scale"], meta["zero_point"])
