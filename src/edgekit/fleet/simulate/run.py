"""A rollout over virtual devices, tick by tick: devices poll and report, the conductor looks, the policy follows.

Real are the policy (`bucket_of`, `Rule`, `Cohort`), the gates and the state machine; a few devices send real windows,
which are read and merged like those of a fleet, and have to give what the columns give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from edgekit.fleet.rules import rollouts
from edgekit.fleet.rules.evidence import Evidence, Flags
from edgekit.fleet.rules.gates import Verdict, judged
from edgekit.fleet.rules.rollouts import LIVE, SHADOW, Plan, Rollout
from edgekit.fleet.simulate.arms import Control
from edgekit.fleet.simulate.sample import BASELINE, BEGAN_S, RELEASE, Sample
from edgekit.fleet.simulate.track import Index, Report, Seen, Track
from edgekit.fleet.simulate.world import Devices, World, combinations, device_id, drawn, made
from edgekit_runtime.policies import BUCKETS, Policy, Rule

# Devices that send real windows, and those whose rule is read from the real document at each change.
SAMPLED, ASKED = 4, 32
NOTHING, BESIDE, SERVES = 0, 1, 2
MODES: Final[Mapping[str, int]] = {SHADOW: BESIDE, LIVE: SERVES}


@dataclass(frozen=True, slots=True)
class Moment:
    """One look of the conductor.

    Attributes:
        t_s: seconds since the rollout began.
        state: of the rollout after the look.
        stage: number, from 0.
        phase: "shadow" or "live".
        bound: share of the cohort that was drawn, from 0 to 1.
        meant: share of the cohort's devices whose bucket is below the bound.
        beside: share of the cohort that runs the release in the shadow.
        serves: share of the cohort that serves it.
        taken: devices within the bound that took it, or refused it.
        told: devices that have shown enough.
        failed: devices on which it failed.
        samples: predictions.
        verdicts: of the gates.
        decided: kind of the decision, "" for none.
        why: of the decision.
    """

    t_s: int
    state: str
    stage: int
    phase: str
    bound: float
    meant: float
    beside: float
    serves: float
    taken: int
    told: int
    failed: int
    samples: int
    verdicts: tuple[Verdict, ...]
    decided: str
    why: str


@dataclass(frozen=True, slots=True)
class History:
    """What became of a rollout.

    Attributes:
        world: that it was tried on.
        plan: of the rollout.
        cohort: devices of the cohort.
        moments: each look.
        state: at the end; "running" where the time was up.
        why: of the end.
        exposed: largest share of the cohort that served the release.
        touched: largest share that ran it, in the shadow or serving.
        kept: devices that have polled since the end and run the release although it ended, of all that polled;
            0 means that a halt takes effect within one poll. None where it was no halt.
        away: devices that ran it at the end and have not polled within one interval after it, being offline.
        windows: real documents that were read and merged.
        apart: largest difference between them and the columns: of shares, and of latency relative to it.
        rules: decisions of the real policy that were compared with the columns; each was the same.
    """

    world: World
    plan: Plan
    cohort: int
    moments: tuple[Moment, ...]
    state: str
    why: str
    exposed: float
    touched: float
    kept: int | None
    away: int
    windows: int
    apart: float
    rules: int

    @property
    def stopped_at(self) -> str:
        """Stage and phase at the end, such as "10% shadow"."""
        last = self.moments[-1]
        return f"{self.plan.stages[last.stage]:g}% {last.phase}"

    @property
    def seconds(self) -> int:
        """Length of the rollout."""
        return self.moments[-1].t_s


def run(
    world: World,
    plan: Plan,
    *,
    seed: int,
    bounds: bool = True,
    watch: Callable[[Moment], None] | None = None,
) -> History:
    """Roll a candidate out.

    Args:
        world: that it is tried on.
        plan: of the rollout.
        seed: of every random choice.
        bounds: whether the verdicts say between what a mean lies; what is decided is the same without.
        watch: hears of each look.
    """
    fleet = Simulation(world, plan, np.random.default_rng(seed), salt=f"simulated-{seed}", bounds=bounds)
    moments = []
    while fleet.rollout.is_open and fleet.rollout.state != rollouts.HELD:
        moment = fleet.tick()
        moments.append(moment)
        if watch is not None:
            watch(moment)
    return fleet.history(tuple(moments))


class Simulation:
    """Devices and the rollout over them.

    Args:
        world: of the devices.
        plan: of the rollout.
        random: numbers.
        salt: of the rollout.
        bounds: as in `run`.
    """

    def __init__(
        self, world: World, plan: Plan, random: np.random.Generator, *, salt: str, bounds: bool = True
    ) -> None:
        self.world, self.plan, self._random, self._bounds = world, plan, random, bounds
        self.devices: Devices = drawn(world, made(world, random), salt=salt, cohort=plan.cohort)
        n = len(self.devices)
        self._period = max(1, round(world.poll_s / world.tick_s))
        self._polls: list[Index] = [
            np.flatnonzero(self.devices.phase == each) for each in range(self._period)
        ]
        self._mode = np.zeros(n, dtype=np.uint8)
        # A poll before the beginning: a server knows its devices.
        self._last = np.zeros(n, dtype=np.int32)
        self._dead = np.zeros(n, dtype=bool)
        self._slices = _slices(world, self.devices)
        self._tracks = {phase: Track(n, phase, plan.limits.samples) for phase in (SHADOW, LIVE)}
        compares = plan.mode == "ab"
        self._control = (
            Control(world, self.devices, plan.limits.samples, random.spawn(1)[0]) if compares else None
        )
        self._sample, self._asked, self._apart = Sample(), 0, 0.0
        self._exposed = self._touched = 0.0
        self.t = 0
        rollout = Rollout("simulated", "model", "stable", RELEASE, BASELINE, salt, plan)
        self.rollout = rollouts.begin(rollout, n).rollout

    def tick(self) -> Moment:
        """Devices poll and report, the conductor looks."""
        self.t += 1
        self._devices_act()
        rollout, track = self.rollout, self._tracks[self.rollout.phase]
        seen = self._seen()
        evidence = track.evidence(seen, self.devices.latency)
        if self._control is not None:
            evidence = replace(evidence, arms=self._control.arms(rollout, track, seen.heard))
        self._compare(rollout.phase)
        verdicts = judged(
            evidence, self.plan.limits, mode=self.plan.mode, phase=rollout.phase, bounds=self._bounds
        )
        step = rollouts.look(
            rollout, verdicts, devices=int(seen.heard.sum()), taken=evidence.taken,
            now_s=BEGAN_S + self.t * self.world.tick_s,
        )  # fmt: skip
        self.rollout = step.rollout
        if self.rollout.rules() != rollout.rules():
            self._ask_policy()
        return self._moment(rollout, seen, evidence, verdicts, step.kind, step.why)

    def history(self, moments: tuple[Moment, ...]) -> History:
        """What became of it; where it was stopped, one poll later."""
        state, why = self.rollout.state, self.rollout.why
        kept, away = self._after() if state in {rollouts.FAILED, rollouts.ABORTED} else (None, 0)
        return History(
            self.world, self.plan, len(self.devices), moments, state, why, self._exposed, self._touched,
            kept, away, self._sample.windows, self._apart, self._asked,
        )  # fmt: skip

    def _devices_act(self) -> Index:
        """Those whose turn it is poll: they report, then do what the policy says. Returns who polled."""
        devices = self.devices
        turn = self._polls[self.t % self._period]
        online = self._random.random(len(turn), dtype=np.float32) >= devices.misses[turn]
        polling: Index = turn[online & ~self._dead[turn]]
        self._last[polling] = self.t
        for phase, mode in MODES.items():
            self._report(phase, polling[self._mode[polling] == mode])
        if self._control is not None:
            self._control.report(polling[self._mode[polling] == NOTHING], self.rollout)
        wanted = np.zeros(len(polling), dtype=np.uint8)
        # The first rule that includes a device holds, so it is written last.
        for rule in reversed(self.rollout.rules()):
            wanted[: np.searchsorted(polling, self._below(rule.bound))] = MODES[rule.mode]
        for phase, mode in MODES.items():
            self._take(phase, polling[(wanted == mode) & (self._mode[polling] != mode)])
        self._mode[polling[wanted == NOTHING]] = NOTHING
        return polling

    def _report(self, phase: str, index: Index) -> None:
        if not len(index):
            return
        devices, random = self.devices, self._random
        tried = random.poisson(devices.rate[index])
        index, tried = index[tried > 0], tried[tried > 0]
        late = self.t * self.world.tick_s >= devices.late_from_s[index]
        agreement = np.where(late, devices.late_agreement[index], devices.agreement[index])
        errors, nans = (_some(tried, share[index], random) for share in (devices.errors, devices.nans))
        nans = np.minimum(nans, tried - errors)
        agreed = random.binomial(tried - errors - nans, agreement)
        report = Report(index, tried, errors, agreed, nans)
        shifted = devices.shifts[index] & (late | ~np.isfinite(devices.late_from_s[index]))
        self._tracks[phase].report(report, shifted, devices.latency, random)
        for at in np.flatnonzero(index < SAMPLED):
            device = int(index[at])
            counts = (int(tried[at]), int(errors[at]), int(agreed[at]), int(nans[at]))
            clock_s = BEGAN_S + self.t * self.world.tick_s + int(devices.clock_s[device])
            self._sample.send(phase, device, clock_s, counts, float(devices.latency[device]))

    def _take(self, phase: str, index: Index) -> None:
        if not len(index):
            return
        devices, track = self.devices, self._tracks[phase]
        new = index[~track.took[index]]
        refused = devices.refuses[new]
        silent = devices.silent[new] & ~refused
        track.take(new, refused)
        self._dead[new[silent]] = True
        # Who refused it is never offered it again.
        self._mode[index] = np.where(track.refused[index], NOTHING, MODES[phase])

    def _seen(self) -> Seen:
        patience = max(1, round(self.plan.patience_s / self.world.tick_s))
        heard = self.t - self._last <= patience
        bound = self.rollout.bound
        return Seen(bound, self._below(bound), heard, ~heard, self._slices)

    def _below(self, bound: int) -> int:
        return int(np.searchsorted(self.devices.bucket, bound))

    def _moment(
        self,
        before: Rollout,
        seen: Seen,
        evidence: Evidence,
        verdicts: tuple[Verdict, ...],
        kind: str,
        why: str,
    ) -> Moment:
        n = max(1, len(self.devices))
        modes = np.bincount(self._mode, minlength=3) / n
        self._exposed = max(self._exposed, float(modes[SERVES]))
        self._touched = max(self._touched, float(modes[SERVES] + modes[BESIDE]))
        return Moment(
            self.t * self.world.tick_s, self.rollout.state, before.stage, before.phase, before.bound / BUCKETS,
            seen.meant / n, float(modes[BESIDE]), float(modes[SERVES]), evidence.taken, len(evidence.now),
            int(evidence.outcomes.sum()), evidence.samples, verdicts, kind, why,
        )  # fmt: skip

    def _compare(self, phase: str) -> None:
        """The real merge of the sampled devices has to give what the columns give."""
        track = self._tracks[phase]
        for device in range(min(SAMPLED, len(self.devices))):
            if (phase, device) not in self._sample.merged:
                continue
            found = self._sample.observation(phase, device)
            row = track.columns(np.array([device]), self.devices.latency)[0]
            shares = np.abs(row[:3] - (found.agreement, found.errors, found.nans)).max()
            latency = abs(found.latency_ratio / row[3] - 1)
            # Each of two medians is as exact as a sketch is.
            if shares > 1e-9 or latency > 0.05 or found.samples != track.tried[device]:
                raise AssertionError(f"merged windows of device {device} give {found}, columns {row}")
            self._apart = max(self._apart, float(shares), float(latency))

    def _ask_policy(self) -> None:
        """Some devices read the real document, and have to be told what the columns tell them."""
        settled = Rule(BASELINE, "settled", BUCKETS)
        policy = Policy.from_json(Policy((*self.rollout.rules(), settled)).to_json())
        labels = combinations(self.world)
        n = len(self.devices)
        for device in self._random.integers(0, n, min(n, ASKED)).tolist():
            rule = policy.rule_for(
                device_id(int(self.devices.number[device])), labels[self.devices.combination[device]]
            )
            bucket = self.devices.bucket[device]
            ours = next((each for each in self.rollout.rules() if bucket < each.bound), settled)
            if rule != ours:
                raise AssertionError(f"device {device}: the policy says {rule}, the columns {ours}")
            self._asked += 1

    def _after(self) -> tuple[int, int]:
        """Devices that polled within one interval after a halt and run the release yet, and those that did not poll."""
        ran = self._mode != NOTHING
        polled = np.zeros(len(self.devices), dtype=bool)
        for _ in range(self._period):
            self.t += 1
            polled[self._devices_act()] = True
        runs = self._mode != NOTHING
        return int((runs & polled).sum()), int((ran & ~polled).sum())


def _some(tried: np.ndarray, share: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A binomial number of each, quick where all shares are zero."""
    return random.binomial(tried, share) if share.any() else np.zeros_like(tried)


def _slices(world: World, devices: Devices) -> dict[str, Flags]:
    known = combinations(world)
    found = {}
    for name, values in world.labels.items():
        for value in values:
            fits = np.array([labels[name] == value for labels in known])
            found[f"{name}={value}"] = fits[devices.combination]
    return found
