"""Pure statistics of staged rollouts: no I/O, no clock, no random numbers; numpy and the standard library only.

| module | answers |
|---|---|
| `means` | between what does the mean of numbers in [0, 1] lie, at every look |
| `rare` | between what does the probability of a rare failure lie, at every look |
| `sample_ratio` | did the arms get the shares of devices that they were promised |
| `planning` | how many devices and hours does an A/B comparison take |
| `corrections` | what level does each of several gates, stages and slices get |
| `drift` | did a distribution move by more than its noise |
| `ratios` | ratios of latency as numbers in [0, 1], and back |

The unit is the device: one device gives one number, however many windows it sends. `docs/statistics.md` says what is
claimed, and under what assumptions.
"""

from __future__ import annotations

from edgekit.fleet.statistics.intervals import Interval, Side

__all__ = ["Interval", "Side"]
