"""What a pruned program is held against: the whole one, in which removed positions count for nothing.

Two oracles that know nothing of how a graph is cut. `silenced` zeroes the weights that read what was removed.
`compare` runs both programs and compares every value in them: in the whole one, removed positions are zeroed after
every operation, and norms and means are computed over what is left.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from edgekit.stages.prune import Structure, groups
from edgekit.stages.prune.trace import keep_all
from edgekit.stages.prune.units import FIXED
from edgekit_converters.program import Program

# Their results at one position depend on others along an axis that may get narrower.
MIXING = (
    "layer_norm",
    "rms_norm",
    "group_norm",
    "mean",
    "var",
    "std",
    "amax",
    "amin",
    "var_mean",
    "std_mean",
    "max",
    "linalg_vector_norm",
    "norm",
)


def half(structure: Structure, seed: int = 0) -> np.ndarray:
    """About half of every group, at random."""
    keep, random = keep_all(structure), np.random.default_rng(seed)
    for group in groups(structure):
        keep[random.permutation(group.units)[: len(group.units) // 2]] = False
    return keep


def silenced(program: Program, structure: Structure, keep: np.ndarray) -> Program:
    """The whole network with zeros in every weight that reads what was removed."""
    graph = copy.deepcopy(program.graph)
    tensors = {**dict(graph.named_parameters()), **dict(graph.named_buffers())}
    with torch.no_grad():
        for target, axis in structure.reads:
            units = structure.parameters.get((target, axis))
            if units is not None:
                tensors[target].index_fill_(axis, torch.from_numpy(np.flatnonzero(~keep[units])), 0.0)
    return replace(program, graph=graph)


def compare(
    program: Program, structure: Structure, keep: np.ndarray, pruned: Program, inputs: Sequence[Tensor]
) -> int:
    """Assert that every value in the pruned program is the one of the whole program, at what is left of it.

    Args:
        program: that was traced.
        structure: of it.
        keep: what was kept.
        pruned: what came out.
        inputs: at batch one, as labels were found.

    Returns:
        Number of positions that were removed, of all values together.
    """
    with torch.no_grad():
        whole = _Whole(program.graph, structure, keep)
        whole.run(*inputs)
        narrow = _Seen(pruned.graph)
        narrow.run(*inputs)
    removed = 0
    for name, found in narrow.seen.items():
        for mine, theirs, (axes, shape) in zip(found, whole.seen[name], structure.results(name), strict=True):
            if not isinstance(mine, Tensor):
                continue
            assert tuple(theirs.shape) == tuple(shape), name
            expected = _narrow(theirs, axes, keep)
            removed += theirs.numel() - expected.numel()
            size = float(expected.double().abs().max()) if expected.numel() else 0.0
            torch.testing.assert_close(
                mine,
                expected,
                rtol=1e-4,
                atol=1e-4 * max(size, 1e-3),
                equal_nan=True,
                msg=lambda m, n=name: f"{n}: {m}",
            )
    return removed


def _several(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _narrow(value: Tensor, axes: Sequence[np.ndarray | None], keep: np.ndarray) -> Tensor:
    for axis, units in enumerate(axes):
        if units is not None:
            value = value.index_select(axis, torch.from_numpy(np.flatnonzero(keep[units])))
    return value


class _Seen(Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.seen: dict[str, list[Any]] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op != "output":
            self.seen[n.name] = [v.clone() if isinstance(v, Tensor) else v for v in _several(result)]
        return result


class _Whole(_Seen):
    """Runs the whole graph; what is removed is zero wherever it is read."""

    def __init__(self, graph: GraphModule, structure: Structure, keep: np.ndarray) -> None:
        super().__init__(graph)
        self.structure, self.keep = structure, keep

    def run_node(self, n: Node) -> Any:
        if n.op == "output":
            return super().run_node(n)
        name = n.target._schema.name.split("::")[1] if isinstance(n.target, torch._ops.OpOverload) else ""
        result = self._over_less(n, name) if name in MIXING else super().run_node(n)
        values = [
            self._zeroed(v, axes) if isinstance(v, Tensor) else v
            for v, (axes, _) in zip(_several(result), self.structure.results(n.name), strict=True)
        ]
        self.seen[n.name] = values
        return values if isinstance(result, (tuple, list)) else values[0]

    def _zeroed(self, value: Tensor, axes: Sequence[np.ndarray | None]) -> Tensor:
        value = value.clone()
        for axis, units in enumerate(axes):
            if units is not None:
                value.index_fill_(axis, torch.from_numpy(np.flatnonzero(~self.keep[units])), 0)
        return value

    def _over_less(self, n: Node, name: str) -> Any:
        """A norm over what is left, spread to where it was."""
        env = {
            a: _narrow(self.env[a], self.structure.results(a.name)[0][0], self.keep)
            for a in n.all_input_nodes
        }
        args = list(torch.fx.map_arg(n.args, env.__getitem__))
        if name in ("layer_norm", "rms_norm"):
            args[1] = list(args[0].shape[len(args[0].shape) - len(args[1]) :])
        if name == "group_norm" and args[1] == self.env[n.args[0]].shape[1]:
            args[1] = args[0].shape[1]
        found = _several(n.target(*args, **torch.fx.map_arg(n.kwargs, env.__getitem__)))
        whole = []
        for value, (axes, shape) in zip(found, self.structure.results(n.name), strict=True):
            spread = torch.zeros(shape, dtype=value.dtype)
            places = [
                torch.arange(size) if units is None else torch.from_numpy(np.flatnonzero(self.keep[units]))
                for units, size in zip(axes, shape, strict=True)
            ]
            spread[torch.meshgrid(*places, indexing="ij")] = value
            whole.append(spread)
        return whole if isinstance(self.structure.nodes[n.name], list) else whole[0]


def share(structure: Structure) -> float:
    """Share of the weights' output positions that can be removed."""
    along = {layer.weight: layer.axes[0] for layer in structure.layers if layer.weight}
    positions = [units for units in along.values() if units is not None]
    grouped = np.concatenate([group.units for group in groups(structure)] or [np.zeros(0, int)])
    found = sum(int(np.isin(units[units != FIXED], grouped).sum()) for units in positions)
    return found / max(1, sum(map(len, positions)))
