"""The version manager's decisions: (state, event, now) → (state, actions). No disk, no network, no clock.

```
            offered      fetched       verified      staged                 activated
    IDLE ──────────→ FETCH ─────→ VERIFY ─────→ STAGE ─────→ SHADOW ───────────────→ PROBATION
     ↑                 │             │            │  └──── without a shadow ────────→    │
     ├── refused ──────┴─────────────┴────────────┴───────────┘                          │
     ├──────────────────────── COMMIT ←── serves well, or is marked good ────────────────┤
     └──────────────────────── ROLLBACK ←── crashes, errors, NaN, slow, asked for ───────┘
```

What holds in every state (and is tested over random histories):

- what is live has served well before, but in PROBATION; there `last_good` has, if anything ever did;
- no release that failed is a candidate again unless it was forced;
- the pointer to what is live moves only into PROBATION, by a roll back, and never to what is not on the disk;
- nothing is decided by the wall clock, which may say 1970 or jump by years: `now` only dates reports;
- after COMMIT no failed report, and nothing but a word from outside or a damaged file, takes the version back.

A phase that is cut off is gone on with: `pending` tells what a state asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from edgekit_runtime.events import (
    DEFAULT_LIMITS,
    DISK,
    PROCESS,
    RELEASE,
    Action,
    Activated,
    Begun,
    Done,
    Event,
    Failed,
    Health,
    Left,
    Limits,
    LoadFailed,
    Loading,
    MarkedGood,
    Offered,
    Pinned,
    Recovered,
    RolledBack,
    Sent,
    Step,
)
from edgekit_runtime.state import (
    COMMIT,
    FETCH,
    IDLE,
    PROBATION,
    ROLLBACK,
    SHADOW,
    STAGE,
    UNKNOWN,
    VERIFY,
    Report,
    State,
)

_NEXT: Final = MappingProxyType(
    {FETCH: VERIFY, VERIFY: STAGE, STAGE: PROBATION, SHADOW: PROBATION, COMMIT: IDLE, ROLLBACK: IDLE}
)
# Phases in which the candidate is on its way, and live is what it was.
UNDER_WAY: Final = (FETCH, VERIFY, STAGE, SHADOW)


def transition(state: State, event: Event, now_s: int, limits: Limits = DEFAULT_LIMITS) -> Step:
    """Decide what an event changes.

    Args:
        state: as it was persisted.
        event: what happened.
        now_s: seconds since 1970 by the device's clock, to date reports.
        limits: of probation.

    Returns:
        The state to persist, and what to do after that.
    """
    if state.phase == UNKNOWN:
        state = _returned(state, "unknown_state", now_s)
    decided = _RULES[type(event)](state, event, max(0, now_s), limits)
    if isinstance(decided, str):
        return Step(state, pending(state), decided)
    return Step(decided, pending(decided))


def pending(state: State) -> tuple[Action, ...]:
    """What the phase of a state asks for."""
    if state.phase in UNDER_WAY and state.candidate is not None:
        return (Action(state.phase, state.candidate),)
    if state.phase in {COMMIT, ROLLBACK}:
        return (Action(state.phase, state.live or ""),)
    return ()


Decided = State | str
"""The new state, or the code of why nothing changes."""


def _offered(state: State, event: Offered, now_s: int, limits: Limits) -> Decided:
    del now_s
    if state.phase != IDLE:
        return "busy"
    if event.release == state.live:
        return "already_live"
    if state.pinned and not event.forced:
        return "pinned"
    if event.release in state.failed and not event.forced:
        return "failed_before"
    if state.rollbacks >= limits.rollbacks and not event.forced:
        return "rolled_back_too_often"
    failed = {release: why for release, why in state.failed.items() if release != event.release}
    # Without anything that serves there is nothing to run beside.
    shadow = event.shadow and state.live is not None
    return replace(state, phase=FETCH, candidate=event.release, failed=failed, shadow=shadow, tries=0)


def _done(state: State, event: Done, now_s: int, limits: Limits) -> Decided:
    del now_s, limits
    if event.phase != state.phase:
        return "not_now"
    after = SHADOW if state.phase == STAGE and state.shadow else _NEXT.get(state.phase)
    if after is None:
        return "not_now"
    return _activated(state) if after == PROBATION else replace(state, phase=after, tries=0)


def _failed(state: State, event: Failed, now_s: int, limits: Limits) -> Decided:
    del limits
    if event.phase != state.phase or state.phase not in UNDER_WAY:
        return "not_now"
    return _dropped(state, event.reason, now_s, passing=event.passing)


def _begun(state: State, event: Begun, now_s: int, limits: Limits) -> Decided:
    if event.phase != state.phase or state.phase not in UNDER_WAY:
        return "not_now"
    if state.tries >= limits.tries:
        return _dropped(state, f"{state.phase}_never_ended", now_s)
    return replace(state, tries=state.tries + 1)


def _activate(state: State, event: Activated, now_s: int, limits: Limits) -> Decided:
    del event, now_s, limits
    return _activated(state) if state.phase == SHADOW else "not_now"


def _activated(state: State) -> State:
    """The candidate goes live; what was live is what a roll back returns to."""
    return replace(
        state,
        phase=PROBATION,
        live=state.candidate,
        candidate=None,
        last_good=state.live,
        attempts=(),
        crashes=0,
        tries=0,
    )


def _loading(state: State, event: Loading, now_s: int, limits: Limits) -> Decided:
    if state.phase != PROBATION:
        return "not_now"
    died = [each for each in state.attempts if each in event.dead]
    crashes = state.crashes + len(died)
    if crashes >= limits.crashes:
        return _returned(replace(state, crashes=crashes), "crash_loop", now_s)
    attempts = tuple(each for each in state.attempts if each not in event.dead and each != event.process)
    return replace(state, attempts=(*attempts, event.process), crashes=crashes)


def _left(state: State, event: Left, now_s: int, limits: Limits) -> Decided:
    del now_s, limits
    if state.phase != PROBATION or event.process not in state.attempts:
        return "not_now"
    return replace(state, attempts=tuple(each for each in state.attempts if each != event.process))


def _load_failed(state: State, event: LoadFailed, now_s: int, limits: Limits) -> Decided:
    del limits
    passing = event.fault != RELEASE
    if event.release == state.candidate:
        return _dropped(state, event.reason, now_s, passing=passing)
    if event.release == state.last_good and event.fault == DISK:
        told = state.told(Report("damaged", event.release, event.reason, now_s))
        return replace(told, last_good=None)
    if event.release != state.live:
        return "not_now"
    gives_up = event.fault == DISK or (state.phase == PROBATION and event.fault != PROCESS)
    # What is all there is goes only where something is wrong with it.
    if gives_up and (state.last_good is not None or not passing):
        return _returned(state, event.reason, now_s, passing=passing)
    # It served before, or serves in other processes: one that cannot load it takes it from nobody.
    return state.told(Report("not_loaded", event.release, event.reason, now_s))


def _health(state: State, event: Health, now_s: int, limits: Limits) -> Decided:
    if state.phase != PROBATION or event.release != state.live:
        return "not_now"
    if event.predictions >= limits.judged:
        shares = (
            ("errors", event.errors, limits.bad_share),
            ("nan", event.nans, limits.bad_share),
            ("slow", event.slow, limits.slow_share),
        )
        for reason, count, allowed in shares:
            if count > max(1, allowed * event.predictions):
                return _returned(state, reason, now_s)
    if event.served_s >= limits.served_s and event.predictions >= limits.predictions:
        return _committed(state, now_s)
    return "not_yet"


def _marked_good(state: State, event: MarkedGood, now_s: int, limits: Limits) -> Decided:
    del limits
    if state.phase != PROBATION or event.release != state.live:
        return "not_now"
    return _committed(state, now_s)


def _committed(state: State, now_s: int) -> State:
    assert state.live is not None
    told = state.told(Report("committed", state.live, "", now_s))
    return replace(told, phase=COMMIT, attempts=(), crashes=0, rollbacks=0)


def _rolled_back(state: State, event: RolledBack, now_s: int, limits: Limits) -> Decided:
    del limits
    if state.phase in UNDER_WAY:
        return _dropped(state, event.reason, now_s, passing=event.passing)
    settled = state.phase in {IDLE, COMMIT} and state.last_good not in {None, state.live}
    if state.phase != PROBATION and not settled:
        return "nothing_to_return_to"
    return _returned(state, event.reason, now_s, passing=event.passing)


def _pinned(state: State, event: Pinned, now_s: int, limits: Limits) -> Decided:
    del now_s, limits
    return replace(state, pinned=event.on)


def _sent(state: State, event: Sent, now_s: int, limits: Limits) -> Decided:
    del now_s, limits
    return replace(state, reports=tuple(each for each in state.reports if each not in event.reports))


def _recovered(state: State, event: Recovered, now_s: int, limits: Limits) -> Decided:
    del event, now_s, limits
    return state


def _dropped(state: State, reason: str, now_s: int, *, passing: bool = False) -> State:
    """Without the candidate; what is live was never touched."""
    release = state.candidate
    idle = replace(state, phase=IDLE, candidate=None, shadow=False, tries=0)
    if release is None:
        return idle
    told = idle.told(Report("refused", release, reason, now_s))
    return told if passing else told.without(release, reason)


def _returned(state: State, reason: str, now_s: int, *, passing: bool = False) -> State:
    """With the last good version live, in the same write that gives the other one up."""
    still = replace(state, phase=ROLLBACK, candidate=None, attempts=(), crashes=0, tries=0, shadow=False)
    bad, good = state.live, state.last_good
    if bad is None or (good is None and state.phase == UNKNOWN):
        # Nothing is known of what is live but that it is all there is.
        return still
    # What the fleet or this device takes back for a reason of the day is no sign of versions that are bad.
    back = replace(still, live=good, last_good=None, rollbacks=state.rollbacks + (not passing))
    told = back.told(Report("rolled_back", bad, reason, now_s))
    return told if passing else told.without(bad, reason)


_RULES: Final[Mapping[type, Callable[[State, Any, int, Limits], Decided]]] = MappingProxyType(
    {
        Offered: _offered,
        Done: _done,
        Failed: _failed,
        Begun: _begun,
        Activated: _activate,
        Loading: _loading,
        Left: _left,
        LoadFailed: _load_failed,
        Health: _health,
        MarkedGood: _marked_good,
        RolledBack: _rolled_back,
        Pinned: _pinned,
        Sent: _sent,
        Recovered: _recovered,
    }
)
