"""What a policy asks of this device: (state, policy, device) → one step. No disk, no network, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from edgekit_runtime.policies import Policy
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


def decide(state: State, policy: Policy, device: str) -> Decision:
    """One step towards what the policy asks for; asked again after it, the next one.

    Args:
        state: of the versions on this device.
        policy: that is signed and valid now.
        device: id of this one.
    """
    if state.pinned:
        return Leave("pinned")
    if not policy.includes(device):
        # A rollout that was stopped: what it brought so far does not go live.
        return Withdraw() if state.phase in {FETCH, VERIFY, STAGE, SHADOW} else Leave("not_meant")
    rule = _RULES.get(state.phase)
    return rule(state, policy) if rule is not None else GoOn()


def _coming_in(state: State, policy: Policy) -> Decision:
    # What is on its way to serve was meant for that; a policy of today may mean the shadow.
    as_meant = policy.mode == "live" or state.shadow
    return GoOn() if state.candidate == policy.release and as_meant else Withdraw()


def _beside(state: State, policy: Policy) -> Decision:
    if policy.release != state.candidate:
        return Withdraw()
    return Activate() if policy.mode == "live" else Leave("in_the_shadow")


def _on_probation(state: State, policy: Policy) -> Decision:
    """It is judged here; only a word from the fleet to go back comes before that."""
    return Withdraw() if policy.release == state.last_good else Leave("on_probation")


def _at_rest(state: State, policy: Policy) -> Decision:
    if policy.release == state.live:
        return Leave("serves")
    if policy.release == state.last_good:
        return Withdraw()
    if policy.release in state.failed:
        return Leave("failed_before")
    if policy.mode == "shadow" and state.live is None:
        return Leave("nothing_to_run_beside")
    return Install(policy.release, shadow=policy.mode == "shadow")


_RULES: Final[Mapping[str, Callable[[State, Policy], Decision]]] = MappingProxyType(
    {
        **dict.fromkeys((FETCH, VERIFY, STAGE), _coming_in),
        SHADOW: _beside,
        PROBATION: _on_probation,
        IDLE: _at_rest,
    }
)
