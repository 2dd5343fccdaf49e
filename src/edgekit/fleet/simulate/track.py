"""What devices of a simulated rollout have shown in one phase, as columns, and the evidence that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.fleet.rules.evidence import Columns, Evidence, Flags, Slice
from edgekit.fleet.rules.rollouts import SHADOW
from edgekit_runtime.policies import BUCKETS
from edgekit_runtime.sketches import Sketch, bin_of

Index = NDArray[np.intp]
Counts = NDArray[np.int64]

# Confidence of the first choice: most answers are sure. The other distribution is what a shifted input looks like.
CONFIDENCE: Final = np.linspace(0.25, 0.99, 20)
USUAL: Final = CONFIDENCE**6 / (CONFIDENCE**6).sum()
SHIFTED: Final = CONFIDENCE[::-1] ** 2 / (CONFIDENCE**2).sum()


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Windows of several devices, [k] each.

    Attributes:
        index: of the devices.
        tried: inputs.
        errors: of those, inputs that raised an error.
        agreed: answers that were the same.
        nans: answers with NaN.
    """

    index: Index
    tried: Counts
    errors: Counts
    agreed: Counts
    nans: Counts


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Of the devices of a cohort at one tick, in the order of their buckets.

    Attributes:
        bound: devices below it are meant.
        meant: how many devices are below it.
        heard: [n], heard of lately.
        overdue: [n], silent for longer than the rollout is patient.
        slices: "label=value" to [n].
    """

    bound: int
    meant: int
    heard: Flags
    overdue: Flags
    slices: Mapping[str, Flags]


@dataclass(slots=True, eq=False)
class Confidences:
    """Histograms of the confidence, of all devices together."""

    live: Counts = field(default_factory=lambda: np.zeros(len(CONFIDENCE), dtype=np.int64))
    candidate: Counts = field(default_factory=lambda: np.zeros(len(CONFIDENCE), dtype=np.int64))

    def add(self, usual: int, shifted: int, random: np.random.Generator) -> None:
        """Add answers; a candidate that agrees is as sure as the live version."""
        self.live += random.multinomial(usual + shifted, USUAL)
        self.candidate += random.multinomial(usual, USUAL) + random.multinomial(shifted, SHIFTED)


class Track:
    """One phase of a rollout, over all its stages.

    Args:
        devices: of the cohort.
        phase: "shadow" or "live".
        samples: predictions after which a device has shown enough.
    """

    def __init__(self, devices: int, phase: str, samples: int) -> None:
        self._paired, self._samples = phase == SHADOW, samples
        self.tried, self.errors, self.agreed, self.nans = (
            np.zeros(devices, dtype=np.int32) for _ in range(4)
        )
        self.took, self.refused, self._enough = (np.zeros(devices, dtype=bool) for _ in range(3))
        self._told: list[Index] = []
        self._order: list[Index] = []
        self._first: list[NDArray[np.float64]] = []
        self._confidences = Confidences()

    def take(self, index: Index, refused: Flags) -> None:
        """Devices took the release, or refused it: of those the outcome is known.

        Args:
            index: of devices that have not had it in this phase.
            refused: of those.
        """
        self.took[index] = True
        self.refused[index] = refused
        self._told.append(index[refused])

    def report(
        self, report: Report, shifted: Flags, latency: NDArray[np.float32], random: np.random.Generator
    ) -> None:
        """Count windows.

        Args:
            report: of the windows.
            shifted: [k], whether the candidate's confidence is another one.
            latency: [n], ratio of every device.
            random: numbers.
        """
        index = report.index
        if not self._paired:
            self._told.append(index[self.tried[index] == 0])
        self.tried[index] += report.tried
        self.errors[index] += report.errors
        self.agreed[index] += report.agreed
        self.nans[index] += report.nans
        answered = report.tried - report.errors
        all_answered, not_usual = int(answered.sum()), int(answered[shifted].sum())
        self._confidences.add(all_answered - not_usual, not_usual, random)
        new = index[~self._enough[index] & (self.tried[index] >= self._samples)]
        if len(new):
            self._enough[new] = True
            if self._paired:
                self._told.append(new)
            self._order.append(new)
            self._first.append(self.columns(new, latency))

    def columns(self, index: Index, latency: NDArray[np.float32]) -> NDArray[np.float64]:
        """What devices have shown by now, [k, 4]: agreement, errors, nans, latency ratio."""
        tried, errors = self.tried[index].astype(float), self.errors[index]
        answered = np.maximum(tried - errors, 1) if self._paired else tried
        agreement = self.agreed[index] / answered if self._paired else np.ones(len(index))
        # A device on which nothing was answered differs in nothing.
        agreement = np.where(tried > errors, agreement, 1.0)
        return np.stack([agreement, errors / tried, self.nans[index] / answered, latency[index]], axis=1)

    def evidence(self, seen: Seen, latency: NDArray[np.float32]) -> Evidence:
        """What is known of the devices within the bound.

        Args:
            seen: of all devices.
            latency: [n], ratio of every device.
        """
        k = seen.meant
        meant = seen.heard[:k] | self.took[:k]
        failed = self.refused | (seen.overdue & self.took)
        told = joined(self._told)
        # What is overdue was not told; it is known last.
        untold = self.took & seen.overdue
        untold[told] = False
        order, first = self.frozen()
        late = int((seen.overdue & self.took & ~self.refused).sum())
        refused = int(self.refused.sum())
        heard = int(seen.heard[:k].sum())
        return Evidence(
            meant=int(meant.sum()),
            taken=int(self.took[:k].sum()),
            outcomes=failed[np.concatenate([told, np.flatnonzero(untold)])],
            reasons={code: count for code, count in (("refused", refused), ("silent", late)) if count},
            first=Columns(*first.T),
            now=Columns(*self.columns(order, latency).T),
            slices={
                name: Slice(int((member[:k] & meant).sum()), member[order])
                for name, member in seen.slices.items()
            },
            samples=int(self.tried.sum(dtype=np.int64)),
            live_confidence=_sketch(self._confidences.live) if self._paired else Sketch(),
            confidence=_sketch(self._confidences.candidate) if self._paired else Sketch(),
            heard=(heard, int(seen.heard.sum()) - heard),
            share=seen.bound / BUCKETS,
        )

    def frozen(self) -> tuple[Index, NDArray[np.float64]]:
        """Devices that have shown enough, in the order in which they had, and their columns then."""
        return joined(self._order), np.concatenate(self._first) if self._first else np.zeros((0, 4))

    def enough(self, device: int) -> bool:
        """Whether a device has shown enough."""
        return bool(self._enough[device])


def joined(parts: list[Index]) -> Index:
    """One array of several, and kept so."""
    if len(parts) != 1:
        parts[:] = [np.concatenate(parts) if parts else np.zeros(0, dtype=np.intp)]
    return parts[0]


def _sketch(counts: Counts) -> Sketch:
    above: dict[int, int] = {}
    for value, count in zip(CONFIDENCE.tolist(), counts.tolist(), strict=True):
        if count:
            above[bin_of(value)] = above.get(bin_of(value), 0) + count
    return Sketch(above=above)
