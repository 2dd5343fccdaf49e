"""Channels are followed through convolutions, norms and everything that moves, pools or selects them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import LoweringError
from edgekit.stages.prune import cut, groups, trace
from support.narrower import half
from support.tiny_layers import Case, Net, check, conv, load, weight

IMAGE = ((1, 3, 8, 8),)
OUTPUT = {"b.weight": "output: what the model gives"}


def around(act, channels: int = 12, after: int | None = None, **parts) -> Callable[[], nn.Module]:
    """A convolution, an operation, a convolution."""

    def make() -> nn.Module:
        built = {name: part() if callable(part) else part for name, part in parts.items()}
        return Net(
            lambda s, x: s.b(act(s, s.a(x))), a=conv(3, channels), b=conv(after or channels, 2), **built
        )

    return make


def dense(s: Net, x: Tensor) -> Tensor:
    first = s.a(x)
    second = s.c(torch.cat([x, first], 1))
    return s.d(torch.cat([second, first], 1))


def parted(s: Net, x: Tensor) -> Tensor:
    first, second = s.a(x).split((4, 8), 1)
    return s.b(first) + s.c(second)


def one(units: int, width: int = 1) -> dict[str, list[tuple[int, int]]]:
    return {"a.weight": [(units, width)]}


CONVOLUTIONS = {
    "grouped": Case(
        around(lambda s, y: s.g(y), 8, 24, g=lambda: conv(8, 24, groups=4)),
        IMAGE,
        {"a.weight": [(2, 1)], "g.weight": [(6, 4)]},
    ),
    "grouped, on an input that stays": Case(
        lambda: Net(lambda s, x: s.b(F.relu(s.a(x))), a=conv(4, 24, groups=2), b=conv(24, 2)),
        ((1, 4, 8, 8),),
        one(12, 2),
    ),
    "grouped, one output each": Case(
        around(lambda s, y: s.g(y), 8, 4, g=lambda: conv(8, 4, groups=4)),
        IMAGE,
        one(2),
        {"g.weight": "only go all together"},
    ),
    "depthwise": Case(around(lambda s, y: s.g(y), g=lambda: conv(12, 12, groups=12)), IMAGE, one(12)),
    "depthwise, three outputs each": Case(
        around(lambda s, y: s.g(y), 8, 24, g=lambda: conv(8, 24, groups=8)), IMAGE, one(8)
    ),
    "transposed": Case(
        around(lambda s, y: s.g(y), 8, 12, g=lambda: nn.ConvTranspose2d(8, 12, 2, 2)),
        IMAGE,
        {"a.weight": [(8, 1)], "g.weight": [(12, 1)]},
    ),
    "transposed, grouped": Case(
        around(lambda s, y: s.g(y), 12, 16, g=lambda: nn.ConvTranspose2d(12, 16, 2, 2, groups=4)),
        IMAGE,
        {"a.weight": [(3, 4)], "g.weight": [(4, 4)]},
    ),
    "transposed, one output a group": Case(
        around(lambda s, y: s.g(y), 8, 4, g=lambda: nn.ConvTranspose2d(8, 4, 2, 2, groups=4)),
        IMAGE,
        one(2, 4),
    ),
    "transposed, depthwise": Case(
        around(lambda s, y: s.g(y), g=lambda: nn.ConvTranspose2d(12, 12, 2, 2, groups=12)), IMAGE, one(12)
    ),
    "transposed, depthwise, two outputs each": Case(
        around(lambda s, y: s.g(y), 12, 24, g=lambda: nn.ConvTranspose2d(12, 24, 2, 2, groups=12)),
        IMAGE,
        one(12),
    ),
    "without a batch": Case(
        lambda: Net(
            lambda s, x: s.b(F.relu(s.g(s.a(x)))),
            a=nn.Conv1d(3, 8, 3),
            g=nn.Conv1d(8, 8, 1, groups=8),
            b=nn.Conv1d(8, 2, 1),
        ),
        ((3, 9),),
        one(8),
    ),
    "along channels": Case(
        lambda: Net(
            lambda s, x: s.b(
                s.a(x) * torch.sigmoid(s.k(s.a(x).mean((2, 3)).unsqueeze(1)).squeeze(1))[..., None, None]
            ),
            a=conv(3, 12),
            k=nn.Conv1d(1, 1, 3, padding=1),
            b=conv(12, 2),
        ),
        IMAGE,
        {},
        {"a.weight": "its taps lie on this axis"},
    ),
    "called twice": Case(
        lambda: Net(lambda s, x: s.b(s.m(F.relu(s.m(s.a(x))))), a=conv(3, 8), m=conv(8, 8), b=conv(8, 2)),
        IMAGE,
        one(8),
    ),
    "of a weight-normed weight": Case(
        lambda: Net(
            lambda s, x: s.b(F.relu(s.a(x))),
            a=nn.utils.parametrizations.weight_norm(conv(3, 8)),
            b=nn.utils.parametrizations.weight_norm(conv(8, 2)),
        ),
        IMAGE,
        one(8),
        OUTPUT,
    ),
    "of a spectral-normed weight": Case(
        lambda: Net(
            lambda s, x: s.b(F.relu(s.a(x))),
            a=nn.utils.parametrizations.spectral_norm(conv(3, 8)),
            b=nn.utils.parametrizations.spectral_norm(conv(8, 2)),
        ),
        IMAGE,
        {"a.parametrizations.weight.original": [(8, 1)]},
    ),
}

NORMS = {
    "batch norm used twice": Case(
        lambda: Net(
            lambda s, x: s.c(s.n(s.b(F.relu(s.n(s.a(x)))))),
            a=conv(3, 8),
            n=nn.BatchNorm2d(8),
            b=conv(8, 8),
            c=conv(8, 2),
        ),
        IMAGE,
        one(8),
    ),
    "instance norm": Case(
        around(lambda s, y: s.n(y), n=lambda: nn.InstanceNorm2d(12, affine=True)), IMAGE, one(12)
    ),
    "instance norm with running statistics": Case(
        around(lambda s, y: s.n(y), n=lambda: nn.InstanceNorm2d(12, track_running_stats=True)), IMAGE, one(12)
    ),
    "group norm": Case(
        around(lambda s, y: s.n(y), n=lambda: nn.GroupNorm(4, 12)), IMAGE, one(3, 4), mixes=True
    ),
    "group norm of everything": Case(
        around(lambda s, y: s.n(y), n=lambda: nn.GroupNorm(1, 12)), IMAGE, one(12), mixes=True
    ),
    "group norm of single channels": Case(
        around(lambda s, y: s.n(y), n=lambda: nn.GroupNorm(12, 12)), IMAGE, one(12)
    ),
    "layer norm over channels, rows and columns": Case(
        around(lambda s, y: s.n(y), n=lambda: nn.LayerNorm((12, 8, 8))), IMAGE, one(12), mixes=True
    ),
    "layer norm over channels that were moved": Case(
        around(lambda s, y: s.n(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), n=lambda: nn.LayerNorm(12)),
        IMAGE,
        one(12),
        mixes=True,
    ),
    "rms norm": Case(
        around(lambda s, y: s.n(y.movedim(1, -1)).movedim(-1, 1), n=lambda: nn.RMSNorm(12)),
        IMAGE,
        one(12),
        mixes=True,
    ),
    "norm written out": Case(
        around(
            lambda s, y: (
                s.g[:, None, None]
                * (y - y.mean(1, keepdim=True))
                / (y.var(1, keepdim=True, unbiased=False) + 1).sqrt()
            ),
            g=lambda: weight(12),
        ),
        IMAGE,
        one(12),
        mixes=True,
    ),
    "unit length over channels": Case(around(lambda s, y: F.normalize(y, dim=1)), IMAGE, one(12), mixes=True),
    "local response norm": Case(
        around(lambda s, y: F.local_response_norm(y, 3)), IMAGE, {}, {"a.weight": "it mixes this axis"}
    ),
    "prelu": Case(around(lambda s, y: s.p(y), p=lambda: nn.PReLU(12)), IMAGE, one(12)),
    "prelu with one slope": Case(around(lambda s, y: s.p(y), p=nn.PReLU), IMAGE, one(12)),
    "constants per channel": Case(
        around(
            lambda s, y: y * s.g.view(1, -1, 1, 1) + s.h[:, None, None],
            g=lambda: weight(12),
            h=torch.randn(12),
        ),
        IMAGE,
        one(12),
    ),
}

SHAPES = {
    "flatten to linear": Case(
        lambda: Net(lambda s, x: s.b(s.a(x).flatten(1)), a=conv(3, 6), b=nn.Linear(384, 2)), IMAGE, one(6)
    ),
    "tokens with positions, flattened": Case(
        lambda: Net(
            lambda s, x: s.b((s.a(x).flatten(2).transpose(1, 2) + s.p).flatten(1)),
            a=nn.Conv2d(3, 8, 2, 2),
            p=weight(1, 16, 8),
            b=nn.Linear(128, 2),
        ),
        IMAGE,
        one(8),
    ),
    "pixel shuffle": Case(around(lambda s, y: F.pixel_shuffle(y, 2), 16, 4), IMAGE, one(4)),
    "pixel shuffle to one channel": Case(
        around(lambda s, y: F.pixel_shuffle(y, 2), 4, 1), IMAGE, {}, {"a.weight": "one position is left"}
    ),
    "pixel unshuffle": Case(around(lambda s, y: F.pixel_unshuffle(y, 2), 4, 16), IMAGE, one(4)),
    "channel shuffle": Case(around(lambda s, y: s.m(y), m=lambda: nn.ChannelShuffle(3)), IMAGE, one(4, 3)),
    "channel shuffle by reshape": Case(
        around(lambda s, y: y.reshape(-1, 3, 4, 8, 8).transpose(1, 2).reshape(-1, 12, 8, 8)), IMAGE, one(3, 4)
    ),
    "neighbours as patches": Case(
        around(lambda s, y: F.fold(F.unfold(y, 2, stride=2), (8, 8), 2, stride=2)), IMAGE, one(12)
    ),
    "expand": Case(
        around(lambda s, y: y * s.g.expand(-1, 12, 8, 8), g=lambda: weight(1, 1, 8, 8)), IMAGE, one(12)
    ),
    "expand as": Case(
        around(lambda s, y: y * y.mean((2, 3), keepdim=True).sigmoid().expand_as(y)), IMAGE, one(12)
    ),
    "repeat": Case(around(lambda s, y: y.repeat(1, 2, 1, 1), 6, 12), IMAGE, one(6)),
    "repeat interleaved": Case(around(lambda s, y: y.repeat_interleave(2, 1), 6, 12), IMAGE, one(6)),
    "squeeze of a map": Case(
        lambda: Net(
            lambda s, x: s.b(F.adaptive_avg_pool2d(s.a(x), 1).squeeze(3).squeeze(2)),
            a=conv(3, 12),
            b=nn.Linear(12, 2),
        ),
        IMAGE,
        one(12),
    ),
    "channels as a batch": Case(
        around(lambda s, y: y + s.k(y.reshape(-1, 1, 8, 8)).reshape(-1, 8, 8, 8), 8, k=lambda: conv(1, 1)),
        IMAGE,
        one(8),
    ),
    "every pair of channels": Case(
        lambda: Net(
            lambda s, x: s.b(torch.einsum("nchw,ndhw->ncd", s.a(x), s.a(x)).flatten(1)),
            a=conv(3, 6),
            b=nn.Linear(36, 2),
        ),
        IMAGE,
        {},
        {"a.weight": "merged with another axis"},
    ),
}

PARTS = {
    "cat with what stays": Case(
        lambda: Net(lambda s, x: s.b(torch.cat([x, s.a(x), x], 1)), a=conv(3, 8), b=conv(14, 2)),
        IMAGE,
        one(8),
    ),
    "dense cat": Case(
        lambda: Net(
            dense,
            a=conv(3, 8),
            c=conv(11, 4),
            d=conv(12, 2),
        ),
        IMAGE,
        {"a.weight": [(8, 1)], "c.weight": [(4, 1)]},
    ),
    "stack, then side by side": Case(
        lambda: Net(
            lambda s, x: s.b(torch.stack([s.a(x), s.c(x)], 1).flatten(1, 2)),
            a=conv(3, 6),
            c=conv(3, 6),
            b=conv(12, 2),
        ),
        IMAGE,
        one(6),
    ),
    "stack, then in turns": Case(
        lambda: Net(
            lambda s, x: s.b(torch.stack([s.a(x), s.c(x)], 2).flatten(1, 2)),
            a=conv(3, 6),
            c=conv(3, 6),
            b=conv(12, 2),
        ),
        IMAGE,
        one(6),
    ),
    "chunk with a remainder, exchanged": Case(
        around(lambda s, y: torch.cat(y.chunk(2, 1)[::-1], 1), 9), IMAGE, {"a.weight": [(5, 1), (4, 1)]}
    ),
    "split by sizes, into layers": Case(
        lambda: Net(
            parted,
            a=conv(3, 12),
            b=conv(4, 2),
            c=conv(8, 2),
        ),
        IMAGE,
        {"a.weight": [(4, 1), (8, 1)]},
    ),
    "slices with a mean over one": Case(
        around(lambda s, y: y * y[:, :4].mean(1, keepdim=True)),
        IMAGE,
        {"a.weight": [(4, 1), (8, 1)]},
        mixes=True,
    ),
    "a slice of one channel": Case(around(lambda s, y: y[:, 1:] * y[:, :1], 13, 12), IMAGE, one(12)),
    "narrow": Case(around(lambda s, y: y.narrow(1, 2, 8), 12, 8), IMAGE, {"a.weight": [(4, 1), (8, 1)]}),
    "strided slices of pixels": Case(
        around(lambda s, y: torch.cat([y[..., ::2, ::2], y[..., 1::2, 1::2]], 1), 6, 12), IMAGE, one(6)
    ),
    "strided slices of channels": Case(
        around(lambda s, y: y[:, ::2], 12, 6), IMAGE, {}, {"a.weight": "by their number"}
    ),
    "unbind of halves": Case(
        around(lambda s, y: torch.mul(*y.unflatten(1, (2, 6)).unbind(1)), 12, 6),
        IMAGE,
        one(6),
    ),
    "select of halves": Case(
        around(lambda s, y: y.unflatten(1, (2, 6))[:, 0] * y.unflatten(1, (2, 6))[:, 1], 12, 6), IMAGE, one(6)
    ),
    "glu": Case(around(lambda s, y: F.glu(y, 1), 16, 8), IMAGE, one(8)),
    "flip of channels": Case(around(lambda s, y: y.flip(1)), IMAGE, one(12)),
    "roll of pixels": Case(around(lambda s, y: y.roll((1, -1), (2, 3))), IMAGE, one(12)),
    "roll of channels": Case(around(lambda s, y: y.roll(1, 1)), IMAGE, {}, {"a.weight": "rolled along"}),
    "padding with channels": Case(
        around(lambda s, y: F.pad(y, (0, 0, 0, 0, 2, 2)) + s.c(y), 8, 12, c=lambda: conv(8, 12)),
        IMAGE,
        {"a.weight": [(8, 1)], "c.weight": [(4, 1)]},
    ),
    "channels by index": Case(
        around(lambda s, y: y[:, [3, 1, 0]], 12, 3), IMAGE, {}, {"a.weight": "taken by their number"}
    ),
    "pixels by index": Case(around(lambda s, y: y[:, :, [3, 1]]), IMAGE, one(12)),
    "gather": Case(
        around(lambda s, y: y.gather(3, s.i.expand(y.shape[0], 12, 8, 5)), i=torch.zeros(1, 1, 1, 5).long()),
        IMAGE,
        {},
        {"a.weight": "gather: aten.gather is not known to pruning"},
    ),
}

REDUCTIONS = {
    "mean over channels": Case(around(lambda s, y: y * y.mean(1, keepdim=True)), IMAGE, one(12), mixes=True),
    "largest and mean channel": Case(
        around(
            lambda s, y: y * torch.cat([y.mean(1, keepdim=True), y.max(1, keepdim=True)[0]], 1).mean(1, True)
        ),
        IMAGE,
        one(12),
        mixes=True,
    ),
    "sum over channels": Case(
        around(lambda s, y: y + y.sum(1, keepdim=True)), IMAGE, {}, {"a.weight": "reduced over this axis"}
    ),
    "place of the largest channel": Case(
        around(lambda s, y: y * y.argmax(1, keepdim=True)), IMAGE, {}, {"a.weight": "reduced over this axis"}
    ),
    "larger of two halves": Case(around(lambda s, y: torch.max(*y.chunk(2, 1)), 12, 6), IMAGE, one(6)),
    "larger of neighbours": Case(around(lambda s, y: y.unflatten(1, (6, 2)).amax(2), 12, 6), IMAGE, one(6)),
    "softmax over channels": Case(
        around(lambda s, y: y.softmax(1)), IMAGE, {}, {"a.weight": "depend on one another"}
    ),
    "softmax over pixels": Case(
        around(lambda s, y: y.flatten(2).softmax(2).unflatten(2, (8, 8))), IMAGE, one(12)
    ),
    "sums of what came before": Case(around(lambda s, y: y.cumsum(2)), IMAGE, one(12)),
    "where": Case(
        around(lambda s, y: torch.where(y > 0, y, y * s.g), g=lambda: weight(12, 1, 1)), IMAGE, one(12)
    ),
    "masked fill": Case(around(lambda s, y: y.masked_fill(y < 0, 0.5)), IMAGE, one(12)),
    "hard swish": Case(around(lambda s, y: F.hardswish(y)), IMAGE, one(12)),
    "larger images": Case(
        around(lambda s, y: F.interpolate(y, scale_factor=2, mode="bilinear")), IMAGE, one(12)
    ),
    "sampling at computed places": Case(
        around(
            lambda s, y: F.grid_sample(y, s.g(y).permute(0, 2, 3, 1).tanh(), align_corners=False),
            g=lambda: conv(12, 2),
        ),
        IMAGE,
        one(12),
        {"g.weight": "these are places"},
    ),
    "squeeze and excite": Case(
        around(
            lambda s, y: y * torch.sigmoid(s.v(F.relu(s.u(y.mean((2, 3), keepdim=True))))),
            u=lambda: conv(12, 4, 1),
            v=lambda: conv(4, 12, 1),
        ),
        IMAGE,
        {"a.weight": [(12, 1)], "u.weight": [(4, 1)]},
    ),
}


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_channels_are_followed_through_convolutions(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", NORMS.values(), ids=NORMS)
def test_channels_are_followed_through_norms(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
def test_channels_are_followed_through_shapes(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", PARTS.values(), ids=PARTS)
def test_channels_are_followed_through_parts(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", REDUCTIONS.values(), ids=REDUCTIONS)
def test_channels_are_followed_through_reductions(case: Case) -> None:
    check(case)


def test_a_narrower_layer_norm_is_the_norm_of_what_is_left() -> None:
    program, (x,) = load(NORMS["layer norm over channels that were moved"])
    structure = trace(program)
    keep = half(structure)
    left = torch.from_numpy(keep[structure.parameters["a.weight", 0]])
    whole = dict(program.graph.named_parameters())
    with torch.no_grad():
        y = F.conv2d(x, whole["a.weight"][left], whole["a.bias"][left], padding=1).permute(0, 2, 3, 1)
        y = F.layer_norm(y, (int(left.sum()),), whole["n.weight"][left], whole["n.bias"][left])
        expected = F.conv2d(y.permute(0, 3, 1, 2), whole["b.weight"][:, left], whole["b.bias"], padding=1)
        torch.testing.assert_close(cut(program, structure, keep).graph(x)[0], expected)


def test_a_narrower_group_norm_keeps_its_groups() -> None:
    program, (x,) = load(NORMS["group norm"])
    structure = trace(program)
    keep = half(structure)
    left = torch.from_numpy(keep[structure.parameters["a.weight", 0]])
    whole = dict(program.graph.named_parameters())
    with torch.no_grad():
        y = F.conv2d(x, whole["a.weight"][left], whole["a.bias"][left], padding=1)
        y = F.group_norm(y, 4, whole["n.weight"][left], whole["n.bias"][left])
        expected = F.conv2d(y, whole["b.weight"][:, left], whole["b.bias"], padding=1)
        torch.testing.assert_close(cut(program, structure, keep).graph(x)[0], expected)


def test_one_channel_that_is_left_is_not_squeezed_away() -> None:
    program, (x,) = load(Case(around(lambda s, y: y.squeeze(1).relu()), IMAGE))
    structure = trace(program)
    keep = np.zeros(structure.n_units + 1, bool)
    keep[[3, -1]] = True
    assert cut(program, structure, keep).graph(x)[0].shape == (1, 2, 8, 8)


def test_weights_that_are_tied_stay_one() -> None:
    tied = Case(
        lambda: Net(
            lambda s, x: F.linear(F.relu(F.linear(x, s.w, s.b)), s.w.t()), w=weight(12, 16), b=weight(12)
        ),
        ((1, 16),),
        {"w": [(12, 1)]},
    )
    check(tied)
    program, _ = load(tied)
    structure = trace(program)
    narrow = cut(program, structure, half(structure))
    assert {name: tuple(p.shape) for name, p in narrow.graph.named_parameters()} == {"w": (6, 16), "b": (6,)}


def test_two_inputs_and_two_outputs_of_a_shared_encoder() -> None:
    check(
        Case(
            lambda: Net(
                lambda s, x, y: (s.b(F.relu(s.a(x))) - s.b(F.relu(s.a(y))), s.c(F.relu(s.a(y)))),
                a=nn.Linear(16, 12),
                b=nn.Linear(12, 6),
                c=nn.Linear(12, 3),
            ),
            ((1, 16), (1, 16)),
            {"a.weight": [(12, 1)]},
            {"b.weight": "what the model gives", "c.weight": "what the model gives"},
        )
    )


def test_a_mask_that_drops_what_must_stay_is_refused() -> None:
    program, _ = load(CONVOLUTIONS["depthwise"])
    structure = trace(program)
    with pytest.raises(ValueError, match="stands for what stays"):
        cut(program, structure, np.zeros(structure.n_units + 1, bool))


def test_a_program_that_does_not_run_as_planned_is_refused_by_name() -> None:
    program, _ = load(CONVOLUTIONS["depthwise"])
    structure = trace(program)
    other = {**structure.parameters}
    del other["g.weight", 0]  # as if a rule had forgotten an axis
    with pytest.raises(LoweringError, match="g_weight") as caught:
        cut(program, replace(structure, parameters=other), half(structure))
    assert "after channels were removed" in str(caught.value)
    assert "[prune] keep" in str(caught.value)


def test_patterns_keep_layers_by_name() -> None:
    program, _ = load(REDUCTIONS["squeeze and excite"])
    structure = trace(program)
    assert {g.name for g in groups(structure, ["u"])} == {"a.weight"}
    assert {g.name for g in groups(structure, ["u.*", "v"])} == set()
    assert {g.name for g in groups(structure, ["x"])} == {"a.weight", "u.weight"}
