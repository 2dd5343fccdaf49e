"""`Agent`: one poll after the other, whatever goes wrong in any of them."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from edgekit_runtime import labels as fleet_labels
from edgekit_runtime import payloads
from edgekit_runtime.agent.decide import Activate, Decision, GoOn, Install, Leave, Withdraw, decide
from edgekit_runtime.agent.fetch import fetch
from edgekit_runtime.agent.notify import ALIVE, READY, STOPPING, tell_systemd, watchdog_s
from edgekit_runtime.agent.transport import Transport
from edgekit_runtime.agent.upload import Uploaded, upload, upload_payloads
from edgekit_runtime.contract import ContractError
from edgekit_runtime.errors import ArtifactError, DeviceError, NetworkError, RefusedError, StoreError
from edgekit_runtime.events import Activated, RolledBack
from edgekit_runtime.labels import Labels
from edgekit_runtime.manager import Deed, Manager
from edgekit_runtime.policies import MAX_POLICY_BYTES, Policy, Rule
from edgekit_runtime.spool import Spool
from edgekit_runtime.state import COMMIT, ROLLBACK, STAGE, VERIFY
from edgekit_runtime.store import Store
from edgekit_runtime.trust import Trust

log = logging.getLogger(__name__)

# First pause after a failure; it doubles with each that follows.
RETRY_S: Final = 10.0
LONGEST_S: Final = 3600.0
# Within which the first poll comes: devices that a power cut ended start together.
FIRST_S: Final = 30.0
# Seconds between two looks at the files of what serves.
MEND_S: Final = 24 * 3600.0
# Steps that one policy can ask for: drop another candidate, then install.
MOST_STEPS: Final = 3
# Phases of what is decided already, and of what has come in, which goes on where no server can say that it should not.
SETTLED: Final = frozenset({COMMIT, ROLLBACK})
COME_IN: Final = frozenset({VERIFY, STAGE})
NO_LABELS: Final[Labels] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Polled:
    """What a poll came to.

    Attributes:
        decided: the last step, None where the policy could not be had.
        uploaded: None where the server could not be told.
        errors: what went wrong.
    """

    decided: Decision | None
    uploaded: Uploaded | None
    errors: tuple[DeviceError, ...]

    @property
    def said(self) -> str:
        """The last step, for people."""
        return _name(self.decided)


class Agent:
    """Keeps one store as one channel of a server says.

    Args:
        store: of the device.
        trust: verified documents of the server.
        transport: to the server.
        device: id of this one.
        channel: whose policy holds.
        stage: tries a release out.
        interval_s: between two polls.
        spool_bytes: of windows that wait.
        about: more that the server should know of this device.
        labels: of this device, as it was told here; those of the same name that the server set come before them.
        payload: whether inputs may be sent where a signed policy asks for some; False removes those that wait.
    """

    def __init__(
        self,
        store: Store,
        trust: Trust,
        transport: Transport,
        *,
        device: str,
        channel: str,
        stage: Deed,
        interval_s: float = 300.0,
        spool_bytes: int = 8 << 20,
        about: dict[str, Any] | None = None,
        labels: Labels = NO_LABELS,
        payload: bool = True,
    ) -> None:
        self._store, self._trust, self._transport = store, trust, transport
        self._device, self._channel, self._interval_s = device, channel, interval_s
        self._spool_bytes, self._about, self._own_labels = spool_bytes, about or {}, labels
        self._payload = payload
        self._alive_s, self._watchdog_s = 0.0, watchdog_s()
        self._known: tuple[str, Policy] | None = None
        self._heard: Labels | None = None
        self._mend_s = -math.inf
        self._stop = threading.Event()
        self._deltas: Counter[str] = Counter()
        self._bring = fetch(store, trust.document, transport, self.going_on, self._deltas)
        self._manager = Manager(
            store,
            fetch=self._fetch,
            stage=stage,
            told=lambda error: log.warning("%s", error.what, extra={"code": error.code}),
        )

    def poll(self) -> Polled:
        """Go on with what was cut off, do what the policy asks for, and tell the server."""
        errors: list[DeviceError] = []
        decided: Decision | None = None
        if not self._payload:
            # Whatever the network does: from now on none is kept, and none that waits is sent.
            self._allow(())
        try:
            decided = self._step()
        except DeviceError as error:
            errors.append(error)
        except Exception as error:
            log.exception("the poll failed")
            errors.append(_unexpected(error))
        uploaded: Uploaded | None = None
        try:
            spool = Spool(self._store.spool, max_bytes=self._spool_bytes)
            about = {**self._about, "labels": dict(self.labels()), "deltas": dict(self._deltas)}
            uploaded = upload(self._store, spool, self._transport, self._device, about, self._hear)
            # Last: what a rollout is judged by does not wait for what only helps to understand it.
            upload_payloads(self._store, self._transport, self._device, self.going_on)
        except DeviceError as error:
            errors.append(error)
        except OSError as error:
            errors.append(_disk(self._store, error))
        except Exception as error:
            log.exception("the upload failed")
            errors.append(_unexpected(error))
        return Polled(decided, uploaded, tuple(errors))

    def run(self) -> None:
        """Poll until `stop`."""
        tell_systemd(READY)
        failures = 0
        self._wait(min(FIRST_S, self._interval_s) * random.random())  # noqa: S311 - no secret
        while not self._stop.is_set():
            polled = self.poll()
            for error in polled.errors:
                log.warning("%s", error.what, extra={"code": error.code})
            log.info(
                "polled",
                extra={"decided": polled.said, "phase": self._phase(), "failures": failures},
            )
            # A server that takes no posts may still have policies, and a halt does not wait for an hour.
            failures = failures + 1 if polled.decided is None else 0
            self._wait(pause_s(self._interval_s, failures, random.random()))  # noqa: S311 - no secret
        tell_systemd(STOPPING)

    def stop(self) -> None:
        """End `run` soon; a transfer is cut off and goes on at the next start. Safe in a signal handler."""
        self._stop.set()

    def labels(self) -> Labels:
        """In use: those that the server set, and those of other names that were given here."""
        heard = fleet_labels.load(self._store.path) if self._heard is None else self._heard
        return {**self._own_labels, **heard}

    def going_on(self) -> None:
        """A sign of life in long work.

        Raises:
            NetworkError: the agent was told to stop.
        """
        if self._stop.is_set():
            raise NetworkError(
                "the agent was told to stop",
                expected="time for a transfer or a trial",
                way_out="What came in stays; the next start goes on.",
                code="stopped",
            )
        self.alive()

    def alive(self) -> None:
        """A sign of life, no more often than systemd needs it."""
        now_s = time.monotonic()
        if self._watchdog_s is not None and now_s - self._alive_s >= self._watchdog_s / 4:
            tell_systemd(ALIVE)
            self._alive_s = now_s

    def _step(self) -> Decision:
        if self._store.state().phase in SETTLED:
            self._manager.go_on()
        try:
            decided = self._follow()
        except NetworkError:
            if not self._stop.is_set() and self._store.state().phase in COME_IN:
                self._manager.go_on()
            raise
        self._mend()
        return decided

    def _fetch(self, release: str) -> None:
        """Bring a release; where a candidate took long, ask whether it is still wanted."""
        began_s = time.monotonic()
        self._bring(release)
        state = self._store.state()
        if state.candidate == release and time.monotonic() - began_s > self._interval_s:
            self._trust.refresh()
            if isinstance(decide(state, self._policy(), self._device, self.labels()), Withdraw):
                raise RefusedError(
                    f"{release[:12]} is no longer wanted",
                    expected="the release that the policy names",
                    way_out="There is nothing to do.",
                    code="withdrawn",
                )

    def _follow(self) -> Decision:
        self._trust.refresh()
        policy, labels = self._policy(), self.labels()
        self._allow(policy.rules_for(self._device, labels))
        for _ in range(MOST_STEPS):
            decided = decide(self._store.state(), policy, self._device, labels)
            if isinstance(decided, Leave):
                break
            log.info("decided", extra={"decided": _name(decided)})
            self._do(decided)
            # What is not wanted makes room for what is; the next poll sees what came of anything else.
            if not isinstance(decided, Withdraw):
                break
        return decided

    def _allow(self, rules: Iterable[Rule]) -> None:
        """Let inputs be kept and sent where the rules that include this device ask for some, and here nobody minds."""
        wanted = next((rule for rule in rules if rule.disagreements), None) if self._payload else None
        allowed = payloads.Allowance(wanted.release, wanted.disagreements) if wanted else payloads.NOTHING
        try:
            payloads.keep(self._store.disk, self._store.path, allowed)
            if not allowed.per_window:
                payloads.give_way(self._store.path)
        except OSError as error:
            log.warning("what may be sent could not be kept: %s", error)

    def _hear(self, labels: Labels) -> None:
        """Labels from the server hold from the next decision on."""
        self._heard = labels
        try:
            fleet_labels.keep(self._store.disk, self._store.path, labels)
        except OSError as error:
            # They hold until the agent ends, and the next answer brings them again.
            log.warning("labels could not be kept: %s", error)

    def _mend(self) -> None:
        """Look once a day whether the files of what serves rotted; the server has them."""
        if time.monotonic() - self._mend_s < MEND_S:
            return
        self._mend_s = time.monotonic()
        if self._manager.mend():
            log.warning("files of the live version were damaged, and came again")

    def _policy(self) -> Policy:
        path = f"rollout/{self._channel}.json"
        sha256 = self._trust.target(path).sha256
        if self._known is not None and self._known[0] == sha256:
            return self._known[1]
        try:
            policy = Policy.from_json(self._trust.document(path, MAX_POLICY_BYTES))
        except ContractError as error:
            raise ArtifactError(
                f"{path}: {error}",
                expected="a policy that this version of edgekit-runtime reads",
                way_out="Publish it with a version of edgekit that fits, or update this device.",
                code="policy",
            ) from error
        self._known = sha256, policy
        return policy

    def _do(self, decided: Decision) -> None:
        if isinstance(decided, Install):
            try:
                self._manager.install(decided.release, shadow=decided.shadow)
            except RefusedError as error:
                # Somebody else was quicker, or the device is pinned; the next look tells.
                log.warning("%s", error.what, extra={"code": error.code})
        elif isinstance(decided, Activate):
            self._manager.tell(Activated())
        elif isinstance(decided, Withdraw):
            self._manager.tell(RolledBack("withdrawn", passing=True))
            self._manager.go_on()
        elif isinstance(decided, GoOn):
            self._manager.go_on()

    def _wait(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        step_s = min(seconds, self._watchdog_s / 4) if self._watchdog_s else seconds
        while (
            not self._stop.wait(max(0.0, min(step_s, end_s - time.monotonic()))) and time.monotonic() < end_s
        ):
            self.alive()

    def _phase(self) -> str:
        try:
            return self._store.state().phase
        except StoreError as error:
            return error.code


def pause_s(interval_s: float, failures: int, chance: float) -> float:
    """Seconds until the next poll: spread, so that a fleet does not come at once.

    Args:
        interval_s: between polls that go well; from 0.8 to 1.2 of it.
        failures: in a row; each doubles the pause, from ten seconds to an hour or the interval, of which a half to all
            is waited.
        chance: from 0 to 1.
    """
    if failures == 0:
        return interval_s * (0.8 + 0.4 * chance)
    longest = max(interval_s, LONGEST_S)
    return min(longest, RETRY_S * 2.0 ** min(failures - 1, 30)) * (0.5 + 0.5 * chance)


def _name(decided: Decision | None) -> str:
    if decided is None:
        return "nothing"
    return decided.why if isinstance(decided, Leave) else type(decided).__name__.lower()


def _unexpected(error: Exception) -> DeviceError:
    return DeviceError(
        f"{type(error).__name__}: {str(error)[:300]}",
        expected="no fault of edgekit-runtime",
        way_out="Its log has the trace; what serves goes on, and the next poll comes.",
        code="unexpected",
    )


def _disk(store: Store, error: OSError) -> StoreError:
    return StoreError(
        f"{error.filename or store.path}: {error.strerror or error}",
        expected="a folder that can be written",
        way_out="Free some room, or mount the disk writable. What serves goes on.",
        code="disk",
    )
