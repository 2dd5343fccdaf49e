"""Global averages, adaptive pools: one form each."""

import pytest
import torch.nn.functional as F

from cleanup_programs import cleaned, op_counts

BOTH = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
PLANE = (4, 6, 8)

FLAT = {
    "adaptive-flatten": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "mean": lambda x: x.mean((2, 3)),
    "mean-negative": lambda x: x.mean([-1, -2]),
    "mean-keepdim-view": lambda x: x.mean((2, 3), keepdim=True).view(x.shape[0], -1),
    "mean-keepdim-reshape": lambda x: x.mean((2, 3), keepdim=True).reshape(-1, 4),
    "mean-of-flat": lambda x: x.flatten(2).mean(-1),
    "mean-of-view": lambda x: x.view(x.shape[0], 4, -1).mean(2),
    "full-pool-squeeze": lambda x: F.avg_pool2d(x, (6, 8)).squeeze(-1).squeeze(-1),
    "full-pool-squeeze-both": lambda x: F.avg_pool2d(x, x.shape[2:]).squeeze((2, 3)),
    "adaptive-then-flatten-all": lambda x: F.adaptive_avg_pool2d(x, (1, 1)).flatten(1, -1),
}
KEPT = {
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "mean-swapped": lambda x: x.mean((3, 2), True),
    "full-pool": lambda x: F.avg_pool2d(x, (6, 8)),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1),
}


@BOTH
@pytest.mark.parametrize("function", FLAT.values(), ids=FLAT)
def test_a_global_average_to_features_is_pool_and_flatten(function, dynamic: bool) -> None:
    program = cleaned(function, shape=PLANE, dynamic=dynamic)

    assert op_counts(program) == {"adaptive_avg_pool2d": 1, "flatten": 1}


@BOTH
@pytest.mark.parametrize("function", KEPT.values(), ids=KEPT)
def test_a_global_average_that_keeps_its_axes_is_one_pool(function, dynamic: bool) -> None:
    assert op_counts(cleaned(function, shape=PLANE, dynamic=dynamic)) == {"adaptive_avg_pool2d": 1}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.mean(1),
        lambda x: x.mean((1, 2)),
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.mean(3),
        lambda x: x.transpose(1, 2).flatten(2).transpose(1, 2).mean(1),
    ],
)
def test_other_means_are_left_alone(function) -> None:
    ops = op_counts(cleaned(function, shape=PLANE))

    assert ops["mean"] == 1
    assert ops["adaptive_avg_pool2d"] == 0


@BOTH
def test_an_adaptive_pool_that_divides_is_a_plain_one(dynamic: bool) -> None:
    program = cleaned(lambda x: F.adaptive_avg_pool2d(x, (3, 2)), shape=PLANE, dynamic=dynamic)

    assert op_counts(program) == {"avg_pool2d": 1}


def test_an_adaptive_pool_that_does_not_divide_stays() -> None:
    assert op_counts(cleaned(lambda x: F.adaptive_avg_pool2d(x, 4), shape=PLANE)) == {
        "adaptive_avg_pool2d": 1
    }


def test_an_adaptive_pool_to_its_own_size_vanishes() -> None:
    assert op_counts(cleaned(lambda x: F.adaptive_avg_pool2d(x, (6, 8)).relu(), shape=PLANE)) == {"relu": 1}


def test_a_full_pool_with_padding_is_not_a_global_average() -> None:
    program = cleaned(lambda x: F.avg_pool2d(x, (6, 8), stride=(2, 4), padding=(3, 4)), shape=PLANE)

    assert op_counts(program) == {"avg_pool2d": 1}


def test_a_window_larger_than_the_plane_is_a_global_average() -> None:
    assert op_counts(cleaned(lambda x: F.avg_pool2d(x, 64, ceil_mode=True), shape=PLANE)) == {
        "adaptive_avg_pool2d": 1
    }


def test_rounding_up_is_dropped_where_windows_fit() -> None:
    program = cleaned(lambda x: F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False), shape=PLANE)

    (pool,) = (n for n in program.graph.graph.nodes if "avg_pool2d" in n.name)
    assert op_counts(program) == {"avg_pool2d": 1}
    assert not pool.args[4]


@BOTH
@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
def test_an_average_past_the_edge_keeps_its_value_without_rounding_up(
    padding: int, include: bool, dynamic: bool
) -> None:
    # `cleaned` proves the value.
    program = cleaned(
        lambda x: F.avg_pool2d(x, 3, 2, padding, ceil_mode=True, count_include_pad=include),
        shape=(4, 6, 8),
        dynamic=dynamic,
    )

    assert op_counts(program) == {"constant_pad_nd": 1, "avg_pool2d": 1, "mul": 1, "get_attr": 1}


def test_a_maximum_over_equal_parts_is_a_plain_pool() -> None:
    assert op_counts(cleaned(lambda x: F.adaptive_max_pool2d(x, (3, 1)), shape=PLANE)) == {"max_pool2d": 1}


def test_a_maximum_over_unequal_parts_stays() -> None:
    assert op_counts(cleaned(lambda x: F.adaptive_max_pool2d(x, 4), shape=PLANE))["max_pool2d"] == 0
