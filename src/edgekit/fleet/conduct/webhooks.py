"""Tells decisions to addresses outside, such as a chat or the start of a training: signed, again until it is taken.

```
POST <url>
Edgekit-Delivery: 17                                     the same for every try, so that it is counted once
Edgekit-Event: failed
Edgekit-Signature: t=1767225600,v1=<hex>                 HMAC-SHA256 with the secret over "1767225600." and body
```

What is to be told was written in the transaction of the decision, so none is lost. One server at a time sends. An
address is looked up once a try and connected to as it was found, and none that leads into the own network is taken
unless the operator allows it: who may add webhooks could else make the server ask what only the server may.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpcore
import httpx
from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, insert, or_, select, update

from edgekit.fleet.background import Repeated
from edgekit.fleet.conduct.steering import EVENTS
from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import InvalidError, NotFoundError
from edgekit.fleet.identity.access import ADMINISTER, Actor
from edgekit.fleet.storage import audit
from edgekit.fleet.storage.tables import deliveries, webhooks

log = logging.getLogger(__name__)

LEASE: Final = "webhooks"
LEASE_S: Final = 60.0
TIMEOUT_S: Final = 5.0
BATCH: Final = 8
MAX_TRIES: Final = 12
# Seconds before the second try; each further one waits twice as long, up to the longest: about a day in all.
FIRST_WAIT_S, LONGEST_WAIT_S = 10, 6 * 3600
EVERY_S: Final = 2.0
MAX_FAILURE: Final = 300


@dataclass(frozen=True, slots=True)
class Made:
    """A new webhook.

    Attributes:
        id: of it.
        secret: that signs what is sent to it; it is not shown again.
    """

    id: str
    secret: str


@dataclass(frozen=True, slots=True)
class Webhook:
    """One that is there.

    Attributes:
        id: of it.
        url: that is told.
        events: that it hears of; none for all.
        created_s: seconds since 1970.
        created_by: name.
        waiting: deliveries that are still tried.
        failed: deliveries that were given up.
        failure: of the last that did not come through.
    """

    id: str
    url: str
    events: tuple[str, ...]
    created_s: int
    created_by: str
    waiting: int
    failed: int
    failure: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """One that is due.

    Attributes:
        id: of it.
        url: of its webhook.
        secret: of its webhook.
        event: name.
        body: JSON.
        tries: before this one.
    """

    id: int
    url: str
    secret: str
    event: str
    body: str
    tries: int


def add(fleet: Fleet, actor: Actor, *, url: str, events: Sequence[str] = ()) -> Made:
    """Tell an address of decisions from now on.

    Raises:
        DeniedError: the actor is no admin.
        InvalidError: no such address or event.
    """
    actor.check(ADMINISTER)
    _checked(url)
    if strange := sorted(set(events) - set(EVENTS)):
        raise _invalid(f"event {strange[0]!r}", f"some of {', '.join(EVENTS)}")
    made, now_s = Made(secrets.token_hex(8), secrets.token_urlsafe(32)), int(fleet.now())

    def work(connection: Connection) -> None:
        connection.execute(
            insert(webhooks).values(
                id=made.id,
                url=url,
                events=list(events),
                secret=made.secret,
                created_s=now_s,
                created_by=actor.name,
            )
        )
        # An address may have a token in it.
        detail = {"host": httpx.URL(url).host, "events": list(events)}
        audit.append(connection, actor.name, "webhook.added", made.id, detail, now_s)

    fleet.database.write(work)
    return made


def remove(fleet: Fleet, actor: Actor, webhook: str) -> None:
    """Tell an address nothing more, nor what still waits.

    Raises:
        DeniedError: the actor is no admin.
        NotFoundError: there is none.
    """
    actor.check(ADMINISTER)
    now_s = int(fleet.now())

    def work(connection: Connection) -> None:
        if connection.execute(delete(webhooks).where(webhooks.c.id == webhook)).rowcount != 1:
            raise NotFoundError(
                f"no webhook {webhook[:64]!r}", expected="the id of a webhook",
                way_out="`edgekit fleet webhook list` shows them.", code="unknown",
            )  # fmt: skip
        audit.append(connection, actor.name, "webhook.removed", webhook, {}, now_s)

    fleet.database.write(work)


def listed(connection: Connection) -> list[Webhook]:
    """All webhooks, oldest first."""
    is_over, is_wrong = deliveries.c.done_s != 0, deliveries.c.failure != ""
    waiting = func.sum(case((is_over, 0), else_=1)).label("waiting")
    failed = func.sum(case((and_(is_over, is_wrong), 1), else_=0)).label("failed")
    last = func.max(deliveries.c.id).label("last")
    query = select(deliveries.c.webhook, waiting, failed, last).group_by(deliveries.c.webhook)
    sums = {row.webhook: row for row in connection.execute(query)}
    found = []
    for row in connection.execute(select(webhooks).order_by(webhooks.c.created_s, webhooks.c.id)):
        of = sums.get(row.id)
        why = connection.scalar(select(deliveries.c.failure).where(deliveries.c.id == of.last)) if of else ""
        counts = (int(of.waiting), int(of.failed)) if of else (0, 0)
        found.append(
            Webhook(row.id, row.url, tuple(row.events), row.created_s, row.created_by, *counts, why or "")
        )
    return found


def signature(secret: str, at_s: int, body: str) -> str:
    """The header `Edgekit-Signature`.

    Args:
        secret: of the webhook.
        at_s: seconds since 1970; receivers refuse what is old.
        body: that is sent.
    """
    digest = hmac.new(secret.encode(), f"{at_s}.{body}".encode(), hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"


def wait_s(tries: int) -> int:
    """Seconds until the next try.

    Args:
        tries: that failed so far.
    """
    return int(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(tries - 1, 30)))


class Guarded(httpcore.NetworkBackend):
    """Connects to addresses of the internet alone.

    Args:
        allow_private: connect to any.
        look_up: host and port → addresses.
    """

    def __init__(
        self, *, allow_private: bool, look_up: Callable[[str, int], Iterable[str]] | None = None
    ) -> None:
        self._inner, self._allow = httpcore.SyncBackend(), allow_private
        self._look_up = look_up or _addresses

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """As httpcore has it; the address that was looked at is the one that is connected to."""
        try:
            found = list(self._look_up(host, port))
        except OSError as error:
            raise httpcore.ConnectError(f"{host} is not found: {error}") from error
        allowed = [each for each in found if self._allow or is_public(each)]
        if not allowed:
            raise httpcore.ConnectError(f"{host} is no address of the internet")
        return self._inner.connect_tcp(allowed[0], port, timeout, local_address, socket_options)

    def sleep(self, seconds: float) -> None:
        """As httpcore has it."""
        self._inner.sleep(seconds)


def is_public(address: str) -> bool:
    """Whether an address is one of the internet, and none that stands for another."""
    found = ipaddress.ip_address(address.partition("%")[0])
    inside = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    teredo = getattr(found, "teredo", None)
    # NAT64 (RFC 6052) may lead to any IPv4 address.
    nat64 = found.version == 6 and found in ipaddress.ip_network("64:ff9b::/96")
    if inside is not None:
        return is_public(str(inside))
    return found.is_global and not found.is_multicast and teredo is None and not nat64


def client(*, allow_private: bool) -> httpx.Client:
    """Sends: no redirects, no proxies of the environment, an answer within `TIMEOUT_S`."""
    transport = httpx.HTTPTransport(retries=0, trust_env=False)
    # httpx itself has no way to say how to connect.
    transport._pool = httpcore.ConnectionPool(
        ssl_context=httpx.create_ssl_context(trust_env=False),
        network_backend=Guarded(allow_private=allow_private),
    )
    return httpx.Client(transport=transport, timeout=TIMEOUT_S, follow_redirects=False, trust_env=False)


def send_due(fleet: Fleet, sender: httpx.Client) -> int:
    """Send what is due; returns how much was tried.

    Args:
        fleet: of the server.
        sender: of `client`.
    """
    now_s = int(fleet.now())
    with fleet.database.reading() as connection:
        query = (
            select(deliveries, webhooks.c.url, webhooks.c.secret)
            .join(webhooks, webhooks.c.id == deliveries.c.webhook)
            .where(deliveries.c.done_s == 0, _is_due(now_s))
            .order_by(deliveries.c.next_s, deliveries.c.id)
            .limit(BATCH)
        )
        due = [
            Delivery(row.id, row.url, row.secret, row.event, row.body, row.tries)
            for row in connection.execute(query)
        ]
    for each in due:
        failure = _send(sender, each, now_s)
        _record(fleet, each, failure)
    return len(due)


def _is_due(now_s: int) -> ColumnElement[bool]:
    """Its time has come, or is further away than any pause: a clock ran ahead when it was written."""
    return or_(deliveries.c.next_s <= now_s, deliveries.c.next_s > now_s + 2 * LONGEST_WAIT_S)


def repeated(fleet: Fleet, holder: str) -> Repeated:
    """Sends for as long as the server runs.

    Args:
        fleet: of the server.
        holder: name of this process among all servers.
    """
    sender = client(allow_private=fleet.settings.webhooks_private)

    def rounds(is_ending: Callable[[], bool]) -> float:
        # A batch takes at most BATCH × TIMEOUT_S, less than the lease.
        while not is_ending() and fleet.database.lease(LEASE, holder, LEASE_S):
            if send_due(fleet, sender) < BATCH:
                break
        return EVERY_S

    return Repeated(fleet, holder, LEASE, rounds, at_end=sender.close)


def _send(sender: httpx.Client, delivery: Delivery, now_s: int) -> str:
    """Try once; returns why it did not come through, "" where it did."""
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "edgekit-fleet",
        "Edgekit-Delivery": str(delivery.id),
        "Edgekit-Event": delivery.event,
        "Edgekit-Signature": signature(delivery.secret, now_s, delivery.body),
    }
    try:
        # Whatever the answer is, its status is enough; a body without an end is not read.
        with sender.stream("POST", delivery.url, content=delivery.body.encode(), headers=headers) as answer:
            return "" if answer.is_success else f"status {answer.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL, httpcore.NetworkError, ValueError) as error:
        return f"{type(error).__name__}: {error}"[:MAX_FAILURE]


def _record(fleet: Fleet, delivery: Delivery, failure: str) -> None:
    now_s, tries = int(fleet.now()), delivery.tries + 1
    over = not failure or tries >= MAX_TRIES
    values = {
        "tries": tries, "failure": failure, "done_s": now_s if over else 0,
        "next_s": now_s + wait_s(tries),
    }  # fmt: skip
    statement = update(deliveries).where(deliveries.c.id == delivery.id).values(**values)
    fleet.database.write(lambda connection: connection.execute(statement))
    if failure:
        log.info("webhook not taken: %s", failure, extra={"delivery": delivery.id, "tries": tries})


def _addresses(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def _checked(url: str) -> None:
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise _invalid(f"the address {url[:120]!r}: {error}", "https://host/path") from error
    if found.scheme not in {"http", "https"} or not found.host or found.userinfo or len(url) > 2048:
        raise _invalid(f"the address {url[:120]!r}", "https://host/path, without a name or password in it")


def _invalid(found: str, expected: str) -> InvalidError:
    return InvalidError(
        found, expected=expected, way_out="See `edgekit fleet webhook --help`.", code="webhook"
    )
