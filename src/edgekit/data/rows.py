"""Where samples come from: something that can be iterated in batches, any number of times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Inputs = tuple[np.ndarray, ...]
Batch = tuple[Inputs, np.ndarray | None]


@dataclass(frozen=True)
class Rows:
    """A set of samples that is read in batches, never as a whole.

    Attributes:
        count: number of samples.
        batches: sorted row numbers and a batch size → raw batches (inputs in model order, labels or None).
        has_labels: whether the batches carry labels.
        where: file, folder or callable, for messages.
        name: what to call the sample of a row number in a message, as the user would find it.
        prints: one short digest per row, to find rows that two sets share.
    """

    count: int
    batches: Callable[[np.ndarray, int], Iterator[Batch]]
    has_labels: bool
    where: str
    name: Callable[[int], str]
    prints: Callable[[np.ndarray], set[bytes]]


@dataclass(frozen=True)
class Sets:
    """What a source offers.

    Attributes:
        calibration: None when one set has to serve for both.
        evaluation: the set to measure on.
        labels: class names, if the source knows them.
        notes: for the report.
    """

    calibration: Rows | None
    evaluation: Rows
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
