"""A world of a few lines in which trials cost nothing: what a setting would measure, by formulas and seeded noise."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from edgekit.recipe import Budget
from edgekit.search import Calibration, Capabilities, Island, Measured, Outcome, Setting, Trial
from edgekit.search.walk import next_setting

QUICK = Calibration(("minmax",))
THOROUGH = Calibration(("minmax", "percentile", "mse", "entropy"), "try", "try", "try")
ISLANDS = (Island("first", 4.0, 0.05, 40_000), Island("head", 1.0, 0.01, 90_000), Island("mid", 0.5, 0.04))
TENTHS = tuple(i / 10 for i in range(10))


@dataclass(frozen=True)
class World:
    """Accuracy falls with pruning, latency and size too; the grid, layers in float and training mend accuracy.

    Attributes:
        latency_ms: of the unpruned network.
        overhead: share of the latency that pruning does not touch.
        size_mb: of the unpruned file.
        drop: of calibration alone.
        steep: drop of removing everything.
        bend: power of the ratio by which the drop grows.
        thorough: share of the calibration's drop that the thorough one leaves.
        qat: share of the whole drop that training on the grid leaves.
        step: ratios within one such step give the same network.
        noise: largest relative error of a measurement.
        tells: what a network loses before it is quantized is measured as well.
        float_ms: latency of the float network; None: so much that nothing is slower.
    """

    latency_ms: float = 1.0
    overhead: float = 0.1
    size_mb: float = 1.0
    drop: float = 0.02
    steep: float = 0.2
    bend: float = 2.0
    thorough: float = 0.8
    qat: float = 0.4
    step: float = 0.0
    noise: float = 0.0
    tells: bool = True
    float_ms: float | None = None

    def truth(self, setting: Setting) -> tuple[float, float, float]:
        """Drop, latency in milliseconds, size in MB, without noise."""
        ratio = self._ratio(setting)
        kept = [island for island in ISLANDS if island.name in setting.keep_float]
        grid = self.drop * (1.0 - sum(island.damage for island in kept) / 8)
        if setting.qat:
            grid *= min(self.qat, self.thorough)
        elif setting.calibration == THOROUGH:
            grid *= self.thorough
        lost = grid + self.steep * ratio**self.bend * (self.qat if setting.qat else 1.0)
        latency = self.latency_ms * (self.overhead + (1 - self.overhead) * (1 - ratio))
        extra = sum(island.cost_bytes for island in kept) / 1e6
        return lost, latency + sum(i.cost_ms for i in kept), self.size_mb * (1 - ratio) + extra

    def measure(self, setting: Setting) -> Outcome:
        drop, latency, size = (
            value * (1 + self.noise * self._noise(setting, i)) for i, value in enumerate(self.truth(setting))
        )
        measured = Measured(0.9 - drop, drop, latency, self.float_ms or 3 * latency, int(size * 1e6))
        before = self.steep * self._ratio(setting) ** self.bend if self.tells else None
        return Outcome({"onnx": measured}, 1.0, float_drop=before)

    def _ratio(self, setting: Setting) -> float:
        return setting.prune // self.step * self.step if self.step else setting.prune

    def _noise(self, setting: Setting, what: int) -> float:
        """From −1 to 1, the same whenever the same is measured."""
        text = f"{setting.key()} {what} {self.drop}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**31 - 1

    def search(self, budget: Budget, can: Capabilities) -> list[Trial]:
        """Run the walk to its end."""
        trials: list[Trial] = []
        while (setting := next_setting(trials, budget, can)) is not None:
            trials.append(Trial(len(trials), setting, self.measure(setting)))
        return trials


def everything(trials: int = 1000, ratios: tuple[float, ...] = TENTHS) -> Capabilities:
    """A network that can be pruned and trained, with layers that may stay float."""
    return Capabilities((QUICK, THOROUGH), ratios, (False, True), ISLANDS, trials)
