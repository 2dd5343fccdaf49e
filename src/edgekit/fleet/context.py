"""What every part of the server is given."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.fleet.settings import Settings
from edgekit.fleet.storage.blobs import Blobs, open_blobs
from edgekit.fleet.storage.database import Database


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet as one process sees it.

    Attributes:
        database: of the fleet.
        blobs: releases, their files and signed metadata.
        settings: of the operator.
        now: seconds since 1970, UTC.
    """

    database: Database
    blobs: Blobs
    settings: Settings
    now: Callable[[], float] = time.time

    @classmethod
    def open(cls, folder: Path) -> Fleet:
        """Open the fleet of a folder.

        Raises:
            FleetError: its settings, its database or its blobs cannot be used.
        """
        settings = Settings.read(folder)
        return cls(Database.open(settings.database_url), open_blobs(settings.blobs_url), settings)

    def close(self) -> None:
        """Give back what is open."""
        self.database.close()
