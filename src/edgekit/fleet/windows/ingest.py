"""Takes what devices post: all of a post is stored in one transaction, or nothing of it.

Posts arrive at least once, since an answer may get lost on its way; each window and each report is stored once, by the
key that its device gave it. What a status and reports say of a rollout is written to its evidence in the same
transaction.

A `Writer` puts posts that wait at the same time into one transaction, since what a commit costs is the disk's sync. No
post is answered before its commit.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select, update

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import DeniedError, FleetError, UnavailableError
from edgekit.fleet.identity.access import Device
from edgekit.fleet.storage.database import insert_new
from edgekit.fleet.storage.tables import devices, reports, windows
from edgekit.fleet.windows.belonging import evidence_row, rollouts_of, write_evidence
from edgekit.fleet.windows.posts import Post, read_post
from edgekit_runtime.state import PROBATION, UNKNOWN, Report

log = logging.getLogger(__name__)

# Of posts that go into one transaction: more would make the first of them wait.
MOST_WINDOWS: Final = 1000
# Seconds from when a post came for which it waits for others: a transaction costs about as much for ten as for one.
GATHER_S: Final = 0.05
# What tells that a release did not run on a device; what the fleet itself took back says nothing of it.
GIVEN_UP: Final = frozenset({"refused", "rolled_back"})
WITHDRAWN: Final = "withdrawn"


@dataclass(frozen=True, slots=True)
class Taken:
    """What a device is answered.

    Attributes:
        have: keys that are stored, now or before; the device may forget what they name.
        labels: of the device.
        windows: of the post that were new.
    """

    have: tuple[str, ...]
    labels: Mapping[str, str]
    windows: int


def take(fleet: Fleet, device: Device, body: bytes) -> Taken:
    """Read a post and store it.

    Args:
        fleet: of the server.
        device: that showed its token.
        body: JSON, not packed.

    Raises:
        InvalidError: it breaks the contract.
        TooMuchError: it has too many windows.
        DeniedError: it is another device's, or the device was revoked meanwhile.
        UnavailableError: the database does not answer; nothing, or all of it, is stored.
    """
    post, now_s = read(fleet, device, body), int(fleet.now())
    (found,) = fleet.database.write(lambda connection: store(connection, [post], now_s))
    if isinstance(found, FleetError):
        raise found
    return found


def read(fleet: Fleet, device: Device, body: bytes) -> Post:
    """Read a post that has to be of this device; as `take`."""
    post = read_post(body, windows=fleet.settings.windows_per_post)
    if post.device != device.id:
        raise DeniedError(
            f"a post of device {post.device[:128]!r} with the token of {device.id!r}",
            expected="the token of the device that it is about",
            way_out="Give each device the token that it enrolled with.",
            code="other_device",
        )
    return replace(post, token_hash=device.token_hash)


def store(connection: Connection, posts: Sequence[Post], now_s: int) -> list[Taken | DeniedError]:
    """Store posts within a transaction; a device that is not known any more stores nothing.

    Args:
        connection: of `Database.writing`.
        posts: of any devices.
        now_s: seconds since 1970 by the server's clock.
    """
    known = _known(connection, posts)
    mine = [post for post in posts if _is_let_in(post, known)]
    new = insert_new(connection, windows, _window_rows(mine, now_s), ["device", "key"])
    told = insert_new(connection, reports, _report_rows(mine, now_s), ["device", "key"])
    _note_status(connection, mine, now_s)
    _follow(connection, mine, known, told, now_s)
    answers: list[Taken | DeniedError] = []
    for post in posts:
        if not _is_let_in(post, known):
            answers.append(_gone(post.device))
            continue
        brought = {(post.device, window.key) for window in post.windows} & new
        # Of two posts with the same window the first brought it.
        new -= brought
        answers.append(Taken(tuple(post.keys), known[post.device].labels, len(brought)))
    return answers


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A post in the queue.

    Attributes:
        post: of a device.
        future: what it is answered.
        came_s: when, by the monotonic clock.
    """

    post: Post
    future: Future[Taken]
    came_s: float


class Writer:
    """Stores posts of a process on a thread of its own, those that wait together.

    Args:
        fleet: of the server.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(fleet.settings.queued_posts)
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    @property
    def waiting(self) -> int:
        """Posts in the queue."""
        return self._queue.qsize()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Store what waits, and end."""
        self._queue.put(None)
        self._thread.join()

    def submit(self, post: Post) -> Future[Taken]:
        """Queue a post; the future is done once it is committed, or could not be.

        Raises:
            UnavailableError: too many wait (`queue_full`).
        """
        future: Future[Taken] = Future()
        try:
            self._queue.put_nowait(_Waiting(post, future, time.monotonic()))
        except queue.Full:
            raise UnavailableError(
                f"{self._queue.maxsize} posts wait for the database",
                expected="room in the queue",
                way_out="Post it again in a few seconds; agents do so by themselves.",
                code="queue_full",
            ) from None
        return future

    def _run(self) -> None:
        going_on = True
        while going_on:
            batch, going_on = self._batch()
            if batch:
                self._store(batch)

    def _batch(self) -> tuple[list[_Waiting], bool]:
        first = self._queue.get()
        if first is None:
            return [], False
        batch, size = [first], len(first.post.windows)
        until_s = first.came_s + GATHER_S
        while size < MOST_WINDOWS:
            try:
                item = self._queue.get(timeout=max(0.0, until_s - time.monotonic()))
            except queue.Empty:
                break
            if item is None:
                return batch, False
            batch.append(item)
            size += len(item.post.windows)
        return batch, True

    def _store(self, batch: Sequence[_Waiting]) -> None:
        posts, now_s = [each.post for each in batch], int(self._fleet.now())
        found: Sequence[Taken | Exception]
        try:
            found = self._fleet.database.write(lambda connection: store(connection, posts, now_s))
        except FleetError as error:
            found = [error] * len(posts)
        except Exception as error:
            if len(batch) > 1:
                # One of them is at fault, and the others have nothing to do with it.
                log.exception("posts are stored one by one")
                for each in batch:
                    self._store([each])
                return
            log.exception("a post of %s cannot be stored", posts[0].device)
            found = [error]
        for each, result in zip(batch, found, strict=True):
            if isinstance(result, Exception):
                each.future.set_exception(result)
            else:
                each.future.set_result(result)


