"""A quick and fair look at a network between two epochs: some thousand evaluation inputs, always the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.evaluate import Metric
from edgekit.inputs import Inputs

Array = NDArray[Any]
Run = Callable[[tuple[Array, ...]], tuple[Array, ...]]

# So many inputs are judged, or up to twice as many; fewer where they would fill the memory.
JUDGED: Final = 2048
_VALUES: Final = 1 << 26
# So many groups of samples are left out in turn to estimate an error.
GROUPS: Final = 16


@dataclass(frozen=True)
class Judged:
    """A batch of inputs to judge on.

    Attributes:
        inputs: one array per input.
        labels: of the samples, None without any.
        reference: outputs of the original network.
    """

    inputs: tuple[Array, ...]
    labels: Array | None
    reference: tuple[Array, ...]


def judged_batches(inputs: Inputs, *, values: int, size: int, run: Run) -> list[Judged]:
    """Take evaluation inputs at even distances, so that sets sorted by class are judged on all classes.

    Args:
        inputs: of the pipeline.
        values: of one sample over all inputs.
        size: of the batches.
        run: the original network.

    Returns:
        All inputs, or between `JUDGED` and twice as many; fewer where they are large.
    """
    rows = _at_even_distances(inputs, most=2 * max(1, min(JUDGED, _VALUES // values)))
    batches = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        arrays = tuple(np.stack(column) for column in zip(*(x for x, _ in part), strict=True))
        labels = None if part[0][1] is None else np.stack([np.asarray(y) for _, y in part])
        batches.append(Judged(arrays, labels, run(arrays)))
    return batches


def _at_even_distances(inputs: Inputs, *, most: int) -> list[tuple[tuple[Array, ...], Array | None]]:
    """One pass without knowing the end: when there are too many, every second one goes and the distance doubles."""
    kept: list[tuple[tuple[Array, ...], Array | None]] = []
    distance = 1
    for i, row in enumerate(_rows(inputs)):
        if i % distance == 0:
            kept.append(row)
        if len(kept) > most:
            kept, distance = kept[::2], distance * 2
    return kept


def _rows(inputs: Inputs) -> Iterator[tuple[tuple[Array, ...], Array | None]]:
    for arrays, labels in inputs.evaluation():
        for i in range(len(arrays[0])):
            yield tuple(a[i].copy() for a in arrays), None if labels is None else np.asarray(labels[i])


def judge(batches: Sequence[Judged], run: Run, metric: Metric) -> float:
    """Value of a network on the inputs.

    Args:
        batches: from `judged_batches`.
        run: the network.
        metric: how its outputs are judged.
    """
    tally = metric.make()
    for batch in batches:
        tally.add(run(batch.inputs), batch.labels, batch.reference)
    return tally.value()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two networks on the same inputs.

    Attributes:
        before: value of the first.
        after: value of the second.
        drop: what the second loses against the first; below 0 it is better.
        error: standard error of the drop: 0 where there is one sample only.
    """

    before: float
    after: float
    drop: float
    error: float

    @property
    def better(self) -> bool:
        """The second is better by more than its standard error; by chance it would be in one case of six."""
        return self.drop < -self.error


def compare(batches: Sequence[Judged], before: Run, after: Run, metric: Metric) -> Comparison:
    """Judge two networks, and how far the difference can be believed.

    The error is that of the jackknife that leaves out one group of samples at a time (Efron 1982), which holds for any
    metric and counts the samples as pairs.

    Args:
        batches: from `judged_batches`.
        before: the first network.
        after: the second.
        metric: how their outputs are judged.
    """
    groups = min(GROUPS, sum(len(batch.inputs[0]) for batch in batches))
    left_out = [] if groups < 2 else list(range(groups))
    values = [_values(batches, run, metric, left_out) for run in (before, after)]
    drop, *drops = (metric.drop(a, b) for a, b in zip(*values, strict=True))
    # (g - 1) / g times the sum of squares is (g - 1) times their mean.
    error = math.sqrt((groups - 1) * float(np.var(drops))) if drops else 0.0
    return Comparison(values[0][0], values[1][0], drop, error)


def _values(batches: Sequence[Judged], run: Run, metric: Metric, left_out: Sequence[int]) -> list[float]:
    """Of all samples, then without each group; sample i is in group i modulo their number."""
    whole, parts = metric.make(), [metric.make() for _ in left_out]
    seen = 0
    for batch in batches:
        outputs, n = run(batch.inputs), len(batch.inputs[0])
        whole.add(outputs, batch.labels, batch.reference)
        number = np.arange(seen, seen + n) % max(1, len(left_out))
        for part, group in zip(parts, left_out, strict=True):
            rows = np.flatnonzero(number != group)
            if len(rows):
                labels = None if batch.labels is None else batch.labels[rows]
                part.add(tuple(y[rows] for y in outputs), labels, tuple(y[rows] for y in batch.reference))
        seen += n
    return [tally.value() for tally in (whole, *parts)]
