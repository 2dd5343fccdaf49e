"""A fleet of the tests, made as `edgekit fleet init` does, with devices that read it as they would a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import NotFoundError
from edgekit.fleet.identity.access import Actor
from edgekit.fleet.operations import setup
from edgekit.fleet.operations.setup import Made
from edgekit.fleet.releases import registry, signing
from edgekit.fleet.storage.blobs import Blobs
from edgekit.fleet.storage.database import Database
from edgekit.fleet.trust import keys
from edgekit.fleet.trust import pending as proposals
from edgekit_runtime.policies import Policy
from edgekit_runtime.trust import Trust
from support.releases import Published, publish

ADMIN = Actor("ada", "admin")
PUBLISHER = Actor("pia", "publisher")
VIEWER = Actor("vic", "viewer")
REPORT: dict[str, Any] = {
    "accepted": True,
    "artifacts": {"tflite": {"metric": 0.9, "drop": 0.01, "latency_ms": {"p50": 2.0}, "size_bytes": 100}},
    "provenance": {
        "recipe_sha256": "a" * 64,
        "model_sha256": "b" * 64,
        "calibration_sha256": "c" * 64,
        "versions": {},
    },
}


@dataclass
class Clock:
    """A clock that can be set."""

    at: float = 1_900_000_000.0

    def __call__(self) -> float:
        return self.at


@dataclass
class World:
    """A fleet and its owner.

    Attributes:
        made: what `init` gave.
        fleet: of the server.
        clock: of the server and of devices.
    """

    made: Made
    fleet: Fleet
    clock: Clock = field(default_factory=Clock)

    def upload(self, published: Published) -> None:
        """Put the files of a release where blobs are."""
        for path, file in published.release.files.items():
            self.fleet.blobs.put(
                f"blobs/{file.sha256}", (published.content[path],), max_bytes=1 << 30, sha256=file.sha256
            )

    def propose(self, version: str, model: bytes = b"", parent: str = "") -> registry.Version:
        """A version that waits for signatures."""
        published = publish(version, model or version.encode())
        self.upload(published)
        return registry.propose(
            self.fleet, PUBLISHER, release=published.release.to_json(), report=REPORT, parent=parent
        )

    def sign(self, *names: str) -> signing.Signed:
        """Sign what waits with keys of the folder, `targets-1` where none is named."""
        pending = signing.proposal(self.fleet)
        assert pending is not None
        for name in names or ("targets-1",):
            signer = keys.load(self.made.folder / "keys" / "offline" / f"{name}.pem")
            pending = proposals.sign(pending, signer, signing.moment(self.fleet))
        return signing.submit(self.fleet, PUBLISHER, pending.to_bytes())

    def release(self, version: str, model: bytes = b"") -> str:
        """Publish and sign a version; its id."""
        found = self.propose(version, model)
        assert self.sign().published
        return found.id

    def device(self, folder: Path) -> Trust:
        """A device that was provisioned with the first root, and reads the blobs as a server of files has them."""
        trust = Trust(
            folder, metadata_url="https://fleet.example/metadata", targets_url="https://fleet.example/targets",
            fetcher=Files(self.fleet.blobs), now=self.clock,
        )  # fmt: skip
        trust.init(self.made.root.read_bytes())
        return trust

    def policy(self, folder: Path, channel: str = "stable") -> Policy:
        """What a device of a channel is told."""
        trust = self.device(folder)
        trust.refresh()
        return Policy.from_json(trust.document(f"rollout/{channel}.json", 1 << 20))


@dataclass
class Files(FetcherInterface):
    """Blobs, as a server of static files shows them."""

    blobs: Blobs

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix("https://fleet.example/")
        try:
            return self.blobs.open(name)
        except NotFoundError:
            raise DownloadHTTPError(f"{url}: not found", 404) from None


def make(folder: Path, *, database_url: str = "", blobs_url: str = "", **options: Any) -> World:
    """A new fleet in a folder."""
    clock = Clock()
    settings = {"database_url": database_url, "blobs_url": blobs_url}
    made = setup.init(folder, settings=settings, now=clock, **options)
    opened = Fleet.open(folder)
    return World(made, Fleet(opened.database, opened.blobs, opened.settings, clock), clock)


def rows(database: Database, table: Any) -> list[dict[str, Any]]:
    """All rows of a table, as JSON would have them."""
    with database.reading() as connection:
        found = [dict(row) for row in connection.execute(table.select()).mappings()]
    return json.loads(json.dumps(found, default=lambda value: bytes(value).hex()))
