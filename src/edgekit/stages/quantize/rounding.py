"""Weights rounded so that the errors of one output cancel, instead of each weight to its nearest integer.

Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers" (2023): the
weights of an output channel are rounded one after the other, and what each rounding does to the output is taken up
by those that are still free, by the second moments of the layer's inputs. No gradient, no iteration: one Cholesky
factor for each layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node
from torch.nn import functional

from edgekit.stages.quantize.bias import constant_of
from edgekit.stages.quantize.execute import Batch, walk
from edgekit.stages.quantize.observers import weight_scales
from edgekit.stages.quantize.rules import WEIGHT_AXIS, aten

# Rows of inputs from which second moments are taken: so many for each weight of an output, within these limits.
ROWS_PER_WEIGHT: Final = 4
FEWEST_ROWS, MOST_ROWS = 1024, 2048
# An output with more weights is rounded in blocks that do not see each other: the factor is cubic in their number.
BLOCK: Final = 2048
# Share of the mean second moment that is added to all; keeps the factor well conditioned, as in the paper.
DAMPING: Final = 0.01
# Columns between two updates of everything to their right.
COLUMNS: Final = 128

# Their multiples modulo one cover a line and a square evenly, and fall in step with no width or length.
GOLDEN: Final = 0.6180339887498949
PLASTIC: Final = (0.7548776662466927, 0.5698402909980532)

TRANSPOSED: Final = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input})
_ONE_AXIS: Final = frozenset({op for op in WEIGHT_AXIS if "1d" in str(op)})


@dataclass
class _Moments:
    """Sums over rows of inputs: `second` `[groups, k, k]`, `first` `[groups, k]`."""

    second: torch.Tensor
    first: torch.Tensor
    count: int

    def add(self, rows: torch.Tensor) -> None:
        self.second += rows.transpose(1, 2) @ rows
        self.first += rows.sum(dim=1)
        self.count += rows.shape[1]

    def matrix(self, *, centered: bool) -> torch.Tensor:
        """Second moments, about the mean if `centered`; float32 `[groups, k, k]`."""
        if not centered:
            return self.second / self.count
        mean = self.first / self.count
        return self.second / self.count - mean.unsqueeze(2) * mean.unsqueeze(1)


def compensated_weights(
    graph: GraphModule,
    weights: Mapping[str, tuple[str, int]],
    batches: Sequence[Batch],
    *,
    limit: int,
    centered: bool,
) -> dict[str, torch.Tensor]:
    """Integers of every weight that one op reads.

    Args:
        graph: the float graph.
        weights: op name to (weight node name, output channel axis).
        batches: inputs of the graph.
        limit: largest integer: 127, 63, 31, 15 or 7 for 8 to 4 bits.
        centered: the bias will be corrected, so a shift of the mean costs nothing.

    Returns:
        Op name to int8 weights. Not in it: recurrent cells, and weights that several ops share.
    """
    nodes = {n.name: n for n in graph.graph.nodes}
    readers = [name for name, _ in weights.values()]
    layers = [nodes[op] for op, (name, _) in weights.items() if op in nodes and readers.count(name) == 1]
    # A transposed convolution in groups has no one matrix per input.
    layers = [
        n
        for n in layers
        if n.target in WEIGHT_AXIS and not (n.target in TRANSPOSED and _argument(n, 6, 1) != 1)
    ]
    found: dict[str, torch.Tensor] = {}
    for layer, moments in _collect(graph, layers, batches).items():
        weight = constant_of(graph, layer.args[1])
        matrix = _as_matrix(weight, layer)
        axis = WEIGHT_AXIS[layer.target]
        scales = weight_scales(weight, axis, limit)
        steps = _as_matrix(scales.reshape(_along(axis, weight.dim())).expand_as(weight), layer)[:, :, 0]
        blocks = _blocked(matrix)
        steps = steps.repeat_interleave(blocks.shape[0] // matrix.shape[0], dim=0)
        rounded = _round_in_chunks(blocks, moments.matrix(centered=centered), steps, limit)
        joined = _unblocked(rounded, matrix.shape)
        found[layer.name] = _from_matrix(joined, weight, layer).to(torch.int8)
    return found


def round_compensated(
    weight: torch.Tensor, moments: torch.Tensor, scales: torch.Tensor, limit: int
) -> torch.Tensor:
    """Round each output's weights with compensation; those with the largest input moments first.

    Args:
        weight: float32 `[groups, outputs, k]`.
        moments: second moments of the inputs, `[groups, k, k]`, positive semidefinite.
        scales: step of each output, float32 `[groups, outputs]`.
        limit: largest integer.

    Returns:
        Whole numbers in `[-limit, limit]`, float32 `[groups, outputs, k]`; the nearest ones where these are better,
        or the moments are not finite.
    """
    k = weight.shape[2]
    diagonal = moments.diagonal(dim1=1, dim2=2)
    order = diagonal.argsort(dim=1, descending=True, stable=True)
    rows, columns = order.unsqueeze(2).expand(-1, -1, k), order.unsqueeze(1)
    damped = moments.to(torch.float64).gather(1, rows).gather(2, columns.expand(-1, k, -1))
    mean = diagonal.to(torch.float64).mean(dim=1, keepdim=True)
    damped.diagonal(dim1=1, dim2=2).add_(torch.where(mean > 0, mean, 1.0) * DAMPING)
    steps = scales.unsqueeze(2)
    nearest = (weight / steps).round().clamp(-limit, limit)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed.any() or not factor.isfinite().all():
        return nearest
    upper = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True).to(torch.float32)
    left = weight.gather(2, columns.expand_as(weight))
    found = _eliminate(left, upper, scales, limit)
    found = found.gather(2, order.argsort(dim=1).unsqueeze(1).expand_as(weight))
    # Column after column is greedy: with few weights the nearest integers are sometimes the better ones.
    worse = _noise(found * steps - weight, moments) > _noise(nearest * steps - weight, moments)
    return torch.where(worse.unsqueeze(2), nearest, found)


def _noise(errors: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """Mean square error of each output, `[groups, outputs]`."""
    return ((errors @ moments) * errors).sum(dim=2)


def _eliminate(left: torch.Tensor, upper: torch.Tensor, scales: torch.Tensor, limit: int) -> torch.Tensor:
    """Round column after column; `left` is what the columns to the right still have to make good."""
    found = torch.empty_like(left)
    k = left.shape[2]
    for start in range(0, k, COLUMNS):
        stop = min(start + COLUMNS, k)
        now = left[:, :, start:stop].clone()
        errors = torch.empty_like(now)
        for j in range(stop - start):
            column = now[:, :, j]
            found[:, :, start + j] = whole = (column / scales).round().clamp(-limit, limit)
            pivot = upper[:, start + j, start + j].unsqueeze(1)
            errors[:, :, j] = error = (column - whole * scales) / pivot
            now[:, :, j + 1 :] -= error.unsqueeze(2) * upper[:, start + j, start + j + 1 : stop].unsqueeze(1)
        left[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    return found


def _round_in_chunks(
    weight: torch.Tensor, moments: torch.Tensor, scales: torch.Tensor, limit: int
) -> torch.Tensor:
    """As `round_compensated`, with no more groups at a time than one full block holds values."""
    size = max(1, BLOCK * BLOCK // weight.shape[2] ** 2)
    chunks = zip(weight.split(size), moments.split(size), scales.split(size), strict=True)
    return torch.cat([round_compensated(*chunk, limit) for chunk in chunks])


def _collect(graph: GraphModule, layers: Sequence[Node], batches: Sequence[Batch]) -> dict[Node, _Moments]:
    """Moments of every layer's inputs, in one pass over the batches."""
    readers: dict[Any, list[Node]] = {}
    for layer in layers:
        readers.setdefault(layer.args[0], []).append(layer)
    found: dict[Node, _Moments] = {}
    for batch in batches:
        for node, value in walk(graph, batch):
            for layer in readers.get(node, ()):
                matrix = _as_matrix(constant_of(graph, layer.args[1]), layer)
                wanted = max(FEWEST_ROWS, min(MOST_ROWS, ROWS_PER_WEIGHT * matrix.shape[2]))
                rows = _blocked(_rows(layer, value, -(-wanted // len(batches)), matrix.shape))
                groups, _, k = rows.shape
                if layer not in found:
                    found[layer] = _Moments(torch.zeros(groups, k, k), torch.zeros(groups, k), 0)
                found[layer].add(rows)
    return found


def _as_matrix(weight: torch.Tensor, layer: Node) -> torch.Tensor:
    """The weight as `[groups, outputs, k]`: each row makes one output from `k` inputs."""
    if layer.target in TRANSPOSED:
        return weight.flatten(1).t().unsqueeze(0)
    groups = 1 if layer.target is aten.linear.default else _argument(layer, 6, 1)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _from_matrix(matrix: torch.Tensor, weight: torch.Tensor, layer: Node) -> torch.Tensor:
    """`_as_matrix` undone."""
    return (matrix[0].t() if layer.target in TRANSPOSED else matrix).reshape(weight.shape)


def _blocked(matrix: torch.Tensor) -> torch.Tensor:
    """`[groups, n, k]` with a long `k` as `[groups * blocks, n, BLOCK]`, the last block filled with zeros."""
    groups, n, k = matrix.shape
    blocks = -(-k // BLOCK)
    if blocks == 1:
        return matrix
    padded = functional.pad(matrix, (0, blocks * BLOCK - k))
    return padded.reshape(groups, n, blocks, BLOCK).transpose(1, 2).reshape(groups * blocks, n, BLOCK)


def _unblocked(blocked: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """`_blocked` undone."""
    groups, n, k = shape
    return blocked.reshape(groups, -1, n, blocked.shape[2]).transpose(1, 2).reshape(groups, n, -1)[:, :, :k]


def _rows(layer: Node, x: torch.Tensor, wanted: int, shape: torch.Size) -> torch.Tensor:
    """About `wanted` rows of inputs from which single outputs are made, `[groups, rows, k]`."""
    groups, _, k = shape
    if layer.target is aten.linear.default:
        return _some_of(x.reshape(-1, k), wanted)
    space = 1 if layer.target in _ONE_AXIS else 2
    x = x if x.dim() == space + 2 else x.unsqueeze(0)
    if layer.target in TRANSPOSED:
        return _some_of(x.transpose(0, 1).flatten(1).t(), wanted)
    patches = _patches(layer, x.unsqueeze(2) if space == 1 else x, -(-wanted // len(x)))
    samples, channels, positions, kernel = patches.shape
    split = patches.reshape(samples, groups, channels // groups, positions, kernel)
    return split.permute(1, 0, 3, 2, 4).reshape(groups, samples * positions, k)


def _some_of(rows: torch.Tensor, wanted: int) -> torch.Tensor:
    return rows[_spread(len(rows), wanted, GOLDEN)].unsqueeze(0)


def _spread(n: int, wanted: int, irrational: float) -> torch.Tensor:
    """`wanted` indices below `n` that keep clear of any period in the data."""
    return (torch.arange(1, wanted + 1, dtype=torch.float64) * irrational % 1.0 * n).long()


def _patches(layer: Node, x: torch.Tensor, wanted: int) -> torch.Tensor:
    """Receptive fields of a convolution at `wanted` places, `[samples, channels, wanted, kernel]`."""
    kernel = _pair(layer.args[1].meta["val"].shape[2:])
    stride, dilation = _pair(_argument(layer, 3, (1,))), _pair(_argument(layer, 5, (1,)))
    reach = [d * (n - 1) + 1 for d, n in zip(dilation, kernel, strict=True)]
    padding = _argument(layer, 4, (0,))
    if isinstance(padding, str):
        total = [n - 1 if padding == "same" else 0 for n in reach]
        begin, end = [n // 2 for n in total], [n - n // 2 for n in total]
    else:
        begin = end = list(_pair(padding, 0))
    x = functional.pad(x, (begin[1], end[1], begin[0], end[0]))
    places = [
        _spread((x.shape[2 + i] - reach[i]) // stride[i] + 1, wanted, PLASTIC[i]).unsqueeze(1) * stride[i]
        + torch.arange(kernel[i]) * dilation[i]
        for i in range(2)
    ]
    flat = places[0].unsqueeze(2) * x.shape[3] + places[1].unsqueeze(1)
    return x.flatten(2)[:, :, flat.flatten(1)]


def _pair(values: Sequence[int], missing: int = 1) -> tuple[int, int]:
    """Two axes; a convolution over one has height 1, and a single value holds for both of two."""
    return (missing, values[0]) if len(values) == 1 else (values[0], values[1])


def _argument(layer: Node, index: int, default: Any) -> Any:
    return layer.args[index] if len(layer.args) > index else default


def _along(axis: int, dims: int) -> list[int]:
    return [-1 if i == axis else 1 for i in range(dims)]
