"""What devices of each channel are told, and that it is the database that says it, whoever was cut off when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError, InvalidError
from edgekit.fleet.releases import publication, signing
from edgekit.fleet.releases.documents import BlobDocuments
from edgekit.fleet.rules.rollouts import Plan, Rollout
from edgekit.fleet.storage.blobs import open_blobs
from edgekit.fleet.storage.tables import channels, rollouts
from edgekit_runtime.agent.fetch import fetch, release_path
from edgekit_runtime.agent.transport import Answer
from edgekit_runtime.policies import BUCKETS, Rule
from edgekit_runtime.store import Store
from support.fleets import World, make
from support.postgres import postgres
from support.releases import publish

MODEL = "größe"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make(tmp_path / "fleet")
    yield made
    made.fleet.close()


def settle(world: World, *settled: tuple[str, str], channel: str = "stable") -> None:
    rows = [{"cohort": cohort, "release": release} for cohort, release in settled]
    with world.fleet.database.writing() as connection:
        if (
            connection.execute(
                update(channels).where(channels.c.name == channel).values(settled=rows)
            ).rowcount
            == 0
        ):
            connection.execute(insert(channels).values(name=channel, model=MODEL, settled=rows, revision=0))


def roll_out(world: World, release: str, **changes: object) -> Rollout:
    given = Rollout("ab" * 8, MODEL, "stable", release, "", "pepper", Plan(cohort='region == "eu"'))
    rollout = replace(given, **changes)
    values = {"state": rollout.state, "document": rollout.to_tree()}
    with world.fleet.database.writing() as connection:
        if (
            connection.execute(update(rollouts).where(rollouts.c.id == rollout.id).values(**values)).rowcount
            == 0
        ):
            connection.execute(
                insert(rollouts).values(
                    id=rollout.id, model=MODEL, channel="stable", release=release, revision=0, created_s=1,
                    created_by="ada", **values,
                )
            )  # fmt: skip
    return rollout


def files(world: World) -> dict[str, bytes]:
    return {
        name: b"".join(world.fleet.blobs.open(name))
        for prefix in ("metadata", "targets")
        for name in world.fleet.blobs.names(prefix)
    }


def test_an_open_rollout_comes_before_what_is_settled(world: World, tmp_path: Path) -> None:
    old, new = world.release("1.0.0"), world.release("2.0.0")
    settle(world, ('site == "lab"', new), ("", old))
    roll_out(world, new, phase="live", live_bound=10_000, shadow_bound=500_000)

    assert publication.publish(world.fleet)

    cohort = 'region == "eu"'
    assert world.policy(tmp_path / "device").rules == (
        Rule(new, "pepper", 10_000, "live", cohort),
        Rule(new, "pepper", 500_000, "shadow", cohort),
        Rule(new, "settled", BUCKETS, "live", 'site == "lab"'),
        Rule(old, "settled", BUCKETS, "live", ""),
    )


def test_what_ended_is_told_to_nobody(world: World, tmp_path: Path) -> None:
    old, new = world.release("1.0.0"), world.release("2.0.0")
    settle(world, ("", old))
    roll_out(world, new, phase="live", live_bound=10_000)
    publication.publish(world.fleet)
    assert len(world.policy(tmp_path / "device").rules) == 2
    roll_out(world, new, state="failed", phase="live", live_bound=10_000)
    assert publication.publish(world.fleet)
    assert [each.release for each in world.policy(tmp_path / "device").rules] == [old]


def test_nothing_is_written_while_nothing_changes(world: World) -> None:
    settle(world, ("", world.release("1.0.0")))
    assert publication.publish(world.fleet)
    before = files(world)
    world.clock.at += 3600
    assert not publication.publish(world.fleet)
    assert files(world) == before


def test_signatures_are_renewed_before_they_expire(world: World, tmp_path: Path) -> None:
    settle(world, ("", world.release("1.0.0")))
    publication.publish(world.fleet)
    for _ in range(30):
        world.clock.at += 20 * 3600
        publication.publish(world.fleet)
        world.policy(tmp_path / "device")
    assert world.clock.at > 1_900_000_000 + 20 * 86400


def test_a_channel_that_is_gone_has_no_policy(world: World, tmp_path: Path) -> None:
    release = world.release("1.0.0")
    settle(world, ("", release))
    settle(world, ("", release), channel="beta")
    publication.publish(world.fleet)
    assert world.policy(tmp_path / "device", "beta").rules
    with world.fleet.database.writing() as connection:
        connection.execute(channels.delete().where(channels.c.name == "beta"))
    publication.publish(world.fleet)
    trust = world.device(tmp_path / "device")
    with pytest.raises(Exception, match="rollout/beta"):
        trust.target("rollout/beta.json")


def test_a_channel_that_names_what_nobody_signed_keeps_its_policy_and_stops_no_other(
    world: World, tmp_path: Path
) -> None:
    """A database that somebody wrote to."""
    release = world.release("1.0.0")
    settle(world, ("", release))
    settle(world, ("", release), channel="beta")
    publication.publish(world.fleet)
    settle(world, ("", "ab" * 32))
    settle(world, channel="beta")
    with pytest.raises(ConflictError, match="the policy of stable: release abababab"):
        publication.publish(world.fleet)
    assert [each.release for each in world.policy(tmp_path / "device").rules] == [release]
    assert world.policy(tmp_path / "device", "beta").rules == ()


def test_too_many_rules_are_refused(world: World) -> None:
    release = world.release("1.0.0")
    settle(world, *((f'site == "{n}"', release) for n in range(65)))
    with pytest.raises(ConflictError, match="65 rules"):
        publication.publish(world.fleet)


def test_a_server_without_its_keys_says_so_and_writes_nothing(world: World) -> None:
    settle(world, ("", world.release("1.0.0")))
    before = files(world)
    for each in (world.made.folder / "keys" / "online").glob("rollout-*"):
        each.unlink()
    with pytest.raises(InvalidError, match="lacks 1 of the keys"):
        publication.publish(world.fleet)
    assert files(world)["metadata/timestamp.json"] == before["metadata/timestamp.json"]


class Racing:
    """Blobs that let another server publish before the timestamp is written."""

    def __init__(self, inner: object, other: object) -> None:
        self.inner, self.other = inner, other

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def put(self, name: str, parts: object, **options: object) -> int:
        if name.startswith("metadata/") and name.endswith(".snapshot.json") and self.other:
            other, self.other = self.other, None
            other()
        return self.inner.put(name, parts, **options)


def test_of_two_servers_the_one_with_the_older_view_begins_again(world: World, tmp_path: Path) -> None:
    old, new = world.release("1.0.0"), world.release("2.0.0")
    settle(world, ("", old))

    def other() -> None:
        settle(world, ("", new))
        publication.publish(world.fleet)

    slow = replace(world.fleet, blobs=Racing(world.fleet.blobs, other))
    publication.publish(slow)
    assert [each.release for each in world.policy(tmp_path / "device").rules] == [new]


def test_the_timestamp_is_compared_before_it_is_swapped(world: World) -> None:
    documents = BlobDocuments(world.fleet.blobs, world.fleet.database)
    now = documents.read("metadata/timestamp.json")
    documents.write("metadata/timestamp.json", b"{}", replaces=now)
    with pytest.raises(ConflictError):
        documents.write("metadata/timestamp.json", b"[]", replaces=now)
    with pytest.raises(ConflictError):
        documents.write("metadata/timestamp.json", b"[]", replaces=None)
    assert documents.read("metadata/timestamp.json") == b"{}"
    assert documents.read("metadata/9.root.json") is None


def test_two_processes_of_postgresql_publish_what_the_database_says(tmp_path: Path) -> None:
    with postgres().database() as url:
        world = make(tmp_path / "fleet", database_url=url)
        second = Fleet.open(tmp_path / "fleet")
        settle(world, ("", world.release("1.0.0")))
        assert publication.publish(world.fleet)
        assert not publication.publish(replace(second, now=world.clock))
        assert world.policy(tmp_path / "device").rules
        second.close()
        world.fleet.close()


def test_a_device_fetches_what_was_published(world: World, tmp_path: Path) -> None:
    published = publish("1.0.0", b"weights " * 1000)
    release = world.release("1.0.0", b"weights " * 1000)
    settle(world, ("", release))
    publication.publish(world.fleet)
    blobs = open_blobs(world.fleet.settings.blobs_url)

    class Static:
        def get(self, path: str, *, at: int = 0, tag: str = "") -> Answer:
            if blobs.size(path) is None:
                return Answer(404, 0, "", iter(()))
            return Answer(206 if at else 200, at, "", blobs.open(path, at))

        def post(self, path: str, body: bytes) -> bytes:
            raise AssertionError(path)

    store = Store(tmp_path / "store")
    store.make()
    fetch(store, world.device(tmp_path / "trust").document, Static(), lambda: None)(release)
    assert store.release(release) == published.release
    assert release_path(release).startswith("releases/")
    assert signing.proposal(world.fleet) is None
