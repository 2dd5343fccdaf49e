"""The world of a simulated rollout: devices, their labels and habits, a candidate's quality, and what is wrong with it.

Devices are columns of numbers, one entry a device: a million of them take some 50 MB.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.fleet.errors import InvalidError
from edgekit_runtime.cohorts import NAME, Cohort
from edgekit_runtime.policies import BUCKETS, bucket_of

MAX_DEVICES: Final = 5_000_000
MAX_COMBINATIONS: Final = 256
NEVER: Final = np.float32(np.inf)

Numbers = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a device, or with the candidate on it.

    Attributes:
        says: in words.
        misses: chance that it misses a poll.
        slower: factor of the candidate's latency.
        refuses: chance that the candidate does not start on it.
        silent: chance that it is not heard of again once it took the candidate.
        agreement: factor of the agreement.
        nans: share of answers with NaN.
        errors: share of inputs that raise an error.
        shifts: whether the confidence is another one.
        late: whether agreement and confidence are right until `World.late_s`.
        clock_s: seconds that its clock is wrong by.
    """

    says: str
    misses: float = 0.0
    slower: float = 1.0
    refuses: float = 0.0
    silent: float = 0.0
    agreement: float = 1.0
    nans: float = 0.0
    errors: float = 0.0
    shifts: bool = False
    late: bool = False
    clock_s: int = 0


FAULTS: Final[Mapping[str, Fault]] = {
    "offline": Fault("misses nine polls of ten", misses=0.9),
    "lying_clock": Fault("its clock is thirty years behind", clock_s=-946_684_800),
    "slow": Fault("the candidate takes five times as long", slower=5.0),
    "crashing": Fault("the candidate does not start", refuses=1.0),
    "silent": Fault("is never heard of again with the candidate", silent=1.0),
    "wrong": Fault("wrong weights: one answer of ten is right by chance", agreement=0.1, shifts=True),
    "swapped": Fault("two labels of ten are swapped", agreement=0.8),
    "nan": Fault("NaN on one input of twenty", nans=0.05),
    "raising": Fault("an error on one input of ten", errors=0.1),
    "drifting": Fault("after a time it answers otherwise", agreement=0.7, shifts=True, late=True),
    "biased": Fault("seldom heard, and worse than the others", misses=0.75, agreement=0.85),
}


@dataclass(frozen=True, slots=True)
class Hit:
    """A fault, and whom it hits.

    Attributes:
        fault: name in `FAULTS`.
        share: of the devices that fit, from 0 to 1.
        label: that they have, "" for all devices.
        value: of the label.
    """

    fault: str
    share: float = 1.0
    label: str = ""
    value: str = ""

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise _invalid(f"fault {self.fault!r}", f"one of {', '.join(FAULTS)}")
        if not 0 <= self.share <= 1:
            raise _invalid(f"share {self.share:g} of the fault {self.fault}", "from 0 to 1")

    @classmethod
    def parse(cls, text: str) -> Hit:
        """Read `name`, `name=share` or `name=share@label=value`.

        Raises:
            InvalidError: it is none of these.
        """
        found = re.fullmatch(r"(\w+)(?:=([^@]*))?(?:@(\w+)=(.+))?", text)
        expected = "NAME, NAME=SHARE or NAME=SHARE@LABEL=VALUE, such as slow=0.1"
        if found is None:
            raise _invalid(f"fault {text!r}", expected)
        name, given, label, value = found.groups("")
        try:
            share = float(given or 1.0)
        except ValueError:
            raise _invalid(f"fault {text!r}", expected) from None
        return cls(name, share, label, value)

    def __str__(self) -> str:
        return f"{self.fault}={self.share:g}" + (f"@{self.label}={self.value}" if self.label else "")


