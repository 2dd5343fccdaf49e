"""Comparators: the distance between two answers, by task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime.contract import Artifact, Manifest, TensorSpec
from edgekit_runtime.shadow.comparators import COMPARATORS, Difference, edits, task_of
from edgekit_runtime.windows import TASKS


def spec(name: str, *shape: int, semantics: str = "") -> TensorSpec:
    return TensorSpec(name, "float32", (-1, *shape), semantics)


def compare(
    task: str, live: Any, other: Any, *specs: TensorSpec, tolerance: float | None = None
) -> Difference:
    row = COMPARATORS[task]
    answers = [
        {
            name: np.asarray(value)[None]
            for name, value in (each if isinstance(each, dict) else {"y": each}).items()
        }
        for each in (live, other)
    ]
    outputs = specs or (spec("y", *answers[0]["y"].shape[1:]),)
    return row.compare(*answers, outputs, row.tolerance if tolerance is None else tolerance)


def manifest(task: str, *outputs: TensorSpec, labels: tuple[str, ...] = ()) -> Manifest:
    artifact = Artifact("onnx", "m.onnx", "0" * 64, 1, "float32", (None,), (None,) * len(outputs))
    return Manifest("m", "1", (spec("x", 4),), outputs, (artifact,), task=task, labels=labels)


def test_there_is_a_comparator_for_every_task_that_a_window_may_name() -> None:
    assert tuple(COMPARATORS) == TASKS


VECTORS = st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4).map(lambda v: np.array(v, np.float32))


@pytest.mark.parametrize("task", ["classification", "regression", "embedding"])
@given(a=VECTORS, b=VECTORS)
def test_an_answer_agrees_with_itself_and_a_distance_is_the_same_from_both_sides(
    task: str, a: Any, b: Any
) -> None:
    same = compare(task, a, a)
    assert same.agreed
    assert same.distance == pytest.approx(0.0, abs=1e-7)
    there, back = compare(task, a, b), compare(task, b, a)
    assert there.distance == pytest.approx(back.distance, rel=1e-6, abs=1e-9)
    assert 0 <= there.distance <= (2 if task == "regression" else 1)


def test_scores_are_compared_as_probabilities_and_named_by_the_first_choice() -> None:
    found = compare("classification", [2.0, 1.0, 0.0], [0.0, 5.0, 0.0])
    assert (found.agreed, found.labels) == (False, (0, 1))
    p, q = (np.exp(v) / np.exp(v).sum() for v in (np.array([2.0, 1, 0]), np.array([0.0, 5, 0])))
    assert found.distance == pytest.approx(np.abs(p - q).sum() / 2, rel=1e-6)
    assert found.confidence == pytest.approx((p.max(), q.max()), rel=1e-6)


def test_probabilities_are_not_taken_for_scores() -> None:
    found = compare("classification", [0.7, 0.2, 0.1], [0.5, 0.3, 0.2])
    assert found.agreed
    assert found.distance == pytest.approx(0.2)
    assert found.confidence == pytest.approx((0.7, 0.5))


def test_rounding_does_not_make_scores_of_probabilities() -> None:
    exact, rounded = [0.0, 1.0, 0.0], [-1e-7, 1.0000001, 0.0]
    assert compare("classification", exact, rounded).distance == pytest.approx(0.0, abs=1e-6)
    found = compare("classification", rounded, rounded)
    assert found.confidence == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(
    ("a", "b", "labels"), [([0.2], [0.9], (0, 1)), ([-3.0], [4.0], (0, 1)), ([-1e9], [1e9], (0, 1))]
)
def test_one_score_alone_is_that_of_the_second_class(a: Any, b: Any, labels: tuple[int, int]) -> None:
    assert compare("classification", a, b).labels == labels


def test_numbers_are_compared_relative_to_their_size() -> None:
    assert compare("regression", [100.0, 0.0], [101.0, 0.0]).distance == pytest.approx(1 / 101)
    assert compare("regression", [0.0, 0.0], [0.0, 0.0]) == Difference(agreed=True, distance=0.0)
    assert compare("regression", [1.0], [-1.0]).distance == pytest.approx(2.0)
    huge = compare("regression", [3e38, 1.0], [-3e38, 1.0])
    assert huge.distance == pytest.approx(2.0)
    assert not compare("regression", [1.0], [1.2]).agreed
    assert compare("regression", [1.0], [1.2], tolerance=0.5).agreed
    assert compare(
        "regression", {"a": [1.0], "b": [2.0]}, {"a": [1.0], "b": [2.0]}, spec("a", 1), spec("b", 1)
    ).agreed


def test_embeddings_are_compared_by_their_direction() -> None:
    assert compare("embedding", [1.0, 0.0], [9.0, 0.0]).agreed
    assert compare("embedding", [1.0, 0.0], [0.0, 1.0]).distance == pytest.approx(0.5)
    assert compare("embedding", [1.0, 0.0], [-1.0, 0.0]).distance == pytest.approx(1.0)
    assert compare("embedding", [0.0, 0.0], [0.0, 0.0]).agreed
    assert compare("embedding", [0.0, 0.0], [1.0, 0.0]).distance == 1.0


DETECTION = (
    spec("boxes", 3, 4, semantics="boxes"),
    spec("scores", 3, semantics="scores"),
    spec("classes", 3, semantics="classes"),
)
ONE = {
    "boxes": np.array([[0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 6, 6]], np.float32),
    "scores": np.array([0.9, 0.8, 0.1], np.float32),
    "classes": np.array([1, 2, 1], np.float32),
}


def test_boxes_are_matched_whatever_their_order_and_those_that_nobody_sees_do_not_count() -> None:
    order = [1, 0, 2]
    turned = {name: array[order] for name, array in ONE.items()}
    turned["boxes"] = turned["boxes"].copy()
    turned["boxes"][2] = [90, 90, 99, 99]
    assert compare("detection", ONE, turned, *DETECTION) == Difference(agreed=True, distance=0.0)


@pytest.mark.parametrize(
    ("name", "row", "value"),
    [("boxes", 0, [50, 50, 60, 60]), ("classes", 1, 7), ("scores", 0, 0.2), ("scores", 2, 0.9)],
)
def test_a_box_elsewhere_of_another_class_too_many_or_too_few_is_a_difference(
    name: str, row: int, value: Any
) -> None:
    other = {key: array.copy() for key, array in ONE.items()}
    other[name][row] = value
    found = compare("detection", ONE, other, *DETECTION)
    assert not found.agreed
    assert 0 < found.distance <= 0.5


def test_a_box_that_moved_a_little_is_the_same_box_at_a_distance() -> None:
    other = {key: array.copy() for key, array in ONE.items()}
    other["boxes"][0] = [0, 0, 10, 9]
    found = compare("detection", ONE, other, *DETECTION)
    assert found.agreed
    assert found.distance == pytest.approx(1 - 2 * (0.9 + 1.0) / 4)


def test_no_box_on_either_side_is_agreement_and_on_one_side_is_none() -> None:
    nothing = {**ONE, "scores": np.zeros(3, np.float32)}
    assert compare("detection", nothing, nothing, *DETECTION) == Difference(agreed=True, distance=0.0)
    assert compare("detection", ONE, nothing, *DETECTION) == Difference(agreed=False, distance=1.0)
    assert compare("detection", nothing, ONE, *DETECTION) == Difference(agreed=False, distance=1.0)


@pytest.mark.parametrize(
    ("semantics", "box"), [("boxes_xywh", [20, 20, 10, 10]), ("boxes_cxcywh", [25, 25, 10, 10])]
)
def test_boxes_may_be_given_by_a_size(semantics: str, box: Any) -> None:
    specs = (spec("boxes", 1, 4, semantics=semantics), spec("scores", 1, 3))
    one = {"boxes": np.array([box], np.float32), "scores": np.array([[0.1, 0.9, 0.0]], np.float32)}
    moved = {**one, "boxes": one["boxes"] + np.array([5, 0, 0, 0], np.float32)}
    assert compare("detection", one, one, *specs).agreed
    assert not compare("detection", one, moved, *specs).agreed


WORDS = st.lists(st.integers(0, 3), max_size=12)


@given(WORDS, WORDS, WORDS)
def test_edits_are_a_distance_and_as_few_as_can_be(a: list[int], b: list[int], c: list[int]) -> None:
    def count(left: list[int], right: list[int]) -> int:
        return edits(np.array(left, np.int64), np.array(right, np.int64))

    assert count(a, b) == count(b, a) == slowly(tuple(a), tuple(b))
    assert (count(a, b) == 0) == (a == b)
    assert count(a, c) <= count(a, b) + count(b, c)


def slowly(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """By the definition."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def test_sequences_are_decoded_before_they_are_compared() -> None:
    def scores(*tokens: int) -> Any:
        return np.eye(4, dtype=np.float32)[list(tokens)]

    assert not compare("sequence", scores(1, 1, 0, 2), scores(1, 0, 2, 2)).agreed
    assert compare(
        "sequence", scores(1, 1, 0, 2), scores(1, 0, 2, 2), spec("y", 4, 4, semantics="ctc")
    ).agreed
    last = spec("y", 4, 4, semantics="ctc_last")
    assert compare("sequence", scores(1, 1, 3, 1), scores(1, 3, 1, 1), last).agreed
    assert compare("sequence", np.array([5, 6, 7]), np.array([5, 7, 7])).distance == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("made", "task"),
    [
        (manifest("classification", spec("y", 10)), "classification"),
        (manifest("classification", spec("y", 3, 8, 8)), "regression"),
        (manifest("keyword spotting", spec("y", 2), labels=("yes", "no")), "classification"),
        (manifest("", spec("y", 10)), "regression"),
        (manifest("detection", *DETECTION), "detection"),
        (manifest("detection", spec("boxes", 3, 4)), "regression"),
        (manifest("sequence", spec("y", 7, 30)), "sequence"),
        (manifest("embedding", spec("y", 128)), "embedding"),
    ],
)
def test_the_task_decides_and_where_it_says_nothing_the_outputs_do(made: Manifest, task: str) -> None:
    assert task_of(made) == task


def test_boxes_and_scores_that_do_not_belong_together_are_compared_as_numbers() -> None:
    odd = manifest("detection", spec("boxes", 10, 4), spec("scores", 100, 3))
    assert task_of(odd) == "regression"
    assert task_of(manifest("detection", spec("boxes", 10, 4), spec("scores", 10, 3))) == "detection"


def test_classes_that_the_model_names_count_whatever_the_shape_of_its_scores() -> None:
    specs = spec("boxes", 2, 4), spec("scores", 2, 1), spec("classes", 2)
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    live = {"boxes": boxes, "scores": np.full((2, 1), 0.9, np.float32), "classes": np.array([1.0, 2.0])}
    other = {**live, "classes": np.array([1.0, 3.0])}
    assert compare("detection", live, live, *specs).agreed
    assert not compare("detection", live, other, *specs).agreed
