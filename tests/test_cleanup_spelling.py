"""A program saved in core ATen ends in the same form as one saved as exported."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cleanup_programs import Flat, Formula, op_counts, program_of, settled_norm
from edgekit_converters.cleanup import clean

NETS = {
    "conv": (
        lambda x, c, b, d: (
            F.max_pool2d(F.dropout(b(c(F.pad(x, (0, 1, 0, 1)))).relu(), training=False), 2)
            + F.adaptive_avg_pool2d(d(x), 1)
        ),
        (nn.Conv2d(3, 4, 3, 2), settled_norm(nn.BatchNorm2d(4)), nn.Conv2d(3, 4, 3, groups=1, dilation=2)),
        (3, 8, 8),
        {"conv2d", "constant_pad_nd", "relu", "max_pool2d", "adaptive_avg_pool2d", "add", "get_attr"},
    ),
    "transposed": (
        lambda x, c: c(x),
        (nn.ConvTranspose2d(3, 4, 2, 2),),
        (3, 4, 4),
        {"conv_transpose2d", "get_attr"},
    ),
    "conv1d": (lambda x, c: c(x), (nn.Conv1d(3, 4, 3, padding=1),), (3, 9), {"conv1d", "get_attr"}),
    "features": (
        lambda x, a, n: F.log_softmax(n(a(x)), -1).exp() + F.softmax(x, -1),
        (nn.Linear(6, 6), nn.LayerNorm(6)),
        (6,),
        {"linear", "layer_norm", "log_softmax", "exp", "softmax", "add", "get_attr"},
    ),
    "group-norm": (lambda x, g: g(x), (nn.GroupNorm(2, 4),), (4, 5, 5), {"group_norm", "get_attr"}),
    "extremes": (
        lambda x: x.max(1).values - x.min(2, keepdim=True).values[:, :, 0].sum(1, keepdim=True),
        (),
        (4, 5),
        {"amax", "amin", "select", "sum", "sub"},
    ),
}


@pytest.mark.parametrize("net", NETS)
def test_core_aten_becomes_the_everyday_ops(net: str) -> None:
    function, layers, shape, expected = NETS[net]
    module = Formula(function, *layers).eval()
    example = (torch.randn(1, *shape),)
    exported = torch.export.export(Flat(module, 1).eval(), example).run_decompositions()
    program = replace(program_of(module, example), graph=exported.module(check_guards=False))

    result, _ = clean(program)

    assert set(op_counts(result)) == expected
    x = torch.randn(1, *shape)
    torch.testing.assert_close(result.graph(x)[0], module(x), rtol=1e-5, atol=1e-5)


def test_indices_that_are_read_keep_their_pool() -> None:
    program = program_of(
        Formula(lambda x: F.max_pool2d(x, 2, return_indices=True)), (torch.randn(1, 3, 4, 4),)
    )

    result, _ = clean(program)

    assert op_counts(result)["max_pool2d"] == 0
    assert len(result.graph(torch.randn(1, 3, 4, 4))) == 2
