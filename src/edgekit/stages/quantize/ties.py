"""Output scales of sums, nudged so that hardly any sum lies half way between two integers.

A sum of two int8 tensors takes at most 65,536 values, and the common ones (one side zero) are few. When one of them
falls on a rounding tie, every runtime decides it in its own arithmetic: LiteRT in fixed point, ONNX Runtime in
float32. A scale that is at most 0.2% smaller moves the sums off the ties, and the runtimes agree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from edgekit.stages.quantize.rules import aten

qd = torch.ops.quantized_decomposed

SUMS: Final = {aten.add.Tensor: 1.0, aten.sub.Tensor: -1.0}
# Half a step at the end of the range is the most that a smaller scale may clip.
LARGEST_NUDGE: Final = 1.0 / 512
CANDIDATES: Final = 192
# Distance from a tie, in steps, within which runtimes were seen to differ (LiteRT's ADD keeps 20 bits).
MARGIN: Final = 1e-3


def avoid_ties(
    graph: GraphModule,
    group: Mapping[str, str],
    batches: Sequence[tuple[torch.Tensor, ...]],
    settled: Collection[str] = (),
) -> int:
    """Nudge the scale of every sum on the grid, in place.

    Args:
        graph: converted graph, clamps still in place.
        group: tensor name to the root of the tensors that share its grid.
        batches: a few inputs; they show which sums occur.
        settled: roots whose grid must stay as it is.

    Returns:
        Number of scales that were changed.
    """
    sums = _Sums(graph)
    with torch.no_grad():
        for batch in batches:
            sums.run(*batch)
    changed = 0
    for node, counts in sums.seen.items():
        quantize = _quantize_after(node)
        assert quantize is not None
        source = quantize.args[0]
        assert isinstance(source, Node)
        if group.get(source.name) in settled:
            continue
        scale = float(quantize.args[1])
        better = best_scale(counts, _operands(node), SUMS[node.target], scale)
        if better != scale:
            _rescale(graph, group, quantize, better)
            changed += 1
    if changed:
        graph.recompile()
    return changed


def best_scale(
    counts: np.ndarray, operands: tuple[tuple[float, int], tuple[float, int]], sign: float, scale: float
) -> float:
    """The scale in `[scale * (1 - LARGEST_NUDGE), scale]` with the fewest sums near a tie.

    Args:
        counts: how often each pair of integers occurred, `[256, 256]`, index = integer + 128.
        operands: scale and zero point of each side.
        sign: 1 for a sum, -1 for a difference.
        scale: of the output.

    Returns:
        A float32 value; `scale` itself when nothing is better.
    """
    rows, columns = np.nonzero(counts)
    weights = counts[rows, columns] / counts.sum()
    (sa, za), (sb, zb) = operands
    values = sa * (rows - 128.0 - za) + sign * sb * (columns - 128.0 - zb)
    candidates = np.float32(scale) * (1 - np.linspace(0, LARGEST_NUDGE, CANDIDATES)).astype(np.float32)
    cost = np.array([_near_ties(values / float(c), weights) for c in candidates])
    return float(candidates[int(cost.argmin())])


def _near_ties(steps: np.ndarray, weights: np.ndarray) -> float:
    distance = np.abs(steps - np.floor(steps) - 0.5)
    return float(np.dot(weights, np.maximum(0.0, 1.0 - distance / MARGIN)))


class _Sums(Interpreter):  # type: ignore[misc]
    """Counts which pairs of integers meet in every sum."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.seen: dict[Node, np.ndarray] = {
            n: np.zeros((256, 256)) for n in graph.graph.nodes if n.target in SUMS and _is_sum(n)
        }

    def run_node(self, n: Node) -> Any:
        if n in self.seen:
            reals, _ = self.fetch_args_kwargs_from_env(n)
            sides = zip(reals[:2], _operands(n), strict=True)
            a, b = torch.broadcast_tensors(*(torch.round(x / scale) + zero for x, (scale, zero) in sides))
            index = (a.to(torch.int64) + 128) * 256 + b.to(torch.int64) + 128
            self.seen[n] += np.bincount(index.reshape(-1).numpy(), minlength=65536).reshape(256, 256)
        return super().run_node(n)


def _is_sum(node: Node) -> bool:
    sides = node.args[:2]
    both = all(
        isinstance(s, Node)
        and s.target is qd.dequantize_per_tensor.default
        and isinstance(s.args[0], Node)
        and s.args[0].op == "call_function"
        for s in sides
    )
    return both and not node.kwargs and _quantize_after(node) is not None


def _quantize_after(node: Node) -> Node | None:
    """The quantize op behind a sum, also through a clamp."""
    readers = list(node.users)
    if len(readers) == 1 and readers[0].target is qd.quantize_per_tensor.default:
        return readers[0]
    if len(readers) == 1 and readers[0].target is aten.relu.default:
        return _quantize_after(readers[0])
    return None


def _operands(node: Node) -> tuple[tuple[float, int], tuple[float, int]]:
    a, b = node.args[:2]
    assert isinstance(a, Node)
    assert isinstance(b, Node)
    return (float(a.args[1]), int(a.args[2])), (float(b.args[1]), int(b.args[2]))


def _rescale(graph: GraphModule, group: Mapping[str, str], quantize: Node, scale: float) -> None:
    """Give every tensor of the group the new scale."""
    source = quantize.args[0]
    assert isinstance(source, Node)
    root = group.get(source.name)
    old = quantize.args[1]
    for node in list(graph.graph.nodes):
        if node.target is not qd.quantize_per_tensor.default or node.args[1] != old:
            continue
        if node is not quantize and (root is None or group.get(node.args[0].name) != root):
            continue
        node.update_arg(1, scale)
        for reader in list(node.users):
            reader.update_arg(1, scale)
