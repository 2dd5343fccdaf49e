"""A quick and fair look at a network between two epochs: some thousand evaluation inputs, always the same."""

from __future__ import annotations

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
