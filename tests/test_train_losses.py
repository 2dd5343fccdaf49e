"""Losses are zero where nothing is left to learn, positive elsewhere, and those of the literature."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from edgekit.stages.train import losses
from edgekit.stages.train.losses import Reading, Tap

LOGITS, SCORES, VALUES = Reading("logits", 1), Reading("scores", 1, 2.0), Reading("values", None, 4.0)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("reading", [LOGITS, SCORES, VALUES, Reading("probabilities", 1)])
@given(seed=st.integers(0, 999), temperature=st.floats(0.5, 20))
def test_a_student_like_its_teacher_has_nothing_to_learn(reading, seed, temperature):
    y = drawn(4, 5, seed=seed)
    if reading.kind == "probabilities":
        y = y.softmax(1)
    assert float(losses.soft(y, y, reading, temperature)) == pytest.approx(0, abs=1e-5)
    assert float(losses.soft(y.roll(1, 0) * 0.9 + 0.01, y, reading, temperature)) > 1e-4


@given(seed=st.integers(0, 999), temperature=st.floats(0.5, 20))
def test_soft_logits_are_hintons(seed, temperature):
    ours, theirs = drawn(4, 5, seed=seed), drawn(4, 5, seed=seed + 1000)
    expected = temperature**2 * F.kl_div(
        (ours / temperature).log_softmax(1), (theirs / temperature).softmax(1), reduction="batchmean"
    )
    assert float(losses.soft(ours, theirs, LOGITS, temperature)) == pytest.approx(
        float(expected), rel=1e-3, abs=1e-4
    )


def test_the_class_axis_may_be_anywhere():
    ours, theirs = drawn(2, 3, 5), drawn(2, 3, 5, seed=1)
    last = losses.soft(ours, theirs, Reading("logits", 2), 2.0)
    first = losses.soft(ours.movedim(2, 1), theirs.movedim(2, 1), LOGITS, 2.0)
    rows = losses.soft(ours.reshape(6, 5), theirs.reshape(6, 5), LOGITS, 2.0)
    assert float(last) == pytest.approx(float(first)) == pytest.approx(float(rows))


def test_probabilities_are_softened_as_the_logits_they_came_from():
    ours, theirs = drawn(6, 4), drawn(6, 4, seed=1)
    found = losses.soft(ours.softmax(1), theirs.softmax(1), Reading("probabilities", 1), 4.0)
    assert float(found) == pytest.approx(float(losses.soft(ours, theirs, LOGITS, 4.0)), rel=1e-4)
    sure = torch.tensor([[1.0, 0.0]])
    assert math.isfinite(float(losses.soft(sure.flip(1), sure, Reading("probabilities", 1), 4.0)))


def test_scores_count_size_as_well_as_order():
    y = drawn(3, 4)
    assert float(losses.soft(y + 1, y, LOGITS, 4.0)) == pytest.approx(0, abs=1e-5)
    assert float(losses.soft(y + 1, y, SCORES, 4.0)) == pytest.approx(1 / 2.0, rel=1e-4)


def test_values_are_compared_in_units_of_their_variance():
    y = drawn(3, 2)
    assert float(losses.soft(y + 2, y, VALUES, 4.0)) == pytest.approx(1.0)


def test_labels_of_classes_are_cross_entropy_wherever_the_classes_are():
    y, labels = drawn(4, 5), torch.tensor([0, 4, 2, 2])
    assert float(losses.hard(y, labels, LOGITS)) == pytest.approx(float(F.cross_entropy(y, labels)))
    assert float(losses.hard(y, labels[:, None].float(), LOGITS)) == pytest.approx(
        float(F.cross_entropy(y, labels))
    )
    image, marks = drawn(2, 3, 4, 4), torch.arange(32).reshape(2, 4, 4) % 3
    assert float(losses.hard(image, marks, LOGITS)) == pytest.approx(float(F.cross_entropy(image, marks)))
    text = image.flatten(2).transpose(1, 2)
    found = losses.hard(text, marks.flatten(1), Reading("logits", 2))
    assert float(found) == pytest.approx(float(F.cross_entropy(image, marks)))


def test_labels_of_values_may_have_lost_their_last_axis():
    assert float(
        losses.hard(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 2.0]), VALUES)
    ) == pytest.approx(0.5)


def test_losses_are_float32_in_any_arithmetic():
    y = drawn(3, 4).bfloat16()
    for loss in (
        losses.soft(y, y, LOGITS, 4.0), losses.soft(y, y, VALUES, 4.0), losses.hard(y, torch.zeros(3), LOGITS),
        losses.features(y, y, Tap("a")), losses.attention(y.softmax(1), y.softmax(1), Tap("a")),
    ):  # fmt: skip
        assert loss.dtype == torch.float32


def test_features_are_held_against_the_channels_that_were_kept():
    theirs = drawn(2, 4, 3)
    tap = Tap("conv", 1, (0, 3))
    assert float(losses.features(theirs[:, [0, 3]], theirs, tap)) == 0
    nothing = torch.zeros(2, 2, 3)
    assert float(losses.features(nothing, theirs, tap)) == pytest.approx(1.0), (
        "in units of the teacher's own size"
    )
    assert math.isfinite(float(losses.features(nothing, torch.zeros(2, 4, 3), tap)))


def test_attention_maps_are_compared_row_by_row_and_head_by_head():
    theirs = drawn(2, 4, 3, 3).softmax(-1)
    kept = Tap("attention", 1, (1, 2))
    assert float(losses.attention(theirs[:, [1, 2]], theirs, kept)) == pytest.approx(0, abs=1e-6)
    ours = drawn(2, 2, 3, 3, seed=1).softmax(-1)
    expected = F.kl_div(ours.log(), theirs[:, [1, 2]], reduction="none").sum(-1).mean()
    assert float(losses.attention(ours, theirs, kept)) == pytest.approx(float(expected), rel=1e-4)
    masked = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert float(losses.attention(masked, masked, Tap("a", 0))) == pytest.approx(0, abs=1e-6)


def test_a_teacher_gets_no_gradient_and_a_student_does():
    ours, theirs = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1)
    losses.soft(ours, theirs, LOGITS, 4.0).backward()
    expected = 4 * ((ours / 4).softmax(1) - (theirs / 4).softmax(1)) / 3
    torch.testing.assert_close(ours.grad, expected.detach())


@pytest.mark.parametrize(
    "wrong", [("odds", 1, 1.0), ("logits", None, 1.0), ("values", None, 0.0), ("values", None, math.nan)]
)
def test_a_reading_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"kind|axis|scale"):
        Reading(*wrong)
