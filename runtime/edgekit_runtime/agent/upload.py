"""Tells the server what happened here: windows, reports, and how the versions stand.

A document leaves the spool when the server says that it has it, so it arrives at least once; its key lets the server
count it once.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from edgekit_runtime.agent.transport import Transport, unreachable
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
    windows = sent = posts = 0
    reports = {report_key(device, each): each for each in store.state().reports}
    for batch in _batches(spool):
        body = {
            "schema": SCHEMA,
            "device": device,
            "status": _status(store.state(), spool, about),
            "reports": [{"key": key, **asdict(report)} for key, report in reports.items()],
            "windows": [document for _, document in batch],
        }
        packed = gzip.compress(json.dumps(body, ensure_ascii=False).encode(), mtime=0)
        have = _have(transport.post(f"devices/{device}", packed), f"devices/{device}")
        posts += 1
        taken = [entry for entry, _ in batch if entry.key in have]
        for entry in taken:
            spool.done(entry)
        if known := tuple(report for key, report in reports.items() if key in have):
            tell(store, Sent(known))
        windows, sent, reports = windows + len(taken), sent + len(known), {}
        if batch and not taken:
            raise unreachable(f"devices/{device}", "the server has nothing of what was sent")
    return Uploaded(windows, sent, posts)


def report_key(device: str, report: Report) -> str:
    """By which the server knows a report."""
    text = "\0".join((device, report.kind, report.release, report.reason, str(report.at_s)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _status(state: State, spool: Spool, about: dict[str, Any]) -> dict[str, Any]:
    slots = {name: getattr(state, name) for name in ("phase", "live", "candidate", "last_good", "pinned")}
    return {**slots, "failed": dict(state.failed), "dropped": spool.dropped, **about}


def _batches(spool: Spool) -> Iterator[list[tuple[Entry, Any]]]:
    """Documents for one post after the other; an empty one where there are none."""
    batch: list[tuple[Entry, Any]] = []
    size = number = 0
    for entry in spool:
        try:
            document = spool.read(entry)
            tree = parse(document)
        except (OSError, ContractError) as error:
            # It would come first for ever, and nobody can read it.
            log.warning("a window cannot be read: %s", error)
            spool.done(entry)
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