def _known(connection: Connection, posts: Sequence[Post]) -> dict[str, Device]:
    named = devices.c.id.in_(sorted({post.device for post in posts}))
    columns = (devices.c.id, devices.c.channel, devices.c.labels, devices.c.token_hash)
    query = select(*columns).where(named, devices.c.revoked.is_(False))
    # Held until the commit, so that a device that is forgotten meanwhile leaves nothing behind.
    query = query.order_by(devices.c.id).with_for_update()
    return {row.id: Device(*row) for row in connection.execute(query)}


def _is_let_in(post: Post, known: Mapping[str, Device]) -> bool:
    """Whether its device is one of the fleet, by the token that the post came with."""
    device = known.get(post.device)
    return device is not None and post.token_hash in {"", device.token_hash}


def _window_rows(posts: Sequence[Post], now_s: int) -> list[dict[str, Any]]:
    return [
        {
            "device": post.device, "key": window.key, "live": window.live, "candidate": window.candidate,
            "received_s": now_s, "merged": False, "document": window.document,
        }
        for post in posts
        for window in post.windows
    ]  # fmt: skip


def _report_rows(posts: Sequence[Post], now_s: int) -> list[dict[str, Any]]:
    return [
        {
            "device": post.device, "key": key, "kind": report.kind, "release": report.release,
            "reason": report.reason, "at_s": report.at_s, "received_s": now_s,
        }
        for post in posts
        for key, report in post.reports.items()
    ]  # fmt: skip


_STATUS: Final = (
    update(devices)
    .where(devices.c.id == bindparam("device"))
    .values({name: bindparam(f"new_{name}") for name in (
        "seen_s", "phase", "live", "candidate", "last_good", "pinned", "status",
    )})
)  # fmt: skip


def _note_status(connection: Connection, posts: Sequence[Post], now_s: int) -> None:
    last = {post.device: post.status for post in posts}
    rows = [
        {
            "device": device, "new_seen_s": now_s, "new_phase": status.phase, "new_live": status.live,
            "new_candidate": status.candidate, "new_last_good": status.last_good, "new_pinned": status.pinned,
            "new_status": dict(status.rest),
        }
        for device, status in sorted(last.items())
    ]  # fmt: skip
    if rows:
        connection.execute(_STATUS, rows)


def _follow(
    connection: Connection,
    posts: Sequence[Post],
    known: Mapping[str, Device],
    told: set[tuple[Any, ...]],
    now_s: int,
) -> None:
    """Write what statuses and new reports say to the evidence of the rollouts that they belong to."""
    said: dict[str, dict[str, tuple[bool, str]]] = {}
    for post in posts:
        before = said.setdefault(post.device, {})
        for release, (committed, failed) in _said(post, told).items():
            good, bad = before.get(release, (False, ""))
            before[release] = (good or committed, bad or failed)
    found = rollouts_of(connection, {release for each in said.values() for release in each})
    rows = []
    for name, each in said.items():
        device = known[name]
        for release, (committed, failed) in each.items():
            rollout = found.of_release(release, device.channel, device.labels)
            if rollout is not None:
                row = evidence_row(rollout, name, device.labels, now_s)
                rows.append(
                    {**row, "accepted_s": now_s, "committed_s": now_s if committed else 0, "failed": failed}
                )
    write_evidence(connection, rows, ())


def _said(post: Post, told: set[tuple[Any, ...]]) -> dict[str, tuple[bool, str]]:
    """Release to (whether it serves well, code of why it was given up)."""
    status = post.status
    said = {release: (False, "") for release in (status.candidate, status.live) if release}
    # What is live has served well before, but in its probation.
    if status.live and status.phase not in {PROBATION, UNKNOWN}:
        said[status.live] = (True, "")
    for release, code in status.failed.items():
        said[release] = (False, code)
    for key, report in post.reports.items():
        if (post.device, key) in told:
            committed, failed = said.get(report.release, (False, ""))
            said[report.release] = (committed or report.kind == "committed", failed or _code(report))
    return said


def _code(report: Report) -> str:
    if report.kind not in GIVEN_UP or report.reason == WITHDRAWN:
        return ""
    return report.reason or report.kind


def _gone(device: str) -> DeniedError:
    return DeniedError(
        f"device {device} was revoked or forgotten, or has another token by now",
        expected="a device of this fleet",
        way_out="Ask an operator of this fleet.",
        code="unauthorized",
        status=401,
    )
