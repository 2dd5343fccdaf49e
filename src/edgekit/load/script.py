"""TorchScript → a `Program`, proven against the script itself."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from edgekit.errors import LoweringError, UsageError
from edgekit.load.capture import Captured, capture, close, one_row, probe
from edgekit.load.failures import run_once
from edgekit.load.script_net import ScriptNet

# Summation order may differ between the script's fused kernels and the graph.
_TOLERANCE = 1e-4


def from_script(script: torch.jit.ScriptModule, example: Sequence[torch.Tensor]) -> Captured:
    """The program of a scripted or traced model.

    Args:
        script: on the CPU.
        example: one tensor per input of `forward`.

    Raises:
        UsageError: the number or the shapes of the inputs are wrong.
        LoweringError: the script does what no fixed graph can.
    """
    script = script.eval()
    network = ScriptNet(script).eval()
    if len(example) != len(network.input_names):
        raise UsageError(
            f"{len(example)} inputs were given to a TorchScript model that takes {len(network.input_names)}"
            f" ({', '.join(network.input_names)})",
            expected=f"{len(network.input_names)} inputs",
            way_out="Give --input-shape once for every input.",
        )
    run_once(script, example)
    reference = one_row(lambda *row: flat_tensors(script(*row)), example)
    try:
        captured = capture(network, example, input_names=network.input_names, reference=reference)
    except LoweringError as error:
        if error.where or not network.where():
            raise
        raise LoweringError(
            format=error.format, op=error.op, where=network.where(), why=error.why, way_out=error.way_out
        ) from error
    _prove(captured, script)
    return captured


def _prove(captured: Captured, script: torch.jit.ScriptModule) -> None:
    program = captured.program
    row = probe(program, program.inputs[0].shape[0], seed=2)
    with torch.no_grad():
        expected = flat_tensors(script(*row))
        got = program.graph(*row)
    same = len(got) == len(expected) and all(
        close(a, b.float() if b.is_floating_point() else b, _TOLERANCE)
        for a, b in zip(got, expected, strict=True)
    )
    if not same:
        raise LoweringError(
            format="torch",
            op="TorchScript",
            where="",
            why="the captured graph does not give the results of the script",
            way_out="Export the model with torch.export.save instead of TorchScript.",
        )


def flat_tensors(result: Any) -> tuple[torch.Tensor, ...]:
    """The tensors of a nested result, in order."""
    return tuple(v for v in pytree.tree_leaves(result) if isinstance(v, torch.Tensor))


_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float32, "HalfStorage": torch.float32,
    "BFloat16Storage": torch.float32, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "BoolStorage": torch.bool, "ByteStorage": torch.uint8, "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
}  # fmt: skip


# A file may claim any shape; no example input of a network for the edge is larger than this.
_MAX_EXAMPLE_VALUES = 2**28


def _blank(storage: torch.dtype, _offset: int, size: Sequence[int], *_: Any) -> torch.Tensor:
    if prod(size) > _MAX_EXAMPLE_VALUES:
        raise pickle.UnpicklingError(f"an example input of shape {tuple(size)}")
    return torch.zeros(tuple(size), dtype=storage)


class _ShapeReader(pickle.Unpickler):
    """Reads the shapes of saved example inputs; imports and calls nothing that the file names."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _STORAGES:
            return _STORAGES[name]
        if name == "restore_type_tag":
            return lambda value, _tag: value
        if name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _blank
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return pid[1]


def traced_example(path: Path) -> tuple[torch.Tensor, ...] | None:
    """Zeros in the shapes of the inputs that `torch.jit.trace` kept in the file, if it did.

    Args:
        path: a TorchScript archive.
    """
    with zipfile.ZipFile(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith("/traced_inputs.pkl")), None)
        if name is None:
            return None
        with archive.open(name) as stream:
            try:
                kept = _ShapeReader(stream).load()
            except (
                pickle.UnpicklingError,
                TypeError,
                ValueError,
                KeyError,
                EOFError,
                AttributeError,
                IndexError,
            ):
                return None  # a hint only; without it the shapes are asked for
    forward = kept.get("forward") if isinstance(kept, dict) else None
    tensors = flat_tensors(forward)
    return tensors or None
