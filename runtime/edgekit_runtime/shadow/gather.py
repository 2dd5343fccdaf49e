"""Adds comparisons up until a window is closed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from edgekit_runtime.backends import Array
from edgekit_runtime.shadow.comparators import Difference
from edgekit_runtime.sketches import (
    FIRST_BIN,
    LARGEST,
    LAST_BIN,
    LOG_GROWTH,
    SMALLEST,
    Moments,
    Sketch,
    bin_of,
)
from edgekit_runtime.windows import MAX_PAIRS, Counts, Drift, Figures, Noise, Side

# Values of an input that are looked at in each sample: enough for quantiles, and as quick for a large image.
LOOKED_AT: Final = 1024
# Pairs of labels that are counted before the rarest are given up for their sum.
MOST_PAIRS: Final = 4096


class Bins:
    """A sketch that grows."""

    __slots__ = ("_above", "_below", "_zeros")

    def __init__(self) -> None:
        self._below: Counter[int] = Counter()
        self._above: Counter[int] = Counter()
        self._zeros = 0

    def add(self, value: float) -> None:
        """One number, not NaN."""
        if abs(value) < SMALLEST:
            self._zeros += 1
        else:
            (self._above if value > 0 else self._below)[bin_of(abs(value))] += 1

    def add_all(self, values: Array) -> None:
        """Many numbers [n], float64 and none of them NaN."""
        size = np.abs(values)
        counted = size >= SMALLEST
        self._zeros += int(size.size - np.count_nonzero(counted))
        for bins, chosen in ((self._above, values > 0), (self._below, values < 0)):
            logs = np.log(np.minimum(size[counted & chosen], LARGEST)) / LOG_GROWTH
            numbers = np.clip(np.ceil(logs), FIRST_BIN, LAST_BIN).astype(np.int64)
            for number, count in zip(*np.unique(numbers, return_counts=True), strict=True):
                bins[int(number)] += int(count)

    def sketch(self) -> Sketch:
        """What was added."""
        return Sketch(dict(self._below), self._zeros, dict(self._above))


class Gathered:
    """The figures of a window that is open.

    Args:
        inputs: names of the model's inputs.
        labels: names of the classes, their numbers where there are none.
    """

    def __init__(self, inputs: Sequence[str], labels: Sequence[str] = ()) -> None:
        self._labels = labels
        self._counts: Counter[str] = Counter()
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._other_pairs = 0
        self._distance, self._noise_distance, self._noise_ms = Bins(), Bins(), Bins()
        self._noise = Counter[str]()
        self._latency = {"live": Bins(), "candidate": Bins()}
        self._confidence = {"live": Bins(), "candidate": Bins()}
        self._moments = {name: Moments() for name in inputs}
        self._values = {name: Bins() for name in inputs}

    def count(self, **more: int) -> None:
        """Add to counts of `Counts`, by their names."""
        for name, number in more.items():
            self._counts[name] += int(number)

    def looked_at(self, name: str, values: Array) -> None:
        """An input of a sample: some of its values, evenly spread; what is not finite is left out."""
        flat = values.ravel()
        some = flat[:: max(1, -(-flat.size // LOOKED_AT))].astype(np.float64)
        some = some[np.isfinite(some)]
        # The square of what is beyond this leaves float64.
        some = np.clip(some, -1e150, 1e150)
        if some.size:
            mean = float(some.mean())
            squares = float(np.square(some - mean).sum())
            one = Moments(int(some.size), mean, squares, float(some.min()), float(some.max()))
            self._moments[name] = self._moments[name].merged(one)
            self._values[name].add_all(some)

    def took(self, live_ms: float, candidate_ms: float) -> None:
        """Milliseconds of both versions for a sample."""
        self._latency["live"].add(live_ms)
        self._latency["candidate"].add(candidate_ms)

    def served(self, took_ms: Array, confidences: Array) -> None:
        """Predictions of the live version alone: milliseconds [n] and confidences [m] of some, float64."""
        self._latency["live"].add_all(took_ms)
        self._confidence["live"].add_all(confidences)

    def compared(self, difference: Difference | None) -> None:
        """A sample that both versions answered; None where one of the answers is not finite."""
        self._counts["compared"] += 1
        if difference is None:
            return
        self._counts["agreed"] += difference.agreed
        self._distance.add(difference.distance)
        if difference.confidence is not None:
            for side, value in zip(("live", "candidate"), difference.confidence, strict=True):
                if math.isfinite(value):
                    self._confidence[side].add(value)
        if difference.labels is not None and not difference.agreed:
            first, second = (label_of(self._labels, number) for number in difference.labels)
            self._pairs[first, second] += 1
            if len(self._pairs) > MOST_PAIRS:
                kept = dict(self._pairs.most_common(MOST_PAIRS // 2))
                self._other_pairs += self._pairs.total() - sum(kept.values())
                self._pairs = Counter(kept)

    def noise(self, difference: Difference | None, took_ms: float) -> None:
        """A sample that the live version answered twice."""
        self._noise["compared"] += 1
        self._noise_ms.add(took_ms)
        if difference is not None:
            self._noise["agreed"] += difference.agreed
            self._noise_distance.add(difference.distance)

    def figures(self) -> Figures:
        """All of it."""
        return Figures(
            Counts(**self._counts),
            self._distance.sketch(),
            dict(self._pairs),
            self._other_pairs,
            self._side("live"),
            self._side("candidate"),
            Noise(
                self._noise["compared"],
                self._noise["agreed"],
                self._noise_distance.sketch(),
                self._noise_ms.sketch(),
            ),
            {name: Drift(self._moments[name], values.sketch()) for name, values in self._values.items()},
        ).shortened(MAX_PAIRS)

    def _side(self, name: str) -> Side:
        return Side(self._latency[name].sketch(), self._confidence[name].sketch())


def label_of(labels: Sequence[str], number: int) -> str:
    """Name of a class, its number where it has none."""
    return labels[number] if number < len(labels) else str(number)


def all_finite(answer: Mapping[str, Array]) -> bool:
    """Whether no output of an answer holds NaN or infinity."""
    return all(a.dtype.kind != "f" or bool(np.isfinite(a).all()) for a in answer.values())
