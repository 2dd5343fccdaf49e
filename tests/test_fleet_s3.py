"""The whole way of a model with blobs in S3: published, signed, offered, fetched, backed up, restored, swept."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import insert

from edgekit.fleet.commands.publishing import prepare, publish
from edgekit.fleet.conduct import steering
from edgekit.fleet.context import Fleet
from edgekit.fleet.operations import setup
from edgekit.fleet.operations.backup import restore, save
from edgekit.fleet.operations.leftovers import collect
from edgekit.fleet.releases import offers, publication
from edgekit.fleet.storage.tables import channels
from edgekit.fleet.trust import keys
from edgekit_runtime.agent.fetch import fetch
from edgekit_runtime.agent.fetcher import METADATA, TARGETS, Fetcher
from edgekit_runtime.agent.transport import HttpTransport
from edgekit_runtime.policies import Policy
from edgekit_runtime.state import State
from edgekit_runtime.store import Store
from edgekit_runtime.trust import Trust
from support.fleet_api import client, serving
from support.fleets import ADMIN, Clock, World
from support.releases import publish as a_release
from support.s3 import bucket_url


def weights(changed: int) -> bytes:
    numbers = np.random.default_rng(7).integers(0, 256, 200_000, dtype=np.uint8)
    numbers[:changed] = 1
    return numbers.tobytes()


def published(world: World, folder: Path, version: str, content: bytes) -> str:
    """As `edgekit publish` does, by HTTP."""
    folder.mkdir()
    for name, data in a_release(version, content).content.items():
        (folder / name).write_bytes(data)
    signers = [keys.load(each) for each in world.made.offline if each.name.startswith("targets")]
    with serving(world) as address, client(world, address) as connection:
        found = publish(
            connection, prepare(folder, "", ""), signers=signers, first_root=world.made.root.read_bytes()
        )
    assert not found.missing
    return str(found.version["id"])


def fetched(world: World, folder: Path, release: str, counts: Counter[str]) -> Store:
    """What a device makes of it, by HTTP, from where it was before."""
    store = Store(folder / "store")
    with serving(world) as address:
        transport = HttpTransport(address)
        trust = Trust(
            folder / "trust", metadata_url=METADATA, targets_url=TARGETS, fetcher=Fetcher(transport)
        )
        if not folder.exists():
            store.make()
        trust.init(world.made.root.read_bytes())
        trust.refresh()
        policy = Policy.from_json(trust.document("rollout/stable.json", 1 << 20))
        assert [each.release for each in policy.rules] == [release]
        fetch(store, trust.document, transport, lambda: None, counts)(release)
    store.save(State(live=release))
    return store


def opened(made: setup.Made, folder: Path) -> World:
    return World(made, Fleet.open(folder), Clock(time.time()))


def test_a_model_goes_its_whole_way_by_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = setup.init(tmp_path / "fleet", settings={"blobs_url": bucket_url(monkeypatch)})
    world = opened(made, made.folder)
    assert not (made.folder / "blobs").exists()
    counts: Counter[str] = Counter()
    old = published(world, tmp_path / "1.0.0", "1.0.0", weights(0))
    with world.fleet.database.writing() as connection:
        settled = [{"cohort": "", "release": old}]
        connection.execute(insert(channels).values(name="stable", model="größe", settled=settled, revision=0))
    publication.publish(world.fleet)
    fetched(world, tmp_path / "device", old, counts)

    new = published(world, tmp_path / "1.1.0", "1.1.0", weights(500))
    assert offers.Maker(world.fleet, "me").act() == 1
    steering.return_to(world.fleet, ADMIN, channel="stable", release=new)
    publication.publish(world.fleet)
    store = fetched(world, tmp_path / "device", new, counts)
    assert counts["applied"] == 1
    assert store.release(new) == a_release("1.1.0", weights(500)).release

    save(world.fleet, tmp_path / "fleet.tar", keys=True)
    before = sorted(world.fleet.blobs.names())
    given = {"database_url": f"sqlite:///{tmp_path}/again/fleet.db", "blobs_url": bucket_url(monkeypatch)}
    restore(tmp_path / "fleet.tar", tmp_path / "again", given, newer=world.fleet.settings.blobs_url)
    world.fleet.close()
    again = opened(made, tmp_path / "again")
    try:
        assert sorted(again.fleet.blobs.names()) == before
        assert publication.publish(again.fleet)
        fetched(again, tmp_path / "device", new, counts)
        fetched(again, tmp_path / "another device", new, counts)
        assert collect(again.fleet) == 0
    finally:
        again.fleet.close()
