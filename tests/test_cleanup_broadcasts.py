"""Broadcasts: spelled one way, and left to arithmetic where it broadcasts by itself."""

import pytest
import torch
import torch.nn.functional as F

from cleanup_programs import cleaned, op_counts

BOTH = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
PLANE = (4, 6, 8)


def gate(x: torch.Tensor) -> torch.Tensor:
    return F.adaptive_avg_pool2d(x, 1).sigmoid()


@BOTH
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * gate(x).expand_as(x),
        lambda x: gate(x).expand(-1, -1, 6, 8) * x,
        lambda x: x * gate(x).expand(x.shape),
    ],
    ids=["expand_as", "expand", "expand-shape"],
)
def test_a_gate_is_not_written_out(function, dynamic: bool) -> None:
    program = cleaned(function, shape=PLANE, dynamic=dynamic)

    assert op_counts(program) == {"adaptive_avg_pool2d": 1, "sigmoid": 1, "mul": 1}


@BOTH
def test_an_expand_that_makes_the_shape_stays(dynamic: bool) -> None:
    program = cleaned(lambda x: torch.cat([x, gate(x).expand_as(x)], 1), shape=PLANE, dynamic=dynamic)

    assert op_counts(program) == {"adaptive_avg_pool2d": 1, "sigmoid": 1, "expand": 1, "cat": 1}


def test_an_expand_that_two_sides_share_stays() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        wide = gate(x).expand(-1, -1, 6, 8)
        return wide * wide

    assert op_counts(cleaned(function, shape=PLANE))["expand"] == 1


@BOTH
def test_the_shape_of_another_tensor_becomes_numbers(dynamic: bool) -> None:
    program = cleaned(lambda x: x.flatten(2).relu().reshape_as(x), shape=PLANE, dynamic=dynamic)

    assert op_counts(program) == {"flatten": 1, "relu": 1, "reshape": 1}
