"""Channels are followed through everything that moves, selects, pools or reduces them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.stages.prune import cut, groups, trace
from support.tiny_layers import IMAGE, Case, Net, around, check, conv, load, one, weight


def dense(s: Net, x: Tensor) -> Tensor:
    first = s.a(x)
    second = s.c(torch.cat([x, first], 1))
    return s.d(torch.cat([second, first], 1))


def parted(s: Net, x: Tensor) -> Tensor:
    first, second = s.a(x).split((4, 8), 1)
    return s.b(first) + s.c(second)


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


@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
def test_channels_are_followed_through_shapes(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", PARTS.values(), ids=PARTS)
def test_channels_are_followed_through_parts(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", REDUCTIONS.values(), ids=REDUCTIONS)
def test_channels_are_followed_through_reductions(case: Case) -> None:
    check(case)


def test_one_channel_that_is_left_is_not_squeezed_away() -> None:
    program, (x,) = load(Case(around(lambda s, y: y.squeeze(1).relu()), IMAGE))
    structure = trace(program)
    keep = np.zeros(structure.n_units + 1, bool)
    keep[[3, -1]] = True
    assert cut(program, structure, keep).graph(x)[0].shape == (1, 2, 8, 8)


def test_patterns_keep_layers_by_name() -> None:
    program, _ = load(REDUCTIONS["squeeze and excite"])
    structure = trace(program)
    assert {g.name for g in groups(structure, ["u"])} == {"a.weight"}
    assert {g.name for g in groups(structure, ["u.*", "v"])} == set()
    assert {g.name for g in groups(structure, ["x"])} == {"a.weight", "u.weight"}
