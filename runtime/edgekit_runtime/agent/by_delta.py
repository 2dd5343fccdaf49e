"""Brings a file as a delta to one that is here, where the server has one; whatever goes wrong, the full file comes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from edgekit_runtime.agent.transfer import incoming
from edgekit_runtime.agent.transport import Transport
from edgekit_runtime.contract import Release
from edgekit_runtime.deltas import (
    MAX_INDEX_BYTES,
    Offer,
    apply,
    choose,
    delta_path,
    index_path,
    read_index,
)
from edgekit_runtime.errors import DeviceError, NetworkError
from edgekit_runtime.state import State
from edgekit_runtime.store import Store

log = logging.getLogger(__name__)

# Of a full file, from which on a question for deltas may pay.
LEAST_BYTES: Final = 64 << 10
# That a try has to bring for another one to follow at once.
PROGRESS_BYTES: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class ByDelta:
    """The short way for the files of one release.

    Attributes:
        store: of the device.
        transport: to the server.
        going_on: is called again and again, and may raise to end it all.
        release: that is brought.
        state: of the store.
        counts: what came of it: "applied", "failed", and "saved_bytes" that did not have to come.
    """

    store: Store
    transport: Transport
    going_on: Callable[[], None]
    release: Release
    state: State
    counts: Counter[str]

    def bring(self, sha256: str, size_bytes: int) -> bool:
        """Tell whether the file is in the store now.

        Raises:
            DeviceError: `going_on` does, or the disk cannot be written.
        """
        # What came of the full file is not thrown away, and a small one is not worth a question.
        if size_bytes <= LEAST_BYTES or self.store.received(sha256):
            return False
        bases = self._bases(sha256)
        if not bases:
            return False
        try:
            offer = self._offer(sha256, size_bytes, bases)
            if offer is None:
                return False
            self._carry_out(sha256, size_bytes, offer)
        except Exception as error:  # noqa: BLE001 - nothing here is signed; the full file has its own errors
            self._give_up(sha256, error)
            return False
        self.counts.update(applied=1, saved_bytes=size_bytes - offer.size_bytes)
        log.info("made by a delta", extra={"file": sha256[:12], "bytes": offer.size_bytes, "of": size_bytes})
        return True

    def _bases(self, sha256: str) -> frozenset[str]:
        """Files of the versions here that go by the same name, and are not this one."""
        paths = [path for path, file in self.release.files.items() if file.sha256 == sha256]
        found: set[str] = set()
        for slot in (self.state.live, self.state.last_good):
            if slot is None or slot == self.release.id:
                continue
            try:
                files = self.store.release(slot).files
            except DeviceError:
                continue
            found |= {files[path].sha256 for path in paths if path in files}
        return frozenset(each for each in found - {sha256} if self.store.blob(each).exists())

    def _offer(self, sha256: str, size_bytes: int, bases: frozenset[str]) -> Offer | None:
        answer = self.transport.get(index_path(sha256))
        if answer.status != 200:
            return None
        document = b""
        for part in answer.parts:
            self.going_on()
            document += part
            if len(document) > MAX_INDEX_BYTES:
                break
        offer = choose(read_index(document), bases, size_bytes)
        if offer is not None and not self.store.has_room(self.release, self.state, offer.size_bytes):
            return None
        return offer

    def _carry_out(self, sha256: str, size_bytes: int, offer: Offer) -> None:
        delta = self.store.delta(sha256)
        while True:
            before = self.store.received(delta.name)
            path = delta_path(sha256, offer)
            at, parts = incoming(self.transport, path, offer.size_bytes, before, self.going_on)
            try:
                self.store.add_delta(sha256, offer.sha256, offer.size_bytes, parts, at=at)
                break
            except NetworkError:
                self.going_on()
                if self.store.received(delta.name) < before + PROGRESS_BYTES:
                    raise
        made = apply(offer.format, self.store.blob(offer.base), delta, size_bytes)
        self.store.add(sha256, size_bytes, self._watched(made))
        self.store.forget(delta.name)

    def _watched(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        for part in parts:
            self.going_on()
            yield part

    def _give_up(self, sha256: str, error: Exception) -> None:
        # The full file must not go on from bytes that nobody vouches for.
        self.store.forget(sha256)
        self.going_on()
        if not isinstance(error, NetworkError):
            self.store.forget(self.store.delta(sha256).name)
        self.counts["failed"] += 1
        what, code = (
            (error.what, error.code) if isinstance(error, DeviceError) else (repr(error)[:200], "delta")
        )
        log.warning("the full file comes instead of a delta: %s", what, extra={"code": code})
