"""Tells the server what happened here: windows, reports, and how the versions stand.

A document leaves the spool when the server says that it has it, so it arrives at least once; its key lets the server
count it once.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from edgekit_runtime.agent.transport import NOT_TAKEN, Transport, unreachable
from edgekit_runtime.errors import NetworkError
from edgekit_runtime.events import Sent
from edgekit_runtime.manager import tell
from edgekit_runtime.spool import Entry, Spool
from edgekit_runtime.state import Report, State
from edgekit_runtime.store import Store
from edgekit_runtime.strict_json import ContractError, Fields, parse, read_text

log = logging.getLogger(__name__)

SCHEMA: Final = 1
# Of documents in one post, before they are packed.
BATCH_BYTES: Final = 256 << 10
BATCH_COUNT: Final = 200


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What the server took.

    Attributes:
        windows: documents of the spool.
        reports: of the state.
        posts: that it needed.
    """

    windows: int
    reports: int
    posts: int


def upload(store: Store, spool: Spool, transport: Transport, device: str, about: dict[str, Any]) -> Uploaded:
    """Send all that is there, and how things stand even where nothing is.

    Args:
        store: of the device.
        spool: of windows.
        transport: to the server.
        device: id of this one.
        about: more that the server should know, plain JSON values.

    Raises:
        NetworkError: the server did not answer, or has nothing of what was sent; the rest is kept.
        StoreError: the state cannot be read or written.
    """
    sender = _Sender(store, spool, transport, device, about)
    reports = {report_key(device, each): each for each in store.state().reports}
    for batch in _batches(spool):
        sender.send(batch, reports)
        reports = {}
    return sender.sent


@dataclass
class _Sender:
    store: Store
    spool: Spool
    transport: Transport
    device: str
    about: dict[str, Any]
    sent: Uploaded = Uploaded(0, 0, 0)

    def send(self, batch: Sequence[tuple[Entry, Any]], reports: Mapping[str, Report]) -> None:
        """Post a batch; where the server would never take it, find the document that is to blame, and drop that."""
        try:
            self._post(batch, reports)
        except NetworkError as error:
            if error.code != NOT_TAKEN or not batch:
                raise
            half = len(batch) // 2
            # The first half may be none: then the rest of the post is at fault, or else the one document is.
            self.send(batch[:half], reports)
            if half:
                self.send(batch[half:], {})
            else:
                log.warning("the server does not take the window %s: it is dropped", batch[0][0].key)
                self.spool.give_up(batch[0][0])

    def _post(self, batch: Sequence[tuple[Entry, Any]], reports: Mapping[str, Report]) -> None:
        path = f"devices/{self.device}"
        body = {
            "schema": SCHEMA,
            "device": self.device,
            "status": _status(self.store.state(), self.spool, self.about),
            "reports": [{"key": key, **asdict(report)} for key, report in reports.items()],
            "windows": [document for _, document in batch],
        }
        have = _have(self.transport.post(path, gzip.compress(json.dumps(body).encode(), mtime=0)), path)
        taken = [entry for entry, _ in batch if entry.key in have]
        for entry in taken:
            self.spool.done(entry)
        if known := tuple(report for key, report in reports.items() if key in have):
            tell(self.store, Sent(known))
        before = self.sent
        self.sent = Uploaded(before.windows + len(taken), before.reports + len(known), before.posts + 1)
        if batch and not taken:
            raise unreachable(path, "the server has nothing of what was sent")


def report_key(device: str, report: Report) -> str:
    """By which the server knows a report."""
    text = "\0".join((device, report.kind, report.release, report.reason, str(report.at_s)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _status(state: State, spool: Spool, about: dict[str, Any]) -> dict[str, Any]:
    names = ("phase", "live", "candidate", "last_good", "pinned", "rollbacks")
    slots = {name: getattr(state, name) for name in names}
    return {**slots, "failed": dict(state.failed), "dropped": spool.dropped, **about}


def _batches(spool: Spool) -> Iterator[list[tuple[Entry, Any]]]:
    """Documents for one post after the other; an empty one where there are none."""
    batch: list[tuple[Entry, Any]] = []
    size = number = 0
    for entry in spool:
        try:
            document = spool.read(entry)
            tree = parse(document)
        except FileNotFoundError:
            # It gave way meanwhile.
            continue
        except ContractError as error:
            # It would come first for ever, and nobody can read it.
            log.warning("a window cannot be read: %s", error)
            spool.give_up(entry)
            continue
        if batch and (size + len(document) > BATCH_BYTES or len(batch) == BATCH_COUNT):
            yield batch
            batch, size, number = [], 0, number + 1
        batch.append((entry, tree))
        size += len(document)
    if batch or number == 0:
        yield batch


def _have(answer: bytes, path: str) -> frozenset[str]:
    try:
        fields = Fields(parse(answer), "", required=("have",))
        return frozenset(fields.each("have", read_text))
    except ContractError as error:
        raise unreachable(path, f"no answer that can be read: {error}") from error
