"""How the outputs of a network are to be read, and whether labels speak of the same: found out on samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.data import check_labels
from edgekit.errors import UsageError
from edgekit.evaluate import Metric, class_axis
from edgekit.inputs import Training
from edgekit.stages.train.losses import Reading

Array = NDArray[Any]
# Metrics that count right answers: the first output has classes for certain.
_CLASSES: Final = frozenset({"top1", "f1"})
# Rows that sum to one but for rounding are probabilities.
_SUM: Final = 1e-3
# Squared error of a network against labels, in units of their variance, above which they are not its own.
_STRANGE: Final = 1.0
_PROBED: Final = 512


def readings_of(outputs: Sequence[Array], metric: Metric) -> tuple[Reading, ...]:
    """Read every output of the original network.

    Args:
        outputs: on some samples.
        metric: that the network is judged by; it tells classes from values where numbers alone cannot.
    """
    return tuple(_reading(y, metric, is_first=i == 0) for i, y in enumerate(outputs))


def _reading(y: Array, metric: Metric, *, is_first: bool) -> Reading:
    scale = max(float(np.var(y.astype(np.float64))), 1e-12)
    axis = None if metric.name == "mae" else class_axis(y)
    if axis is None:
        return Reading("values", None, scale)
    if y.min() >= 0 and np.abs(y.sum(axis=axis) - 1).max() < _SUM:
        return Reading("probabilities", axis, scale)
    return Reading("logits" if is_first and metric.name in _CLASSES else "scores", axis, scale)


def usable_labels(
    training: Training,
    reading: Reading,
    run: Callable[[tuple[Array, ...]], tuple[Array, ...]],
    *,
    doubted: bool,
) -> tuple[Training | None, str | None]:
    """Do the training labels say what the first output should be?

    Args:
        training: carries labels.
        reading: of the first output.
        run: the original network.
        doubted: labels that the original network is far from are left out.

    Returns:
        The training samples with labels that are checked as they are read, or None and the reason why the labels
        are of no use.

    Raises:
        UsageError: labels of a wrong number or of unknown classes.
    """
    rows = np.arange(min(training.n, _PROBED))
    pairs = [(run(x)[0], _given(y)) for x, y in training.batches(rows, 64)]
    output, labels = (np.concatenate(column) for column in zip(*pairs, strict=True))
    classes = output.shape[reading.axis] if reading.axis is not None and reading.kind != "values" else None
    expected = output[0].size // (classes or 1)
    if labels.size != expected * len(labels):
        raise UsageError(
            f"training labels of shape {labels.shape[1:]} for each input",
            expected=f"{expected} {'class number' if classes else 'value'}{'s' * (expected > 1)} for each input",
            way_out="Correct `train_y`, or set labels = false in [train] of the recipe.",
        )
    if classes is not None:
        return replace(training, batches=_LabelCheck(training, classes)), None
    error = float(np.mean((output - labels.reshape(output.shape)) ** 2.0))
    if doubted and error > _STRANGE * float(np.var(labels)):
        return None, (
            "training labels were not used: the original network's outputs are farther from them than their own mean is"
        )
    return training, None


def _given(labels: Array | None) -> Array:
    assert labels is not None
    return np.asarray(labels)


class _LabelCheck:
    """`Training.batches` that looks at every label before it is learned from."""

    def __init__(self, training: Training, classes: int) -> None:
        self._batches, self._classes = training.batches, classes

    def __call__(self, order: Array, size: int) -> Iterator[tuple[tuple[Array, ...], Array | None]]:
        for i, (inputs, labels) in enumerate(self._batches(order, size)):
            check_labels(
                _given(labels), self._classes, "training labels", f"a sample of batch {i + 1}".format
            )
            yield inputs, labels
