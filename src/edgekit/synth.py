"""Calibration inputs made from the model itself, for a user who has no data at hand.

A batch norm remembers the mean and the variance of every channel that it saw in training. Inputs that
reproduce these numbers at every batch norm drive the activations through the ranges that real data does,
which is all that calibration needs (Cai et al., ZeroQ, 2020; Nagel et al., DFQ, 2019). Nothing is learned
about accuracy from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from edgekit.load.graph import attribute, index_bounds
from edgekit_converters.program import Program

Inputs = tuple[torch.Tensor, ...]
Progress = Callable[[int, int], None]

# Images of a natural look: the amplitude of a spatial frequency f falls like 1 / f (Field, 1987).
_SPECTRUM = 1.0
# How far samples differ from each other in contrast and brightness, in natural logarithm and in deviations.
_CONTRAST, _BRIGHTNESS = 0.35, 0.35
# Variations of a distilled sample stay nearer to it, for its statistics are right already.
_VARIATION = 0.15
# Multiply-accumulates of forward passes that distillation may spend; about 20 s on two cores. The number of
# steps follows from it and not from a clock: the same seed gives the same inputs however busy the machine is.
_WORK_MACS = 75e9
_BATCH = 16
_MIN_STEPS = 10
# Pixels are bounded: a photograph keeps within about this many deviations of its mean, and so must a made
# one, or rare peaks would stretch every range that is calibrated.
_REACH = 2.3
_RATE = 0.1
# Weight of the wish that a classifier be sure of itself, as it is of real images: no batch norm guards the
# range of the class scores, and a range that is calibrated too small clips the winners.
_DECISION = 0.5


def distill_calibration(
    program: Program,
    *,
    n: int = 64,
    seed: int,
    steps: int = 24,
    progress: Progress | None = None,
) -> tuple[list[Inputs], str]:
    """Make calibration inputs for a float program.

    Args:
        program: before its batch norms are folded; not changed.
        n: number of samples.
        seed: the same seed gives the same inputs.
        steps: at most so many optimisation steps per batch; large networks get fewer.
        progress: called with (steps done, steps in all).

    Returns:
        Batches of inputs in the order of the program's inputs (batch one if its batch is fixed), `n` samples
        together, and a sentence for the report.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1")
    random = torch.Generator().manual_seed(seed)
    norms = _norms(program.graph)
    size = min(_BATCH, n) if program.dynamic_batch else 1
    if not norms:
        return [_draw(program, rows, random) for rows in _parts(n, size)], (
            "Without data, calibration inputs were drawn at random (unit normal with the spectrum of natural "
            "images, indices inside their tables): the model has no batch norm to learn its range from. "
            "Nothing was measured on real data."
        )
    plan = _plan(program, n, size, steps)
    start = [_draw(program, rows, random) for rows in _parts(plan.distilled, size)]
    start = _fitted(program, norms[0], start)
    total = plan.steps * len(start)
    batches: list[Inputs] = []
    for batch in start:
        done = plan.steps * len(batches)
        report = (lambda step, done=done: progress(done + step, total)) if progress else None
        batches.append(_distill(program, norms, batch, plan.steps, report))
    batches += _varied(program, batches, n - plan.distilled, size, random)
    return batches, (
        f"Without data, {n} calibration inputs were distilled from the statistics of {len(norms)} batch "
        f"norms "
        f"({plan.steps} steps). Nothing was measured on real data."
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """How many samples are optimised and for how long; the others are variations of these."""

    distilled: int
    steps: int


def _plan(program: Program, n: int, size: int, steps: int) -> _Plan:
    macs = max(count_macs(program.graph), 1)
    image_steps = _WORK_MACS / macs
    distilled = n
    while distilled > size and image_steps / distilled < min(steps, 3 * _MIN_STEPS):
        distilled = max(size, distilled // 2)
    return _Plan(distilled, max(min(steps, int(image_steps / distilled)), _MIN_STEPS))


def count_macs(graph: GraphModule) -> int:
    """Multiply-accumulates of convolutions and linears at batch one, from the shapes in the graph."""
    total = 0
    for node in graph.graph.nodes:
        name = getattr(node.target, "_opname", "")
        if name.startswith("conv") or name == "linear":
            weight, out = node.args[1].meta["val"], node.meta["val"]
            rest = [s for s in out.shape[1:] if isinstance(s, int)]
            per_output = weight[0].numel()
            if name.startswith("conv_transpose"):
                rest = [s for s in node.args[0].meta["val"].shape[1:] if isinstance(s, int)]
            elif name == "linear":
                rest = rest or [weight.shape[0]]
            total += math.prod(rest) * per_output
    return total


def _parts(n: int, size: int) -> list[int]:
    return [min(size, n - start) for start in range(0, n, size)]


def _norms(graph: GraphModule) -> list[Node]:
    """Batch norms that carry statistics."""
    found = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    return [node for node in found if node.args[3] is not None]


def _draw(program: Program, rows: int, random: torch.Generator) -> Inputs:
    """Random inputs: pink noise, unit variance, for floats; valid indices for integers."""
    bounds = index_bounds(program.graph)
    values = []
    holders = program.graph.graph.find_nodes(op="placeholder")
    for info, holder, like in zip(program.inputs, holders, program.example, strict=True):
        shape = (rows, *info.shape[1:]) if info.batch else info.shape
        if like.is_floating_point():
            values.append(_pink(shape, random))
        else:
            high = 2 if like.dtype == torch.bool else bounds.get(holder.name, 2)
            values.append(torch.randint(0, high, shape, generator=random).to(like.dtype))
    return tuple(values)


def _pink(shape: Sequence[int], random: torch.Generator) -> torch.Tensor:
    """Noise whose amplitude falls with frequency along space or time; samples differ in contrast.

    Args:
        shape: (n, c, h, w), (n, h, w, c), (n, c, t) or (n, t, c); fewer axes give white noise.
        random: the source.

    Returns:
        float32, mean 0 and variance 1 over all samples.
    """
    noise = torch.randn(tuple(shape), generator=random)
    axes = _spatial_axes(shape)
    if axes:
        spectrum = torch.fft.fftn(noise, dim=axes)
        squares = torch.zeros([shape[a] if a in axes else 1 for a in range(len(shape))])
        for axis in axes:
            view = [shape[a] if a == axis else 1 for a in range(len(shape))]
            squares = squares + torch.fft.fftfreq(shape[axis]).view(view) ** 2
        lowest = 1.0 / max(shape[a] for a in axes)
        spectrum = spectrum / squares.sqrt().clamp_min(lowest) ** _SPECTRUM
        noise = torch.fft.ifftn(spectrum, dim=axes).real
        channel = (
            next(a for a in range(1, len(shape)) if a not in axes) if len(axes) < len(shape) - 1 else None
        )
        if channel is not None and shape[channel] == 3:
            # Colours go together: most of the variance of photographs is brightness.
            noise = noise + 2 * noise.mean(channel, keepdim=True)
    rest = tuple(range(1, noise.dim()))
    if rest and noise[0].numel() > 1:
        noise = (noise - noise.mean(rest, keepdim=True)) / noise.std(rest, keepdim=True).clamp_min(1e-6)
        own = [shape[0], *[1] * len(rest)]
        noise = noise * torch.exp(_CONTRAST * torch.randn(own, generator=random))
        noise = noise + _BRIGHTNESS * torch.randn(own, generator=random)
    if noise.numel() > 1:
        noise = (noise - noise.mean()) / noise.std().clamp_min(1e-6)
    return noise


def _spatial_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Axes of space: all but the batch and the axis of the channels, which is the shortest of the ends."""
    if len(shape) < 3:
        return ()
    channel = 1 if shape[1] <= shape[-1] else len(shape) - 1
    return tuple(a for a in range(1, len(shape)) if a != channel)


class _Statistics(Interpreter):  # type: ignore[misc]
    """Sums how far the statistics at the batch norms are off; `stop` ends the run after the last."""

    def __init__(self, graph: GraphModule, norms: Sequence[Node], *, stop: bool) -> None:
        super().__init__(graph)
        self._stop = stop
        self._norms = set(norms)
        self._last = norms[-1]
        self.loss = torch.zeros(())

    def run_node(self, n: Node) -> Any:
        if n in self._norms:
            args, _ = self.fetch_args_kwargs_from_env(n)
            self.loss = self.loss + mismatch(args[0], args[3], args[4], float(args[7]))
            if self._stop and n is self._last:
                raise _Done
        return super().run_node(n)


class _Done(Exception):  # noqa: N818 - a signal, raised and caught here
    """Nothing after the last batch norm matters."""


def mismatch(x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, eps: float) -> torch.Tensor:
    """How far the statistics of `x` are from those of a batch norm, in its own deviations.

    Args:
        x: (n, c, …).
        mean: (c,), running mean.
        var: (c,), running variance.
        eps: of the batch norm.

    Returns:
        Scalar: mean over channels of the squared errors of mean and deviation.
    """
    view = [1, -1, *[1] * (x.dim() - 2)]
    deviation = (var + eps).sqrt()
    # Centred first: contiguous reductions are fast and the difference of squares keeps its digits.
    off = ((x - mean.view(view)) / deviation.view(view)).flatten(2) if x.dim() > 2 else (x - mean) / deviation
    shift, square = off.mean(0), off.square().mean(0)
    if x.dim() > 2:
        shift, square = off.mean(2).mean(0), off.square().mean(2).mean(0)
    spread = (square - shift.square()).clamp_min(1e-12).sqrt() - 1
    return (shift.square() + spread.square()).mean()


def _fitted(program: Program, norm: Node, batches: list[Inputs]) -> list[Inputs]:
    """Bring noise to the range of the inputs, so that the first batch norm sees what it knows.

    Between input and first batch norm there is an affine layer as a rule: its output mean is linear in the
    channel offsets of the input and its variance quadratic in the gain, so both have a closed form. With
    anything else in between this is only a start for the optimisation.
    """
    if sum(v.is_floating_point() for v in batches[0]) != 1:
        return batches
    place = next(i for i, v in enumerate(batches[0]) if v.is_floating_point())
    mean, var = (attribute(program.graph, norm.args[i]) for i in (3, 4))
    channel = _channel_axis(batches[0][place].shape)

    def seen(value: torch.Tensor) -> torch.Tensor:
        row = list(batches[0])
        row[place] = value
        return _value_at(program.graph, norm, row)

    axes = [0, *range(2, seen(batches[0][place]).dim())]
    zero = torch.zeros_like(batches[0][place])
    base = seen(zero).mean(axes)
    columns = []
    for c in range(zero.shape[channel]):
        one = zero.clone()
        one.select(channel, c).fill_(1.0)
        columns.append(seen(one).mean(axes) - base)
    weight = (var + 1e-5).rsqrt()
    system = torch.stack(columns, 1) * weight[:, None]
    offset = torch.linalg.lstsq(system, ((mean - base) * weight)[:, None], driver="gelsd").solution[:, 0]
    response = seen(batches[0][place]).var(axes, correction=0)
    gain = (var / response.clamp_min(1e-12)).sqrt().median().clamp(1e-4, 1e4)
    if not torch.isfinite(offset).all() or offset.abs().max() > 1e4:
        offset = torch.zeros_like(offset)
    view = [-1 if a == channel else 1 for a in range(zero.dim())]
    fitted = []
    for batch in batches:
        row = list(batch)
        row[place] = row[place] * gain + offset.view(view)
        fitted.append(tuple(row))
    return fitted


def _channel_axis(shape: Sequence[int]) -> int:
    free = set(range(1, len(shape))) - set(_spatial_axes(shape))
    return min(free) if free else 1


def _value_at(graph: GraphModule, norm: Node, row: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the batch norm `norm` is given."""
    seen: list[torch.Tensor] = []

    class _Probe(Interpreter):  # type: ignore[misc]
        def run_node(self, n: Node) -> Any:
            if n is norm:
                seen.append(self.fetch_args_kwargs_from_env(n)[0][0])
                raise _Done
            return super().run_node(n)

    with suppress(_Done), torch.no_grad():
        _Probe(graph).run(*row)
    return seen[0]


def _distill(
    program: Program, norms: Sequence[Node], batch: Inputs, steps: int, report: Callable[[int], None] | None
) -> Inputs:
    """Adam on the inputs against the mismatch of all batch norms."""
    free = [v.clamp(*_bounds(v)).requires_grad_() for v in batch if v.is_floating_point()]
    if not free:
        return batch
    scale = [float(v.detach().std().clamp_min(1e-3)) if v.numel() > 1 else 1.0 for v in free]
    bounds = [_bounds(v.detach()) for v in free]
    groups = [{"params": [v], "lr": _RATE * s} for v, s in zip(free, scale, strict=True)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    frozen = [p for p in program.graph.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    best, kept = math.inf, [v.detach().clone() for v in free]
    try:
        for step in range(steps):
            loss = _loss(program, norms, _joined(batch, free))
            if loss.item() < best:
                best, kept = loss.item(), [v.detach().clone() for v in free]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for value, (low, high) in zip(free, bounds, strict=True):
                    value.clamp_(low, high)
            if report is not None:
                report(step + 1)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return _joined(batch, kept)


def _bounds(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest plausible value, per channel."""
    axes = [a for a in range(value.dim()) if a != _channel_axis(value.shape)] if value.dim() > 2 else [0]
    center, deviation = value.mean(axes, keepdim=True), value.std(correction=0)
    reach = _REACH if value.dim() > 2 else 2 * _REACH
    return center - reach * deviation, center + reach * deviation


def _loss(program: Program, norms: Sequence[Node], row: Inputs) -> torch.Tensor:
    heads = _class_scores(program.graph)
    run = _Statistics(program.graph, norms, stop=not heads)
    with suppress(_Done):
        outputs = run.run(*row)
        for place, logarithm in heads:
            scores = logarithm(outputs[place])
            run.loss = run.loss - _DECISION * scores.amax(1).mean()
    return run.loss


def _class_scores(graph: GraphModule) -> list[tuple[int, Callable[[torch.Tensor], torch.Tensor]]]:
    """Outputs that look like class scores, each with what turns it into log probabilities."""
    found: list[tuple[int, Callable[[torch.Tensor], torch.Tensor]]] = []
    for place, node in enumerate(next(n for n in graph.graph.nodes if n.op == "output").args[0]):
        value, name = node.meta.get("val"), getattr(node.target, "_opname", "")
        if not isinstance(value, torch.Tensor) or value.dim() != 2 or not 1 < value.shape[1] <= 100_000:
            continue
        if name == "softmax":
            found.append((place, lambda p: p.clamp_min(1e-12).log()))
        elif name == "log_softmax":
            found.append((place, lambda p: p))
        elif name in ("linear", "flatten", "view", "reshape", "squeeze", "mean"):
            found.append((place, lambda p: torch.log_softmax(p, 1)))
    return found


def _joined(batch: Inputs, floats: Sequence[torch.Tensor]) -> Inputs:
    parts = iter(floats)
    return tuple(next(parts) if v.is_floating_point() else v for v in batch)


def _varied(
    program: Program, batches: Sequence[Inputs], missing: int, size: int, random: torch.Generator
) -> list[Inputs]:
    """More samples from the distilled ones: mirrored, and with other contrast."""
    made: list[Inputs] = []
    for i, rows in enumerate(_parts(missing, size)):
        source = batches[i % len(batches)]
        values = []
        for info, value in zip(program.inputs, source, strict=True):
            part = value[:rows] if info.batch else value
            if part.is_floating_point() and part.dim() > 2 and info.batch:
                center = part.mean()
                own = torch.exp(_VARIATION * torch.randn([rows, *[1] * (part.dim() - 1)], generator=random))
                low, high = _bounds(part)
                part = center + (part.flip(_spatial_axes(part.shape)[-1]) - center) * own
                part = part.clamp(low, high)
            values.append(part)
        made.append(tuple(values))
    return made
