"""Networks of two or three layers around one operation, to follow channels through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.load import load_candidate
from edgekit.stages.prune import Structure, cut, groups, plain, trace
from edgekit_converters.program import Program
from support.narrower import compare, half, silenced


class Net(nn.Module):
    """A forward function with the modules, parameters and buffers that it names."""

    def __init__(self, body: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *x: Tensor) -> Any:
        return self.body(self, *x)


@dataclass(frozen=True)
class Case:
    """What is known of a network.

    Attributes:
        make: builds it.
        shapes: of its inputs; a number stands for so many tokens.
        groups: name of a weight to the number of units and the width of each group of its.
        kept: weight to a part of the reason why it stays.
        mixes: removed values are not read by weights alone: norms over channels, products of activations.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...] | int, ...]
    groups: Mapping[str, list[tuple[int, int]]] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    mixes: bool = False


def conv(inputs: int, outputs: int, kernel: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **more)


IMAGE = ((1, 3, 8, 8),)


def around(act, channels: int = 12, after: int | None = None, **parts) -> Callable[[], nn.Module]:
    """A convolution, an operation, a convolution."""

    def make() -> nn.Module:
        built = {name: part() if callable(part) else part for name, part in parts.items()}
        return Net(
            lambda s, x: s.b(act(s, s.a(x))), a=conv(3, channels), b=conv(after or channels, 2), **built
        )

    return make


def one(units: int, width: int = 1) -> dict[str, list[tuple[int, int]]]:
    return {"a.weight": [(units, width)]}


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def load(case: Case) -> tuple[Program, tuple[Tensor, ...]]:
    """The program, and inputs at batch one."""
    torch.manual_seed(0)
    network = case.make().eval()
    for name, tensor in network.named_buffers():
        if name.endswith("running_mean"):
            nn.init.uniform_(tensor, -0.5, 0.5)
        elif name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 2.0)
    for tensor in network.parameters():
        if tensor.dim() == 1:  # norms and biases: neither ones nor zeros
            nn.init.uniform_(tensor, 0.3, 1.3)
    inputs = tuple(
        torch.randint(0, 20, (1, shape)) if isinstance(shape, int) else torch.randn(shape)
        for shape in case.shapes
    )
    return plain(load_candidate(network, example=inputs).program), inputs


def found(structure: Structure) -> dict[str, list[tuple[int, int]]]:
    """Groups by name: number of units and width of each."""
    by_name: dict[str, list[tuple[int, int]]] = {}
    for group in groups(structure):
        by_name.setdefault(group.name, []).append((len(group.units), group.width))
    return by_name


def check(case: Case) -> None:
    """Assert what is known, and that half of the units can be removed in two ways without a wrong value."""
    program, inputs = load(case)
    structure = trace(program)
    assert found(structure) == dict(case.groups), found(structure)
    for name, why in case.kept.items():
        assert why in structure.refused[name]
    for seed in (0, 1):
        keep = half(structure, seed)
        narrow = cut(program, structure, keep)
        removed = compare(program, structure, keep, narrow, inputs)
        assert bool(removed) == bool(case.groups)
        if case.mixes:
            continue
        with torch.no_grad():
            pairs = zip(narrow.graph(*inputs), silenced(program, structure, keep).graph(*inputs), strict=True)
            for mine, theirs in pairs:
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    _check_batches(narrow, inputs)


def _check_batches(program: Program, inputs: tuple[Tensor, ...]) -> None:
    """Shapes that were rewritten hold for any batch."""
    if not program.dynamic_batch:
        return
    several = tuple(torch.cat([x, x.flip(-1), x]) for x in inputs)
    with torch.no_grad():
        together = program.graph(*several)
        apart = [program.graph(*(x[i : i + 1] for x in several)) for i in range(3)]
    for i, outputs in enumerate(together):
        torch.testing.assert_close(outputs, torch.cat([each[i] for each in apart]), rtol=1e-3, atol=1e-4)
