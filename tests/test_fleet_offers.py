"""Deltas of a fleet: made from what devices run, found by devices, and never in the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import insert

from edgekit.fleet.releases import offers, publication
from edgekit.fleet.storage.tables import channels, devices, versions
from edgekit_runtime.agent.fetch import fetch
from edgekit_runtime.agent.transport import Answer
from edgekit_runtime.deltas import index_path
from edgekit_runtime.state import State
from edgekit_runtime.store import Store
from support.fleets import World, make
from support.releases import publish


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make(tmp_path / "fleet")
    yield made
    made.fleet.close()


def weights(seed: int, changed: int = 0) -> bytes:
    numbers = np.random.default_rng(7).integers(0, 256, 200_000, dtype=np.uint8)
    numbers[:changed] = seed
    return numbers.tobytes()


class Static:
    """Blobs, as a device asks for them."""

    def __init__(self, world: World) -> None:
        self.blobs, self.asked = world.fleet.blobs, []

    def get(self, path: str, *, at: int = 0, tag: str = "") -> Answer:
        self.asked.append(path)
        if self.blobs.size(path) is None:
            return Answer(404, 0, "", iter(()))
        return Answer(206 if at else 200, at, "", self.blobs.open(path, at))

    def post(self, path: str, body: bytes) -> bytes:
        raise AssertionError(path)


def settle(world: World, release: str) -> None:
    with world.fleet.database.writing() as connection:
        connection.execute(
            insert(channels).values(
                name="stable", model="größe", settled=[{"cohort": "", "release": release}], revision=0
            )
        )


def test_a_device_takes_the_delta_from_what_it_has(world: World, tmp_path: Path) -> None:
    old = world.release("1.0.0", weights(0))
    settle(world, old)
    new = world.propose("1.1.0", weights(1, 500)).id
    assert offers.Maker(world.fleet, "me").act() == 1
    world.sign()
    publication.publish(world.fleet)

    store, trust, static, counts = (
        Store(tmp_path / "store"),
        world.device(tmp_path / "trust"),
        Static(world),
        Counter(),
    )
    store.make()
    store.add_release(publish("1.0.0", weights(0)).release, publish("1.0.0", weights(0)).read)
    store.save(State(live=old))
    fetch(store, trust.document, static, lambda: None, counts)(new)
    assert counts["applied"] == 1
    assert store.release(new) == publish("1.1.0", weights(1, 500)).release


def test_what_devices_run_counts_as_a_base_and_what_is_retired_does_not(world: World) -> None:
    old, older = world.release("1.0.0", weights(0)), world.release("0.9.0", weights(3, 900))
    world.release("2.0.0", weights(1, 500))
    with world.fleet.database.reading() as connection:
        assert offers.wanted(connection) == []
    rows = [
        {
            "id": str(n), "token_hash": str(n), "labels": {}, "channel": "stable", "enrolled_s": 1, "status": {},
            "live": old if n < 3 else older,
        }
        for n in range(5)
    ]  # fmt: skip
    with world.fleet.database.writing() as connection:
        connection.execute(insert(devices), rows)
    with world.fleet.database.reading() as connection:
        found = offers.wanted(connection)
    hashes = {
        v: publish(v, w).release.files["model.tflite"].sha256
        for v, w in (("1.0.0", weights(0)), ("0.9.0", weights(3, 900)), ("2.0.0", weights(1, 500)))
    }
    assert offers.Pair(hashes["2.0.0"], hashes["1.0.0"]) in found
    assert offers.Pair(hashes["2.0.0"], hashes["0.9.0"]) in found


def test_the_same_is_made_once_and_a_broken_list_begins_anew(world: World) -> None:
    settle(world, world.release("1.0.0", weights(0)))
    world.propose("1.1.0", weights(1, 500))
    maker = offers.Maker(world.fleet, "me")
    assert (maker.act(), maker.act(), offers.Maker(world.fleet, "me").act()) == (1, 0, 0)
    new = publish("1.1.0", weights(1, 500)).release.files["model.tflite"].sha256
    world.fleet.blobs.put(index_path(new), (b"{",), max_bytes=9, replace=True)
    assert offers.Maker(world.fleet, "me").act() == 1
    assert len(offers.offered(world.fleet.blobs, new)) == 1


def test_nothing_is_offered_where_nothing_is_gained(world: World) -> None:
    settle(world, world.release("1.0.0", weights(0)))
    random = np.random.default_rng(1).integers(0, 256, 200_000, dtype=np.uint8).tobytes()
    world.propose("1.1.0", random)
    world.propose("1.2.0", b"small")
    assert offers.Maker(world.fleet, "me").act() == 0


def test_another_server_that_holds_the_lease_makes_them(world: World) -> None:
    settle(world, world.release("1.0.0", weights(0)))
    world.propose("1.1.0", weights(1, 500))
    assert world.fleet.database.lease(offers.LEASE, "other", 60)
    assert offers.Maker(world.fleet, "me").act() == 0


def test_a_version_that_cannot_be_read_takes_no_delta_from_the_others(world: World, caplog) -> None:
    old = world.release("1.0.0", weights(0))
    settle(world, old)
    world.propose("1.1.0", weights(1, 500))
    with world.fleet.database.writing() as connection:
        connection.execute(
            insert(versions).values(
                id="f" * 64, model="größe", version="0.9", state="signed", size_bytes=1, release="{}", manifest={},
                report={}, lineage={}, published_s=1, published_by="me",
            )
        )  # fmt: skip
    maker = offers.Maker(world.fleet, "me")
    assert maker.act() == 1
    assert maker.act() == 0
    assert [record.message for record in caplog.records if "ffff" in record.message] != []
