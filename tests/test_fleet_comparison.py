"""The comparison: sums of minutes in any order, and figures that say what was put in."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.fleet.windows.comparison import MAX_POINTS, Minute, compare, index, series
from edgekit_runtime.sketches import Moments, Sketch
from edgekit_runtime.windows import Counts, Drift, Figures, Noise, Side


def figures(
    compared: int = 10, agreed: int = 9, *, live_ms: float = 10.0, candidate_ms: float = 12.0, x: float = 1.0
) -> Figures:
    return Figures(
        counts=Counts(seen=compared, compared=compared, agreed=agreed, errors=1),
        confusion={("cat", "dog"): compared - agreed} if compared > agreed else {},
        live=Side(Sketch.of(live_ms, live_ms), Sketch.of(0.9, 0.8)),
        candidate=Side(Sketch.of(candidate_ms, candidate_ms), Sketch.of(0.9, 0.8)),
        noise=Noise(4, 3),
        inputs={"x": Drift(Moments(1, x), Sketch.of(*([x] * 50)))},
    )


def test_figures_say_what_was_put_in() -> None:
    found = compare([Minute(1, 2, figures()), Minute(2, 3, figures(10, 7))])
    assert (found.windows, found.compared, found.agreement, found.errors) == (5, 20, 0.8, 2)
    assert found.noise == 0.25
    assert found.confusion == (("cat", "dog", 4),)
    assert [(each.label, each.left, each.came) for each in found.flips] == [("cat", 4, 0), ("dog", 0, 4)]
    assert found.latency_ratio == pytest.approx(1.2, rel=0.05)
    assert found.confidence_psi == pytest.approx(0.0, abs=0.2)
    json.dumps(found.to_tree(), allow_nan=False)


def test_nothing_is_no_figure() -> None:
    found = compare([])
    assert (found.agreement, found.noise, found.latency_ratio, found.confidence_psi) == (
        None,
        None,
        None,
        None,
    )
    assert series([], 5) == []
    json.dumps(found.to_tree(), allow_nan=False)


def test_a_series_shows_what_changes_when() -> None:
    minutes = [Minute(100, 1, figures()), Minute(101, 1, figures(10, 5)), Minute(115, 1, figures(x=50.0))]
    found = series(minutes, 10)
    assert [(each.at_s, each.agreement) for each in found] == [(6000, 0.7), (6600, 0.9)]
    assert found[0].input_psi["x"] == pytest.approx(0.0, abs=0.1)
    assert found[1].input_psi["x"] > 1


def test_a_long_time_has_few_points() -> None:
    found = series([Minute(n, 1, figures()) for n in range(0, 200_000, 100)], 1)
    assert len(found) <= MAX_POINTS
    assert sum(each.compared for each in found) == 20_000


def test_drift_of_nothing_is_not_known() -> None:
    assert index(Sketch(), Sketch.of(1.0)) is None
    assert index(Sketch.of(1.0), Sketch()) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 1000), st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=20
    ),
    st.integers(1, 60),
)
def test_the_order_of_minutes_is_of_no_account(given_minutes: list[tuple[int, int, int]], step: int) -> None:
    minutes = [Minute(at, 1, figures(n, min(n, same))) for at, n, same in given_minutes]
    mixed = minutes[:]
    random.Random(step).shuffle(mixed)
    assert compare(minutes) == compare(mixed)
    assert sum(each.compared for each in series(mixed, step)) == compare(minutes).compared
    assert series(minutes, step) == series(mixed, step)
