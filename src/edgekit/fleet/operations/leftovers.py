"""Takes away files that were uploaded and never became a version, a day after they came.

```
names below blobs/  −  files of every version  −  files of every release that targets sign  ──→  a day old?  ──→  gone
```

Deltas lead from and to files of versions, so what they need is named by those. An upload under way is not below
`blobs/` yet, and one of the same bytes makes a file young again. Whatever is taken in the moment before its version is
proposed is missed there, as both hold the same lock, and `edgekit publish` sends it again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from sqlalchemy import Connection, select

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import InvalidError
from edgekit.fleet.releases import signing
from edgekit.fleet.releases.registry import LOCK
from edgekit.fleet.storage.database import lock
from edgekit.fleet.storage.tables import versions
from edgekit.fleet.trust.layout import target_name
from edgekit.fleet.trust.published import load
from edgekit_runtime.contract import Release
from edgekit_runtime.strict_json import ContractError

log = logging.getLogger(__name__)

FOLDER: Final = "blobs/"
AGE_S: Final = 86_400.0
# While they go, nobody proposes a version, and nobody else writes to SQLite.
AT_ONCE: Final = 5


def collect(fleet: Fleet) -> int:
    """Take away what nothing names and is older than a day.

    Returns:
        How many files went.

    Raises:
        InvalidError: a release that is stored cannot be read, so nobody knows what it names; nothing was taken.
        UnavailableError: database or blobs do not answer.
    """
    with fleet.database.reading() as connection:
        known = {row.id: row.release for row in connection.execute(select(versions.c.id, versions.c.release))}
    named = {*_files(known.values()), *_files(_signed(fleet, known))}
    unnamed = (name for name in fleet.blobs.names(FOLDER) if name.removeprefix(FOLDER) not in named)
    oldest_s = fleet.now() - AGE_S
    old = (name for name in unnamed if _is_old(fleet, name, oldest_s))
    taken = 0
    while names := list(islice(old, AT_ONCE)):
        with fleet.database.writing() as connection:
            taken += _take(fleet, connection, names, known)
    if taken:
        log.info("took files that no version names", extra={"files": taken})
    return taken


def _take(fleet: Fleet, connection: Connection, names: Iterable[str], known: Iterable[str]) -> int:
    lock(connection, LOCK)
    since = {*connection.scalars(select(versions.c.id))} - {*known}
    new = {*_files(connection.scalars(select(versions.c.release).where(versions.c.id.in_(since))))}
    gone = [name for name in names if name.removeprefix(FOLDER) not in new]
    for name in gone:
        fleet.blobs.delete(name)
    return len(gone)


def _is_old(fleet: Fleet, name: str, oldest_s: float) -> bool:
    written_s = fleet.blobs.written_s(name)
    return written_s is not None and written_s < oldest_s


def _signed(fleet: Fleet, known: Iterable[str]) -> Iterator[bytes]:
    """Documents of releases that targets sign and no row names, as after a backup from before them."""
    documents = signing.documents_of(fleet)
    published = load(documents)
    for targets in filter(None, (published.targets, published.waiting)):
        for path in targets.signed.targets:
            release = path.removeprefix("releases/").removesuffix(".json")
            if release not in known and (content := documents.read(target_name(path, release))) is not None:
                yield content


def _files(releases: Iterable[str | bytes]) -> Iterator[str]:
    for each in releases:
        try:
            yield from (file.sha256 for file in Release.from_json(each).files.values())
        except ContractError as error:
            raise InvalidError(
                f"a release that is stored: {error}", expected="release.json, as it was published",
                way_out="Nothing is taken away while it is there; restore the database.", code="release",
            ) from error  # fmt: skip
