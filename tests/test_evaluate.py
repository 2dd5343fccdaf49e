"""Metrics in one pass: values worked out by hand, and the edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from edgekit.errors import UsageError
from edgekit.evaluate import (
    METRICS,
    Agreement,
    Custom,
    MacroF1,
    MeanAbsoluteError,
    SignalToNoise,
    Top1,
    choices,
    choose_metric,
    class_axis,
    has_classes,
)

SCORES = np.array([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.2, 0.3, 0.5], [0.9, 0.05, 0.05]], np.float32)
TRUTH = np.array([1, 0, 2, 1])


def value(tally, outputs, labels=None, reference=None) -> float:
    tally.add([outputs], labels, [outputs if reference is None else reference])
    return tally.value()


@pytest.mark.parametrize("name", METRICS)
def test_before_the_first_batch_a_metric_is_nan(name: str) -> None:
    assert math.isnan(METRICS[name].make().value())


def test_top1_is_the_share_of_right_answers() -> None:
    assert value(Top1(), SCORES, TRUTH) == 0.75


def test_top1_takes_labels_as_a_column() -> None:
    assert value(Top1(), SCORES, TRUTH[:, None]) == 0.75


def test_a_tie_goes_to_the_first_class() -> None:
    assert value(Top1(), np.full((2, 3), 0.5, np.float32), np.array([0, 1])) == 0.5


def test_top1_of_a_single_input() -> None:
    assert value(Top1(), SCORES[:1], TRUTH[:1]) == 1.0


def test_top1_over_pixels_counts_every_pixel() -> None:
    scores = np.zeros((1, 2, 2, 2), np.float32)
    scores[0, 1, 0] = 1
    assert value(Top1(), scores, np.array([[[1, 1], [1, 1]]])) == 0.5


def test_top1_of_one_score_rounds_it() -> None:
    probability = np.array([[0.2], [0.7], [0.9]], np.float32)
    assert value(Top1(), probability, np.array([0, 1, 0])) == pytest.approx(2 / 3)


@given(st.integers(1, 40), st.integers(1, 39), st.integers(0, 2**32 - 1))
def test_batches_do_not_change_a_metric(n: int, cut: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, f, truth = rng.normal(size=(n, 5)), rng.normal(size=(n, 5)), rng.integers(0, 5, n)
    for kind in (Top1, MacroF1, Agreement):
        whole, parts = kind(), kind()
        whole.add([y], truth, [f])
        for piece in (slice(0, cut), slice(cut, n)):
            if len(y[piece]):
                parts.add([y[piece]], truth[piece], [f[piece]])
        assert parts.value() == pytest.approx(whole.value())


@given(st.integers(1, 60), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_macro_f1_is_that_of_scikit_learn_over_the_classes_present(n: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, truth = rng.normal(size=(n, classes)).astype(np.float32), rng.integers(0, classes, n)
    expected = f1_score(truth, scores.argmax(1), labels=np.unique(truth), average="macro", zero_division=0)
    assert value(MacroF1(), scores, truth) == pytest.approx(expected)


def test_macro_f1_of_one_class_that_is_always_missed_is_zero() -> None:
    assert value(MacroF1(), SCORES[1:2], np.array([2])) == 0.0


def test_mean_absolute_error_takes_labels_of_another_shape_and_type() -> None:
    assert value(MeanAbsoluteError(), np.array([[1.0], [4.0]], np.float32), np.array([2, 2])) == 1.5


def test_agreement_compares_answers_not_labels() -> None:
    same = SCORES.copy()
    same[3] = [0.0, 1.0, 0.0]
    assert value(Agreement(), same, None, SCORES) == 0.75


def test_agreement_of_values_is_one_less_the_relative_error() -> None:
    f = np.array([[2.0], [4.0]], np.float32)
    assert value(Agreement(), f + 0.3, None, f) == pytest.approx(0.9)
    assert value(Agreement(), -f * 9, None, f) == 0.0


def test_agreement_of_a_model_with_both_kinds_of_outputs_is_their_mean() -> None:
    f = np.array([[2.0], [2.0], [2.0], [2.0]], np.float32)
    tally = Agreement()
    tally.add([SCORES, f * 0.5], None, [SCORES, f])
    assert tally.value() == pytest.approx(0.75)


def test_a_file_that_gives_nan_neither_agrees_nor_is_right() -> None:
    broken = np.full_like(SCORES, np.nan)
    assert value(Agreement(), broken, None, SCORES) == 0.0
    assert value(Top1(), broken, TRUTH) == 0.0
    assert value(MacroF1(), broken, TRUTH) == 0.0
    assert value(SignalNoise(), broken, None, SCORES) == -math.inf


def test_values_that_are_nan_do_not_agree() -> None:
    f = np.array([[2.0], [4.0]], np.float32)
    assert value(Agreement(), np.full_like(f, np.nan), None, f) == 0.0
    assert not METRICS["mae"].drop(0.1, value(MeanAbsoluteError(), np.full_like(f, np.nan), f)) <= 0.01


class SignalNoise:
    """`SignalToNoise` with the arguments of a metric."""

    def __init__(self) -> None:
        self.snr = SignalToNoise()

    def add(self, outputs, labels, reference) -> None:
        self.snr.add(outputs, reference)

    def value(self) -> float:
        return self.snr.value()


def test_signal_to_noise_in_decibels() -> None:
    f = np.array([[3.0, 4.0]], np.float32)
    assert value(SignalNoise(), f, None, f) == math.inf
    assert value(SignalNoise(), f + np.array([[0.3, 0.4]], np.float32), None, f) == pytest.approx(
        20, abs=1e-4
    )
    assert value(SignalNoise(), f, None, np.zeros_like(f)) == -math.inf


def test_a_custom_metric_is_weighted_by_the_size_of_the_batch() -> None:
    tally = Custom(lambda outputs, labels: float(outputs[0].mean()))
    tally.add([np.array([[1.0], [1.0], [1.0]])], None, [])
    tally.add([np.array([[5.0]])], None, [])
    assert tally.value() == 2.0


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 5), 1), ((2, 1), None), ((2, 7, 5), 2), ((2, 5, 8, 8), 1), ((2, 1, 8, 8), None), ((2,), None)],
)
def test_where_the_classes_are(shape: tuple[int, ...], axis: int | None) -> None:
    y = np.zeros(shape, np.float32)
    assert class_axis(y) == axis
    assert has_classes(y) == (axis is not None)
    assert class_axis(y.astype(np.int64)) is None
    assert len(choices(y)) == 2


@pytest.mark.parametrize(
    ("labels", "classes", "name"), [(False, True, "agreement"), (True, True, "top1"), (True, False, "mae")]
)
def test_without_a_wish_the_data_decides(labels: bool, classes: bool, name: str) -> None:
    assert choose_metric(None, labels=labels, classes=classes).name == name


@pytest.mark.parametrize("name", ["top1", "f1", "mae"])
def test_a_metric_of_labels_without_labels_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no labels") as caught:
        choose_metric(name, labels=False, classes=True)
    assert "agreement" in caught.value.way_out


@pytest.mark.parametrize("name", ["top3", "math:", "math:nothing", "no_such_module_here:f", "math:pi"])
def test_what_is_no_metric_is_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_metric(name, labels=True, classes=True)
    assert f"--metric {name}" in caught.value.what


def test_a_lower_error_is_no_drop() -> None:
    assert METRICS["mae"].drop(0.5, 0.4) == pytest.approx(-0.1)
    assert METRICS["top1"].drop(0.5, 0.4) == pytest.approx(0.1)
