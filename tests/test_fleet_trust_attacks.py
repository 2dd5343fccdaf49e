"""Who has stolen what, and what devices make of it; docs/threat-model.md names these tests line by line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, TargetFile

from edgekit.fleet.errors import InvalidError
from edgekit.fleet.trust import pending, repository, rules
from edgekit.fleet.trust.layout import LIFE, TIMESTAMP, metadata_name, target_name
from edgekit.fleet.trust.published import Published
from edgekit_runtime.agent.fetch import release_path
from edgekit_runtime.errors import DeviceError, TrustError
from support.trust_world import Device, Thief, World, policy, release

OLD, GOOD, EVIL = release("1.0.0"), release("2.0.0"), release("6.6.6")
TESTS = Path(__file__).parent


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path).start()
    world.release(OLD, GOOD)
    world.select({"stable": policy(GOOD)})
    return world


@pytest.fixture
def thief(world: World) -> Thief:
    return Thief(world)


def refused(code: str, deed: Callable[[], object]) -> None:
    with pytest.raises(TrustError) as caught:
        deed()
    assert caught.value.code == code


def select(of: object) -> Callable[[Published], None]:
    """What a thief does to the policies."""

    def change(published: Published) -> None:
        rollout = published.rollout
        assert rollout
        rollout.signed = repository.set_policies(rollout.signed, {"stable": policy(of)})  # type: ignore[arg-type]

    return change


def upload(thief: Thief, of: object) -> None:
    """Put the documents of a release and its policy where devices look."""
    for name, content in (
        repository.release_document(of),  # type: ignore[arg-type]
        *repository.policy_documents({"stable": policy(of)}).items(),  # type: ignore[arg-type]
    ):
        thief.put(name, content)


# A stolen server


def test_a_thief_of_the_server_cannot_have_a_release_taken_that_targets_did_not_sign(
    world: World, thief: Thief
) -> None:
    device = world.device()
    device.refresh()
    upload(thief, EVIL)

    thief.publish(select(EVIL))

    assert device.policy() == policy(EVIL)
    refused("tuf_untrusted", lambda: device.release(EVIL))
    refused("tuf_untrusted", lambda: world.device().release(EVIL))


def test_a_thief_of_the_server_cannot_sign_a_release_with_the_role_that_policies_have(
    world: World, thief: Thief
) -> None:
    upload(thief, EVIL)

    def change(published: Published) -> None:
        assert published.rollout
        published.rollout.signed.targets[release_path(EVIL.id)] = repository.release_target(EVIL)

    thief.publish(change)
    refused("tuf_untrusted", lambda: world.device().release(EVIL))


@pytest.mark.parametrize("jump", [0, 1])
def test_a_thief_of_the_server_cannot_sign_targets(world: World, thief: Thief, jump: int) -> None:
    upload(thief, EVIL)

    def change(published: Published) -> None:
        assert published.targets
        new = repository.add_release(published.targets.signed, EVIL)
        new.version += jump
        forged = Metadata(new)
        for signers in thief.keys.values():
            for signer in signers:
                forged.sign(signer, append=True)
        published.targets.signed, published.targets.signatures = new, forged.signatures

    device = world.device()
    device.refresh()
    thief.publish(change)
    for each in (device, world.device()):
        with pytest.raises(DeviceError):
            each.release(EVIL)


def test_a_thief_of_the_server_cannot_make_a_root(world: World, thief: Thief) -> None:
    device = world.device()
    device.refresh()
    root = repository.rotate(world.load().root.signed, "targets", [thief.keys["rollout"][0].public_key], 1)
    root.version += 1
    thief.put(metadata_name("root", 2), thief.sign(root, "timestamp"))
    for each in (device, world.device()):
        refused("tuf_signature", each.refresh)


def test_a_thief_of_the_server_cannot_change_the_document_of_a_release(world: World, thief: Thief) -> None:
    name, content = repository.release_document(GOOD)
    device = world.device()
    for other in (EVIL.to_json().encode(), content.replace(b"cd", b"ce"), content + b" ", b""):
        thief.put(name, other)
        refused("tuf_damaged", lambda: device.release(GOOD))


def test_a_thief_of_the_server_cannot_bring_a_retired_release_back(world: World, thief: Thief) -> None:
    before = world.load().targets
    assert before
    world.submit(world.retiring(OLD))
    device = world.device()
    device.refresh()
    refused("tuf_untrusted", lambda: device.release(OLD))

    def change(published: Published) -> None:
        assert published.targets
        published.targets.signed, published.targets.signatures = before.signed, before.signatures
        select(OLD)(published)

    upload(thief, OLD)
    thief.publish(change)
    refused("tuf_rollback", lambda: device.release(OLD))
    refused("tuf_rollback", device.policy)


def test_a_device_that_was_kept_from_a_retirement_is_so_no_longer_than_old_targets_live(
    world: World, thief: Thief
) -> None:
    before = world.load().targets
    assert before
    device = world.device()
    device.refresh()
    world.submit(world.retiring(OLD))

    def change(published: Published) -> None:
        assert published.targets
        published.targets.signed, published.targets.signatures = before.signed, before.signatures
        select(OLD)(published)

    upload(thief, OLD)
    thief.publish(change)
    assert device.release(OLD) == OLD

    world.now = before.signed.expires + timedelta(seconds=1)
    thief.publish(select(OLD))
    refused("tuf_expired", lambda: device.release(OLD))


def test_a_thief_of_the_server_can_select_what_is_still_signed_and_retiring_takes_that_away(
    world: World, thief: Thief
) -> None:
    device = world.device()
    device.refresh()
    upload(thief, OLD)
    thief.publish(select(OLD))
    assert device.policy() == policy(OLD)
    assert device.release(OLD) == OLD

    world.submit(world.retiring(OLD), policies={"stable": policy(GOOD)}, anew=True)

    assert device.policy() == policy(GOOD)
    refused("tuf_untrusted", lambda: device.release(OLD))


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "rollout"])
def test_a_thief_of_the_server_cannot_roll_metadata_back(world: World, thief: Thief, role: str) -> None:
    old = deepcopy(world.load())
    old_timestamp = world.documents.read(TIMESTAMP)
    assert old_timestamp
    world.submit(world.targets_with(release("3.0.0")), release("3.0.0"))
    world.select({"stable": policy(OLD)})
    device = world.device()
    device.policy()

    def change(published: Published) -> None:
        if role == "targets":
            assert published.targets
            assert old.targets
            published.targets.signed, published.targets.signatures = (
                old.targets.signed,
                old.targets.signatures,
            )
        elif role == "rollout":
            assert published.rollout
            published.rollout.signed.version -= 2
        elif role == "snapshot":
            assert published.snapshot
            published.snapshot.signed.version -= 2

    if role == "timestamp":
        thief.put(TIMESTAMP, old_timestamp)
    else:
        thief.publish(change)
    refused("tuf_rollback", device.refresh)


@pytest.mark.parametrize("restored", [False, True])
def test_new_keys_of_the_server_bring_devices_back_that_a_thief_sent_far_ahead(
    world: World, thief: Thief, restored: bool
) -> None:
    """Fast-forward: versions so high that nothing of the owner's would ever be newer."""
    device, asleep = world.device(), world.device()
    device.policy()
    asleep.policy()
    copy = {name: world.documents.read(name) for name in (TIMESTAMP,)}
    upload(thief, OLD)
    thief.publish(select(OLD), jump=1_000_000)
    assert device.policy() == policy(OLD)
    if restored:
        thief.put(TIMESTAMP, copy[TIMESTAMP] or b"")

    change = world.rotating("timestamp", "snapshot", "rollout")
    world.submit(change, delegation_may_change=True, policies={"stable": policy(GOOD)}, anew=True)
    world.forget_old_keys()
    world.select({"beta": policy(GOOD)})

    for each in (device, asleep, world.device()):
        assert each.policy() == policy(GOOD)
        assert each.policy("beta") == policy(GOOD)
        assert each.release(GOOD) == GOOD


