"""How far two answers to one input are apart: one function a task, one row in a table.

Each takes the answers of the live version and of the candidate, for one sample with its batch axis, all finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from edgekit_runtime.backends import Array
from edgekit_runtime.contract import Manifest, TensorSpec
from edgekit_runtime.postprocessing import softmax

Answer = Mapping[str, Array]
# Boxes with a score below this are not there; those of one class that overlap by this much are the same one.
MIN_SCORE: Final = 0.5
MIN_IOU: Final = 0.5
MAX_BOXES: Final = 300
# What arithmetic may add to a probability.
ROUNDING: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two answers.

    Attributes:
        agreed: they are the same for the task.
        distance: 0 where they are equal; at most 1, but for regression, where it is at most 2.
        labels: what each of them chose, where the task has labels.
        confidence: of these choices, from 0 to 1.
    """

    agreed: bool
    distance: float
    labels: tuple[int, int] | None = None
    confidence: tuple[float, float] | None = None


Compare = Callable[[Answer, Answer, Sequence[TensorSpec], float], Difference]


@dataclass(frozen=True, slots=True)
class Comparator:
    """A row of the table.

    Attributes:
        compare: (live, candidate, outputs of the manifest, tolerance) → difference.
        tolerance: distance up to which answers agree, where the task does not say better.
        fits: whether the outputs of a manifest have the shapes for it.
    """

    compare: Compare
    tolerance: float
    fits: Callable[[Sequence[TensorSpec]], bool]


def classification(
    live: Answer, candidate: Answer, outputs: Sequence[TensorSpec], tolerance: float
) -> Difference:
    """Same first choice; the distance is the total variation between the probabilities."""
    del tolerance
    name = outputs[0].name
    p, q = probabilities(live[name][0]), probabilities(candidate[name][0])
    first, second = int(p.argmax()), int(q.argmax())
    distance = min(1.0, float(np.abs(p - q).sum()) / 2)
    return Difference(first == second, distance, (first, second), (float(p[first]), float(q[second])))


def regression(
    live: Answer, candidate: Answer, outputs: Sequence[TensorSpec], tolerance: float
) -> Difference:
    """The Euclidean distance over all outputs, relative to the longer of the two answers."""
    a, b = _flat(live, outputs), _flat(candidate, outputs)
    # Numbers near the end of float64 would leave it when they are squared.
    largest = max(np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0))
    if largest == 0:
        return Difference(agreed=True, distance=0.0)
    a, b = a / largest, b / largest
    distance = float(np.linalg.norm(a - b) / max(np.linalg.norm(a), np.linalg.norm(b)))
    return Difference(distance <= tolerance, distance)


def embedding(live: Answer, candidate: Answer, outputs: Sequence[TensorSpec], tolerance: float) -> Difference:
    """Half of one minus the cosine of the angle between the vectors."""
    a, b = (_unit(side[outputs[0].name]) for side in (live, candidate))
    if a is None or b is None:
        same = a is None and b is None
        return Difference(same, 0.0 if same else 1.0)
    distance = min(1.0, max(0.0, (1.0 - float(a @ b)) / 2))
    return Difference(distance <= tolerance, distance)


def detection(live: Answer, candidate: Answer, outputs: Sequence[TensorSpec], tolerance: float) -> Difference:
    """Every box has its like, of the same class; the distance is one minus the overlap of those that do.

    Boxes are matched in the order of the live version's scores, each with the free one that it overlaps most.
    """
    ours, theirs = _boxes(live, outputs), _boxes(candidate, outputs)
    total = len(ours.scores) + len(theirs.scores)
    if total == 0:
        return Difference(agreed=True, distance=0.0)
    overlaps = _iou(ours.corners, theirs.corners)
    overlaps[ours.classes[:, None] != theirs.classes[None, :]] = 0.0
    matched: list[float] = []
    for row in overlaps:
        best = int(row.argmax()) if row.size else 0
        if row.size and row[best] >= MIN_IOU:
            matched.append(float(row[best]))
            overlaps[:, best] = 0.0
    distance = max(0.0, 1.0 - 2 * sum(matched) / total)
    return Difference(2 * len(matched) == total and distance <= tolerance, distance)


def sequence(live: Answer, candidate: Answer, outputs: Sequence[TensorSpec], tolerance: float) -> Difference:
    """The edit distance (Levenshtein, 1966), relative to the longer sequence."""
    a, b = (_tokens(side[outputs[0].name][0], outputs[0].semantics) for side in (live, candidate))
    longest = max(len(a), len(b))
    distance = edits(a, b) / longest if longest else 0.0
    return Difference(distance <= tolerance, distance)


COMPARATORS: Final[Mapping[str, Comparator]] = MappingProxyType(
    {
        "classification": Comparator(classification, 0.0, lambda outputs: len(outputs[0].shape) == 2),
        "regression": Comparator(regression, 0.05, lambda _: True),
        "detection": Comparator(detection, 0.25, lambda outputs: _places(outputs) is not None),
        "embedding": Comparator(embedding, 0.01, lambda _: True),
        "sequence": Comparator(sequence, 0.0, lambda outputs: len(outputs[0].shape) in {2, 3}),
    }
)


