"""Metrics: how good a set of outputs is, and how close to the float model's.

A metric is computed in one pass over batches, so the evaluation set never has to fit in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import UsageError
from edgekit.usercode import imported

Array = NDArray[Any]


class Tally(Protocol):
    """Counts batches of (outputs, labels, float outputs) into one number."""

    def add(self, outputs: Sequence[Array], labels: Array | None, reference: Sequence[Array]) -> None:
        """Take in one batch."""

    def value(self) -> float:
        """The metric so far; NaN before the first batch."""


@dataclass
class Mean:
    """Running mean."""

    total: float = 0.0
    n: int = 0

    def take(self, total: float, n: int) -> None:
        """Add `n` items that sum to `total`."""
        self.total += total
        self.n += n

    @property
    def mean(self) -> float:
        """NaN when empty."""
        return self.total / self.n if self.n else math.nan


@dataclass
class Top1:
    """Share of inputs whose largest score is the label."""

    mean: Mean = field(default_factory=Mean)

    def add(self, outputs: Sequence[Array], labels: Array | None, reference: Sequence[Array]) -> None:
        """Take in one batch."""
        del reference
        assert labels is not None
        guess = choices(outputs[0])
        self.mean.take(float((guess == labels.reshape(guess.shape)).sum()), guess.size)

    def value(self) -> float:
        """Between 0 and 1."""
        return self.mean.mean


@dataclass
class Agreement:
    """Share of answers that are those of the float model.

    An answer is the largest score along the class axis. Outputs without one are compared as values:
    `1 - mean |y - f| / mean |f|`, not below 0.
    """

    same: Mean = field(default_factory=Mean)
    error: Mean = field(default_factory=Mean)
    size: Mean = field(default_factory=Mean)

    def add(self, outputs: Sequence[Array], labels: Array | None, reference: Sequence[Array]) -> None:
        """Take in one batch."""
        del labels
        for y, f in zip(outputs, reference, strict=True):
            if has_classes(f):
                equal = choices(y) == choices(f)
                self.same.take(float(equal.sum()), equal.size)
            else:
                self.error.take(float(np.abs(y.astype(np.float64) - f).sum()), f.size)
                self.size.take(float(np.abs(f.astype(np.float64)).sum()), f.size)

    def value(self) -> float:
        """Between 0 and 1; the mean of both kinds when the model has both kinds of outputs."""
        parts = [self.same.mean] if self.same.n else []
        if self.error.n:
            parts.append(max(0.0, 1.0 - self.error.total / max(self.size.total, 1e-12)))
        return float(np.mean(parts)) if parts else math.nan


@dataclass
class MeanAbsoluteError:
    """Mean |output − label|."""

    mean: Mean = field(default_factory=Mean)

    def add(self, outputs: Sequence[Array], labels: Array | None, reference: Sequence[Array]) -> None:
        """Take in one batch."""
        del reference
        assert labels is not None
        error = np.abs(outputs[0].astype(np.float64) - labels.reshape(outputs[0].shape))
        self.mean.take(float(error.sum()), error.size)

    def value(self) -> float:
        """In the unit of the label."""
        return self.mean.mean


@dataclass
class MacroF1:
    """Unweighted mean over classes of the harmonic mean of precision and recall."""

    hits: dict[int, int] = field(default_factory=dict)
    guessed: dict[int, int] = field(default_factory=dict)
    present: dict[int, int] = field(default_factory=dict)

    def add(self, outputs: Sequence[Array], labels: Array | None, reference: Sequence[Array]) -> None:
        """Take in one batch."""
        del reference
        assert labels is not None
        guess, truth = choices(outputs[0]).reshape(-1), labels.reshape(-1)
        for table, values in (
            (self.hits, truth[guess == truth]),
            (self.guessed, guess),
            (self.present, truth),
        ):
            for label, count in zip(*np.unique(values, return_counts=True), strict=True):
                table[int(label)] = table.get(int(label), 0) + int(count)

    def value(self) -> float:
        """Between 0 and 1."""
        scores = [
            2 * self.hits.get(c, 0) / (self.guessed.get(c, 0) + self.present[c]) for c in sorted(self.present)
        ]
        return float(np.mean(scores)) if scores else math.nan


@dataclass
class Custom:
    """A user's function of one batch, averaged over inputs."""

    function: Callable[[Sequence[Array], Array | None], float]
    mean: Mean = field(default_factory=Mean)

    def add(self, outputs: Sequence[Array], labels: Array | None, reference: Sequence[Array]) -> None:
        """Take in one batch."""
        del reference
        n = len(outputs[0])
        self.mean.take(float(self.function(outputs, labels)) * n, n)

    def value(self) -> float:
        """In the unit of the function."""
        return self.mean.mean