def test_stolen_keys_of_the_server_count_no_more_once_they_are_replaced(world: World, thief: Thief) -> None:
    device = world.device()
    device.policy()
    world.submit(
        world.rotating("timestamp", "snapshot", "rollout"), delegation_may_change=True,
        policies={"stable": policy(GOOD)}, anew=True,
    )  # fmt: skip
    device.policy()
    world.forget_old_keys()
    upload(thief, OLD)
    thief.publish(select(OLD))
    refused("tuf_signature", device.policy)
    refused("tuf_signature", world.device().refresh)


def test_a_stolen_key_of_policies_alone_cannot_show_another_policy(world: World, thief: Thief) -> None:
    """The snapshot names the hash of what rollout said, and its key is another one."""
    rollout = world.load().rollout
    assert rollout
    changed = repository.set_policies(rollout.signed, {"stable": policy(OLD)})
    upload(thief, OLD)
    thief.put(metadata_name("rollout", changed.version), thief.sign(changed, "rollout"))
    refused("tuf_damaged", world.device().policy)


def test_a_thief_of_the_server_gets_nobody_to_sign_what_they_do_not_see(world: World) -> None:
    """A proposal that the server made is shown in full, and ids are those of the bundles."""
    targets = world.load().targets
    assert targets
    new = repository.add_release(targets.signed, EVIL)
    new.targets[release_path(EVIL.id)].unrecognized_fields["custom"]["version"] = "2.0.1"
    change = world.sign(world.propose(new_targets=new))
    assert f"  + release kws 2.0.1 (30 bytes, id {EVIL.id})" in pending.describe(change)
    with pytest.raises(InvalidError):
        world.submit(change, EVIL)


