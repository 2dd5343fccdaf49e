"""A backup that is older than what devices saw: what they take again at once, and what it needs people for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import FleetError, InvalidError, UnavailableError
from edgekit.fleet.operations.backup import restore, save
from edgekit.fleet.releases import publication, rotation, signing
from edgekit.fleet.storage.tables import channels, versions
from edgekit.fleet.trust import keys
from edgekit.fleet.trust import pending as proposals
from edgekit.fleet.trust.layout import TIMESTAMP
from edgekit.fleet.trust.published import load
from edgekit_runtime.agent.fetch import release_path
from edgekit_runtime.errors import TrustError
from edgekit_runtime.policies import Policy
from edgekit_runtime.trust import Trust
from support.fleet_api import serving
from support.fleets import ADMIN, World, make


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


@pytest.fixture
def world(tmp_path: Path, stack: ExitStack) -> World:
    """A fleet with a backup of today."""
    made = make(tmp_path / "fleet")
    stack.callback(made.fleet.close)
    release = made.release("1.0.0")
    with made.fleet.database.writing() as connection:
        settled = [{"cohort": "", "release": release}]
        connection.execute(insert(channels).values(name="stable", model="größe", settled=settled, revision=0))
    publication.publish(made.fleet)
    save(made.fleet, tmp_path / "fleet.tar", keys=True)
    return made


def days_later(world: World) -> None:
    """What is signed since, as on every day."""
    for _ in range(4):
        world.clock.at += 36 * 3600
        assert publication.publish(world.fleet)


def again(world: World, tmp_path: Path, stack: ExitStack, newer: str = "") -> World:
    """The fleet of the backup, in another place."""
    folder = tmp_path / "again"
    options = {"database_url": f"sqlite:///{folder}/fleet.db", "blobs_url": f"{folder}/blobs"}
    restore(tmp_path / "fleet.tar", folder, options, newer=newer, now=world.clock)
    opened = Fleet.open(folder)
    stack.callback(opened.close)
    return World(world.made, replace(opened, now=world.clock), world.clock)


def settled_on(trust: Trust) -> str:
    trust.refresh()
    rules = Policy.from_json(trust.document("rollout/stable.json", 1 << 20)).rules
    trust.document(release_path(rules[0].release), 1 << 20)
    return rules[0].release


def refused(code: str, trust: Trust) -> None:
    with pytest.raises(TrustError) as caught:
        trust.refresh()
    assert caught.value.code == code


def test_devices_follow_an_old_backup_from_its_first_publication_on(
    world: World, tmp_path: Path, stack: ExitStack
) -> None:
    release = settled_on(world.device(tmp_path / "device"))
    days_later(world)
    assert settled_on(world.device(tmp_path / "device")) == release

    restored = again(world, tmp_path, stack)
    refused("tuf_rollback", restored.device(tmp_path / "device"))
    assert publication.publish(restored.fleet)
    assert settled_on(restored.device(tmp_path / "device")) == release
    assert not publication.publish(restored.fleet)
    restored.clock.at += 36 * 3600
    assert publication.publish(restored.fleet)
    assert settled_on(restored.device(tmp_path / "device")) == release


def test_a_fleet_is_restored_twice_from_the_same_backup(
    world: World, tmp_path: Path, stack: ExitStack
) -> None:
    days_later(world)
    first = again(world, tmp_path, stack)
    publication.publish(first.fleet)
    settled_on(first.device(tmp_path / "device"))
    world.clock.at += 3600
    (tmp_path / "again").rename(tmp_path / "once")
    second = again(world, tmp_path, stack)
    publication.publish(second.fleet)
    settled_on(second.device(tmp_path / "device"))


def newer_release(world: World, tmp_path: Path) -> str:
    """A version that was signed after the backup, and that a device saw."""
    found = world.release("2.0.0")
    with world.fleet.database.writing() as connection:
        settled = [{"cohort": "", "release": found}]
        connection.execute(channels.update().values(settled=settled))
    days_later(world)
    assert settled_on(world.device(tmp_path / "device")) == found
    return found


@pytest.mark.parametrize("kind", ["folder", "http"])
def test_targets_that_survived_elsewhere_are_brought_along(
    world: World, tmp_path: Path, stack: ExitStack, kind: str
) -> None:
    new = newer_release(world, tmp_path)
    place = world.fleet.settings.blobs_url if kind == "folder" else stack.enter_context(serving(world))
    restored = again(world, tmp_path, stack, newer=place)
    publication.publish(restored.fleet)
    device = restored.device(tmp_path / "device")
    old = settled_on(device)
    assert old != new
    assert device.document(release_path(new), 1 << 20)
    # What was signed needs no signature again, once its bundle is published again.
    restored.propose("2.0.0")
    publication.publish(restored.fleet)
    with restored.fleet.database.reading() as connection:
        assert connection.scalar(select(versions.c.state).where(versions.c.id == new)) == "signed"


def test_targets_that_are_lost_keep_devices_off_until_root_signs_new_keys_of_the_server(
    world: World, tmp_path: Path, stack: ExitStack
) -> None:
    newer_release(world, tmp_path)
    restored = again(world, tmp_path, stack)
    publication.publish(restored.fleet)
    refused("tuf_rollback", restored.device(tmp_path / "device"))

    rotation.propose(restored.fleet, ADMIN, ["timestamp", "snapshot"])
    sign(restored, "root-1")
    assert settled_on(restored.device(tmp_path / "device"))


def sign(world: World, name: str) -> None:
    waiting = signing.proposal(world.fleet)
    assert waiting
    signer = keys.load(world.made.folder / "keys" / "offline" / f"{name}.pem")
    file = proposals.sign(waiting, signer, signing.moment(world.fleet)).to_bytes()
    assert signing.submit(world.fleet, ADMIN, file).published


def test_a_root_that_the_backup_lacks_comes_from_any_device(
    world: World, tmp_path: Path, stack: ExitStack
) -> None:
    added = keys.create(world.made.folder / "keys" / "offline" / "root-2.pem", None)
    rotation.propose(world.fleet, ADMIN, ["root"], add=[added])
    sign(world, "root-1")
    days_later(world)
    settled_on(world.device(tmp_path / "device"))
    place = tmp_path / "place" / "metadata"
    place.mkdir(parents=True)
    (place / "2.root.json").write_bytes((tmp_path / "device" / "root_history" / "2.root.json").read_bytes())
    restored = again(world, tmp_path, stack, newer=str(tmp_path / "place"))
    publication.publish(restored.fleet)
    assert settled_on(restored.device(tmp_path / "device"))
    assert load(signing.documents_of(restored.fleet)).root.signed.version == 2
    # The next one follows it.
    rotation.propose(restored.fleet, ADMIN, ["root"], threshold=2)
    sign_twice(restored)
    assert settled_on(restored.device(tmp_path / "device"))


def sign_twice(world: World) -> None:
    waiting = signing.proposal(world.fleet)
    assert waiting
    for name in ("root-1", "root-2"):
        signer = keys.load(world.made.folder / "keys" / "offline" / f"{name}.pem")
        waiting = proposals.sign(waiting, signer, signing.moment(world.fleet))
    assert signing.submit(world.fleet, ADMIN, waiting.to_bytes()).published


@pytest.mark.parametrize("what", ["root", "timestamp", "snapshot missing"])
def test_what_another_fleet_signed_is_not_brought_along(
    world: World, tmp_path: Path, stack: ExitStack, what: str
) -> None:
    other = make(tmp_path / "other")
    stack.callback(other.fleet.close)
    days_later(other)
    blobs = other.fleet.blobs
    if what == "root":
        rotation.propose(other.fleet, ADMIN, ["snapshot"])
        sign(other, "root-1")
    elif what == "snapshot missing":
        days_later(world)
        for name in world.fleet.blobs.names("metadata"):
            if "snapshot" in name:
                world.fleet.blobs.delete(name)
        blobs = world.fleet.blobs
    place = str(blobs.root)  # type: ignore[attr-defined]
    with pytest.raises(InvalidError):
        again(world, tmp_path, stack, newer=place)
    assert not (tmp_path / "again").exists()


def test_an_older_place_changes_nothing(world: World, tmp_path: Path, stack: ExitStack) -> None:
    place = world.fleet.settings.blobs_url
    before = b"".join(world.fleet.blobs.open(TIMESTAMP))
    restored = again(world, tmp_path, stack, newer=place)
    assert b"".join(restored.fleet.blobs.open(TIMESTAMP)) == before


@pytest.mark.parametrize("place", ["http://127.0.0.1:9", "ftp://x"])
def test_a_place_that_does_not_answer_leaves_nothing_behind(
    world: World, tmp_path: Path, stack: ExitStack, place: str
) -> None:
    given = {"database_url": f"sqlite:///{tmp_path}/far.db", "blobs_url": str(tmp_path / "far")}
    with pytest.raises(FleetError) as caught:
        restore(tmp_path / "fleet.tar", tmp_path / "again", given, newer=place)
    assert isinstance(caught.value, UnavailableError | InvalidError)
    assert not [each for each in ("again", "far", "far.db") if (tmp_path / each).exists()]


def test_a_key_that_makes_people_sign_in_is_not_in_a_backup(world: World, tmp_path: Path) -> None:
    """Sessions of the dashboard end with a restore; nothing else needs that key."""
    secret = bytes(range(32))
    (world.made.folder / "dashboard.key").write_bytes(secret)
    save(world.fleet, tmp_path / "with keys.tar", keys=True)
    content = (tmp_path / "with keys.tar").read_bytes()
    assert b"PRIVATE KEY" in content
    assert secret not in content
    assert b"dashboard.key" not in content
