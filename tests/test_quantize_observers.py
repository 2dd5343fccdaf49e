"""What calibration remembers, and the ranges and grids that follow."""

import math

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanup_programs import cleaned
from edgekit.errors import UsageError
from edgekit.stages.quantize.apply import observe
from edgekit.stages.quantize.clipping import METHODS
from edgekit.stages.quantize.observers import BINS, Histogram, affine, refuse_non_finite, weight_scales

HUGE = float(np.float32(3e38))
FLOATS = st.floats(-HUGE, HUGE, width=32, allow_subnormal=False)
BATCHES = st.lists(arrays.arrays(np.float32, st.integers(0, 40), elements=FLOATS), min_size=1, max_size=6)
QUICK = settings(max_examples=60, deadline=None)


def histogram(*batches: np.ndarray | torch.Tensor) -> Histogram:
    seen = Histogram()
    for batch in batches:
        seen.add(torch.as_tensor(batch))
    return seen


@QUICK
@given(BATCHES)
def test_every_value_is_counted_and_the_extremes_are_exact(batches: list[np.ndarray]) -> None:
    seen = histogram(*batches)
    values = np.concatenate(batches)

    assert seen.counts.sum() == values.size
    if values.size:
        assert (seen.low, seen.high) == (values.min(), values.max())
        used = np.nonzero(seen.counts)[0]
        assert seen.edges()[used[0]] <= seen.low
        assert seen.edges()[used[-1] + 1] > seen.high


@QUICK
@given(BATCHES, st.randoms(use_true_random=False))
def test_the_order_of_batches_changes_nothing(batches: list[np.ndarray], random: object) -> None:
    shuffled = list(batches)
    random.shuffle(shuffled)
    one, other = histogram(*batches), histogram(*shuffled)

    np.testing.assert_array_equal(one.counts, other.counts)
    assert (one.width, one.low, one.high) == (other.width, other.low, other.high)
    for method in METHODS:
        assert one.range(method) == other.range(method)


@QUICK
@given(BATCHES)
def test_every_method_stays_inside_what_was_seen(batches: list[np.ndarray]) -> None:
    seen = histogram(*batches)
    values = np.concatenate(batches)
    for method in METHODS:
        low, high = seen.range(method)
        assert math.isfinite(low)
        assert math.isfinite(high)
        if values.size:
            assert values.min() <= low
            assert high <= values.max()
    expected = (values.min(), values.max()) if values.size else (0.0, 0.0)
    assert seen.range("minmax") == expected


def test_growing_merges_neighbours_and_keeps_counts() -> None:
    seen = histogram(torch.full((10,), 0.75))
    before = seen.width
    seen.add(torch.tensor([100.0]))

    assert seen.width == before * 128
    assert seen.counts.sum() == 11
    assert seen.counts[BINS // 2 + int(0.75 / seen.width)] == 10


def test_a_large_tensor_is_thinned_but_its_extremes_are_not() -> None:
    values = torch.zeros(300_001)
    values[[1, 299_999]] = torch.tensor([-3.0, 7.0])
    seen = histogram(values)

    assert (seen.low, seen.high) == (-3.0, 7.0)
    assert 60_000 < seen.counts.sum() < 100_000


def test_nothing_seen_gives_a_grid_that_represents_zero() -> None:
    assert affine(*Histogram().range("mse"), -128, 127) == (pytest.approx(1e-9), -128)


@QUICK
@given(FLOATS, FLOATS, st.sampled_from([(-128, 127), (0, 255), (-63, 63)]))
def test_an_affine_grid_holds_the_range_and_zero(a: float, b: float, limits: tuple[int, int]) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero_point = affine(low, high, *limits)

    assert math.isfinite(scale)
    assert scale > 0
    assert np.float32(scale) == scale
    assert limits[0] <= zero_point <= limits[1]
    # The zero point is rounded, so an end may lie half a step outside; float32 rounds the scale.
    slack = scale * 0.5001
    assert scale * (limits[0] - zero_point) - slack <= low
    assert scale * (limits[1] - zero_point) + slack >= high


@pytest.mark.parametrize("low_high", [(0.0, 0.0), (0.0, 1e-30), (-1e-38, 0.0), (5.0, 5.0), (-3e38, 3e38)])
def test_degenerate_ranges_have_a_usable_grid(low_high: tuple[float, float]) -> None:
    scale, zero_point = affine(*low_high, -128, 127)

    assert np.float32(scale * 1.000001) >= 1e-9
    assert math.isfinite(scale)
    assert -128 <= zero_point <= 127


def rectified_six(n: int = 60_000) -> torch.Tensor:
    """What ReLU6 leaves of a bell: half zeros, a few on six."""
    return (torch.randn(n, generator=torch.Generator().manual_seed(0)) * 2.0).clamp(0, 6)


def test_entropy_does_not_clip_a_rectified_tensor_because_of_its_zeros() -> None:
    _, high = histogram(rectified_six()).range("entropy")

    assert high > 5.0


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_clipping_methods_cut_a_lone_outlier(method: str) -> None:
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(1))
    values[77] = 60.0
    low, high = histogram(values).range(method, 99.9)

    assert high < 30.0
    assert low < -2.0


