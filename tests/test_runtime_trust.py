"""What a device believes: each attack that The Update Framework names, clocks that lie, and power cuts."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import SlowRetrievalError
from tuf.api.metadata import MetaFile, TargetFile

from edgekit_runtime.disk import Disk
from edgekit_runtime.errors import DeviceError, NetworkError, StoreError, TrustError
from edgekit_runtime.trust import CONFIG, Target, Trust
from edgekit_runtime.trusted_time import RELEASED, SIGNED_AT
from support.repository import (
    METADATA_URL,
    TARGETS_URL,
    TIMESTAMP,
    Repository,
    breaking,
    endless,
    metadata_name,
    target_name,
)

TODAY = datetime(2030, 6, 1, 12, tzinfo=UTC)
MODEL, RELEASE = b"weights " * 100, b'{"release": 1}'
ROLES = ("root", "timestamp", "snapshot", "targets")


@dataclass
class Clock:
    """A system clock that can be set."""

    at: datetime = TODAY

    def __call__(self) -> float:
        return self.at.timestamp()

    def pass_days(self, days: float) -> None:
        self.at += timedelta(days=days)


@dataclass
class World:
    """A repository, and a device that was provisioned for it.

    Attributes:
        folder: of trusted metadata on the device.
        repository: of the owner.
        clock: of the device.
    """

    folder: Path
    repository: Repository = field(default_factory=lambda: Repository(TODAY))
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.repository.add("models/release.json", RELEASE, custom={"stage": "beta"})
        self.repository.add("models/model.tflite", MODEL)
        self.repository.publish("targets")
        self.server = self.repository.server
        self.boot().init(self.repository.first_root())

    def boot(self, disk: Disk | None = None, released: datetime = RELEASED) -> Trust:
        """The agent, started anew."""
        return Trust(
            self.folder,
            metadata_url=METADATA_URL,
            targets_url=TARGETS_URL,
            fetcher=self.repository.server,
            now=self.clock,
            released=released,
            disk=disk,
        )

    def versions(self) -> dict[str, int]:
        """What is trusted on the disk now."""
        found = {}
        for path in self.folder.glob("*.json"):
            found[path.stem] = json.loads(path.read_bytes())["signed"]["version"]
        return found

    def floor(self) -> str | None:
        path = self.folder / "device" / "clock.json"
        return json.loads(path.read_bytes())["floor"] if path.exists() else None

    def pass_days(self, days: float) -> None:
        """For everybody."""
        self.clock.pass_days(days)
        self.repository.now += timedelta(days=days)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "größe" / "trust")


def refused(code: str, deed: Callable[[], object]) -> DeviceError:
    with pytest.raises(TrustError) as caught:
        deed()
    assert caught.value.code == code
    return caught.value


# What an honest server gives


def test_a_signed_target_is_known_by_its_hash_and_its_document_is_returned(world: World) -> None:
    trust = world.boot()
    trust.refresh()

    target = trust.target("models/release.json")

    assert target.size_bytes == len(RELEASE)
    assert target_name(target.path, RELEASE) == f"targets/models/{target.sha256}.release.json"
    assert target.custom == {"stage": "beta"}
    assert trust.document("models/release.json", 1000) == RELEASE
    assert trust.target("models/model.tflite").custom == {}


def test_a_lookup_refreshes_by_itself_and_only_once(world: World) -> None:
    trust = world.boot()
    trust.target("models/release.json")
    trust.document("models/release.json", 1000)
    assert world.server.fetched.count(TIMESTAMP) == 1


def test_what_is_up_to_date_is_not_fetched_again(world: World) -> None:
    world.boot().refresh()
    world.server.fetched.clear()
    world.boot().refresh()
    assert world.server.fetched == [metadata_name("root", 2), TIMESTAMP]


def test_a_lookup_refreshes_again_once_what_it_trusted_has_expired(world: World) -> None:
    trust = world.boot()
    trust.refresh()
    world.pass_days(3)
    refused("tuf_expired", lambda: trust.target("models/release.json"))
    world.repository.publish("timestamp")
    assert trust.target("models/release.json").size_bytes == len(RELEASE)


def test_after_a_failed_refresh_nothing_older_answers(world: World) -> None:
    trust = world.boot()
    trust.refresh()
    world.server.instead[TIMESTAMP] = b"{}"
    refused("tuf_damaged", trust.refresh)
    refused("tuf_damaged", lambda: trust.target("models/release.json"))


def test_the_delegated_role_signs_what_is_below_its_path(world: World) -> None:
    world.repository.add("rollout/policy.json", b"10%", role="rollout")
    world.repository.publish("rollout")
    assert world.boot().document("rollout/policy.json", 100) == b"10%"


def test_a_target_without_a_sha256_has_none_to_give(world: World) -> None:
    world.repository.targets.targets["odd"] = TargetFile.from_data("odd", b"odd", ["sha512"])
    world.repository.publish("targets")
    target = world.boot().target("odd")
    refused("tuf_damaged", lambda: target.sha256)


def test_a_remark_of_the_signer_that_is_no_object_is_left_out(world: World) -> None:
    world.repository.add("odd", b"odd", custom="text")
    world.repository.publish("targets")
    assert world.boot().target("odd") == Target(
        "odd", 3, world.repository.targets.targets["odd"].hashes, custom={}
    )


# Attacks


def test_arbitrary_software_another_content_is_never_returned(world: World) -> None:
    trust = world.boot()
    for evil in (b"x" * len(RELEASE), b"", RELEASE + b"x"):
        world.server.instead[target_name("models/release.json", RELEASE)] = evil
        refused("tuf_damaged", lambda: trust.document("models/release.json", 1000))


def test_arbitrary_software_a_target_that_nobody_signed_is_unknown(world: World) -> None:
    world.server.files[target_name("models/evil", b"evil")] = b"evil"
    refused("tuf_untrusted", lambda: world.boot().target("models/evil"))
    refused("tuf_untrusted", lambda: world.boot().document("models/evil", 100))


@pytest.mark.parametrize("role", ROLES)
def test_arbitrary_software_metadata_with_any_changed_value_is_refused(world: World, role: str) -> None:
    world.boot().refresh()
    world.repository.publish(*ROLES)
    version = world.repository.signed(role).version
    name = TIMESTAMP if role == "timestamp" else metadata_name(role, version)
    document = json.loads(world.server.files[name])
    document["signed"]["expires"] = "2039-01-01T00:00:00Z"
    world.server.instead[name] = json.dumps(document).encode()
    before = world.versions()[role]

    refused("tuf_signature", world.boot().refresh)

    assert world.versions()[role] == before


def test_rollback_of_the_timestamp_is_refused(world: World) -> None:
    old = world.server.files[TIMESTAMP]
    world.repository.publish("timestamp")
    world.boot().refresh()
    world.server.instead[TIMESTAMP] = old

    refused("tuf_rollback", world.boot().refresh)

    world.server.instead.clear()
    world.boot().refresh()


def test_rollback_of_the_snapshot_is_refused(world: World) -> None:
    world.repository.publish("snapshot")
    world.boot().refresh()
    # A thief of the timestamp key points at the snapshot before.
    world.repository.timestamp.snapshot_meta.version -= 1
    world.repository.publish("timestamp")
    refused("tuf_rollback", world.boot().refresh)


@pytest.mark.parametrize("role", ["targets", "rollout"])
def test_rollback_of_targets_is_refused(world: World, role: str) -> None:
    world.repository.publish(role)
    world.boot().refresh()
    # A thief of the keys of timestamp and snapshot points at the targets before.
    world.repository.snapshot.meta[f"{role}.json"].version -= 1
    world.repository.publish("snapshot")
    refused("tuf_rollback", world.boot().refresh)


def test_rollback_by_hiding_a_role_is_refused(world: World) -> None:
    world.boot().refresh()
    del world.repository.snapshot.meta["rollout.json"]
    world.repository.publish("snapshot")
    refused("tuf_damaged", world.boot().refresh)


@pytest.mark.parametrize(
    ("days", "role"), [(3, "timestamp"), (8, "snapshot"), (181, "targets"), (366, "root")]
)
def test_indefinite_freeze_ends_when_the_replayed_metadata_expire(world: World, days: int, role: str) -> None:
    world.boot().refresh()
    world.clock.pass_days(days)
    # Everything that expires sooner is signed anew; only this role is held back.
    world.repository.now = world.clock.at
    sooner = ROLES[1 : {"timestamp": 1, "snapshot": 2, "targets": 3, "root": 4}[role]]
    for each in reversed(sooner):
        signed = world.repository.signed(each)
        signed.version += 1
        signed.expires = world.clock.at + timedelta(days=1)
        world.repository.put(each)

    error = refused("tuf_expired", world.boot().refresh)

    assert role in str(error)
    assert "clock" in str(error)


def test_a_freeze_by_silence_is_a_failure_of_the_network(world: World) -> None:
    world.boot().refresh()
    world.server.instead[TIMESTAMP] = ConnectionError("no route")
    with pytest.raises(NetworkError) as caught:
        world.boot().refresh()
    assert (caught.value.code, caught.value.exit_code) == ("network", 2)


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_mix_and_match_of_versions_is_refused(world: World, role: str) -> None:
    old = world.server.files[metadata_name(role, world.repository.signed(role).version)]
    world.repository.publish(role)
    # The older file, which is signed well, under the name of the newer.
    world.server.instead[metadata_name(role, world.repository.signed(role).version)] = old
    refused("tuf_rollback", world.boot().refresh)


def test_mix_and_match_of_a_delegated_role_is_refused(world: World) -> None:
    world.repository.add("rollout/policy.json", b"100%", role="rollout")
    world.repository.publish("rollout")
    old = world.server.files[metadata_name("rollout", 2)]
    world.repository.add("rollout/policy.json", b"halt", role="rollout")
    world.repository.publish("rollout")
    world.server.instead[metadata_name("rollout", 3)] = old
    refused("tuf_rollback", lambda: world.boot().document("rollout/policy.json", 100))


def test_mix_and_match_of_equal_versions_is_refused_where_hashes_are_given(world: World) -> None:
    # Two snapshots of the same version: the timestamp says which one.
    evil = Repository.sign(world.repository.snapshot, world.repository.signers["snapshot"])
    world.repository.snapshot.unrecognized_fields["other"] = True
    world.repository.put("snapshot")
    version = world.repository.snapshot.version
    name = metadata_name("snapshot", version)
    world.repository.timestamp.snapshot_meta = MetaFile.from_data(
        version, world.server.files[name], ["sha256"]
    )
    world.repository.publish("timestamp")
    world.server.instead[name] = evil
    refused("tuf_damaged", world.boot().refresh)


@pytest.mark.parametrize(
    ("role", "rotated"),
    [("timestamp", ["timestamp"]), ("snapshot", ["timestamp", "snapshot"]), ("targets", ["snapshot"])],
)
def test_fast_forward_is_undone_by_new_keys_for_who_vouched(
    world: World, role: str, rotated: list[str]
) -> None:
    signed = world.repository.signed(role)
    honest = signed.version
    signed.version = 2**31
    world.repository.publish(role)
    world.boot().refresh()
    assert world.versions()[role] == 2**31 + 1

    signed.version = honest
    world.repository.publish(role)
    refused("tuf_rollback", world.boot().refresh)
    for each in rotated:
        world.repository.rotate(each)
    world.repository.publish(role)
    world.boot().refresh()

    assert world.versions()[role] == honest + 2


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        (metadata_name("root", 2), CONFIG.root_max_length),
        (TIMESTAMP, CONFIG.timestamp_max_length),
        (metadata_name("snapshot", 2), CONFIG.snapshot_max_length),
        (metadata_name("targets", 2), CONFIG.targets_max_length),
        (target_name("models/release.json", RELEASE), len(RELEASE)),
    ],
)
def test_endless_data_is_cut_off_at_the_limit(world: World, name: str, limit: int) -> None:
    world.server.instead[name] = endless
    before = sum(len(each) for each in world.server.files.values())

    refused("tuf_damaged", lambda: world.boot().document("models/release.json", 1000))

    assert world.server.sent_bytes <= limit + 4096 + before
    assert sum(path.stat().st_size for path in world.folder.rglob("*") if path.is_file()) < 2 * before + 1000


def test_endless_roots_end_at_the_limit_and_the_next_refresh_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CONFIG, "max_root_rotations", 3)
    for _ in range(5):
        world.repository.publish("root")
    world.boot().refresh()
    assert world.versions()["root"] == 4
    world.boot().refresh()
    assert world.versions()["root"] == 6


def test_a_document_beyond_what_the_caller_takes_is_not_fetched(world: World) -> None:
    trust = world.boot()
    trust.refresh()
    world.server.fetched.clear()
    refused("tuf_damaged", lambda: trust.document("models/model.tflite", len(MODEL) - 1))
    assert world.server.fetched == []


def test_extraneous_dependencies_are_never_fetched(world: World) -> None:
    # Metadata may name as many other files as they like: only what the caller asks for comes, by its own hash.
    world.repository.add("models/extra.so", b"extra", custom={"requires": ["models/evil.so"]})
    custom = {"requires": ["models/extra.so"], "depends": "models/extra.so"}
    world.repository.add("models/release.json", RELEASE, custom=custom)
    world.repository.publish("targets")

    assert world.boot().document("models/release.json", 1000) == RELEASE

    fetched = [name for name in world.server.fetched if name.startswith("targets/")]
    assert fetched == [target_name("models/release.json", RELEASE)]


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_wrong_key_metadata_that_another_key_signed_are_refused(world: World, role: str) -> None:
    world.repository.signers[role] = [CryptoSigner.generate_ed25519()]
    world.repository.publish(role)
    refused("tuf_signature", world.boot().refresh)


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_wrong_key_a_key_of_another_role_does_not_count(world: World, role: str) -> None:
    world.repository.signers[role] = world.repository.signers["rollout"]
    world.repository.publish(role)
    refused("tuf_signature", world.boot().refresh)


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "rollout"])
def test_key_rotation_the_new_key_counts_and_the_old_one_no_more(world: World, role: str) -> None:
    world.repository.add("rollout/policy.json", b"10%", role="rollout")
    world.repository.publish("rollout")
    world.boot().document("rollout/policy.json", 100)

    old = world.repository.rotate(role)
    world.repository.publish(*ROLES, "rollout")
    assert world.boot().document("rollout/policy.json", 100) == b"10%"

    world.repository.signers[role] = old
    world.repository.publish(role)
    refused("tuf_signature", lambda: world.boot().document("rollout/policy.json", 100))


def test_key_rotation_a_device_that_slept_follows_several_roots_in_a_row(world: World) -> None:
    for _ in range(4):
        world.repository.rotate("root")
    for role in ("timestamp", "snapshot", "targets"):
        world.repository.rotate(role)
    world.pass_days(300)
    world.repository.publish(*ROLES)

    world.boot().refresh()

    assert world.versions()["root"] == world.repository.root.version == 9


def test_key_rotation_a_missing_root_in_between_keeps_the_older_keys(world: World) -> None:
    for _ in range(3):
        world.repository.rotate("root")
    old = world.repository.rotate("timestamp")
    world.repository.publish("timestamp")
    missing = world.server.files.pop(metadata_name("root", 3))

    error = refused("tuf_signature", world.boot().refresh)

    assert world.versions()["root"] == 2
    assert "timestamp" in str(error)
    assert old[0].public_key.keyid not in str(world.repository.root.roles["timestamp"].keyids)
    world.server.files[metadata_name("root", 3)] = missing
    world.boot().refresh()
    assert world.versions()["root"] == 5


def test_key_rotation_a_root_that_skips_a_version_is_refused(world: World) -> None:
    world.repository.publish("root")
    world.repository.publish("root")
    world.server.instead[metadata_name("root", 2)] = world.server.files[metadata_name("root", 3)]
    refused("tuf_rollback", world.boot().refresh)
    assert world.versions()["root"] == 1


@pytest.mark.parametrize("signed_by", ["old", "new"])
def test_key_rotation_a_root_that_only_old_or_only_new_keys_signed_is_refused(
    world: World, signed_by: str
) -> None:
    old = world.repository.rotate("root")
    signers = {"old": old, "new": world.repository.signers["root"]}[signed_by]
    world.server.instead[metadata_name("root", 2)] = Repository.sign(world.repository.root, signers)
    refused("tuf_signature", world.boot().refresh)
    assert world.versions()["root"] == 1


@pytest.mark.parametrize("role", ["root", "targets", "rollout"])
def test_threshold_fewer_keys_than_it_takes_are_refused(tmp_path: Path, role: str) -> None:
    repository = Repository(TODAY, keys={role: 3}, threshold={role: 2})
    world = World(tmp_path / "trust", repository)
    repository.add("rollout/policy.json", b"10%", role="rollout")
    signers = repository.signers[role]
    for enough in ((0, 1), (1, 2), (0, 2)):
        repository.signers[role] = [signers[each] for each in enough]
        repository.publish(role, "rollout")
        assert world.boot().document("rollout/policy.json", 100) == b"10%"

    repository.signers[role] = signers[:1]
    repository.publish(role)

    refused("tuf_signature", lambda: world.boot().document("rollout/policy.json", 100))


def test_threshold_one_key_that_signs_twice_counts_once(tmp_path: Path) -> None:
    repository = Repository(TODAY, keys={"targets": 2}, threshold={"targets": 2})
    world = World(tmp_path / "trust", repository)
    repository.publish("targets")
    name = metadata_name("targets", repository.targets.version)
    document = json.loads(world.server.files[name])
    document["signatures"][1]["sig"] = document["signatures"][0]["sig"]
    world.server.instead[name] = json.dumps(document).encode()
    refused("tuf_signature", world.boot().refresh)
    document["signatures"][1]["keyid"] = document["signatures"][0]["keyid"]
    world.server.instead[name] = json.dumps(document).encode()
    refused("tuf_damaged", world.boot().refresh)


def test_a_stolen_rollout_key_cannot_sign_an_artifact(world: World) -> None:
    evil = b"evil weights"
    world.repository.add("models/evil.tflite", evil, role="rollout")
    world.repository.add("models/model.tflite", evil, role="rollout")
    world.repository.add("rollout/deeper/policy.json", evil, role="rollout")
    world.repository.publish("rollout")
    trust = world.boot()

    refused("tuf_untrusted", lambda: trust.target("models/evil.tflite"))
    refused("tuf_untrusted", lambda: trust.target("rollout/deeper/policy.json"))
    assert trust.target("models/model.tflite").size_bytes == len(MODEL)
    assert metadata_name("rollout", 2) not in world.server.fetched, "nobody asked it"


def test_a_stolen_rollout_key_is_taken_back_by_the_offline_keys(world: World) -> None:
    world.repository.add("rollout/policy.json", b"100%", role="rollout")
    world.repository.publish("rollout")
    world.boot().document("rollout/policy.json", 100)
    world.repository.rotate("rollout")
    refused("tuf_signature", lambda: world.boot().document("rollout/policy.json", 100))


# Clocks that lie


def later(days: float) -> datetime:
    return TODAY + timedelta(days=days)


@pytest.fixture
def dated(world: World) -> World:
    """Timestamps say when they were signed; the device has seen one."""
    world.repository.say_time()
    world.repository.publish("timestamp")
    world.boot().refresh()
    assert world.floor() == "2030-06-01T12:00:00Z"
    return world


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def test_a_clock_at_1970_is_no_excuse_for_metadata_that_expired_before_the_floor(dated: World) -> None:
    # Someone signed a newer timestamp that is long over, which only a device in 1970 would take.
    dated.clock.at = EPOCH
    dated.boot().refresh()
    dated.repository.publish("timestamp", life_days=-1)
    refused("tuf_expired", dated.boot().refresh)


def test_a_clock_at_1970_is_lifted_to_the_release_of_this_package(world: World) -> None:
    world.clock.at = EPOCH
    assert world.repository.now > RELEASED
    world.boot().refresh()
    world.repository.publish("timestamp", life_days=-(world.repository.now - RELEASED).days - 2)
    refused("tuf_expired", world.boot().refresh)


@pytest.mark.parametrize("seconds", [-1e18, -1.0, 0.0, 1e18])
def test_a_clock_that_says_nonsense_is_no_crash(world: World, seconds: float) -> None:
    trust = Trust(
        world.folder,
        metadata_url=METADATA_URL,
        targets_url=TARGETS_URL,
        fetcher=world.server,
        now=lambda: seconds,
    )
    if seconds > 0:
        refused("tuf_expired", trust.refresh)
    else:
        trust.refresh()


def test_a_clock_ten_years_ahead_refuses_and_leaves_nothing_behind(dated: World) -> None:
    dated.clock.at = later(3650)
    before = dated.floor()
    refused("tuf_expired", dated.boot().refresh)
    refused("tuf_expired", lambda: dated.boot().document("models/release.json", 1000))
    assert dated.floor() == before

    dated.clock.at = TODAY
    assert dated.boot().document("models/release.json", 1000) == RELEASE


def test_a_clock_ten_years_ahead_still_follows_new_roots(dated: World) -> None:
    dated.clock.at = later(3650)
    dated.repository.rotate("root")
    refused("tuf_expired", dated.boot().refresh)
    assert dated.versions()["root"] == 2
    dated.clock.at = TODAY
    dated.boot().refresh()


def test_a_clock_that_jumps_back_decides_at_the_floor_and_then_goes_on(dated: World) -> None:
    dated.pass_days(1)
    dated.repository.say_time()
    dated.repository.publish("timestamp")
    dated.boot().refresh()
    dated.clock.at = later(-400)
    dated.boot().refresh()
    assert dated.floor() == "2030-06-02T12:00:00Z", "it only rises"

    dated.clock.at = later(1)
    dated.boot().refresh()


def test_a_device_whose_clock_stands_still_learns_the_time_from_timestamps(dated: World) -> None:
    dated.clock.at = EPOCH
    for _ in range(4):
        dated.repository.now += timedelta(days=1)
        dated.repository.say_time()
        dated.repository.publish("snapshot")
        dated.boot().refresh()
    assert dated.floor() == "2030-06-05T12:00:00Z"


def test_a_signer_whose_clock_went_back_does_not_lower_the_floor(dated: World) -> None:
    dated.repository.say_time(later(-1))
    dated.repository.publish("timestamp")
    dated.boot().refresh()
    assert dated.floor() == "2030-06-01T12:00:00Z"


def test_a_newer_package_lifts_a_floor_from_before_its_release(dated: World) -> None:
    dated.clock.at = EPOCH
    dated.boot(released=later(1)).refresh()
    refused("tuf_expired", dated.boot(released=later(3)).refresh)


def test_a_role_that_was_not_asked_yet_is_held_against_the_time_of_the_lookup(dated: World) -> None:
    dated.repository.add("rollout/policy.json", b"10%", role="rollout")
    dated.repository.publish("rollout", life_days=1)
    for role in ("snapshot", "timestamp"):
        dated.repository.publish(role)
    trust = dated.boot()
    trust.refresh()
    dated.pass_days(1.5)
    refused("tuf_expired", lambda: trust.target("rollout/policy.json"))
    assert trust.target("models/release.json").size_bytes == len(RELEASE)


def test_a_lookup_is_held_against_the_time_that_the_refresh_learned(dated: World) -> None:
    dated.repository.add("rollout/policy.json", b"10%", role="rollout")
    dated.repository.publish("rollout", life_days=0.5)
    dated.clock.at = EPOCH
    dated.repository.now = later(1)
    dated.repository.say_time()
    dated.repository.publish("snapshot")
    refused("tuf_expired", lambda: dated.boot().target("rollout/policy.json"))


@pytest.mark.parametrize("said", ["tomorrow", 7, None, "2030-13-01T00:00:00Z", ["2030-06-01T00:00:00Z"]])
def test_a_time_that_does_not_read_as_one_is_none(world: World, said: object) -> None:
    world.repository.timestamp.unrecognized_fields[SIGNED_AT] = said
    world.repository.publish("timestamp")
    world.boot().refresh()
    assert world.floor() is None


def test_a_stolen_timestamp_key_cannot_move_time_beyond_what_the_offline_keys_signed(dated: World) -> None:
    old = dated.floor()
    dated.repository.say_time(later(3650))
    dated.repository.publish("timestamp", life_days=3660)
    refused("tuf_expired", dated.boot().refresh)
    assert dated.floor() == old


def test_time_that_a_stolen_timestamp_key_moved_is_forgotten_with_the_key(dated: World) -> None:
    # As far as the offline keys let it: a day before the first of them expires.
    dated.repository.publish("snapshot", life_days=300)
    dated.repository.say_time(later(179))
    dated.repository.publish("timestamp", life_days=300)
    dated.boot().refresh()
    assert dated.floor() == "2030-11-27T12:00:00Z"
    dated.repository.say_time(TODAY)
    dated.repository.publish("timestamp")
    refused("tuf_expired", dated.boot().refresh)

    dated.repository.rotate("timestamp")
    dated.repository.publish("timestamp")
    dated.boot().refresh()

    assert dated.floor() == "2030-06-01T12:00:00Z"


def test_metadata_that_disagree_about_the_time_are_refused_where_the_clock_cannot_tell(world: World) -> None:
    # The device is in 1970; the timestamp says that the targets are over.
    world.clock.at = EPOCH
    world.repository.now = later(200)
    world.repository.say_time()
    world.repository.publish("snapshot")
    error = refused("tuf_expired", world.boot().refresh)
    assert "targets" in str(error)
    world.repository.publish("targets")
    world.boot().refresh()


# Power cuts

TORN = [b"", b"\0" * 600, b"{", b'{"signed": {}, "signatures": []}', None]


@pytest.mark.parametrize("content", TORN)
@pytest.mark.parametrize(
    "name",
    ["root.json", "timestamp.json", "snapshot.json", "targets.json", "rollout.json", "device/clock.json"],
)
def test_a_torn_file_is_made_good_by_the_next_refresh(dated: World, name: str, content: bytes | None) -> None:
    dated.repository.add("rollout/policy.json", b"10%", role="rollout")
    for _ in range(3):
        dated.repository.rotate("root")
    dated.repository.publish("rollout")
    dated.boot().target("rollout/policy.json")
    path = dated.folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)

    dated.repository.publish("timestamp")
    assert dated.boot().document("rollout/policy.json", 100) == b"10%"

    assert dated.versions() == {role: dated.repository.signed(role).version for role in (*ROLES, "rollout")}
    if name != "timestamp.json":
        assert path.read_bytes() == whole


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_a_torn_root_of_the_past_is_fetched_again(world: World, version: int) -> None:
    for _ in range(3):
        world.repository.rotate("root")
    world.boot().refresh()
    path = world.folder / "root_history" / f"{version}.root.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    (world.folder / "root.json").unlink()

    world.boot().refresh()

    assert world.versions()["root"] == 4
    assert path.read_bytes() == whole


def test_all_files_torn_at_once_are_made_good(dated: World) -> None:
    dated.repository.rotate("root")
    dated.boot().refresh()
    for path in (*dated.folder.glob("*.json"), *(dated.folder / "root_history").iterdir()):
        path.write_bytes(b"")
    dated.boot().refresh()
    assert dated.versions() == {role: dated.repository.signed(role).version for role in ROLES}


def test_a_torn_root_is_no_way_to_another_root(world: World) -> None:
    world.repository.rotate("root")
    world.boot().refresh()
    (world.folder / "root.json").write_bytes(b"")
    stranger = Repository(TODAY)
    stranger.publish("root")
    world.server.files = stranger.server.files
    refused("tuf_signature", world.boot().refresh)


def test_temporary_files_that_a_cut_left_are_removed(world: World) -> None:
    (world.folder / "tmpab12_xyz").write_bytes(b"half")
    (world.folder / "tmpabc.json").write_bytes(b"a role may be called so")
    world.boot().refresh()
    assert not (world.folder / "tmpab12_xyz").exists()
    assert (world.folder / "tmpabc.json").exists()


class Watched(Disk):
    """Remembers what was synced."""

    def __init__(self) -> None:
        self.synced: list[str] = []

    def sync(self, path: Path) -> None:
        super().sync(path)
        self.synced.append(path.name)

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        self.synced.append(path.name)


def test_what_a_refresh_brought_is_on_the_disk_when_it_returns(world: World) -> None:
    disk = Watched()
    world.repository.publish("root")
    world.boot(disk).refresh()
    files = ["root.json", "timestamp.json", "snapshot.json", "targets.json", "1.root.json", "2.root.json"]
    assert set(disk.synced) == {*files, "root_history", "trust"}
    assert disk.synced[-2:] == ["root_history", "trust"], "names come after what they name"


# The first root


def test_init_again_with_the_same_root_changes_nothing(world: World) -> None:
    world.repository.publish("root")
    world.boot().refresh()
    world.boot().init(world.repository.first_root())
    assert world.versions()["root"] == 2


def test_init_takes_a_root_that_the_first_one_led_to_and_changes_nothing(world: World) -> None:
    world.repository.rotate("root")
    later = world.server.files[metadata_name("root", 2)]
    refused("tuf_root", lambda: world.boot().init(later))
    world.boot().refresh()
    before = {path: path.read_bytes() for path in world.folder.rglob("*.json")}
    world.boot().init(later)
    assert {path: path.read_bytes() for path in world.folder.rglob("*.json")} == before
    world.repository.rotate("root")
    refused("tuf_root", lambda: world.boot().init(world.server.files[metadata_name("root", 3)]))


def test_init_refuses_another_root(world: World) -> None:
    other = Repository(TODAY).first_root()
    error = refused("tuf_root", lambda: world.boot().init(other))
    assert str(world.folder) in str(error)
    world.boot().refresh()

    (world.folder / "device" / "root.json").unlink()
    refused("tuf_root", lambda: world.boot().init(other))


def test_init_refuses_what_is_no_root(tmp_path: Path, world: World) -> None:
    trust = Trust(tmp_path / "new", metadata_url=METADATA_URL, targets_url=TARGETS_URL)
    document = json.loads(world.repository.first_root())
    document["signed"]["version"] = 7
    for wrong in (b"", b"{}", world.server.files[TIMESTAMP], json.dumps(document).encode()):
        refused("tuf_root", partial(trust.init, wrong))
    assert not (tmp_path / "new").exists()
    trust.init(world.repository.first_root())


def test_without_a_root_nothing_is_fetched(tmp_path: Path, world: World) -> None:
    world.folder = tmp_path / "new"
    refused("tuf_root", world.boot().refresh)
    refused("tuf_root", lambda: world.boot().target("models/release.json"))
    assert world.server.fetched == []


def test_a_device_starts_from_an_expired_first_root(world: World) -> None:
    world.pass_days(400)
    world.repository.publish(*ROLES)
    world.boot().refresh()


# Errors


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("refused"),
        TimeoutError(),
        SlowRetrievalError(),
        breaking(b"{}", ConnectionResetError("reset by peer")),
        breaking(b"{}", RuntimeError("whatever a transport raises")),
    ],
    ids=["refused", "timeout", "slow", "broken", "other"],
)
@pytest.mark.parametrize("name", [TIMESTAMP, target_name("models/release.json", RELEASE)])
def test_a_network_that_fails_is_no_verdict_on_what_is_trusted(
    world: World, name: str, failure: Exception | Callable[[], list[bytes]]
) -> None:
    world.server.instead[name] = failure
    with pytest.raises(NetworkError) as caught:
        world.boot().document("models/release.json", 1000)
    assert caught.value.code == "network"
    assert METADATA_URL in caught.value.what
    world.server.instead.clear()
    assert world.boot().document("models/release.json", 1000) == RELEASE


@pytest.mark.parametrize("name", [TIMESTAMP, metadata_name("snapshot", 2), metadata_name("targets", 2)])
def test_a_file_that_the_server_lacks_is_a_failure_of_the_network(world: World, name: str) -> None:
    del world.server.files[name]
    with pytest.raises(NetworkError, match="not found"):
        world.boot().refresh()


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe", b"null", b"[]", b"[" * 10_000, b'{"signed": 1}'])
@pytest.mark.parametrize("name", [metadata_name("root", 2), TIMESTAMP, metadata_name("targets", 2)])
def test_junk_is_damaged_metadata_and_nothing_worse(world: World, name: str, junk: bytes) -> None:
    world.server.instead[name] = junk
    error = refused("tuf_damaged", world.boot().refresh)
    assert error.exit_code == 3
    assert error.expected
    assert error.way_out


def test_a_role_in_the_place_of_another_is_damaged_metadata(world: World) -> None:
    world.server.instead[TIMESTAMP] = world.server.files[metadata_name("snapshot", 2)]
    refused("tuf_damaged", world.boot().refresh)


class Full(Disk):
    """Has no room left."""

    def sync(self, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_full_disk_is_named_as_such(world: World) -> None:
    with pytest.raises(StoreError) as caught:
        world.boot(Full()).refresh()
    assert caught.value.code == "no_room"
    assert str(world.folder) in str(caught.value)


def test_a_folder_that_is_a_file_is_an_error_of_the_disk(tmp_path: Path, world: World) -> None:
    world.folder = tmp_path / "file"
    world.folder.write_bytes(b"")
    with pytest.raises(DeviceError) as caught:
        world.boot().init(world.repository.first_root())
    assert caught.value.code == "disk"


def test_the_library_does_not_import_it() -> None:
    code = (
        "import sys, edgekit_runtime, edgekit_runtime.manager; print({'tuf', 'urllib3'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"
