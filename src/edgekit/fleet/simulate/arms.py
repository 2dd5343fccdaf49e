"""Both arms of a simulated A/B comparison: the control's columns, and what devices with the candidate tell of it."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.fleet.rules.evidence import Arm, Arms, Flags
from edgekit.fleet.rules.rollouts import Rollout
from edgekit.fleet.simulate.sample import LIVE_LATENCY_MS
from edgekit.fleet.simulate.track import Index, Track, joined
from edgekit.fleet.simulate.world import Devices, World

# Of the latency of one version on one device, from time to time: as much as the candidate's ratio varies.
WOBBLE: Final = 0.08


class Control:
    """Devices that stay on the version before.

    Args:
        world: of the devices.
        devices: of the cohort, by their buckets.
        samples: predictions after which a device has shown enough.
        random: numbers, of its own: without a control a rollout goes as before.
    """

    def __init__(self, world: World, devices: Devices, samples: int, random: np.random.Generator) -> None:
        n = len(devices)
        self._world, self._devices, self._samples, self._random = world, devices, samples, random
        self._tried, self._errors, self._nans = (np.zeros(n, dtype=np.int64) for _ in range(3))
        # How fast a device is, whatever it runs.
        self._speed: NDArray[np.float64] = LIVE_LATENCY_MS * random.lognormal(0, world.speeds, n)
        self._order: list[Index] = []
        self._first: list[NDArray[np.float64]] = []

    def report(self, polling: Index, rollout: Rollout) -> None:
        """Count the windows of the control among the devices that poll and serve the version before."""
        index = polling[self._devices.bucket[polling] >= rollout.control_bound]
        tried = self._random.poisson(self._devices.rate[index])
        before = self._tried[index]
        self._tried[index] += tried
        self._errors[index] += self._random.binomial(tried, self._world.live_errors)
        self._nans[index] += self._random.binomial(tried, self._world.live_nans)
        new = index[(before < self._samples) & (self._tried[index] >= self._samples)]
        if len(new):
            latency = self._speed[new] * self._random.lognormal(0, WOBBLE, len(new))
            shares = (column[new] / self._tried[new] for column in (self._errors, self._nans))
            self._order.append(new)
            self._first.append(np.stack([*shares, latency], axis=1))

    def arms(self, rollout: Rollout, serving: Track, heard: Flags) -> Arms:
        """Both arms.

        Args:
            rollout: as it is.
            serving: what the candidate's devices have shown.
            heard: [n], devices heard of lately.
        """
        bucket = self._devices.bucket
        order, first = serving.frozen()
        mine = bucket[order] < rollout.arm_bound
        candidate = np.stack(
            [first[mine, 1], first[mine, 2], first[mine, 3] * self._speed[order[mine]]], axis=1
        )
        self._first[:] = [np.concatenate(self._first) if self._first else np.zeros((0, 3))]
        control = self._first[0][bucket[joined(self._order)] >= rollout.control_bound]
        return Arms(
            _arm(heard & (bucket < rollout.arm_bound), candidate),
            _arm(heard & (bucket >= rollout.control_bound), control),
            rollout.decides_arms,
        )


def _arm(heard: Flags, columns: NDArray[np.float64]) -> Arm:
    # What the simulation has of confidences is of all devices together.
    unknown = np.full(len(columns), np.nan)
    return Arm(int(heard.sum()), columns[:, 0], columns[:, 1], columns[:, 2], unknown)