@dataclass(frozen=True, slots=True)
class World:
    """What a rollout is tried on.

    Attributes:
        devices: how many.
        labels: name to (value, share of the devices), independent of one another.
        poll_s: seconds between two polls of a device; the candidate's window goes with it.
        tick_s: seconds between two looks of the conductor.
        misses: chance that a device misses a poll.
        comparisons: predictions of a device between two polls, on average; some predict ten times as often as others.
        agreement: of the candidate with the live version, mean over devices.
        spread: standard deviation of the agreement between devices.
        latency_ratio: of the candidate's latency to the live version's, median over devices.
        refuses: chance that it does not start on a device.
        nans: share of answers with NaN.
        errors: share of inputs that raise an error.
        live_errors: share of inputs that the version before raises an error on; of the control of an A/B comparison.
        live_nans: share of its answers with NaN.
        speeds: standard deviation of the log of how fast devices are, which an A/B comparison has to see through.
        late_s: seconds after which late faults begin.
        hits: faults.
    """

    devices: int = 5000
    labels: Mapping[str, Mapping[str, float]] = field(
        default_factory=lambda: {
            "region": {"eu": 0.3, "us": 0.5, "asia": 0.2},
            "hardware": {"pi4": 0.6, "pi5": 0.4},
        }
    )
    poll_s: int = 600
    tick_s: int = 120
    misses: float = 0.05
    comparisons: float = 60.0
    agreement: float = 0.97
    spread: float = 0.03
    latency_ratio: float = 0.9
    refuses: float = 0.0005
    nans: float = 0.0
    errors: float = 0.0
    live_errors: float = 0.0
    live_nans: float = 0.0
    speeds: float = 0.25
    late_s: int = 7200
    hits: tuple[Hit, ...] = ()

    def __post_init__(self) -> None:
        ranges = {
            **dict.fromkeys(("misses", "agreement", "refuses", "nans", "errors"), (0.0, 1.0)),
            **dict.fromkeys(("live_errors", "live_nans", "speeds"), (0.0, 1.0)),
            "spread": (0.0, 0.5), "devices": (1, MAX_DEVICES), "poll_s": (1, 86400 * 7), "tick_s": (1, 86400),
            "comparisons": (1, 10_000), "latency_ratio": (0.01, 100), "late_s": (0, 10**9),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise _invalid(f"{name} {getattr(self, name):g}", f"from {low:g} to {high:g}")
        combinations = 1
        for name, shares in self.labels.items():
            combinations *= len(shares)
            if not NAME.fullmatch(name) or not shares or abs(sum(shares.values()) - 1) > 1e-6:
                raise _invalid(f"label {name!r}", "a name, and values whose shares are 1 together")
        if combinations > MAX_COMBINATIONS:
            raise _invalid(f"{combinations} combinations of labels", f"at most {MAX_COMBINATIONS}")
        for hit in self.hits:
            if hit.label and hit.value not in self.labels.get(hit.label, {}):
                raise _invalid(f"fault {hit}", f"a label and a value of this world: {_told(self.labels)}")


@dataclass(frozen=True, slots=True, eq=False)
class Devices:
    """Columns of devices, [n] each.

    Attributes:
        number: of the device, of which its id is made.
        bucket: by the salt of the rollout.
        combination: of its labels.
        phase: tick of its first poll.
        misses: chance to miss a poll.
        rate: predictions between two polls.
        agreement: with the live version.
        late_agreement: after `late_from_s`.
        late_from_s: seconds after which it is another one, `NEVER` where it stays.
        latency: ratio.
        refuses: whether the candidate does not start.
        silent: whether it is silent once it took the candidate.
        nans: share of answers.
        errors: share of inputs.
        shifts: whether its confidence is another one, from `late_from_s` or the start.
        clock_s: seconds that its clock is wrong by.
    """

    number: NDArray[np.int32]
    bucket: NDArray[np.int32]
    combination: NDArray[np.uint8]
    phase: NDArray[np.int32]
    misses: Numbers
    rate: NDArray[np.int32]
    agreement: Numbers
    late_agreement: Numbers
    late_from_s: Numbers
    latency: Numbers
    refuses: NDArray[np.bool_]
    silent: NDArray[np.bool_]
    nans: Numbers
    errors: Numbers
    shifts: NDArray[np.bool_]
    clock_s: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.number)

    def at(self, order: NDArray[np.intp]) -> Devices:
        """Some of them, in this order."""
        return Devices(*(getattr(self, each.name)[order] for each in fields(self)))


def combinations(world: World) -> list[dict[str, str]]:
    """Every combination of labels, in the order of their numbers."""
    names = list(world.labels)
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*world.labels.values())]


def device_id(number: int) -> str:
    """Name of a device, as the policy hashes it."""
    return f"device-{number:07d}"


