"""Revisions of the tables: which are there, which this program wants, and how to get from one to the other."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from edgekit.fleet.errors import InvalidError

_FOLDER: Final = Path(__file__).parent / "migrations"
# Alembic keeps the migration that runs in a global.
_ALONE: Final = threading.Lock()


def wanted_revision() -> str:
    """Return the revision that this program works with."""
    return str(_script().get_current_head())


def revision_of(connection: Connection) -> str | None:
    """Return the revision that is there, None before the first."""
    return MigrationContext.configure(connection).get_current_revision()


def check_revision(found: str | None, place: str) -> None:
    """Raise unless `found` is what this program works with."""
    refused = refusal(found, wanted_revision(), _known(), place)
    if refused is not None:
        raise refused


def refusal(found: str | None, wanted: str, known: set[str], place: str) -> InvalidError | None:
    """Return why tables of revision `found` cannot be used, None where they can.

    Args:
        found: the revision that is there, None before the first.
        wanted: what this program works with.
        known: all revisions that this program can start from.
        place: the database, for the message.
    """
    if found == wanted:
        return None
    if found is None:
        return InvalidError(
            f"{place} has no tables of a fleet",
            expected=f"tables of revision {wanted}",
            way_out="run `edgekit fleet migrate`",
            code="database_empty",
        )
    if found in known:
        return InvalidError(
            f"{place} has tables of revision {found}, older than this edgekit",
            expected=f"revision {wanted}",
            way_out="stop its servers, make a backup, and run `edgekit fleet migrate`",
            code="database_older",
        )
    return InvalidError(
        f"{place} has tables of revision {found}, which this edgekit does not know",
        expected=f"revision {wanted} or an older one",
        way_out="install the edgekit that the other servers of this fleet run, or restore a backup",
        code="database_newer",
    )


def upgrade(connection: Connection, place: str) -> None:
    """Bring the tables to this program's revision within the transaction of `connection`."""
    found = revision_of(connection)
    if found is not None and found not in _known():
        check_revision(found, place)
    config = _config()
    config.attributes["connection"] = connection
    with _ALONE:
        command.upgrade(config, "head")


def _known() -> set[str]:
    return {str(script.revision) for script in _script().walk_revisions()}


def _script() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    config = Config()
    # A percent sign in the path would be read as an interpolation.
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config
