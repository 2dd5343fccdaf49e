"""What the devices of a rollout show, in columns: one entry a device.

A device is one observation, however much it predicts: predictions of one device resemble one another, and a million of
them from one kitchen say nothing of the other kitchens.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """

    agreement: float
    errors: float
    nans: float
    latency_ratio: float
    samples: int

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


def _ratio(candidate: Sketch, live: Sketch) -> float:
    if not candidate.n or not live.n:
        return float("nan")
    below = live.quantile(0.5)
    return candidate.quantile(0.5) / below if below > 0 else float("nan")
