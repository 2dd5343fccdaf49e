"""Channels are followed through convolutions and norms, and are cut out of them as planned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.errors import LoweringError
from edgekit.stages.prune import cut, trace
from support.narrower import half
from support.tiny_layers import IMAGE, Case, Net, around, check, conv, load, one, weight

OUTPUT = {"b.weight": "output: what the model gives"}


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


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_channels_are_followed_through_convolutions(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", NORMS.values(), ids=NORMS)
def test_channels_are_followed_through_norms(case: Case) -> None:
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
