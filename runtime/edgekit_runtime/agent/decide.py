"""What a policy asks of this device: (state, policy, device, labels) → one step. No disk, no network, no clock.

A rule for the shadow says what runs beside what serves, not what serves: that is for the first rule for life behind it,
which is followed first. So a device that comes late has the settled version before a candidate runs beside it, and a
release whose rule went away does not stay because another one is in the shadow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from edgekit_runtime.policies import LIVE, Policy, Rule
from edgekit_runtime.state import FETCH, IDLE, PROBATION, SHADOW, STAGE, VERIFY, State


@dataclass(frozen=True, slots=True)
class Leave:
    """There is nothing to do.

    Attributes:
        why: code.
    """

    why: str


@dataclass(frozen=True, slots=True)
class GoOn:
    """An update was cut off, and is still wanted."""


@dataclass(frozen=True, slots=True)
class Install:
    """Another release is wanted.

    Attributes:
        release: id.
        shadow: beside what serves first.
    """

    release: str
    shadow: bool


@dataclass(frozen=True, slots=True)
class Activate:
    """What waits in the shadow should serve."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The candidate is no longer wanted, or what serves is not and the version before is."""


Decision = Leave | GoOn | Install | Activate | Withdraw

UNDER_WAY: Final = frozenset({FETCH, VERIFY, STAGE, SHADOW})


def decide(state: State, policy: Policy, device: str, labels: Mapping[str, str]) -> Decision:
    """One step towards what the policy asks for; asked again after it, the next one.

    Args:
        state: of the versions on this device.
        policy: that is signed and valid now.
        device: id of this one.
        labels: of this one.
    """
    if state.pinned:
        return Leave("pinned")
    rules = tuple(policy.rules_for(device, labels))
    # Beside nothing, nothing can run: a new device gets a first version from a rule further down.
    usable = rules if state.live is not None else tuple(rule for rule in rules if rule.mode == LIVE)
    if not usable:
        # A rollout that was stopped: what it brought so far does not go live.
        if state.phase in UNDER_WAY:
            return Withdraw()
        return Leave("nothing_to_run_beside" if rules else "not_meant")
    rule = _RULES.get(state.phase)
    return rule(state, usable) if rule is not None else GoOn()


def wanted(state: State, rules: Sequence[Rule]) -> Rule:
    """The rule to be followed now.

    Args:
        state: of the versions on this device.
        rules: that include it, at least one, the one that holds first.
    """
    first = rules[0]
    if first.release == state.live or first.mode == LIVE:
        return first
    settled = next((rule for rule in rules if rule.mode == LIVE), first)
    # What cannot serve here is in nobody's way.
    return first if settled.release == state.live or settled.release in state.failed else settled


def _coming_in(state: State, rules: Sequence[Rule]) -> Decision:
    rule = wanted(state, rules)
    # What is on its way to serve was meant for that; a policy of today may mean the shadow.
    as_meant = rule.mode == LIVE or state.shadow
    return GoOn() if state.candidate == rule.release and as_meant else Withdraw()


def _beside(state: State, rules: Sequence[Rule]) -> Decision:
    rule = wanted(state, rules)
    if rule.release != state.candidate:
        return Withdraw()
    return Activate() if rule.mode == LIVE else Leave("in_the_shadow")


def _on_probation(state: State, rules: Sequence[Rule]) -> Decision:
    """It is judged here; only a word from the fleet to go back comes before that."""
    rule = wanted(state, rules)
    told_back = rule.mode == LIVE and rule.release == state.last_good
    # A rollout that was stopped takes its release along, whatever other release is wanted instead.
    given_up = state.last_good is not None and all(each.release != state.live for each in rules)
    return Withdraw() if told_back or given_up else Leave("on_probation")


def _at_rest(state: State, rules: Sequence[Rule]) -> Decision:
    rule = wanted(state, rules)
    if rule.release == state.live:
        return Leave("serves")
    if rule.release == state.last_good and rule.mode == LIVE:
        return Withdraw()
    if rule.release in state.failed:
        return Leave("failed_before")
    return Install(rule.release, shadow=rule.mode != LIVE)


_RULES: Final[Mapping[str, Callable[[State, Sequence[Rule]], Decision]]] = MappingProxyType(
    {
        **dict.fromkeys((FETCH, VERIFY, STAGE), _coming_in),
        SHADOW: _beside,
        PROBATION: _on_probation,
        IDLE: _at_rest,
    }
)
