"""Other keys: proposed on the server, signed by people, and devices that follow without a hole; thieves that do not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from sqlalchemy import insert, select
from tuf.api.metadata import Metadata

from edgekit.fleet.conduct import conductor
from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError, DeniedError, FleetError, InvalidError, NotFoundError
from edgekit.fleet.releases import publication, rotation, signing
from edgekit.fleet.settings import Settings
from edgekit.fleet.storage.blobs import open_blobs
from edgekit.fleet.storage.database import Database
from edgekit.fleet.storage.tables import audit, channels
from edgekit.fleet.trust import keys, repository
from edgekit.fleet.trust import pending as proposals
from edgekit.fleet.trust.layout import ONLINE, TIMESTAMP, metadata_name
from edgekit.fleet.trust.published import load
from edgekit_runtime.agent.fetch import release_path
from edgekit_runtime.errors import TrustError
from edgekit_runtime.policies import Policy, Rule
from edgekit_runtime.trust import Trust
from support.fleets import ADMIN, PUBLISHER, World, make
from support.releases import publish as a_release

SIZES = {"root_keys": 2, "root_threshold": 1, "targets_keys": 3, "targets_threshold": 2}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make(tmp_path / "fleet", **SIZES)
    yield made
    made.fleet.close()


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = make(tmp_path_factory.mktemp("unchanged") / "fleet", **SIZES)
    yield made
    made.fleet.close()


@pytest.fixture
def release(world: World) -> str:
    """A version that is signed, and that the channel is settled on."""
    found = world.propose("1.0.0").id
    assert world.sign("targets-1", "targets-2").published
    with world.fleet.database.writing() as connection:
        settled = [{"cohort": "", "release": found}]
        connection.execute(insert(channels).values(name="stable", model="größe", settled=settled, revision=0))
    publication.publish(world.fleet)
    return found


def key_of(world: World, name: str) -> CryptoSigner:
    return keys.load(world.made.folder / "keys" / "offline" / f"{name}.pem")


def new_key(world: World, name: str) -> Any:
    """Made where its owner is."""
    return keys.create(world.made.folder / "keys" / "offline" / f"{name}.pem", None)


def sign(world: World, *names: str, fleet: Fleet | None = None) -> signing.Signed:
    """Sign what waits, one person after the other."""
    for name in names:
        waiting = signing.proposal(world.fleet)
        assert waiting is not None
        file = proposals.sign(
            waiting, key_of(world, name), signing.moment(world.fleet), first_root=world.made.root.read_bytes()
        )
        found = signing.submit(fleet or world.fleet, ADMIN, file.to_bytes())
    return found


def told(trust: Trust, channel: str = "stable") -> list[str]:
    rules = Policy.from_json(trust.document(f"rollout/{channel}.json", 1 << 20)).rules
    return [each.release for each in rules]


def follows(trust: Trust, release: str) -> None:
    trust.refresh()
    assert told(trust) == [release]
    assert trust.document(release_path(release), 1 << 20)


def refused(code: str, trust: Trust) -> None:
    with pytest.raises(TrustError) as caught:
        trust.refresh()
    assert caught.value.code == code


@dataclass
class Watched:
    """Blobs that let a device look after every write."""

    inner: Any
    look: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def put(self, name: str, parts: Any, **options: Any) -> int:
        size = self.inner.put(name, parts, **options)
        if name.startswith("metadata/"):
            self.look()
        return size


def forge(world: World, stolen: dict[str, Sequence[CryptoSigner]], release: str) -> None:
    """What a thief with old keys and the storage writes: another policy, and all that leads to it."""
    documents = signing.documents_of(world.fleet)
    published = load(documents)
    policy = Policy((Rule(release, "evil", 1_000_000),))

    def signed(what: Any, role: str) -> bytes:
        metadata: Metadata[Any] = Metadata(what)
        for signer in stolen[role]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    assert published.rollout
    assert published.targets
    assert published.snapshot
    assert published.timestamp
    now = signing.moment(world.fleet)
    chosen = {"stable": policy, "evil": policy}
    rollout = repository.set_policies(published.rollout.signed, chosen)
    rollout = repository.as_version(rollout, rollout.version + 5, "rollout", now)
    contents = {
        "rollout": (rollout.version, signed(rollout, "rollout")),
        "targets": (
            published.targets.signed.version,
            documents.read(metadata_name("targets", published.targets.signed.version)),
        ),
    }
    version = published.snapshot.signed.version + 5
    snapshot = signed(repository.snapshot(published.snapshot.signed, version, contents, now), "snapshot")
    timestamp = repository.timestamp(published.timestamp.signed, version, snapshot, now)
    files = {
        **repository.policy_documents(chosen),
        metadata_name("rollout", rollout.version): contents["rollout"][1],
        metadata_name("snapshot", version): snapshot,
        TIMESTAMP: signed(timestamp, "timestamp"),
    }
    for name, content in files.items():
        world.fleet.blobs.put(name, (content,), max_bytes=1 << 20, replace=True)


def test_a_stolen_server_gets_new_keys_and_devices_follow_them_without_a_hole(
    world: World, release: str, tmp_path: Path
) -> None:
    device, asleep = world.device(tmp_path / "device"), world.device(tmp_path / "asleep")
    follows(device, release)
    follows(asleep, release)
    stolen = signing.online_of(world.fleet)

    made = rotation.propose(world.fleet, ADMIN, ONLINE).made
    assert made == tuple(f"keys/online/{role}-2.pem" for role in ONLINE)
    # Until people signed, the server goes on with the old keys.
    world.clock.at += 36 * 3600
    assert publication.publish(world.fleet)
    follows(device, release)
    assert not sign(world, "root-1", "targets-1").published
    watching = Watched(world.fleet.blobs, lambda: follows(device, release))
    assert sign(world, "targets-2", fleet=replace(world.fleet, blobs=watching)).published
    follows(device, release)

    for role in ONLINE:
        (world.made.folder / "keys" / "online" / f"{role}-1.pem").unlink()
    world.clock.at += 36 * 3600
    assert publication.publish(world.fleet)
    for trust in (device, asleep, world.device(tmp_path / "new")):
        follows(trust, release)

    other = a_release("6.6.6", b"evil").release.id
    forge(world, stolen, other)
    for trust in (device, asleep, world.device(tmp_path / "newest")):
        refused("tuf_signature", trust)


def test_what_a_thief_selected_is_not_signed_again_by_the_new_keys(
    world: World, release: str, tmp_path: Path
) -> None:
    other = world.propose("2.0.0").id
    sign(world, "targets-1", "targets-2")
    publication.publish(world.fleet)
    forge(world, signing.online_of(world.fleet), other)
    device = world.device(tmp_path / "device")
    follows(device, other)
    rotation.propose(world.fleet, ADMIN, ONLINE)
    assert told(device, "evil") == [other]
    sign(world, "root-2", "targets-3", "targets-1")
    follows(device, release)
    with pytest.raises(TrustError, match="rollout/evil"):
        told(device, "evil")


def test_one_role_of_the_server_is_replaced_by_root_alone(world: World, release: str, tmp_path: Path) -> None:
    device = world.device(tmp_path / "device")
    follows(device, release)
    rotation.propose(world.fleet, ADMIN, ["timestamp"])
    assert sign(world, "root-1").published
    follows(device, release)
    rotation.propose(world.fleet, ADMIN, ["rollout"])
    assert sign(world, "targets-1", "targets-2").published
    follows(device, release)
    actions = [row for row in _actions(world) if row.startswith("keys.")]
    assert actions == ["keys.proposed", "keys.changed"] * 2


def _actions(world: World) -> list[str]:
    with world.fleet.database.reading() as connection:
        return list(connection.scalars(select(audit.c.action).order_by(audit.c.sequence)))


def second_server(world: World, folder: Path) -> Fleet:
    """Of the same database and blobs, with a folder of its own."""
    shutil.copytree(world.made.folder / "keys" / "online", folder / "keys" / "online")
    settings = world.fleet.settings
    settings = Settings(folder, database_url=settings.database_url, blobs_url=settings.blobs_url)
    return Fleet(Database.open(settings.database_url), open_blobs(settings.blobs_url), settings, world.clock)


def test_a_second_server_without_the_new_key_stands_aside_until_it_has_it(
    world: World, release: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = world.device(tmp_path / "device")
    other = second_server(world, tmp_path / "other")
    try:
        rotation.propose(world.fleet, ADMIN, ONLINE)
        # What people signed comes to a server that could not go on with it.
        sign(world, "root-1", "targets-1")
        with pytest.raises(InvalidError) as caught:
            sign(world, "targets-2", fleet=other)
        assert caught.value.code == "key_missing"
        assert publication.publish(other) in {True, False}
        follows(device, release)
        assert sign(world, "targets-2").published
        follows(device, release)

        rounds, first = conductor.repeated(other, "other"), conductor.repeated(world.fleet, "first")
        world.clock.at += 36 * 3600
        rounds._act(lambda: False)
        assert rotation.lacking(other) == dict.fromkeys(ONLINE, 1)
        first._act(lambda: False)
        follows(device, release)
        # It does not even ask for the lease, which the first one could have given back.
        world.fleet.database.release_lease(conductor.LEASE, "first")
        caplog.clear()
        rounds._act(lambda: False)
        assert [each.getMessage() for each in caplog.records] == [
            "this server stands aside: it lacks keys of timestamp, snapshot, rollout"
        ]
        assert world.fleet.database.lease(conductor.LEASE, "first", conductor.LEASE_S)
        world.fleet.database.release_lease(conductor.LEASE, "first")

        for path in (world.made.folder / "keys" / "online").glob("*-2.p??"):
            shutil.copy(path, tmp_path / "other" / "keys" / "online")
        world.clock.at += 36 * 3600
        rounds._act(lambda: False)
        assert not world.fleet.database.lease(conductor.LEASE, "first", conductor.LEASE_S)
        follows(device, release)
    finally:
        other.close()


def test_a_key_of_targets_is_replaced_and_what_it_signed_is_signed_anew(
    world: World, release: str, tmp_path: Path
) -> None:
    device = world.device(tmp_path / "device")
    follows(device, release)
    stolen = key_of(world, "targets-1")
    before = load(signing.documents_of(world.fleet)).targets
    assert before
    rotation.propose(
        world.fleet, ADMIN, ["targets"], add=[new_key(world, "targets-4")],
        remove=[stolen.public_key.keyid[:8]],
    )  # fmt: skip
    found = sign(world, "root-2")
    # Its signature was one of two that the published targets have.
    assert {each.role for each in found.missing} == {"targets"}
    assert not sign(world, "targets-4", "targets-2").published
    assert sign(world, "targets-3").published
    follows(device, release)
    after = load(signing.documents_of(world.fleet)).targets
    assert after
    assert after.signed.targets == before.signed.targets
    assert after.signed.version == before.signed.version + 1

    world.propose("2.0.0")
    waiting = signing.proposal(world.fleet)
    assert waiting
    with pytest.raises(InvalidError, match="has no part in this"):
        proposals.sign(waiting, stolen, signing.moment(world.fleet))
    assert sign(world, "targets-3", "targets-4").published
    follows(device, release)


def test_a_key_that_comes_beside_the_others_needs_no_signature_of_theirs(world: World, release: str) -> None:
    rotation.propose(world.fleet, ADMIN, ["targets"], add=[new_key(world, "targets-4")])
    assert sign(world, "root-1").published


def test_lost_keys_of_targets_are_replaced_by_root_alone(world: World, release: str, tmp_path: Path) -> None:
    device = world.device(tmp_path / "device")
    follows(device, release)
    old = load(signing.documents_of(world.fleet)).root.signed.roles["targets"].keyids
    rotation.propose(
        world.fleet, ADMIN, ["targets"], add=[new_key(world, f"targets-{n}") for n in (4, 5)],
        remove=old[:2], lost=True,
    )  # fmt: skip
    assert not sign(world, "root-1", "targets-4").published
    assert sign(world, "targets-5").published
    follows(device, release)


def test_one_of_two_keys_of_root_is_lost_and_replaced_by_the_other(
    world: World, release: str, tmp_path: Path
) -> None:
    device = world.device(tmp_path / "device")
    follows(device, release)
    lost = key_of(world, "root-2").public_key.keyid
    rotation.propose(world.fleet, ADMIN, ["root"], add=[new_key(world, "root-3")], remove=[lost])
    assert sign(world, "root-1").published
    follows(device, release)
    by_role = {each.role: each for each in rotation.listed(world.fleet)}
    assert lost not in by_role["root"].keys
    assert (by_role["root"].version, by_role["root"].threshold) == (2, 1)
    # The new one does what the lost one did.
    rotation.propose(world.fleet, ADMIN, ["root"], threshold=2)
    assert not sign(world, "root-1").published
    assert sign(world, "root-3").published
    follows(device, release)
    with pytest.raises(InvalidError):
        rotation.propose(world.fleet, ADMIN, ["root"], remove=[by_role["root"].keys[0]])


def test_versions_wait_behind_new_keys_and_come_back_after_them(world: World, release: str) -> None:
    new = world.propose("2.0.0").id
    rotation.propose(world.fleet, ADMIN, ["timestamp"])
    waiting = signing.proposal(world.fleet)
    assert waiting
    assert waiting.new_targets is None
    sign(world, "root-1")
    waiting = signing.proposal(world.fleet)
    assert waiting
    assert waiting.new_targets
    assert release_path(new) in waiting.new_targets.signed.targets


def test_a_fleet_without_new_versions_lives_on_by_signatures_that_are_asked_for_in_time(
    world: World, release: str, tmp_path: Path
) -> None:
    device = world.device(tmp_path / "device")
    asked: list[tuple[str, ...]] = []
    for _ in range(80):
        world.clock.at += 10 * 86400
        publication.publish(world.fleet)
        follows(device, release)
        while (waiting := signing.proposal(world.fleet)) is not None:
            assert waiting == signing.proposal(world.fleet)
            parts = tuple(waiting.new_parts())
            asked.append(parts)
            assert sign(world, *(["root-1"] if parts == ("root",) else ["targets-1", "targets-2"])).published
    assert set(asked) == {("root",), ("targets",)}
    assert world.clock.at > 1_900_000_000 + 2 * 365 * 86400
    assert "keys.changed" not in _actions(world)


def test_a_root_that_is_about_to_expire_keeps_no_version_waiting(world: World, release: str) -> None:
    world.clock.at += 120 * 86400
    publication.publish(world.fleet)
    assert signing.proposal(world.fleet) is None
    world.clock.at += 160 * 86400
    waiting = signing.proposal(world.fleet)
    assert waiting
    assert set(waiting.new_parts()) == {"targets"}
    assert sign(world, "targets-2", "targets-3").published
    waiting = signing.proposal(world.fleet)
    assert waiting
    assert set(waiting.new_parts()) == {"root"}
    world.propose("2.0.0")
    waiting = signing.proposal(world.fleet)
    assert waiting
    assert set(waiting.new_parts()) == {"targets"}
    assert sign(world, "targets-2", "targets-3").published


def test_what_is_no_proposal_in_the_storage_is_put_aside(world: World, release: str) -> None:
    world.fleet.blobs.put(signing.PROPOSAL, (b"{",), max_bytes=9, replace=True)
    assert signing.proposal(world.fleet) is None
    world.propose("2.0.0")
    assert sign(world, "targets-1", "targets-2").published


def test_a_change_that_waits_is_withdrawn(world: World, release: str) -> None:
    with pytest.raises(NotFoundError):
        rotation.withdraw(world.fleet, ADMIN)
    rotation.propose(world.fleet, ADMIN, ["snapshot"])
    rotation.withdraw(world.fleet, ADMIN)
    assert signing.proposal(world.fleet) is None
    assert _actions(world)[-1] == "keys.withdrawn"


def test_only_an_admin_changes_keys(world: World, release: str) -> None:
    with pytest.raises(DeniedError):
        rotation.propose(world.fleet, PUBLISHER, ["timestamp"])
    rotation.propose(world.fleet, ADMIN, ["rollout"])
    with pytest.raises(DeniedError):
        rotation.withdraw(world.fleet, PUBLISHER)
    waiting = signing.proposal(world.fleet)
    assert waiting
    signed = proposals.sign(waiting, key_of(world, "targets-1"), signing.moment(world.fleet))
    with pytest.raises(DeniedError):
        signing.submit(world.fleet, PUBLISHER, signed.to_bytes())


@pytest.mark.parametrize(
    ("roles", "options"),
    [
        ((), {}),
        (("nobody",), {}),
        (("root",), {}),
        (("root", "targets"), {"threshold": 2}),
        (("timestamp", "timestamp"), {}),
        (("timestamp",), {"threshold": 1}),
        (("timestamp",), {"remove": ["ab" * 32]}),
        (("timestamp",), {"lost": True}),
        (("targets",), {"remove": ["ab" * 32]}),
        (("targets",), {"remove": [""]}),
        (("targets",), {"threshold": 2}),
        (("targets",), {"threshold": 4}),
        (("root",), {"threshold": 0}),
    ],
)
def test_what_is_no_change_of_keys_is_refused_and_makes_none(
    unchanged: World, roles: tuple[str, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(FleetError) as caught:
        rotation.propose(unchanged.fleet, ADMIN, roles, **options)
    assert caught.value.way_out
    assert signing.proposal(unchanged.fleet) is None
    assert len(list((unchanged.made.folder / "keys" / "online").iterdir())) == 6


def test_a_key_of_the_server_never_signs_root_or_targets(world: World) -> None:
    online = signing.online_of(world.fleet)["timestamp"][0].public_key
    for role in ("root", "targets"):
        with pytest.raises(InvalidError):
            rotation.propose(world.fleet, ADMIN, [role], add=[online])


def test_a_server_makes_so_many_keys_and_no_more(world: World) -> None:
    for _ in range(keys.MAX_HELD - 1):
        rotation.propose(world.fleet, ADMIN, ["timestamp"])
    with pytest.raises(ConflictError):
        rotation.propose(world.fleet, ADMIN, ["timestamp"])
    size = world.fleet.blobs.size(TIMESTAMP)
    assert size
    world.clock.at += 36 * 3600
    publication.publish(world.fleet)
    assert (world.fleet.blobs.size(TIMESTAMP) or 0) < 8192


def test_a_number_of_a_key_that_was_moved_away_is_not_taken_again(world: World) -> None:
    folder = world.made.folder / "keys" / "online"
    rotation.propose(world.fleet, ADMIN, ["timestamp"])
    (folder / "timestamp-1.pem").unlink()
    assert rotation.propose(world.fleet, ADMIN, ["timestamp"]).made == ("keys/online/timestamp-3.pem",)
