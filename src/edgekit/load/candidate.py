"""The one door for models: whatever the user has becomes a `Candidate`."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from edgekit.errors import UsageError
from edgekit.load.capture import Captured, capture
from edgekit.load.exported import from_user_export
from edgekit.load.failures import run_once
from edgekit.load.files import Loaded, read_model
from edgekit.load.script import from_script
from edgekit_converters.program import Program
from edgekit_converters.quiet import quiet_torch

FORMS = ("exported program", "torchscript", "pickled module", "state dict", "module")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained model that may be compressed.

    Attributes:
        program: the float network as one graph.
        name: file stem, or class name of a module.
        form: one of `FORMS`.
        sha256: of the file; of the weights for a module in memory.
        size_bytes: of the file; of the weights for a module in memory.
        params: number of trainable values in the graph.
        notes: what was changed on the way in, for the report.
    """

    program: Program
    name: str
    form: str
    sha256: str
    size_bytes: int
    params: int
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form is {self.form!r}, expected one of {FORMS}")


def load_candidate(
    source: str | Path | torch.nn.Module | torch.export.ExportedProgram,
    *,
    factory: str | None = None,
    trust: bool = False,
    input_shapes: Sequence[tuple[int, ...]] | None = None,
    example: Sequence[torch.Tensor] | None = None,
) -> Candidate:
    """Read a model in any of its forms; files are told apart by content, never by name.

    Args:
        source: a file, a module, or an exported program. What is given is not changed.
        factory: "module:callable" that builds the network for a state dict.
        trust: allow unpickling, which runs code from the file.
        input_shapes: one per input, with the batch on axis 0.
        example: one tensor per input, with the batch on axis 0; wins over `input_shapes`.

    Returns:
        The candidate, in evaluation mode, on the CPU, in float32.

    Raises:
        UsageError: the source cannot be read, or its input shapes are unknown or wrong.
        LoweringError: the model cannot become one graph (exit code 4).
    """
    wish = Wish(
        tuple(input_shapes) if input_shapes else None,
        tuple(example) if example is not None else None,
        str(source) if isinstance(source, (str, Path)) else type(source).__name__,
    )
    with quiet_torch():
        if isinstance(source, (str, Path)):
            loaded = read_model(Path(source), factory=factory, trust=trust)
        else:
            loaded = _in_memory(source)
        captured = _capture(loaded, wish)
    graph = captured.program.graph
    params = sum(p.numel() for p in graph.parameters()) or sum(
        b.numel() for b in graph.buffers() if b.is_floating_point()
    )
    return Candidate(
        captured.program, loaded.name, loaded.form, loaded.sha256, loaded.size_bytes, params,
        loaded.notes + captured.notes,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller says about the inputs, either of which may be absent, and what to call the model."""

    shapes: tuple[tuple[int, ...], ...] | None
    example: tuple[torch.Tensor, ...] | None
    source: str = "the model"

    def known(self) -> tuple[tuple[int, ...], ...] | None:
        """Shapes, from the example if there is one."""
        if self.example is not None:
            return tuple(tuple(v.shape) for v in self.example)
        return self.shapes


def _in_memory(source: Any) -> Loaded:
    if isinstance(source, torch.export.ExportedProgram):
        tensors: dict[str, torch.Tensor] = dict(source.state_dict)
        form, name = "exported program", "program"
    elif isinstance(source, torch.nn.Module):
        tensors = dict(source.state_dict())
        form = "torchscript" if isinstance(source, torch.jit.ScriptModule) else "module"
        name = getattr(source, "original_name", None) or type(source).__name__
    else:
        raise UsageError(
            f"the model is a {type(source).__name__}",
            expected="a path, a torch.nn.Module or a torch.export.ExportedProgram",
            way_out="Pass the module itself, or the path of the file that holds it.",
        )
    digest = hashlib.sha256()
    size = 0
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        size += value.numel() * value.element_size()
    return Loaded(source, name, form, digest.hexdigest(), size)


def _capture(loaded: Loaded, wish: Wish) -> Captured:
    model = loaded.model
    if isinstance(model, torch.export.ExportedProgram):
        return from_user_export(model, wish.known(), wish.example)
    if isinstance(model, torch.jit.ScriptModule):
        return from_script(model, _example(model, wish, loaded.example))
    module = _evaluation_copy(model)
    example = _example(module, wish, loaded.example)
    run_once(module, example)
    return capture(module, example)


def _evaluation_copy(module: torch.nn.Module) -> torch.nn.Module:
    """The caller's module may be in training; it must be found as it was left.

    Results of a computation that were left on a module, as `torch.nn.utils.weight_norm` leaves its weight, refuse to
    be copied; they are computed anew at the next call.
    """
    computed = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    try:
        return copy.deepcopy(module, computed).cpu().float().eval()
    except Exception as error:
        raise UsageError(
            f"{type(module).__name__} cannot be copied: {error}",
            expected="a module that copy.deepcopy accepts",
            way_out="Export it yourself: torch.export.save(torch.export.export(model.eval(), example), "
            "'model.pt2').",
        ) from error


def _example(
    module: torch.nn.Module, wish: Wish, saved: tuple[torch.Tensor, ...] | None
) -> tuple[torch.Tensor, ...]:
    if wish.example is not None:
        return tuple(
            v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in wish.example
        )
    if wish.shapes is None and saved is not None:
        return saved
    if wish.shapes is None:
        raise UsageError(
            f"{wish.source}: does not say what its input shapes are",
            expected="a shape for every input, batch first",
            way_out="Pass --input-shape 1,3,224,224 (once for every input), or --data with inputs of that "
            "shape.",
        )
    return guess_dtypes(module, wish.shapes)


def guess_dtypes(module: torch.nn.Module, shapes: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, ...]:
    """Zeros of the given shapes; an input is int64 only if the model refuses float32 there."""
    everything = range(len(shapes))
    for count in range(min(len(shapes), 3) + 1):
        for integers in combinations(everything, count):
            example = tuple(
                torch.zeros(shape, dtype=torch.int64 if i in integers else torch.float32)
                for i, shape in enumerate(shapes)
            )
            try:
                with torch.no_grad():
                    module(*example)
            except Exception:  # noqa: BLE001, S112 - the next combination is tried; all-float reports
                continue
            return example
    return tuple(torch.zeros(shape) for shape in shapes)
