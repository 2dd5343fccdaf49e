"""Makes deltas to new versions from those that devices run, and puts them where devices look for them.

Made once a version is published, on a thread beside the server, since a large file takes minutes. Nothing of it is
signed and nothing waits for it: a device that finds no delta, or a wrong one, takes the full file and its hash decides.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, func, select

from edgekit.fleet.background import Repeated
from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import FleetError
from edgekit.fleet.releases import deltas
from edgekit.fleet.releases.registry import PENDING, SIGNED
from edgekit.fleet.rules.rollouts import OPEN
from edgekit.fleet.storage import blobs as storage
from edgekit.fleet.storage.blobs import Blobs
from edgekit.fleet.storage.tables import channels, devices, rollouts, versions
from edgekit_runtime.contract import Release
from edgekit_runtime.deltas import MAX_INDEX_BYTES, Offer, delta_path, index_path, read_index, write_index
from edgekit_runtime.strict_json import ContractError

log = logging.getLogger(__name__)

LEASE: Final = "deltas"
LEASE_S: Final = 900.0
EVERY_S: Final = 5.0
# Versions of a model that deltas lead from: what channels are settled on, then what most devices run.
MOST_BASES: Final = 4
# Newest versions of a model that nobody rolled out yet.
MOST_NEW: Final = 2


@dataclass(frozen=True, slots=True)
class Pair:
    """A file, and one that devices have in its place.

    Attributes:
        new: sha256.
        base: sha256.
    """

    new: str
    base: str


def wanted(connection: Connection) -> list[Pair]:
    """Files that devices may soon fetch, each beside those that they have in its place.

    Args:
        connection: to read with.
    """
    query = select(versions.c.id, versions.c.model, versions.c.release).where(
        versions.c.state.in_((PENDING, SIGNED))
    )
    rows = connection.execute(query.order_by(versions.c.published_s.desc(), versions.c.id)).all()
    settled = [each["release"] for of in connection.scalars(select(channels.c.settled)) for each in of]
    count = func.count().label("n")
    live = (
        select(devices.c.live, count)
        .where(devices.c.live != "")
        .group_by(devices.c.live)
        .order_by(count.desc())
    )
    run = dict.fromkeys([*settled, *(row.live for row in connection.execute(live.limit(100)))])
    opened = set(connection.scalars(select(rollouts.c.release).where(rollouts.c.state.in_(OPEN))))
    read = ((row, _release(row.id, row.release)) for row in rows)
    known = {row.id: (row.model, release) for row, release in read if release is not None}
    found: list[Pair] = []
    for model in dict.fromkeys(row.model for row in rows):
        bases = [known[each][1] for each in run if each in known and known[each][0] == model][:MOST_BASES]
        ids = [each for each, (of, _) in known.items() if of == model]
        for each in dict.fromkeys([*(each for each in ids if each in opened), *ids[:MOST_NEW]]):
            found += [pair for base in bases for pair in pairs(known[each][1], base)]
    return list(dict.fromkeys(found))


def pairs(new: Release, base: Release) -> Iterator[Pair]:
    """Files of a release that are others than under the same path in a base, and large enough."""
    for path, file in new.files.items():
        before = base.files.get(path)
        if (
            before
            and before.sha256 != file.sha256
            and deltas.LEAST_BYTES < file.size_bytes <= deltas.MAX_BYTES
        ):
            yield Pair(file.sha256, before.sha256)


@lru_cache(maxsize=1024)
def _release(version: str, document: str) -> Release | None:
    """The release of a version; None, and told once, where it is none: versions beside it have deltas still."""
    try:
        return Release.from_json(document)
    except ContractError as error:
        log.warning("no deltas to or from version %s: %s", version[:16], error)
        return None


def make(blobs: Blobs, pair: Pair) -> Offer | None:
    """Make a delta and offer it; None where none is worth it, or one is offered already.

    Raises:
        NotFoundError: a file is gone.
        UnavailableError: the blobs do not answer.
    """
    offers = offered(blobs, pair.new)
    if any(each.base == pair.base for each in offers):
        return None
    with tempfile.TemporaryDirectory(prefix="edgekit-delta-") as folder:
        base, new = Path(folder) / "base", Path(folder) / "new"
        for path, name in ((base, pair.base), (new, pair.new)):
            with path.open("wb") as file:
                file.writelines(blobs.open(f"blobs/{name}"))
        made = deltas.make(base, new)
    if made is None:
        return None
    # What a server left behind that was killed before it offered it may be other bytes, by another version of zstd.
    blobs.put(delta_path(pair.new, made.offer), (made.content,), max_bytes=deltas.MAX_BYTES, replace=True)
    index = write_index([*offers, made.offer])
    blobs.put(index_path(pair.new), (index,), max_bytes=MAX_INDEX_BYTES, replace=True)
    return made.offer


def offered(blobs: Blobs, sha256: str) -> tuple[Offer, ...]:
    """Deltas to a file that devices are shown."""
    if blobs.size(index_path(sha256)) is None:
        return ()
    try:
        return read_index(storage.read(blobs, index_path(sha256), MAX_INDEX_BYTES))
    except ContractError as error:
        log.warning("the list of deltas to %s is none and begins anew: %s", sha256[:16], error)
        return ()


class Maker:
    """Makes what is wanted, each once.

    Args:
        fleet: of the server.
        holder: name of this process among all servers.
    """

    def __init__(self, fleet: Fleet, holder: str) -> None:
        self._fleet, self._holder = fleet, holder
        self._tried: set[Pair] = set()

    def act(self, is_ending: Callable[[], bool] = lambda: False) -> int:
        """Make what is wanted and was not tried.

        Args:
            is_ending: whether no further one should be begun.

        Returns:
            How many were made.
        """
        with self._fleet.database.reading() as connection:
            todo = [each for each in wanted(connection) if each not in self._tried]
        made = 0
        for each in todo:
            if is_ending() or not self._fleet.database.lease(LEASE, self._holder, LEASE_S):
                break
            self._tried.add(each)
            try:
                offer = make(self._fleet.blobs, each)
            except (FleetError, OSError) as error:
                log.warning("no delta to %s: %s", each.new[:16], error)
                continue
            if offer is not None:
                made += 1
                log.info("made a delta", extra={"file": each.new[:16], "bytes": offer.size_bytes})
        return made


def repeated(fleet: Fleet, holder: str) -> Repeated:
    """Deltas for as long as the server runs.

    Args:
        fleet: of the server.
        holder: name of this process among all servers.
    """
    maker = Maker(fleet, holder)

    def rounds(is_ending: Callable[[], bool]) -> float:
        maker.act(is_ending)
        return EVERY_S

    return Repeated(fleet, holder, LEASE, rounds)
