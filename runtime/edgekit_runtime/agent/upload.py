"""Tells the server what happened here: windows, reports, and how the versions stand.

A document leaves the spool when the server says that it has it, so it arrives at least once; its key lets the server
count it once.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from edgekit_runtime import payloads
from edgekit_runtime.agent.transport import NOT_TAKEN, Transport, unreachable
from edgekit_runtime.errors import NetworkError
from edgekit_runtime.events import Sent
from edgekit_runtime.labels import Labels, read_labels
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
# Of inputs that are sent in one upload, each in a post of its own.
MOST_PAYLOADS: Final = 50
# Of documents that may be given up in one upload: a server that is older than its devices is not flooded.
MOST_REFUSED: Final = 16


@dataclass(frozen=True, slots=True)
class Told:
    """Something that the server should have.

    Attributes:
        key: by which the server knows it.
        document: of it, plain JSON values.
        origin: where it waits here.
    """

    key: str
    document: Any
    origin: Entry | Report


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


def upload(
    store: Store,
    spool: Spool,
    transport: Transport,
    device: str,
    about: dict[str, Any],
    hear: Callable[[Labels], None] = lambda _: None,
) -> Uploaded:
    """Send all that is there, and how things stand even where nothing is.

    Args:
        store: of the device.
        spool: of windows.
        transport: to the server.
        device: id of this one.
        about: more that the server should know, plain JSON values.
        hear: is told the labels that the server set, where an answer names them.

    Raises:
        NetworkError: the server did not answer, or has nothing of what was sent; the rest is kept.
        StoreError: the state cannot be read or written.
        OSError: the spool cannot be read or written.
    """
    sender = _Sender(store, spool, transport, device, about, hear)
    # First, and alone: no window stands in the way of what a rollout is judged by.
    sender.send([_told(device, report) for report in store.state().reports])
    for batch in _batches(spool):
        sender.send(batch)
    return sender.sent


def upload_payloads(store: Store, transport: Transport, device: str, sign: Callable[[], None]) -> int:
    """Send inputs whose answers differ, and remove those that nobody may have any more.

    Args:
        store: of the device.
        transport: to the server.
        device: id of this one.
        sign: of life, before each.

    Returns:
        How many the server has now.

    Raises:
        NetworkError: the server did not answer, or has not what was sent; the rest is kept, as long as it may be.
        OSError: the folder cannot be read or written.
    """
    if not store.payloads.exists():
        return 0
    allowed, sent = payloads.load(store.path), 0
    # Nothing is put in here.
    spool = Spool(store.payloads, max_bytes=0)
    for entry in spool:
        tree = _payload(spool, entry, allowed)
        if tree is None:
            spool.give_up(entry)
        elif sent < MOST_PAYLOADS:
            sign()
            sent += _post_payload(spool, entry, transport, device, tree)
    return sent


def _payload(spool: Spool, entry: Entry, allowed: payloads.Allowance) -> dict[str, Any] | None:
    """What an entry holds; None where it cannot be read, or nobody may have it."""
    try:
        tree = parse(spool.read(entry))
    except (FileNotFoundError, ContractError):
        return None
    known = isinstance(tree, dict) and allowed.of(str(tree.get("candidate"))) > 0
    return tree if known else None  # type: ignore[return-value] # a dict, then


def _post_payload(
    spool: Spool, entry: Entry, transport: Transport, device: str, tree: dict[str, Any]
) -> bool:
    path = f"devices/{device}/disagreements"
    body = gzip.compress(json.dumps({**tree, "device": device}).encode(), compresslevel=1, mtime=0)
    try:
        have, _ = _answer(transport.post(path, body), path)
    except NetworkError as error:
        if error.code != NOT_TAKEN:
            raise
        log.warning("the server does not take an input: it is dropped")
        spool.give_up(entry)
        return False
    if entry.key not in have:
        raise unreachable(path, "the server has nothing of what was sent")
    spool.done(entry)
    return True


@dataclass
class _Sender:
    store: Store
    spool: Spool
    transport: Transport
    device: str
    about: dict[str, Any]
    hear: Callable[[Labels], None]
    sent: Uploaded = Uploaded(0, 0, 0)
    refused: int = 0

    def send(self, batch: Sequence[Told]) -> None:
        """Post a batch; where the server would never take it, find the document that is to blame, and drop that."""
        try:
            self._post(batch)
        except NetworkError as error:
            if error.code != NOT_TAKEN or not batch or self.refused == MOST_REFUSED:
                raise
            half = len(batch) // 2
            # The first half may be none: then the rest of the post is at fault, or else the one document is.
            self.send(batch[:half])
            if half:
                self.send(batch[half:])
            else:
                self._give_up(batch[0])

    def _give_up(self, told: Told) -> None:
        log.warning("the server does not take %s: it is dropped", told.key)
        self.refused += 1
        if isinstance(told.origin, Entry):
            self.spool.give_up(told.origin)
        else:
            tell(self.store, Sent((told.origin,)))

    def _post(self, batch: Sequence[Told]) -> None:
        path = f"devices/{self.device}"
        reports = [told for told in batch if isinstance(told.origin, Report)]
        windows = [told for told in batch if isinstance(told.origin, Entry)]
        body = {
            "schema": SCHEMA,
            "device": self.device,
            "status": _status(self.store.state(), self.spool, self.about),
            "reports": [told.document for told in reports],
            "windows": [told.document for told in windows],
        }
        have, labels = _answer(
            self.transport.post(path, gzip.compress(json.dumps(body).encode(), mtime=0)), path
        )
        taken = [told.origin for told in batch if told.key in have]
        entries = [origin for origin in taken if isinstance(origin, Entry)]
        known = tuple(origin for origin in taken if isinstance(origin, Report))
        for entry in entries:
            self.spool.done(entry)
        if known:
            tell(self.store, Sent(known))
        before = self.sent
        self.sent = Uploaded(before.windows + len(entries), before.reports + len(known), before.posts + 1)
        if labels is not None:
            self.hear(labels)
        if windows and not entries:
            raise unreachable(path, "the server has nothing of what was sent")


def report_key(device: str, report: Report) -> str:
    """By which the server knows a report."""
    text = "\0".join((device, report.kind, report.release, report.reason, str(report.at_s)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _status(state: State, spool: Spool, about: dict[str, Any]) -> dict[str, Any]:
    names = ("phase", "live", "candidate", "last_good", "pinned", "rollbacks")
    slots = {name: getattr(state, name) for name in names}
    return {**slots, "failed": dict(state.failed), "dropped": spool.dropped, **about}


def _told(device: str, report: Report) -> Told:
    key = report_key(device, report)
    return Told(key, {"key": key, **asdict(report)}, report)


def _batches(spool: Spool) -> Iterator[list[Told]]:
    """Documents for one post after the other."""
    batch: list[Told] = []
    size = 0
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
            batch, size = [], 0
        batch.append(Told(entry.key, tree, entry))
        size += len(document)
    if batch:
        yield batch


def _answer(answer: bytes, path: str) -> tuple[frozenset[str], Labels | None]:
    """Keys that the server has, and the labels that it set; None where it names none."""
    try:
        fields = Fields(parse(answer), "", required=("have",), optional=("labels",))
        have = frozenset(fields.each("have", read_text))
    except ContractError as error:
        raise unreachable(path, f"no answer that can be read: {error}") from error
    if "labels" not in fields.names:
        return have, None
    try:
        return have, read_labels(fields.take("labels"), "labels")
    except ContractError as error:
        # What the server has, it has; the labels that are known stay.
        log.warning("labels of the server cannot be used: %s", error)
        return have, None
