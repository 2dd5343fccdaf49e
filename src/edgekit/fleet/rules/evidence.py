"""What the devices of a rollout show, in columns: one entry a device.

A device is one observation, however much it predicts: predictions of one device resemble one another, and a million of
them from one kitchen say nothing of the other kitchens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgekit_runtime.sketches import Sketch
from edgekit_runtime.windows import Figures

Shares = NDArray[np.float64]
Flags = NDArray[np.bool_]


def _none() -> Shares:
    return np.zeros(0)


def _nobody() -> Flags:
    return np.zeros(0, dtype=bool)


@dataclass(frozen=True, slots=True)
class Observation:
    """What one device shows.

    Attributes:
        agreement: share of compared answers that were the same, from 0 to 1, without what the live version differs
            from itself.
        errors: share of inputs that the release raised an error on.
        nans: share of answers with NaN or infinity where the live version had none.
        latency_ratio: median of the release's latency over that of the version before, on the same device; NaN where
            one of them is not known.
        samples: predictions that it is based on.
        latency_ms: median of the release's latency where it serves, in milliseconds; NaN where it is not known.
        confidence: median of its confidence where it serves, from 0 to 1; NaN where the task has none.
    """

    agreement: float
    errors: float
    nans: float
    latency_ratio: float
    samples: int
    latency_ms: float = math.nan
    confidence: float = math.nan

    @classmethod
    def of_pair(cls, figures: Figures) -> Observation:
        """Of a release beside what serves."""
        counts, noise = figures.counts, figures.noise
        tried = counts.compared + counts.errors
        # What the live version does not agree on with itself is no fault of the candidate.
        floor = 1 - noise.agreed / noise.compared if noise.compared else 0.0
        apart = 1 - counts.agreed / counts.compared if counts.compared else 0.0
        return cls(
            agreement=1 - max(0.0, apart - floor),
            errors=counts.errors / tried if tried else 0.0,
            nans=max(0, counts.nans - counts.live_nans) / counts.compared if counts.compared else 0.0,
            # At the same priority, in the same process; where no copy ran there, as it serves.
            latency_ratio=_ratio(
                figures.candidate.latency_ms,
                noise.latency_ms if noise.latency_ms.n else figures.live.latency_ms,
            ),
            samples=tried,
        )

    @classmethod
    def of_serving(cls, figures: Figures, before: Sketch) -> Observation:
        """Of a release that serves.

        Args:
            figures: of its predictions.
            before: milliseconds of the version before, on the same device.
        """
        counts = figures.counts
        return cls(
            agreement=1.0,
            errors=counts.errors / counts.seen if counts.seen else 0.0,
            nans=counts.live_nans / counts.seen if counts.seen else 0.0,
            latency_ratio=_ratio(figures.live.latency_ms, before),
            samples=counts.seen,
            latency_ms=figures.live.latency_ms.quantile(0.5),
            confidence=figures.live.confidence.quantile(0.5),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Observations of several devices, in the order in which each had shown enough.

    Attributes:
        agreement: [n].
        errors: [n].
        nans: [n].
        latency_ratio: [n], NaN where it is not known.
    """

    agreement: Shares = field(default_factory=_none)
    errors: Shares = field(default_factory=_none)
    nans: Shares = field(default_factory=_none)
    latency_ratio: Shares = field(default_factory=_none)

    @classmethod
    def of(cls, observations: list[Observation]) -> Columns:
        """Of a list, in its order."""
        names = ("agreement", "errors", "nans", "latency_ratio")
        return cls(*(np.array([getattr(each, name) for each in observations], dtype=float) for name in names))

    def __len__(self) -> int:
        return len(self.agreement)


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """A part of the devices.

    Attributes:
        meant: devices of it within the bound.
        members: [n], of the columns.
    """

    meant: int
    members: Flags


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One of the two arms of an A/B comparison. Observations are frozen, in the order in which they were known.

    Attributes:
        meant: devices of it that were heard of lately.
        errors: [n], share of inputs that raise an error.
        nans: [n], share of answers with NaN or infinity.
        latency_ms: [n], median in milliseconds; NaN where it is not known.
        confidence: [n], median from 0 to 1; NaN where the task has none.
        spoken: confidences of all its devices together.
    """

    meant: int = 0
    errors: Shares = field(default_factory=_none)
    nans: Shares = field(default_factory=_none)
    latency_ms: Shares = field(default_factory=_none)
    confidence: Shares = field(default_factory=_none)
    spoken: Sketch = field(default_factory=Sketch)

    @classmethod
    def of(cls, meant: int, observations: Sequence[Observation], spoken: Sketch) -> Arm:
        """Of a list, in its order."""
        names = ("errors", "nans", "latency_ms", "confidence")
        columns = {
            name: np.array([getattr(each, name) for each in observations], dtype=float) for name in names
        }
        return cls(meant, spoken=spoken, **columns)

    def __len__(self) -> int:
        return len(self.errors)


@dataclass(frozen=True, slots=True, eq=False)
class Arms:
    """Both arms, drawn by one salt, as large as one another.

    Attributes:
        candidate: devices that serve the release.
        control: devices that stay on the version before.
        decides: whether this is the last stage that has a control to compare with.
    """

    candidate: Arm = field(default_factory=Arm)
    control: Arm = field(default_factory=Arm)
    decides: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of one step of a rollout.

    Attributes:
        meant: devices of the cohort within the bound that were heard of lately.
        taken: of those, that took the release or refused it.
        outcomes: [k], in the order in which they were known: True where the release did not run on a device, or the
            device fell silent with it.
        reasons: code to number of devices, of the failures.
        first: observations, frozen when a device had shown enough; what later looks find does not change them.
        now: of the same devices, with all that they have shown since.
        slices: "label=value" to its devices.
        samples: predictions altogether.
        live_confidence: of the version before, all devices together.
        confidence: of the release.
        heard: (devices heard of within the bound, devices of the cohort outside it).
        share: of the cohort that was drawn, from 0 to 1.
        arms: of an A/B comparison, None where there is no control.
    """

    meant: int = 0
    taken: int = 0
    outcomes: Flags = field(default_factory=_nobody)
    reasons: Mapping[str, int] = field(default_factory=dict)
    first: Columns = field(default_factory=Columns)
    now: Columns = field(default_factory=Columns)
    slices: Mapping[str, Slice] = field(default_factory=dict)
    samples: int = 0
    live_confidence: Sketch = field(default_factory=Sketch)
    confidence: Sketch = field(default_factory=Sketch)
    heard: tuple[int, int] = (0, 0)
    share: float = 1.0
    arms: Arms | None = None


def _ratio(candidate: Sketch, live: Sketch) -> float:
    if not candidate.n or not live.n:
        return float("nan")
    below = live.quantile(0.5)
    return candidate.quantile(0.5) / below if below > 0 else float("nan")
