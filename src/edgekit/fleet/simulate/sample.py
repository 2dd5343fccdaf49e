"""A few devices of a simulation, in full: their windows as documents, sent twice, read and merged by the real code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from edgekit.fleet.rules.evidence import Observation
from edgekit.fleet.rules.rollouts import SHADOW
from edgekit_runtime.sketches import Sketch, bin_of
from edgekit_runtime.windows import Counts, Figures, Side, Window

BASELINE, RELEASE = "a" * 64, "b" * 64
LIVE_LATENCY_MS: Final = 8.0
BEGAN_S: Final = 1_700_000_000


@dataclass(slots=True, eq=False)
class Sample:
    """Windows of some devices, merged as a server merges them.

    Attributes:
        merged: (phase, device) to its figures.
        keys: of the windows that were counted.
        windows: that came, twice or not.
    """

    merged: dict[tuple[str, int], Figures] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    windows: int = 0

    def send(
        self, phase: str, device: int, at_s: int, counts: tuple[int, int, int, int], latency: float
    ) -> None:
        """Send a window, and once more, as a device does that did not hear the answer.

        Args:
            phase: that the device is in.
            device: number.
            at_s: seconds since 1970 by the device's clock, which may be wrong.
            counts: inputs, errors, answers that were the same, answers with NaN.
            latency: ratio of the candidate's to the live version's.
        """
        key = hashlib.sha256(f"{phase} {device} {self.windows}".encode()).hexdigest()[:32]
        figures = _figures(phase, counts, latency)
        document = Window(key, BASELINE, RELEASE, "classification", max(0, at_s), 600.0, figures).to_json()
        for _ in range(2):
            self._receive(phase, device, document)
        self.windows += 2

    def observation(self, phase: str, device: int) -> Observation:
        """What a device has shown."""
        figures = self.merged[phase, device]
        if phase == SHADOW:
            return Observation.of_pair(figures)
        before = Sketch(above={bin_of(LIVE_LATENCY_MS): 1})
        return Observation.of_serving(figures, before)

    def _receive(self, phase: str, device: int, document: str) -> None:
        window = Window.from_json(document)
        if window.key in self.keys:
            return
        self.keys.add(window.key)
        place = (phase, device)
        self.merged[place] = self.merged.get(place, Figures()).merged(window.figures)


def _figures(phase: str, counts: tuple[int, int, int, int], latency: float) -> Figures:
    tried, errors, agreed, nans = counts
    taken = Sketch(above={bin_of(LIVE_LATENCY_MS * latency): tried})
    if phase == SHADOW:
        usual = Sketch(above={bin_of(LIVE_LATENCY_MS): tried})
        counted = Counts(seen=tried, compared=tried - errors, agreed=agreed, nans=nans, errors=errors)
        return Figures(counted, live=Side(usual), candidate=Side(taken))
    return Figures(Counts(seen=tried, live_nans=nans, errors=errors), live=Side(taken))