def made(world: World, random: np.random.Generator) -> Devices:
    """Devices of a world, none of them drawn yet."""
    n = world.devices
    period = max(1, round(world.poll_s / world.tick_s))
    combination = np.zeros(n, dtype=np.int64)
    for shares in world.labels.values():
        combination = combination * len(shares) + random.choice(len(shares), n, p=list(shares.values()))
    agreement = _spread(world, random)
    rate = np.maximum(1, world.comparisons * random.lognormal(-0.18, 0.6, n))
    devices = Devices(
        number=np.arange(n, dtype=np.int32),
        bucket=np.zeros(n, dtype=np.int32),
        combination=combination.astype(np.uint8),
        phase=random.integers(0, period, n, dtype=np.int32),
        misses=np.full(n, world.misses, dtype=np.float32),
        rate=np.minimum(rate, 20_000).astype(np.int32),
        agreement=agreement,
        late_agreement=agreement.copy(),
        late_from_s=np.full(n, NEVER),
        latency=(world.latency_ratio * random.lognormal(0, 0.08, n)).astype(np.float32),
        refuses=random.random(n) < world.refuses,
        silent=np.zeros(n, dtype=bool),
        nans=np.full(n, world.nans, dtype=np.float32),
        errors=np.full(n, world.errors, dtype=np.float32),
        shifts=np.zeros(n, dtype=bool),
        clock_s=np.zeros(n, dtype=np.int32),
    )
    for hit in world.hits:
        _strike(world, devices, hit, random)
    return devices


def drawn(world: World, devices: Devices, *, salt: str, cohort: str) -> Devices:
    """The devices of a cohort, by their buckets: those of any bound come first.

    Args:
        world: of the devices.
        devices: all of them.
        salt: of the rollout.
        cohort: expression over labels.
    """
    expression = Cohort.parse(cohort)
    fits = np.array([expression.includes(labels) for labels in combinations(world)])
    within = devices.at(np.flatnonzero(fits[devices.combination]))
    bucket = np.fromiter(
        (bucket_of(salt, device_id(each)) for each in within.number.tolist()), np.int32, len(within)
    )
    assert not len(bucket) or 0 <= bucket.min() <= bucket.max() < BUCKETS
    return replace(within, bucket=bucket).at(np.argsort(bucket, kind="stable"))


def _spread(world: World, random: np.random.Generator) -> Numbers:
    """Beta distribution of the mean and the standard deviation."""
    mean, variance = world.agreement, world.spread**2
    if variance == 0 or mean in {0.0, 1.0}:
        return np.full(world.devices, mean, dtype=np.float32)
    weight = mean * (1 - mean) / variance - 1
    if weight <= 0:
        raise _invalid(
            f"spread {world.spread:g} around an agreement of {mean:g}",
            f"below {(mean * (1 - mean)) ** 0.5:.3g}",
        )
    return random.beta(mean * weight, (1 - mean) * weight, world.devices).astype(np.float32)


def _strike(world: World, devices: Devices, hit: Hit, random: np.random.Generator) -> None:
    fault = FAULTS[hit.fault]
    fits = np.array([not hit.label or labels[hit.label] == hit.value for labels in combinations(world)])
    struck = fits[devices.combination] & (random.random(len(devices)) < hit.share)
    count = int(struck.sum())
    devices.late_agreement[struck] *= fault.agreement
    if fault.late:
        devices.late_from_s[struck] = world.late_s
    else:
        devices.agreement[struck] *= fault.agreement
    devices.misses[struck] = 1 - (1 - devices.misses[struck]) * (1 - fault.misses)
    devices.latency[struck] *= fault.slower
    devices.refuses[struck] |= random.random(count) < fault.refuses
    devices.silent[struck] |= random.random(count) < fault.silent
    devices.nans[struck] = np.maximum(devices.nans[struck], fault.nans)
    devices.errors[struck] = np.maximum(devices.errors[struck], fault.errors)
    devices.shifts[struck] |= fault.shifts
    if fault.clock_s:
        devices.clock_s[struck] = fault.clock_s


def _told(labels: Mapping[str, Mapping[str, float]]) -> str:
    return "; ".join(f"{name} {', '.join(values)}" for name, values in labels.items())


def _invalid(found: str, expected: str) -> InvalidError:
    return InvalidError(
        found, expected=expected, way_out="See `edgekit fleet simulate --help`.", code="world"
    )
