"""The databases of which every test of the storage runs on each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.fleet.storage.database import Database
from support.postgres import EMPTY, TEMPLATE, postgres

KINDS = ("sqlite", "postgresql")


@contextmanager
def url_of(kind: str, folder: Path, *, empty: bool = False) -> Iterator[str]:
    """Make a database with the tables of a fleet, or without any, and give its URL."""
    if kind == "postgresql":
        with postgres().database(EMPTY if empty else TEMPLATE) as url:
            yield url
        return
    url = f"sqlite:///{folder}/fleet.db"
    if not empty:
        database = Database.open(url, create=True)
        database.migrate()
        database.close()
    yield url
