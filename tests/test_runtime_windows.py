"""Windows and sketches: they add up in any order, are exact in what they count, and are read strictly."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime.shadow.comparators import Difference
from edgekit_runtime.shadow.gather import LOOKED_AT, MOST_PAIRS, Bins, Gathered
from edgekit_runtime.sketches import ACCURACY, LARGEST, MAX_COUNT, SMALLEST, Moments, Sketch
from edgekit_runtime.strict_json import ContractError
from edgekit_runtime.windows import MAX_PAIRS, Counts, Figures, Noise, Window

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False)
LIVE, CANDIDATE = "a" * 64, "b" * 64


def differences() -> st.SearchStrategy[Difference]:
    label = st.integers(0, 3)
    share = st.floats(0, 1)
    return st.builds(
        lambda a, b, d, c: Difference(a == b, d, (a, b), c), label, label, share, st.tuples(share, share)
    )


@st.composite
def figures(draw: st.DrawFn) -> Figures:
    gathered = Gathered(["größe"], ["cat", "dog"])
    gathered.count(seen=draw(st.integers(0, 1000)), dropped=draw(st.integers(0, 9)), nans=1)
    for difference in draw(st.lists(st.one_of(st.none(), differences()), max_size=6)):
        gathered.took(draw(st.floats(0.001, 100)), 2.0)
        gathered.compared(difference)
        gathered.noise(difference, draw(st.floats(0.001, 100)))
        gathered.looked_at("größe", np.array(draw(st.lists(NUMBERS, max_size=5)), np.float64))
    return gathered.figures()


def window(of: Figures) -> Window:
    return Window("0123456789abcdef", LIVE, CANDIDATE, "classification", 1_700_000_000, 300.5, of)


@given(st.lists(NUMBERS, min_size=1, max_size=200), st.floats(0, 1))
def test_every_quantile_is_near_a_number_that_was_there(numbers: list[float], share: float) -> None:
    sketch = Sketch.of(*numbers)
    assert sketch.n == len(numbers)
    rank = max(0, math.ceil(share * len(numbers)) - 1)
    exact = sorted(numbers)[rank]
    assert sketch.quantile(share) == pytest.approx(exact, rel=1.001 * ACCURACY, abs=SMALLEST)


@given(st.lists(NUMBERS, max_size=50))
def test_many_numbers_are_counted_like_one_after_the_other(numbers: list[float]) -> None:
    bins, single = Bins(), Bins()
    bins.add_all(np.array(numbers, np.float64))
    for number in numbers:
        single.add(number)
    assert bins.sketch().n == single.sketch().n == len(numbers)
    for share in (0.0, 0.3, 0.5, 1.0):
        # Two roundings of a logarithm may differ at the edge of a bin.
        assert bins.sketch().quantile(share) == pytest.approx(
            single.sketch().quantile(share), rel=2.1 * ACCURACY, nan_ok=True
        )


def test_what_is_beyond_every_size_is_counted_at_the_end() -> None:
    sketch = Sketch.of(math.inf, -math.inf, 1e300, 5e-324, 0.0, -0.0)
    assert (sketch.n, sketch.zeros) == (6, 3)
    assert sketch.quantile(1.0) == pytest.approx(LARGEST, rel=2 * ACCURACY)
    assert math.isnan(Sketch().quantile(0.5))
    with pytest.raises(ValueError, match="NaN"):
        Sketch.of(math.nan)


@given(figures(), figures(), figures())
def test_figures_add_up_in_any_order(a: Figures, b: Figures, c: Figures) -> None:
    assert a.merged(b) == b.merged(a)
    assert a.merged(Figures()) == a
    one, other = a.merged(b).merged(c), a.merged(b.merged(c))
    assert (one.counts, one.distance, one.confusion, one.noise) == (
        other.counts,
        other.distance,
        other.confusion,
        other.noise,
    )
    (left,), (right,) = one.inputs.values() or [None], other.inputs.values() or [None]
    if left is not None and right is not None:
        assert left.values == right.values
        assert left.moments.mean == pytest.approx(right.moments.mean, rel=1e-9, abs=1e-6)


@given(st.lists(NUMBERS, min_size=1, max_size=60), st.integers(0, 60))
def test_moments_are_those_of_all_numbers_wherever_they_were_parted(numbers: list[float], cut: int) -> None:
    both = moments(numbers[:cut]).merged(moments(numbers[cut:]))
    values = np.array(numbers)
    assert (both.n, both.low, both.high) == (len(numbers), values.min(), values.max())
    assert both.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-6)
    spread = float(np.abs(values).max()) ** 2
    assert both.variance == pytest.approx(values.var(), rel=1e-6, abs=1e-12 * spread + 1e-12)


def moments(numbers: list[float]) -> Moments:
    whole = Moments()
    for number in numbers:
        whole = whole.merged(Moments(1, number, 0.0, number, number))
    return whole


@given(figures())
def test_a_window_is_read_as_it_was_written(of: Figures) -> None:
    made = window(of)
    assert Window.from_json(made.to_json()) == made
    assert Window.from_json(made.to_json()).to_json() == made.to_json()


DAMAGE: dict[str, Any] = {
    "key": "no hexadecimal",
    "live": "a" * 63,
    "task": "guessing",
    "began_s": -1,
    "seconds": -0.5,
    "counts": {"seen": 1},
    "distance": {"below": {}, "zeros": -1, "above": {}},
    "confusion": [["cat", "dog"]],
    "other_pairs": 1.5,
    "sides": {"live": {}},
    "noise": {"compared": 1, "agreed": 2, "distance": {"below": {}, "zeros": 0, "above": {}}},
    "inputs": {"x": {"moments": {}, "values": {}}},
    "schema": 2,
    "surplus": True,
}


@pytest.mark.parametrize("key", DAMAGE)
def test_a_window_that_breaks_the_contract_is_refused_by_name(key: str) -> None:
    tree = json.loads(window(Figures(Counts(seen=3))).to_json())
    tree[key] = DAMAGE[key]
    with pytest.raises(ContractError) as caught:
        Window.from_json(json.dumps(tree))
    assert caught.value.key.startswith(key)


@pytest.mark.parametrize("bins", [{"1.5": 1}, {"01": 1}, {"9999": 1}, {"1": 0}, {"1": True}, {"x": 1}])
def test_bins_that_no_sketch_has_are_refused(bins: dict[str, Any]) -> None:
    tree = json.loads(window(Figures()).to_json())
    tree["distance"]["above"] = bins
    with pytest.raises(ContractError):
        Window.from_json(json.dumps(tree))


def test_more_agreed_than_compared_is_no_window() -> None:
    with pytest.raises(ContractError, match="agreed"):
        Figures(Counts(compared=1, agreed=2))
    with pytest.raises(ContractError, match="agreed"):
        Noise(compared=0, agreed=1)


def test_the_most_frequent_pairs_are_named_and_no_other_is_lost() -> None:
    gathered = Gathered([])
    total = 0
    for number in range(MOST_PAIRS + 500):
        for _ in range(3 if number < MAX_PAIRS else 1):
            gathered.compared(Difference(agreed=False, distance=1.0, labels=(number, number + 1)))
            total += 1
    made = gathered.figures()
    assert set(made.confusion) == {(str(n), str(n + 1)) for n in range(MAX_PAIRS)}
    assert sum(made.confusion.values()) + made.other_pairs == total


def test_a_large_input_is_looked_at_here_and_there_and_what_is_not_finite_is_left_out() -> None:
    gathered = Gathered(["x"])
    gathered.looked_at("x", np.full((3, 1000, 1000), 2.0, np.float32))
    gathered.looked_at("x", np.array([np.nan, np.inf, -np.inf, 4.0], np.float32))
    gathered.looked_at("x", np.zeros((0,), np.float32))
    drift = gathered.figures().inputs["x"]
    assert LOOKED_AT / 2 < drift.moments.n <= LOOKED_AT + 1
    assert (drift.moments.low, drift.moments.high) == (2.0, 4.0)
    assert drift.values.n == drift.moments.n


def test_a_device_that_lies_cannot_make_the_sums_of_others_impossible() -> None:
    most = Figures(
        Counts(seen=MAX_COUNT, compared=MAX_COUNT), other_pairs=MAX_COUNT, distance=Sketch(zeros=MAX_COUNT)
    )
    assert most.merged(most) == most
    far = Moments(MAX_COUNT, 1e150, 1e306, 1e150, 1e150)
    near = Moments(MAX_COUNT, -1e150, 0.0, -1e150, -1e150)
    assert far.merged(near) == near.merged(far)
    with pytest.raises(ContractError, match="mean"):
        Moments(1, 1e308, 0.0, 0.0, 0.0)


def test_a_pair_of_labels_that_stands_there_twice_is_refused() -> None:
    tree = json.loads(window(Figures(confusion={("a", "b"): 2})).to_json())
    tree["confusion"] *= 2
    with pytest.raises(ContractError, match="twice"):
        Window.from_json(json.dumps(tree))


def test_the_number_of_a_bin_without_end_is_no_number() -> None:
    tree = json.loads(window(Figures()).to_json())
    tree["distance"]["above"] = {"1" * 5000: 1}
    with pytest.raises(ContractError, match="bin"):
        Window.from_json(json.dumps(tree))