# A stolen key of a publisher


def test_keys_of_targets_below_the_threshold_sign_nothing_alone(world: World, thief: Thief) -> None:
    stolen = world.signers["targets"][0]
    targets = world.load().targets
    assert targets
    new = repository.add_release(targets.signed, EVIL)
    change = pending.sign(world.propose(new_targets=new), stolen, world.now)
    with pytest.raises(InvalidError) as caught:
        world.submit(change, EVIL)
    assert caught.value.code == "trust_signatures"
    assert change.new_targets
    published = world.load()
    with pytest.raises(InvalidError):
        rules.accept_targets(published.root, published.targets, change.new_targets.to_bytes(), world.now)

    # Nor with the whole server at hand.
    def publish(published: Published) -> None:
        assert published.targets
        assert change.new_targets
        published.targets.signed = change.new_targets.signed
        published.targets.signatures = change.new_targets.signatures

    device = world.device()
    device.refresh()
    upload(thief, EVIL)
    thief.publish(publish)
    refused("tuf_signature", lambda: device.release(EVIL))


def test_a_stolen_key_of_a_publisher_is_taken_from_its_role(world: World) -> None:
    stolen, *others = world.signers["targets"]
    published = world.load()
    assert published.targets
    root = repository.remove_key(published.root.signed, "targets", stolen.public_key.keyid)
    change = world.propose(new_root=root, new_targets=published.targets.signed)
    world.submit(world.sign(change, [*world.signers["root"], *others]))

    again = world.propose(new_targets=repository.add_release(published.targets.signed, EVIL))
    with pytest.raises(InvalidError) as caught:
        pending.sign(again, stolen, world.now)
    assert caught.value.code == "trust_key"
    world.device().refresh()


