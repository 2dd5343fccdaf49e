"""How much worse the network gets without a unit, estimated without removing it and without labels.

Removing a unit sets the weights that read it to zero, `δ = -w`. To second order, and in expectation over labels that
the network itself draws, the loss rises by `½ δᵀ F δ` with the Fisher information `F = E[g gᵀ]`, as the first order
vanishes at its optimum: that is `½ E[(Σ g·w)²]` over the unit's weights ("taylor", as Molchanov et al. 2019 have it
with true labels). With the diagonal of `F` alone it is `½ Σ E[g²] w²` ("hessian", LeCun et al. 1990).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from edgekit.errors import UsageError
from edgekit.evaluate import class_axis
from edgekit.stages.prune.groups import Group
from edgekit.stages.prune.trace import Structure
from edgekit.stages.prune.units import FIXED, Labels
from edgekit_converters.program import Program

Batch = tuple[Tensor, ...]
Score = Callable[[Tensor, Tensor], Tensor]

# Labels are drawn independently, so the square of a sum over few inputs estimates the sum of squares without bias.
AT_ONCE: Final = 4
DRAWS: Final = 256


def importance(
    program: Program,
    structure: Structure,
    among: Sequence[Group],
    method: str,
    batches: Iterable[Batch],
    *,
    seed: int,
) -> np.ndarray:
    """Importance of every unit, by which those of a group are put in order.

    Args:
        program: that was traced.
        structure: of it.
        among: groups that are ranked.
        method: "magnitude", "taylor" or "hessian".
        batches: inputs; "magnitude" needs none.
        seed: of the labels that are drawn.

    Returns:
        float64 `[n_units]`, at least 0.
    """
    if method == "magnitude":
        return _magnitude(program, structure, among)
    return _fisher(program, structure, batches, seed, whole=method == "taylor")


def not_finite() -> UsageError:
    """Of answers that nothing can be ranked or measured by."""
    return UsageError(
        "--prune: the network gives values that are not finite for some of the calibration inputs",
        expected="finite outputs for every calibration input",
        way_out="Look for NaN or infinity in the inputs and in the weights.",
    )


def _not_a_number() -> UsageError:
    return UsageError(
        "--prune: the gradients of the network are not finite for some of the calibration inputs",
        expected="finite gradients, to rank channels by",
        way_out='Set importance = "magnitude" in [prune] of the recipe.',
    )


def followers(structure: Structure) -> dict[tuple[str, int], Labels]:
    """Axes whose weights go with a unit: of what reads it; of everything where nothing does."""
    read = {key: units for key, units in structure.parameters.items() if key in structure.reads}
    seen = np.unique(np.concatenate(list(read.values()))) if read else np.zeros(0, np.int64)
    rest = {
        key: np.where(np.isin(units, seen), FIXED, units)
        for key, units in structure.parameters.items()
        if key not in read
    }
    return read | {key: units for key, units in rest.items() if (units != FIXED).any()}


def _magnitude(program: Program, structure: Structure, among: Sequence[Group]) -> np.ndarray:
    """Mean over a unit's weights of their norm, relative to the group's mean."""
    weights = weights_of(program.graph, structure)
    total = np.zeros(structure.n_units)
    for (target, axis), units in structure.parameters.items():
        if target not in weights or weights[target].dim() < 2:
            continue
        w = weights[target].detach().movedim(axis, 0).flatten(1).double()
        norm = _by_unit((w * w).sum(1), units, structure.n_units) ** 0.5
        for group in among:
            mean = norm[group.units].mean()
            if mean > 0:
                total[group.units] += norm[group.units] / mean
    return total


def _by_unit(values: Tensor, units: Labels, n: int) -> np.ndarray:
    """Sums of values along an axis by unit."""
    found = units != FIXED
    return np.bincount(units[found], values.double().numpy()[found], minlength=n)


def _fisher(
    program: Program, structure: Structure, batches: Iterable[Batch], seed: int, *, whole: bool
) -> np.ndarray:
    graph = copy.deepcopy(program.graph)
    axes = followers(structure)
    weights = weights_of(graph, structure)
    wanted = sorted({target for target, _ in axes if target in weights})
    for name, weight in weights.items():
        weight.requires_grad_(name in wanted)
    random = torch.Generator().manual_seed(seed)
    total, draws = np.zeros(structure.n_units), 0
    for batch in itertools.islice(itertools.cycle(_small(batches, whole_batch=program.dynamic_batch)), DRAWS):
        loss = _drawn_loss(graph(*batch), random)
        gradients = torch.autograd.grad(loss, [weights[w] for w in wanted], allow_unused=True)
        of = dict(zip(wanted, gradients, strict=True))
        score = np.zeros(structure.n_units)
        for (target, axis), units in axes.items():
            gradient = of.get(target)
            if gradient is None:
                continue
            change = gradient * weights[target].detach()
            change = change.movedim(axis, 0).reshape(len(units), -1)
            score += _by_unit((change if whole else change * change).sum(1), units, structure.n_units)
        total += score * score if whole else score
        draws += 1
    if not np.isfinite(total).all():
        raise _not_a_number()
    return total / max(draws, 1) / 2


def weights_of(graph: GraphModule, structure: Structure) -> dict[str, Tensor]:
    """Parameters by target; and buffers that a layer multiplies with, such as a fixed filter."""
    read = {target for target, _ in structure.reads}
    found: dict[str, Tensor] = dict(graph.named_parameters())
    found |= {name: buffer for name, buffer in graph.named_buffers() if name in read}
    return {name: tensor for name, tensor in found.items() if tensor.is_floating_point()}


def _small(batches: Iterable[Batch], *, whole_batch: bool) -> list[Batch]:
    size = AT_ONCE if whole_batch else 1
    parts = (tuple(x[i : i + size] for x in b) for b in batches for i in range(0, len(b[0]), size))
    return list(itertools.islice(parts, DRAWS))


def _drawn_loss(outputs: Sequence[Tensor], random: torch.Generator) -> Tensor:
    """Negative log likelihood of labels that the network draws: classes, or values with noise of variance one.

    The noise of a regression is in units of the spread of its output.
    """
    if not all(bool(y.isfinite().all()) for y in outputs):
        raise not_finite()
    terms = list(_terms(outputs, random))
    if not terms:
        raise UsageError(
            "--prune: the network gives whole numbers only, which channels cannot be ranked by",
            expected="an output of real numbers, such as logits",
            way_out='Set importance = "magnitude" in [prune] of the recipe, or load the network without its last step.',
        )
    return torch.stack(terms).sum()


def _terms(outputs: Sequence[Tensor], random: torch.Generator) -> Iterator[Tensor]:
    for y in outputs:
        if not y.is_floating_point():
            continue
        axis = class_axis(y.detach().numpy())
        if axis is None:
            noise = torch.randn(y.shape, generator=random)
            yield (y * noise).sum() / y.detach().std(correction=0).clamp_min(1e-6)
            continue
        logits = y.movedim(axis, -1).flatten(0, -2)
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=random)
        yield -logits.log_softmax(-1).gather(1, drawn).sum()
