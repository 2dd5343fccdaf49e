"""Signed documents among the blobs, so that folder and S3 serve metadata beside the files that they vouch for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgekit.fleet.errors import NotFoundError
from edgekit.fleet.storage import blobs as storage
from edgekit.fleet.storage.blobs import Blobs
from edgekit.fleet.storage.database import Database, lock
from edgekit.fleet.trust.documents import taken

MAX_DOCUMENT_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class BlobDocuments:
    """`edgekit.fleet.trust.documents.Documents` over blobs.

    Blobs know no "replace what I read". So the one document that is ever replaced is compared and swapped while the
    database keeps every other server out; that takes as long as one small write.

    Attributes:
        blobs: that hold them.
        database: that all servers of the fleet share.
    """

    blobs: Blobs
    database: Database

    def read(self, name: str) -> bytes | None:
        """As `Documents.read`."""
        try:
            return storage.read(self.blobs, name, MAX_DOCUMENT_BYTES)
        except NotFoundError:
            return None

    def write(self, name: str, content: bytes, *, replaces: bytes | None) -> None:
        """As `Documents.write`.

        Raises:
            ConflictError: as there.
        """
        if replaces is None:
            self.blobs.put(name, (content,), max_bytes=MAX_DOCUMENT_BYTES)
            return
        with self.database.writing() as connection:
            lock(connection, "documents")
            if self.read(name) != replaces:
                raise taken(name)
            self.blobs.put(name, (content,), max_bytes=MAX_DOCUMENT_BYTES, replace=True)
