"""Two networks on the same inputs: which is better, and whether that can be believed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.evaluate import METRICS
from edgekit.stages.train.judging import GROUPS, Comparison, Judged, Run, compare

CLASSES = 4


def batches(labels: np.ndarray, size: int = 64) -> list[Judged]:
    """Inputs are the numbers of the samples."""
    numbers = np.arange(len(labels), dtype=np.float32)
    return [
        Judged((numbers[i : i + size],), labels[i : i + size], (np.eye(CLASSES)[labels[i : i + size]],))
        for i in range(0, len(labels), size)
    ]


def right_but_for(wrong: list[int], labels: np.ndarray) -> Run:
    """A network that errs on some samples."""
    answers = labels.copy()
    answers[wrong] = (answers[wrong] + 1) % CLASSES

    def run(inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return (np.eye(CLASSES, dtype=np.float32)[answers[inputs[0].astype(int)]],)

    return run


def compared(n: int, before: list[int], after: list[int], metric: str = "top1", size: int = 64) -> Comparison:
    labels = np.random.default_rng(0).integers(0, CLASSES, n)
    runs = (right_but_for(wrong, labels) for wrong in (before, after))
    return compare(batches(labels, size), *runs, METRICS[metric])


def test_one_answer_more_among_many_that_changed_is_chance() -> None:
    found = compared(1024, list(range(0, 1000, 20)), list(range(10, 990, 20)))
    assert found.drop == pytest.approx(-1 / 1024)
    assert not found.better


def test_a_gain_that_nothing_speaks_against_is_believed() -> None:
    found = compared(1024, list(range(0, 1000, 20)), [])
    assert found.drop == pytest.approx(-50 / 1024)
    assert found.better


@pytest.mark.parametrize("metric", ["top1", "f1", "agreement"])
def test_the_same_network_is_no_better(metric: str) -> None:
    found = compared(300, [1, 5, 7], [1, 5, 7], metric)
    assert (found.before, found.drop, found.error) == (found.after, 0.0, 0.0)
    assert not found.better


def test_for_a_share_the_error_is_about_that_of_paired_differences() -> None:
    random = np.random.default_rng(1)
    n = 4096
    wrong = [random.choice(n, 300, replace=False) for _ in range(2)]
    found = compared(n, *(each.tolist() for each in wrong))
    difference = np.zeros(n)
    difference[wrong[0]] += 1
    difference[wrong[1]] -= 1
    assert found.error == pytest.approx(difference.std(ddof=1) / math.sqrt(n), rel=0.5)


@settings(deadline=None)
@given(st.integers(1, 3 * GROUPS), st.integers(1, 40), st.data())
def test_values_are_those_of_all_samples_however_they_are_batched(
    n: int, size: int, data: st.DataObject
) -> None:
    wrong = [data.draw(st.lists(st.integers(0, n - 1), unique=True)) for _ in range(2)]
    found = compared(n, *wrong, size=size)
    assert found.before == pytest.approx(1 - len(wrong[0]) / n)
    assert found.after == pytest.approx(1 - len(wrong[1]) / n)
    assert found.drop == pytest.approx(found.before - found.after)
    assert found.error >= 0
    assert found.error == pytest.approx(compared(n, *wrong, size=n).error)


def test_one_sample_has_no_error() -> None:
    assert compared(1, [0], []) == Comparison(0.0, 1.0, -1.0, 0.0)


def test_a_network_that_gives_no_numbers_is_not_better() -> None:
    assert not Comparison(0.5, math.nan, math.nan, math.nan).better
