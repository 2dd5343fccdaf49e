"""Carries updates out: asks the transition function, persists what it says, then does it.

Everything that is done here can be cut off at any instruction and is done again by the next `go_on`. The order is
always the same: first the state that says what is about to happen, then the deed, then the state that says it is done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from edgekit_runtime.bundle import check_release
from edgekit_runtime.errors import ArtifactError, DeviceError, NetworkError, RefusedError, StoreError
from edgekit_runtime.events import (
    DEFAULT_LIMITS,
    Action,
    Begun,
    Done,
    Event,
    Failed,
    Limits,
    Offered,
    Recovered,
    Step,
)
from edgekit_runtime.state import COMMIT, FETCH, ROLLBACK, SHADOW, STAGE, VERIFY, State
from edgekit_runtime.store import Store
from edgekit_runtime.transition import transition

log = logging.getLogger(__name__)

Deed = Callable[[str], None]
"""Does something about a release, by its id.

Raises `ArtifactError` where something is wrong with the release, `DeviceError` where something else went wrong.
"""

# A release is named by its hash: bytes that have another one are not the release, and say nothing of it.
TRANSFER: Final = frozenset({"damaged", "missing"})
# What each refusal means, for people.
REFUSALS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "busy": ("no other update under way", "Wait for it, or drop it with `edgekit-runtime rollback`."),
        "already_live": ("another version than the one that serves", "There is nothing to do."),
        "pinned": ("a device that is not pinned", "`edgekit-runtime pin --off`, or --forced."),
        "failed_before": ("a version that did not fail on this device", "Publish a new one, or --forced."),
        "rolled_back_too_often": (
            "a version in between that did well",
            "Look at the reasons in `edgekit-runtime status`, then --forced.",
        ),
        "nothing_to_return_to": (
            "a good version from before, still in the store",
            "Install the version that should serve.",
        ),
    }
)


class Manager:
    """The one that drives a store.

    Args:
        store: of the device.
        fetch: brings what a release is made of into the store.
        stage: tries a release out on this device.
        limits: of probation.
        now: seconds since 1970; only dates reports.
        told: hears why a step failed, for people; the code of it is persisted.
    """

    def __init__(
        self,
        store: Store,
        *,
        fetch: Deed,
        stage: Deed,
        limits: Limits = DEFAULT_LIMITS,
        now: Callable[[], float] = time.time,
        told: Callable[[DeviceError], None] = lambda _: None,
    ) -> None:
        self.store, self.limits, self._now, self.told = store, limits, now, told
        self._deeds: Mapping[str, Deed] = {
            FETCH: fetch,
            VERIFY: self._verify,
            STAGE: stage,
            COMMIT: self._collect,
            ROLLBACK: self._collect,
        }

    def tell(self, event: Event) -> Step:
        """Let an event change the state, and persist that.

        Raises:
            StoreError: the state cannot be read or written; then nothing changed.
        """
        return tell(self.store, event, self.limits, self._now)

    def install(self, release: str, *, shadow: bool = False, forced: bool = False) -> State:
        """Offer a release and carry it as far as it goes by itself: into the shadow, or into probation.

        Raises:
            NetworkError: it could not be fetched to its end; `go_on` goes on.
            RefusedError: the rules do not take it.
            StoreError: the store is driven by another process, or cannot be written.
        """
        with self.store.driven():
            # What was cut off comes first, or the offer would only find the manager busy.
            state = self._carry_out(self.tell(Recovered()))
            if release == state.live and self._mend(release):
                return state
            step = self.tell(Offered(release, shadow, forced))
            if step.refused:
                raise refusal(step.refused, f"the version {release[:12]}")
            return self._carry_out(step)

    def go_on(self) -> State:
        """Do what is left to be done, from wherever the last process was cut off.

        Raises:
            NetworkError: as `install`.
            StoreError: the store is driven by another process, or cannot be written.
        """
        with self.store.driven():
            return self._carry_out(self.tell(Recovered()))

    def mend(self) -> bool:
        """Bring files of the live version again that rotted on the disk; whether there were any.

        Raises:
            NetworkError: as `install`.
            StoreError: as `install`.
            ArtifactError: the files that came are not those of the release.
        """
        with self.store.driven():
            state = self.store.state()
            return state.live is not None and state.candidate is None and self._mend(state.live)

    def _mend(self, release: str) -> bool:
        # The document first, which says which files there are, then these.
        for mended in (False, True):
            try:
                self._verify(release)
            except ArtifactError as error:
                if error.code not in TRANSFER:
                    return mended
                self.told(error)
                self._deeds[FETCH](release)
            else:
                return mended
        self._verify(release)
        return True

    def _carry_out(self, step: Step) -> State:
        while step.actions and step.actions[0].phase != SHADOW:
            event = self._do(step.actions[0])
            step = self.tell(event)
            if isinstance(event, Failed) and not event.passing:
                # It does not come again by itself, and would be in the way of the next one.
                self._collect("")
        return step.state

    def _do(self, action: Action) -> Event:
        if action.phase == STAGE:
            begun = self.tell(Begun(STAGE))
            if action not in begun.actions:
                return Recovered()
        try:
            self._deeds[action.phase](action.release)
        except NetworkError:
            # Whatever came in stays, and so does the phase: `go_on` goes on from there.
            raise
        except ArtifactError as error:
            self.told(error)
            return Failed(action.phase, error.code, passing=error.code in TRANSFER)
        except DeviceError as error:
            self.told(error)
            return Failed(action.phase, error.code, passing=True)
        except Exception:
            # A fault of ours, and no reason to be in this phase for ever.
            log.exception("the phase %s of %s failed", action.phase, action.release[:12])
            return Failed(action.phase, "unexpected", passing=True)
        return Done(action.phase)

    def _verify(self, release: str) -> None:
        """Hold every byte of a release against its hash, and its manifest against the contract."""
        found = self.store.release(release)
        self.store.check(found)
        check_release(found, self.store.manifest(found))

    def _collect(self, _: str) -> None:
        """Remove what no version needs; room is no reason to stop an update."""
        try:
            self.store.collect(self.store.state())
        except (ArtifactError, StoreError):
            return


def tell(
    store: Store, event: Event, limits: Limits = DEFAULT_LIMITS, now: Callable[[], float] = time.time
) -> Step:
    """Let an event change the state of a store, and persist that.

    Raises:
        StoreError: the state cannot be read or written; then nothing changed.
    """
    with store.locked():
        before = store.state()
        step = transition(before, event, int(now()), limits)
        if step.state != before:
            store.save(step.state)
    return step


def refusal(code: str, what: str) -> RefusedError:
    """The error for an event that the rules do not take."""
    expected, way_out = REFUSALS.get(code, ("another phase of an update", "See `edgekit-runtime status`."))
    return RefusedError(f"{what}: {code}", expected=expected, way_out=way_out, code=code)