def test_no_method_reconstructs_the_values_better_than_mse() -> None:
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(2)) ** 3
    seen = histogram(values)

    def error(method: str) -> float:
        scale, zero_point = affine(*seen.range(method), -128, 127)
        q = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, -128, 127)
        return float((q - values).square().mean())

    assert error("mse") < 0.95 * error("minmax")
    assert error("mse") <= 1.02 * min(error(method) for method in METHODS)


def test_percentile_of_one_hundred_keeps_everything() -> None:
    assert histogram(rectified_six()).range("percentile", 100.0) == (0.0, 6.0)


def test_a_tensor_of_zeros_only_is_no_trouble() -> None:
    seen = histogram(torch.zeros(1000))
    assert [seen.range(method) for method in METHODS] == [(0.0, 0.0)] * 4


def test_values_that_are_not_finite_are_counted_apart() -> None:
    seen = histogram(torch.tensor([1.0, math.nan, -math.inf, 2.0, math.inf]), torch.tensor([math.nan]))

    assert seen.non_finite == 4
    assert (seen.low, seen.high) == (1.0, 2.0)
    assert seen.counts.sum() == 2


def test_calibration_on_nan_is_refused_by_the_name_of_the_input() -> None:
    observed = observe(cleaned(lambda x, f: f(x), torch.nn.Linear(3, 2), shape=(3,)))
    observed.graph(torch.tensor([[1.0, math.nan, 0.0]]))

    with pytest.raises(UsageError, match=r"tensor `x` are NaN") as caught:
        refuse_non_finite(observed.graph)
    assert "samples" in caught.value.way_out


def test_a_network_that_overflows_is_refused_by_the_name_of_the_tensor() -> None:
    layer = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(layer.weight, 1e30)
    observed = observe(cleaned(lambda x, f: f(x), layer, shape=(3,)))
    observed.graph(torch.full((1, 3), 1e30))

    with pytest.raises(UsageError, match="tensor `linear`"):
        refuse_non_finite(observed.graph)


def test_finite_calibration_is_not_refused_until_one_value_is_not_finite() -> None:
    observed = observe(cleaned(lambda x, f: f(x), torch.nn.Linear(3, 2), shape=(3,)))
    observed.graph(torch.full((1, 3), HUGE / 1e3))
    refuse_non_finite(observed.graph)
    observed.graph(torch.tensor([[1.0, math.inf, 0.0]]))

    with pytest.raises(UsageError, match=r"calibration: 1 values of tensor `x`"):
        refuse_non_finite(observed.graph)


def test_weight_scales_follow_the_channel_axis_and_spare_dead_channels() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.0], [0.5, 1.0, 0.0]])

    torch.testing.assert_close(weight_scales(weight, 0, 127), torch.tensor([2.0, 1.0]) / 127)
    torch.testing.assert_close(weight_scales(weight, 1, 63), torch.tensor([1.0, 2.0, 1.0]) / 63)