@dataclass(frozen=True)
class Metric:
    """A named way of judging.

    Attributes:
        name: as in `--metric`.
        make: gives an empty tally.
        higher_is_better: False for errors.
        needs_labels: the data must carry labels.
        default_drop: largest loss that is accepted when the user names none.
    """

    name: str
    make: Callable[[], Tally]
    higher_is_better: bool = True
    needs_labels: bool = True
    default_drop: float = 0.01

    def drop(self, baseline: float, value: float) -> float:
        """Loss against the baseline in the metric's own unit; above zero is worse."""
        return baseline - value if self.higher_is_better else value - baseline


METRICS: Final[dict[str, Metric]] = {
    "top1": Metric("top1", Top1),
    "f1": Metric("f1", MacroF1),
    "mae": Metric("mae", MeanAbsoluteError, higher_is_better=False),
    "agreement": Metric("agreement", Agreement, needs_labels=False, default_drop=0.15),
}


def choose_metric(name: str | None, *, labels: bool, classes: bool) -> Metric:
    """The metric that was asked for, or the natural one for the data.

    Args:
        name: one of `METRICS`, "module:callable" (higher is better), or None.
        labels: the data carries labels.
        classes: the first output has a class axis.

    Raises:
        UsageError: unknown name, or a metric that needs labels without any.
    """
    if name is None:
        name = "agreement" if not labels else ("top1" if classes else "mae")
    metric = METRICS.get(name) or _custom(name)
    if metric.needs_labels and not labels:
        raise UsageError(
            f"--metric {name}: the data has no labels",
            expected="labels in the data (`y`, `eval_y`, or class folders)",
            way_out="Give labels, or use --metric agreement, which compares with the float model.",
        )
    return metric


def _custom(name: str) -> Metric:
    function = imported(
        name,
        named=f"--metric {name}",
        expected=f"one of {', '.join(METRICS)}, or module:callable",
        way_out="Spell the metric as in the list, or check that the module can be imported from here.",
    )
    return Metric(name, lambda: Custom(function), needs_labels=False)


def class_axis(y: Array) -> int | None:
    """Axis of the scores: 1 for `[n, c]` and `[n, c, h, w]`, last for `[n, t, c]`; None without classes."""
    axis = {2: 1, 3: 2, 4: 1}.get(y.ndim)
    return axis if axis is not None and y.shape[axis] > 1 and y.dtype.kind == "f" else None


def has_classes(y: Array) -> bool:
    """The output has a class axis."""
    return class_axis(y) is not None


def choices(y: Array) -> Array:
    """Index of the largest score along the class axis; the rounded values where there is none.

    -1 stands where a score is NaN, so that a broken file never happens to be right.
    """
    axis = class_axis(y)
    if axis is not None:
        return np.where(np.isnan(y).any(axis=axis), -1, y.argmax(axis=axis))
    return np.where(np.isnan(y), -1, np.rint(np.nan_to_num(y))).astype(np.int64)


@dataclass
class SignalToNoise:
    """`10 log10(Σ f² / Σ (f − y)²)` over all outputs, in dB."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, outputs: Sequence[Array], reference: Sequence[Array]) -> None:
        """Take in one batch."""
        for y, f in zip(outputs, reference, strict=True):
            wide = f.astype(np.float64)
            self.signal += float((wide**2).sum())
            self.noise += float(((wide - y) ** 2).sum())

    def value(self) -> float:
        """Infinite when there is no difference; minus infinity when outputs are not finite."""
        if self.noise == 0:
            return math.inf
        if not math.isfinite(self.noise):
            return -math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf
