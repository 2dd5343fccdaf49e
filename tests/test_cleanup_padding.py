"""Explicit padding goes into the convolution or pool, and what cannot go is one canonical pad."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from cleanup_programs import cleaned, op_counts
from edgekit_converters.program import Program

BOTH = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
PLANE = (4, 8, 8)


def the(program: Program, name: str) -> Node:
    """The only call of an op."""
    (node,) = (
        node
        for node in program.graph.graph.nodes
        if getattr(node.target, "__name__", "").split(".")[0] == name
    )
    return node


@BOTH
@pytest.mark.parametrize("own", [0, 1])
def test_a_symmetric_pad_becomes_the_padding_of_the_convolution(own: int, dynamic: bool) -> None:
    program = cleaned(
        lambda x, c: c(F.pad(x, (2, 2, 1, 1))), nn.Conv2d(4, 6, 3, 2, own), shape=PLANE, dynamic=dynamic
    )

    assert the(program, "conv2d").args[4] == [1 + own, 2 + own]
    assert op_counts(program)["constant_pad_nd"] == 0


def test_a_pad_and_an_own_padding_that_even_out_are_one() -> None:
    program = cleaned(lambda x, c: c(F.pad(F.pad(x, (1, 0)), (0, 1, 2, 2))), nn.Conv2d(4, 6, 3), shape=PLANE)

    assert the(program, "conv2d").args[4] == [2, 1]
    assert op_counts(program)["constant_pad_nd"] == 0


@BOTH
@pytest.mark.parametrize("own", [0, 1])
@pytest.mark.parametrize("groups", [1, 4])
def test_an_asymmetric_pad_is_one_pad_before_a_convolution_that_does_not_pad(
    own: int, groups: int, dynamic: bool
) -> None:
    program = cleaned(
        lambda x, c: c(F.pad(x, (0, 1, 0, 1))),
        nn.Conv2d(4, 4, 3, 2, own, groups=groups),
        shape=PLANE,
        dynamic=dynamic,
    )

    conv = the(program, "conv2d")
    pad = the(program, "constant_pad_nd")
    assert conv.args[0] is pad
    assert pad.args[1:] == ([own, 1 + own, own, 1 + own], 0.0)
    assert len(conv.args) < 5 or not any(conv.args[4])


@BOTH
def test_a_causal_pad_keeps_one_canonical_form(dynamic: bool) -> None:
    program = cleaned(
        lambda x, c: c(F.pad(x, (4, 0))), nn.Conv1d(4, 6, 3, dilation=2), shape=(4, 9), dynamic=dynamic
    )

    assert the(program, "conv1d").args[0].args[1:] == ([4, 0], 0.0)


def test_an_even_kernel_with_same_padding_gets_an_explicit_pad() -> None:
    program = cleaned(lambda x, c: c(x), nn.Conv2d(4, 6, 4, padding="same"), shape=PLANE)

    assert the(program, "constant_pad_nd").args[1] == [1, 2, 1, 2]


@pytest.mark.parametrize(
    "pad",
    [
        lambda x: F.pad(x, (1, 1, 1, 1), value=0.5),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: F.pad(x, (-1, -1, 1, 1)),
        lambda x: F.pad(x, (1, 1, 1, 1, 1, 1))[:, 1:-1].contiguous(),
    ],
    ids=["value", "reflect", "crop", "channels"],
)
def test_other_pads_are_not_folded(pad) -> None:
    program = cleaned(lambda x, c: c(pad(x)), nn.Conv2d(4, 6, 3), shape=PLANE)

    conv = the(program, "conv2d")
    assert len(conv.args) < 5 or not any(conv.args[4])


def test_a_pad_that_is_read_elsewhere_stays_for_that_reader() -> None:
    program = cleaned(
        lambda x, c: (c(y := F.pad(x, (1, 1, 1, 1))), y.relu()), nn.Conv2d(4, 6, 3), shape=PLANE
    )

    assert the(program, "conv2d").args[4] == [1, 1]
    assert op_counts(program)["constant_pad_nd"] == 1


@BOTH
def test_minus_infinity_around_a_max_pool_is_its_padding(dynamic: bool) -> None:
    program = cleaned(
        lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-math.inf), 3, 2), shape=PLANE, dynamic=dynamic
    )

    assert op_counts(program) == {"max_pool2d": 1}
    assert the(program, "max_pool2d").args[3] == [1, 1]


def test_minus_infinity_on_the_right_is_ceil_mode() -> None:
    program = cleaned(lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2), shape=PLANE)

    assert op_counts(program) == {"max_pool2d": 1}
    assert the(program, "max_pool2d").args[5] is True


def test_zeros_around_a_max_pool_fold_after_a_relu_only() -> None:
    after_relu = cleaned(lambda x: F.max_pool2d(F.pad(x.relu(), (1, 1, 1, 1)), 3, 2), shape=PLANE)
    after_nothing = cleaned(lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2), shape=PLANE)

    assert op_counts(after_relu)["constant_pad_nd"] == 0
    assert op_counts(after_nothing)["constant_pad_nd"] == 1


def test_minus_infinity_on_the_left_becomes_zero_where_nothing_is_below_it() -> None:
    program = cleaned(
        lambda x: F.max_pool2d(F.pad(F.relu6(x), (1, 0, 1, 0), value=-math.inf), 3, 2), shape=PLANE
    )

    assert the(program, "constant_pad_nd").args[2] == 0.0


@pytest.mark.parametrize("count", [True, False])
def test_zeros_around_an_average_pool_are_counted(count: bool) -> None:
    program = cleaned(
        lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2, count_include_pad=count), shape=PLANE
    )

    assert op_counts(program) == {"avg_pool2d": 1}
    assert the(program, "avg_pool2d").args[5] is True


def test_a_fold_is_exact_at_the_border() -> None:
    conv = nn.Conv2d(1, 1, 3, bias=False)
    torch.nn.init.ones_(conv.weight)

    program = cleaned(lambda x, c: c(F.pad(x, (1, 1, 1, 1))), conv, shape=(1, 2, 2))

    ones = torch.ones(1, 1, 2, 2)
    assert program.graph(ones)[0].tolist() == [[[[4.0, 4.0], [4.0, 4.0]]]]
