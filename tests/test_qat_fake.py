"""Functions of the grid that gradients pass: the forward bits and the backward formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgekit.stages.qat import fake
from quantized_programs import qd

SCALES = st.floats(2**-12, 2.0, width=32)
ZEROS = st.integers(-128, 127)
LIMITS = st.sampled_from([7, 15, 31, 63, 127])
NO_GROWTH = torch.zeros(())


def values(seed: int, scale: float, zero_point: int) -> torch.Tensor:
    """Inside and outside of the grid, and on its rounding ties."""
    random = torch.Generator().manual_seed(seed)
    ties = (torch.arange(-140, 140) + 0.5 - zero_point) * scale
    spread = torch.randn(4, 60, generator=random) * 100 * scale
    return torch.cat([ties.reshape(4, -1), spread, torch.tensor([[math.inf, -math.inf, 0.0]] * 4)], dim=1)


def there_and_back(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    grid = (scale, zero_point, -128, 127, torch.int8)
    return qd.dequantize_per_tensor(qd.quantize_per_tensor(x, *grid), *grid)


@given(SCALES, ZEROS, st.integers(0, 99))
def test_the_forward_pass_is_that_of_the_quantized_graph(scale: float, zero_point: int, seed: int) -> None:
    x = values(seed, scale, zero_point)
    wanted = there_and_back(x, scale, zero_point)

    assert torch.equal(fake.on_grid(x, scale, zero_point), wanted)
    assert torch.equal(fake.on_learned_grid(x, scale, zero_point, NO_GROWTH), wanted)


@given(SCALES, ZEROS, st.integers(0, 99))
def test_gradients_pass_within_the_grid_and_end_beyond_it(scale: float, zero_point: int, seed: int) -> None:
    x = values(seed, scale, zero_point)[:, :-3]
    steps = torch.round(x * (1.0 / scale)) + zero_point
    inside = ((steps >= -128) & (steps <= 127)).float()
    for learned in (False, True):
        leaf = x.clone().requires_grad_()
        args = (leaf, scale, zero_point, *([NO_GROWTH] if learned else []))
        (fake.on_learned_grid if learned else fake.on_grid)(*args).sum().backward()
        assert torch.equal(leaf.grad, inside)


def test_the_gradient_of_a_step_is_that_of_the_paper() -> None:
    scale, zero_point = 0.1, -28
    x = torch.tensor([[0.234, -0.512, 3.0], [99.0, -99.0, 0.05]])
    growth = torch.zeros((), requires_grad=True)
    fake.on_learned_grid(x, scale, zero_point, growth).sum().backward()
    # Equation 3: round(v) - v inside, the ends of the grid outside; the chain through the logarithm gives `scale`.
    steps = (x / np.float32(scale)).double()
    inside = (steps.round() - steps)[torch.tensor([[True, True, True], [False, False, True]])].sum()
    wanted = (inside + (127 - zero_point) + (-128 - zero_point)) * scale / math.sqrt(3 * 127)

    assert float(growth.grad) == pytest.approx(float(wanted), rel=1e-4)


def test_a_scale_grows_by_the_exponential_of_its_growth() -> None:
    growth = torch.tensor(0.5)
    grown = fake.grown_scale(0.02, growth)
    x = torch.linspace(-3, 3, 101)

    assert grown == pytest.approx(0.02 * math.exp(0.5), rel=1e-6)
    assert grown == float(np.float32(grown)), "all formats hold float32"
    assert torch.equal(fake.on_learned_grid(x, 0.02, 3, growth), there_and_back(x, grown, 3))


@given(LIMITS, st.integers(0, 1), st.booleans(), st.integers(0, 99))
def test_weights_are_those_of_the_quantized_graph(limit: int, axis: int, learned: bool, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    share = torch.randn(3, 3, 2, generator=random) * 2
    scales = torch.rand(3, generator=random) + 0.01
    growth = torch.randn(3, generator=random) * 0.3 if learned else None
    unit = limit / 3
    integers = fake.channel_integers(share, growth, axis, limit, unit)
    grown = scales if growth is None else scales * growth.exp()
    wanted = qd.dequantize_per_channel(
        integers.to(torch.int8), grown, torch.zeros(3, dtype=torch.int64), axis, -limit, limit, torch.int8
    )

    assert int(integers.abs().max()) <= limit
    assert torch.equal(integers, integers.round())
    assert torch.equal(fake.on_channel_grid(share, scales, growth, axis, limit, unit), wanted)


def test_weights_beyond_their_range_take_no_gradient() -> None:
    share = torch.tensor([[0.5, 1.5, -2.0]], requires_grad=True)
    scales = torch.tensor([0.1])
    fake.on_channel_grid(share, scales, None, 0, 7, 7.0).sum().backward()

    torch.testing.assert_close(share.grad, torch.tensor([[0.7, 0.0, 0.0]]))


@given(SCALES, st.integers(0, 99))
def test_biases_are_multiples_of_their_step_and_pass_gradients(input_scale: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    bias = (torch.randn(5, generator=random)).requires_grad_()
    scales = torch.rand(5, generator=random) + 0.01
    snapped = fake.on_bias_grid(bias, scales, None, input_scale, None)
    snapped.sum().backward()
    steps = scales.double() * input_scale

    assert ((snapped.detach() - bias.detach()).abs() <= 0.5001 * steps + 1e-6).all()
    integers = snapped.detach().double() / steps
    torch.testing.assert_close(integers, integers.round(), rtol=2**-22, atol=1e-4)
    assert torch.equal(bias.grad, torch.ones(5))


def test_nan_is_not_hidden() -> None:
    x = torch.tensor([[math.nan, 1.0]])

    assert fake.on_grid(x, 0.1, 3).isnan().tolist() == [[True, False]]
    assert fake.on_learned_grid(x, 0.1, 3, NO_GROWTH).isnan().tolist() == [[True, False]]


def test_empty_batches_stay_empty() -> None:
    assert fake.on_grid(torch.empty(0, 3), 0.1, 0).shape == (0, 3)
    assert fake.on_learned_grid(torch.empty(0, 3), 0.1, 0, NO_GROWTH).shape == (0, 3)


def test_bfloat16_is_taken_to_float32() -> None:
    x = torch.linspace(-1, 1, 50).bfloat16()
    y = fake.on_grid(x, 0.01, 0)

    assert y.dtype == torch.float32
    assert torch.equal(y, there_and_back(x.float(), 0.01, 0))
