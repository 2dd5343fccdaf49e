"""Sums and products with one number that cost nothing on the grid."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional

from edgekit.stages.quantize.apply import convert, grids, observe
from edgekit.stages.quantize.shifts import FEWEST_STEPS, scaled, shifted
from edgekit_converters.program import Grid
from quantized_programs import by_target, calibrated, noise, program, qd

aten = torch.ops.aten
INTEGERS = np.arange(-128, 128)
SCALES = st.floats(1e-5, 10.0).map(lambda s: float(np.float32(s)))
ZERO_POINTS = st.integers(-128, 127)


@given(SCALES, ZERO_POINTS, st.floats(-50, 50))
def test_a_shift_that_is_found_moves_no_integer_and_cuts_no_value_off(
    scale: float, zero_point: int, constant: float
) -> None:
    pair = shifted(Grid(scale, zero_point), constant)

    if pair is None:
        steps = abs(constant) // scale
        moved = zero_point - np.sign(constant) * steps
        assert steps < FEWEST_STEPS or not -128 <= moved <= 127
        return
    x, y = pair
    reals = np.float32(x.scale) * (INTEGERS - x.zero_point).astype(np.float32) + np.float32(constant)
    assert np.array_equal(np.rint(reals / np.float32(y.scale)) + y.zero_point, INTEGERS)
    assert x.zero_point == zero_point
    assert scale * (1 - 1e-6) <= x.scale <= scale * (1 + 1 / FEWEST_STEPS) * (1 + 1e-6)


@given(SCALES, ZERO_POINTS, st.floats(1e-3, 50))
def test_a_product_by_a_positive_number_moves_no_integer(
    scale: float, zero_point: int, constant: float
) -> None:
    pair = scaled(Grid(scale, zero_point), constant)

    assert pair is not None
    x, y = pair
    reals = np.float32(x.scale) * (INTEGERS - zero_point).astype(np.float32) * np.float32(constant)
    assert np.array_equal(np.rint(reals / np.float32(y.scale)) + y.zero_point, INTEGERS)


@pytest.mark.parametrize("constant", [0.0, -1.0])
def test_a_product_that_mirrors_or_wipes_out_is_left_alone(constant: float) -> None:
    assert scaled(Grid(0.1, 3), constant) is None


def test_a_hard_swish_rounds_nothing_but_its_last_product() -> None:
    layers = (nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1))
    source = program(lambda x, c, d: d(functional.hardswish(c(x))), *layers, shape=(3, 9, 9))
    quantized = convert(calibrated(source)).program
    (total,) = by_target(quantized, aten.add.Tensor)
    sixth, product = by_target(quantized, aten.mul.Tensor)
    values = values_of(quantized.graph, *noise(source, 4, seed=9))

    x, shifted_x, scaled_x = (
        values[side.args[0]] for side in (total.args[0], sixth.args[0], product.args[1])
    )

    zero_point, steps = total.args[0].args[2], round(3 / total.args[0].args[1])
    assert x.unique().numel() > 50
    assert torch.equal(shifted_x, x.clamp(zero_point - steps, min(127, zero_point + steps)))
    assert torch.equal(scaled_x, shifted_x)


def values_of(graph: GraphModule, *inputs: torch.Tensor) -> dict[Node, torch.Tensor]:
    """What every node gave."""
    seen: dict[Node, torch.Tensor] = {}

    class Recorder(Interpreter):
        def run_node(self, n: Node) -> object:
            seen[n] = value = super().run_node(n)
            return value

    with torch.no_grad():
        Recorder(graph).run(*inputs)
    return seen


def test_a_sum_whose_zero_point_would_leave_int8_keeps_its_own_grid() -> None:
    layers = (nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1))
    observed = calibrated(program(lambda x, c, d: d(torch.relu(c(x)) + 9.0), *layers, shape=(3, 9, 9)))

    found = grids(observed)

    (total,) = by_target(observed.program, aten.add.Tensor)
    assert found[total.name].scale != found[total.args[0].name].scale


def test_a_sum_that_is_concatenated_keeps_the_common_grid() -> None:
    layers = (nn.Conv2d(3, 6, 3), nn.Conv2d(12, 4, 1))

    def branch(x: torch.Tensor, c: nn.Module, d: nn.Module) -> torch.Tensor:
        y = c(x)
        return d(torch.cat([y + 1.0, functional.avg_pool2d(y, 1)], 1))

    observed = calibrated(program(branch, *layers, shape=(3, 9, 9)))
    graph = convert(observed).program.graph

    (join,) = by_target(convert(observed).program, aten.cat.default)
    assert len({side.args[1:3] for side in join.args[0]}) == 1
    assert all(
        reader.args[1:3] == n.args[1:3]
        for n in graph.graph.find_nodes(op="call_function", target=qd.quantize_per_tensor.default)
        for reader in n.users
    )


def test_without_activations_on_the_grid_there_is_nothing_to_choose() -> None:
    layers = (nn.Conv2d(3, 6, 3),)
    source = program(lambda x, c: functional.hardswish(c(x)), *layers, shape=(3, 9, 9))

    assert grids(observe(source, weights_only=True)) == {}