def task_of(manifest: Manifest) -> str:
    """The row of the table for a model: its task; where that says nothing, what its outputs look like."""
    row = COMPARATORS.get(manifest.task)
    if row is not None and row.fits(manifest.outputs):
        return manifest.task
    named = manifest.labels and manifest.outputs[0].shape[1:] == (len(manifest.labels),)
    return "classification" if named else "regression"


def edits(a: Array, b: Array) -> int:
    """Tokens that have to be inserted, removed or replaced to make one sequence of the other."""
    places = np.arange(len(b) + 1)
    row = places.copy()
    for number, token in enumerate(a, 1):
        # Of a removal and a replacement the cheaper; insertions run along the row.
        kept = np.minimum(row[1:] + 1, row[:-1] + (b != token))
        row = np.minimum.accumulate(np.concatenate(([number], kept)) - places) + places
    return int(row[-1])


def probabilities(scores: Array) -> Array:
    """Of each class; scores that already are probabilities stay, and one score alone is that of the second class."""
    values = scores.astype(np.float64).ravel()
    # Rounding may leave the range by a little.
    inside = bool((values >= -ROUNDING).all() and (values <= 1 + ROUNDING).all())
    if inside:
        values = values.clip(0, 1)
    if values.size == 1:
        one = values if inside else 1 / (1 + np.exp(-np.clip(values, -700, 700)))
        return np.concatenate((1 - one, one))
    # Eight-bit outputs of a softmax add up to one only within a step for each class.
    return values if inside and abs(values.sum() - 1) < 0.02 + values.size / 256 else softmax(values)


def _flat(answer: Answer, outputs: Sequence[TensorSpec]) -> Array:
    return np.concatenate([answer[spec.name].astype(np.float64).ravel() for spec in outputs])


def _unit(vector: Array) -> Array | None:
    values = vector.astype(np.float64).ravel()
    largest = np.abs(values).max(initial=0.0)
    if largest == 0:
        return None
    values = values / largest
    return np.asarray(values / np.linalg.norm(values))


@dataclass(frozen=True, slots=True)
class _Boxes:
    corners: Array
    scores: Array
    classes: Array


def _places(outputs: Sequence[TensorSpec]) -> dict[str, TensorSpec] | None:
    """Which output holds what, by its semantics or else by its name; None where boxes or scores are missing."""
    found: dict[str, TensorSpec] = {}
    for spec in outputs:
        for what in ("boxes", "scores", "classes"):
            if what in (spec.semantics.split("_")[0], spec.name.lower()):
                found[what] = spec
    usable = (
        {"boxes", "scores"} <= found.keys()
        and len(found["boxes"].shape) == 3
        and found["boxes"].shape[2] == 4
        and (len(found["scores"].shape) == 3 or "classes" in found)
        and all(spec.shape[1:2] == found["boxes"].shape[1:2] for spec in found.values())
    )
    return found if usable else None


def _boxes(answer: Answer, outputs: Sequence[TensorSpec]) -> _Boxes:
    """Those that count, best first: corners [n, 4], scores [n], classes [n]."""
    places = _places(outputs)
    assert places is not None
    boxes = answer[places["boxes"].name][0].astype(np.float64)
    scores = answer[places["scores"].name][0].astype(np.float64)
    if "classes" in places:
        classes, scores = answer[places["classes"].name][0].ravel(), scores.reshape(len(scores), -1).max(1)
    else:
        classes, scores = scores.argmax(1), scores.max(1)
    order = np.argsort(-scores, kind="stable")[:MAX_BOXES]
    order = order[scores[order] >= MIN_SCORE]
    chosen: Array = boxes[order]
    return _Boxes(_corners(chosen, places["boxes"].semantics), scores[order], classes[order])


def _corners(boxes: Array, semantics: str) -> Array:
    """Two opposite corners; `boxes_xywh` has one and a size, `boxes_cxcywh` the middle and a size."""
    if semantics == "boxes_xywh":
        return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)
    if semantics == "boxes_cxcywh":
        return np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)
    return boxes


def _iou(a: Array, b: Array) -> Array:
    """Overlap of each box of `a` with each of `b`, as a share of what they cover together: [n, m]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas = [np.clip(box[:, 2:] - box[:, :2], 0, None).prod(1) for box in (a, b)]
    covered = areas[0][:, None] + areas[1][None, :] - shared
    overlap: Array = np.divide(shared, covered, out=np.zeros_like(shared), where=covered > 0)
    return overlap


def _tokens(values: Array, semantics: str) -> Array:
    """The sequence that an output stands for: [T] tokens as they are, or the best of [T, V] at each place.

    `ctc` is decoded greedily: what repeats counts once, and token 0 is the blank (`ctc_last`: the last one is).
    """
    tokens: Array = values.argmax(-1) if values.ndim == 2 else values
    if semantics not in {"ctc", "ctc_last"}:
        return tokens
    blank = values.shape[-1] - 1 if semantics == "ctc_last" and values.ndim == 2 else 0
    first = np.concatenate(([True], tokens[1:] != tokens[:-1])) if len(tokens) else np.zeros(0, bool)
    decoded: Array = tokens[first & (tokens != blank)]
    return decoded