def test_keys_of_root_below_the_threshold_change_no_keys(world: World, thief: Thief) -> None:
    stolen = world.signers["root"][0]
    root = repository.rotate(world.load().root.signed, "root", [stolen.public_key], 1)
    change = pending.sign(world.propose(new_root=root), stolen, world.now)
    with pytest.raises(InvalidError):
        world.submit(change)
    assert change.new_root
    thief.put(metadata_name("root", 2), change.new_root.to_bytes())
    refused("tuf_signature", world.device().refresh)


# An operator


def test_an_operator_selects_among_what_targets_signed_and_nothing_else(world: World) -> None:
    with pytest.raises(InvalidError) as caught:
        world.select({"stable": policy(EVIL)})
    assert caught.value.code == "release"
    world.select({"stable": policy(OLD)})
    assert world.device().policy() == policy(OLD)


def test_an_operator_cannot_publish_a_file_under_the_name_of_a_release(world: World) -> None:
    for channel in ("../releases/x", "stable/../../releases/x", "stable.json/x"):
        with pytest.raises(InvalidError):
            world.select({channel: policy(GOOD)})


# A stolen device


def test_neither_a_device_nor_a_server_of_files_holds_a_secret(world: World) -> None:
    device = world.device()
    device.policy()
    device.release(GOOD)
    held = [each.read_bytes() for each in world.path.rglob("*") if each.is_file()]
    assert len(held) > 10
    for signers in world.signers.values():
        for signer in signers:
            secret = signer._private_key.private_bytes_raw()  # type: ignore[attr-defined]
            for content in held:
                assert secret not in content
                assert secret.hex().encode() not in content
    assert not any(b"PRIVATE" in content for content in held)


# Whoever serves the files


def test_a_network_that_mixes_old_files_with_new_ones_gets_nothing_old_taken(world: World) -> None:
    device = world.device()
    device.policy()
    folder = world.path / "site"
    old = {path: path.read_bytes() for path in folder.rglob("*.json")}
    world.submit(world.retiring(OLD))
    world.select({"stable": None})
    device.refresh()
    for path, content in old.items():
        new = path.read_bytes()
        path.write_bytes(content)
        try:
            device.refresh()
        except TrustError as error:
            assert error.code == "tuf_rollback"  # noqa: PT017 - either of two ends
        refused_release(device)
        path.write_bytes(new)
    device.refresh()


def refused_release(device: Device) -> None:
    with pytest.raises(DeviceError):
        device.release(OLD)


def test_a_network_that_freezes_a_fleet_is_told_by_expiry_within_two_days(world: World) -> None:
    device = world.device()
    device.refresh()
    world.now += LIFE["timestamp"] + timedelta(seconds=1)
    refused("tuf_expired", device.refresh)


def test_a_target_under_its_own_hash_is_no_way_to_another_path(world: World, thief: Thief) -> None:
    """A release's document under the name of a policy is no policy, whoever signed it."""
    content = GOOD.to_json().encode()
    path = "rollout/stable.json"

    def change(published: Published) -> None:
        assert published.rollout
        published.rollout.signed.targets[path] = TargetFile.from_data(path, content, ["sha256"])

    thief.put(target_name(path, hashlib.sha256(content).hexdigest()), content)
    thief.publish(change)
    with pytest.raises(Exception, match="rules"):
        world.device().policy()


# The document


def test_the_threat_model_names_tests_that_exist() -> None:
    page = (TESTS.parent / "docs" / "threat-model.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)`", page)
    defined = {
        name
        for path in TESTS.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    assert sorted(set(named) - defined) == []
    lines = [
        line for line in page.splitlines() if line.startswith("|") and not line.startswith(("|--", "| What"))
    ]
    assert len(lines) > 25
    assert [line for line in lines if "`test_" not in line] == []


def test_the_threat_model_names_each_attack_of_this_file() -> None:
    page = (TESTS.parent / "docs" / "threat-model.md").read_text(encoding="utf-8")
    here = re.findall(r"^def (test_\w+)\(", Path(__file__).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [name for name in here if "threat_model" not in name and f"`{name}`" not in page] == []
