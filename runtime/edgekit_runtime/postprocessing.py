"""From the outputs of a model to what an application shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit_runtime.backends import Array


def softmax(scores: Array) -> Array:
    """Probabilities along the last axis, float32; large scores do not overflow."""
    shifted = np.asarray(scores, np.float32)
    powers = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    probabilities: Array = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def top(scores: Array, labels: Sequence[str] = (), k: int = 5) -> list[tuple[str, float]]:
    """The largest scores of one sample, largest first; of equal ones the first class first.

    Args:
        scores: one for each class.
        labels: names of the classes; their numbers where there are none.
        k: how many at most.

    Returns:
        (label, score); NaN comes last.
    """
    flat = np.asarray(scores, np.float64).ravel()
    order = np.argsort(-flat, kind="stable")[: max(0, k)]
    named = len(labels) == flat.size
    return [(labels[i] if named else str(i), float(flat[i])) for i in order.tolist()]
