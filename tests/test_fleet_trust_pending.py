"""Changes that people sign: what they are shown, what they refuse, and when enough of them signed."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import DelegatedRole, Metadata, Root, TargetFile, Targets

from edgekit.fleet.errors import FleetError, InvalidError
from edgekit.fleet.trust import describe, pending, repository, rules
from edgekit.fleet.trust.keys import generate
from edgekit.fleet.trust.pending import Pending
from support.trust_world import TODAY, World, release

OLD, NEW = release("1.0.0"), release("2.0.0")


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path).start()
    world.release(OLD)
    return world


def refused(code: str, deed: Callable[[], object]) -> FleetError:
    with pytest.raises(FleetError) as caught:
        deed()
    assert caught.value.code == code
    return caught.value


def proposal(world: World) -> Pending:
    """One more release, unsigned."""
    targets = world.load().targets
    assert targets
    return world.propose(new_targets=repository.add_release(targets.signed, NEW))


# Signing


def test_a_proposal_goes_from_person_to_person_until_enough_signed(world: World) -> None:
    anna, bert, carl = world.signers["targets"]
    file = proposal(world).to_bytes()
    (first,) = pending.missing(Pending.from_bytes(file))
    assert (first.role, first.root, first.count, len(first.keys)) == ("targets", 1, 2, 3)

    file = pending.sign(Pending.from_bytes(file), anna, world.now, first_root=world.first_root()).to_bytes()
    (second,) = pending.missing(Pending.from_bytes(file))
    assert (second.count, set(second.keys)) == (1, {bert.public_key.keyid, carl.public_key.keyid})
    refused("trust_signatures", lambda: world.submit(Pending.from_bytes(file), NEW))

    file = pending.sign(Pending.from_bytes(file), carl, world.now, first_root=world.first_root()).to_bytes()
    assert pending.missing(Pending.from_bytes(file)) == ()
    world.submit(Pending.from_bytes(file), NEW)
    assert world.device().release(NEW) == NEW


def test_one_person_who_signs_twice_counts_once(world: World) -> None:
    anna = world.signers["targets"][0]
    twice = pending.sign(pending.sign(proposal(world), anna, world.now), anna, world.now)
    assert pending.missing(twice)[0].count == 1


def test_signing_leaves_the_proposal_as_it_was(world: World) -> None:
    before = proposal(world)
    file = before.to_bytes()
    pending.sign(before, world.signers["targets"][0], world.now)
    assert before.to_bytes() == file


def test_copies_that_people_signed_at_the_same_time_are_merged(world: World) -> None:
    anna, bert, _ = world.signers["targets"]
    copy = proposal(world)
    one, two = (pending.sign(copy, each, world.now) for each in (anna, bert))
    assert pending.missing(pending.merge(one, two)) == ()
    other = world.propose(new_targets=deepcopy(copy.targets.signed))  # type: ignore[union-attr]
    refused("trust_content", lambda: pending.merge(one, other))


def test_a_broken_signature_in_one_copy_hides_no_good_one(world: World) -> None:
    anna, bert, _ = world.signers["targets"]
    one = pending.sign(proposal(world), anna, world.now)
    two = pending.sign(proposal(world), bert, world.now)
    tree = json.loads(two.to_bytes())
    tree["new_targets"]["signatures"].append({"keyid": anna.public_key.keyid, "sig": "00" * 64})
    broken = Pending.from_bytes(json.dumps(tree).encode())
    assert pending.missing(pending.merge(one, broken)) == ()
    assert pending.missing(pending.merge(broken, one)) == ()


@pytest.mark.parametrize("role", ["root", "timestamp", "rollout"])
def test_a_key_that_has_no_part_in_it_is_refused(world: World, role: str) -> None:
    error = refused("trust_key", lambda: pending.sign(proposal(world), world.signers[role][0], world.now))
    assert world.signers["targets"][0].public_key.keyid[:16] in str(error)


def test_new_keys_of_root_sign_beside_the_old_ones(world: World) -> None:
    old = list(world.signers["root"])
    new = [generate() for _ in range(2)]
    change = world.propose(
        new_root=repository.rotate(world.load().root.signed, "root", [each.public_key for each in new], 1)
    )
    assert [(each.root, each.count) for each in pending.missing(change)] == [(1, 2), (2, 1)]
    for signer in old[:2]:
        change = pending.sign(change, signer, world.now)
    assert [(each.root, each.count) for each in pending.missing(change)] == [(2, 1)]
    refused("trust_signatures", lambda: world.submit(change))
    world.submit(pending.sign(change, new[0], world.now))
    world.device().refresh()


def test_a_key_is_removed_by_the_others_and_its_signature_counts_no_more(world: World) -> None:
    anna, bert, carl = world.signers["targets"]
    root = repository.remove_key(world.load().root.signed, "targets", anna.public_key.keyid)
    root.roles["targets"].threshold = 2
    new = world.load().newest_targets.signed  # type: ignore[union-attr]
    # Targets that the others sign, as what it signed before is void.
    change = world.propose(new_root=root, new_targets=deepcopy(new))
    world.submit(world.sign(change, [*world.signers["root"], bert, carl]))
    device = world.device()
    device.refresh()
    one = proposal(world)
    refused("trust_key", lambda: pending.sign(one, anna, world.now))


def test_a_root_that_voids_the_published_targets_needs_new_ones_with_it(world: World) -> None:
    root = repository.rotate(world.load().root.signed, "targets", [generate().public_key for _ in range(2)])
    refused("trust_signatures", lambda: world.propose(new_root=root))


# What a person refuses to sign


def test_a_proposal_of_another_fleet_is_not_signed(world: World, tmp_path: Path) -> None:
    """Whoever made the file invented a root with this person's key, and hides a release in what is published."""
    anna = world.signers["targets"][0]
    forger = World(tmp_path / "forged", people=1, threshold=1)
    forger.signers["targets"] = [anna]
    published = world.load()
    root = repository.rotate(published.root.signed, "root", [generate().public_key], 1)
    forged = Metadata(repository.as_version(root, 1, "root", world.now))
    signer = generate()
    forged.signed = repository.rotate(forged.signed, "root", [signer.public_key], 1)
    forged.signed = repository.rotate(forged.signed, "targets", [anna.public_key, signer.public_key], 1)
    forged.sign(signer)
    hidden = Metadata(repository.add_release(published.targets.signed, release("6.6.6")))  # type: ignore[union-attr]
    hidden.sign(signer)
    file = pending.propose(
        [forged], hidden, world.now, new_targets=repository.add_release(hidden.signed, NEW)
    )

    lines = pending.describe(file)
    assert not any("6.6.6" in line for line in lines), "the file itself does not give it away"
    refused("trust_root", lambda: pending.sign(file, anna, world.now, first_root=world.first_root()))


def test_any_root_of_the_chain_is_enough_to_know_the_fleet(world: World) -> None:
    world.submit(world.rotating("root"))
    second = world.load().root.to_bytes()
    for known in (world.first_root(), second):
        pending.check(proposal(world), world.now, known)


Change = Callable[[Pending], Pending]


def _targets(change: Callable[[Targets], None]) -> Change:
    def do(one: Pending) -> Pending:
        new = deepcopy(one.new_targets)
        assert new
        change(new.signed)
        return replace(one, new_targets=new)

    return do


def _custom(**more: Any) -> Change:
    def change(targets: Targets) -> None:
        target = targets.targets[f"releases/{NEW.id}.json"]
        target.unrecognized_fields = {"custom": {**target.unrecognized_fields["custom"], **more}}

    return _targets(change)


def _target(path: str, hashes: dict[str, str]) -> Change:
    custom = {"custom": {"model": "kws", "version": "1", "size": 1}}
    return _targets(lambda targets: targets.targets.update({path: TargetFile(5, hashes, path, custom)}))


def _delegate(targets: Targets, name: str, paths: list[str]) -> None:
    delegations = targets.delegations
    assert delegations
    assert delegations.roles
    keyids = list(delegations.roles["rollout"].keyids)
    delegations.roles[name] = DelegatedRole(name, keyids, 1, True, paths)


def _other_id(targets: Targets) -> None:
    assert targets.delegations
    assert targets.delegations.roles
    keys, role = targets.delegations.keys, targets.delegations.roles["rollout"]
    (key,) = keys.values()
    keys["0" * 64] = SSlibKey("0" * 64, key.keytype, key.scheme, key.keyval)
    role.keyids.append("0" * 64)


SPOILED: dict[str, tuple[str, Change]] = {
    "the same version": ("trust_version", _targets(lambda new: setattr(new, "version", 2))),
    "a version too many": ("trust_version", _targets(lambda new: setattr(new, "version", 4))),
    "expired": ("trust_expired", _targets(lambda new: setattr(new, "expires", TODAY))),
    "valid for years": (
        "trust_expired", _targets(lambda new: setattr(new, "expires", TODAY + timedelta(days=361))),
    ),
    "a field that nobody knows": ("trust_content", _targets(lambda new: new.unrecognized_fields.update(x=1))),
    "a remark that nobody knows": ("trust_content", _custom(more=1)),
    "a model that cannot be shown": ("trust_content", _custom(model="kws\u202e1.2")),
    "a model with a colour": ("trust_content", _custom(model="kws\x1b[31m")),
    "a version that is none": ("trust_content", _custom(version="1 2")),
    "a size that is none": ("trust_content", _custom(size=-1)),
    "another path": ("trust_content", _target("models/a.json", {"sha256": "a" * 64})),
    "a path that steps upwards": ("trust_content", _target("releases/../x.json", {"sha256": "a" * 64})),
    "a path of policies": ("trust_content", _target("rollout/stable.json", {"sha256": "a" * 64})),
    "a hash that is not the id": ("trust_content", _target(f"releases/{'a' * 64}.json", {"sha256": "b" * 64})),
    "another hash beside it": (
        "trust_content", _target(f"releases/{'a' * 64}.json", {"sha256": "a" * 64, "md5": "b"}),
    ),
    "a release said otherwise": (
        "trust_content",
        _targets(lambda new: setattr(new.targets[f"releases/{OLD.id}.json"], "length", 7)),
    ),
    "another role": ("trust_content", _targets(lambda new: _delegate(new, "more", ["releases/*"]))),
    "rollout for releases": ("trust_content", _targets(lambda new: _delegate(new, "rollout", ["*"]))),
    "no delegation": ("trust_content", _targets(lambda new: setattr(new, "delegations", None))),
    "one key under two names": ("trust_content", _targets(_other_id)),
    "nobody proposes anything": ("trust_content", lambda one: replace(one, gap=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_what_does_not_follow_is_neither_signed_nor_accepted(world: World, name: str) -> None:
    code, spoil = SPOILED[name]
    spoiled = spoil(proposal(world))
    refused(code, lambda: pending.sign(spoiled, world.signers["targets"][0], world.now))
    assert spoiled.new_targets
    for signer in world.signers["targets"]:
        spoiled.new_targets.sign(signer, append=True)
    if not spoiled.gap:
        published = world.load()
        content = spoiled.new_targets.to_bytes()
        deed = lambda: rules.accept_targets(published.root, published.targets, content, world.now)  # noqa: E731
        with pytest.raises(InvalidError):
            deed()


def _root(change: Callable[[Root], None]) -> Callable[[World], Root]:
    def make(world: World) -> Root:
        new = deepcopy(world.load().root.signed)
        change(new)
        return new

    return make


def _share(root: Root, role: str, other: str) -> None:
    root.add_key(root.keys[root.roles[other].keyids[0]], role)


def _with_rollout_key(world: World) -> Root:
    root = deepcopy(world.load().root.signed)
    root.add_key(world.signers["rollout"][0].public_key, "root")
    return root


BAD_ROOTS: dict[str, Callable[[World], Root]] = {
    "no consistent snapshots": _root(lambda root: setattr(root, "consistent_snapshot", False)),
    "a threshold above the keys": _root(lambda root: setattr(root.roles["targets"], "threshold", 4)),
    "a key of the server for targets": _root(lambda root: _share(root, "targets", "timestamp")),
    "a key of root on the server": _root(lambda root: _share(root, "snapshot", "root")),
    "a field that nobody knows": _root(lambda root: root.unrecognized_fields.update(x=1)),
    "a key without a role": _root(lambda root: root.keys.update({(k := generate().public_key).keyid: k})),
    "a key of rollout for root": _with_rollout_key,
}


@pytest.mark.parametrize("name", BAD_ROOTS)
def test_a_root_that_would_weaken_the_fleet_is_not_proposed(world: World, name: str) -> None:
    refused("trust_content", lambda: world.propose(new_root=BAD_ROOTS[name](world)))


def test_a_role_keeps_as_many_keys_as_its_threshold_takes(world: World) -> None:
    root = world.load().root.signed
    for signer in world.signers["root"][:2]:
        root = repository.remove_key(root, "root", signer.public_key.keyid)
    refused("trust_content", lambda: world.propose(new_root=root))
    refused("trust_key", lambda: repository.remove_key(root, "root", "0" * 64))
    refused("trust_key", lambda: repository.rotate(root, "rollout", []))


def test_a_first_root_comes_with_targets_and_follows_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.init.new_root
    root, now = world.init.new_root.signed, world.now
    refused("trust_content", lambda: pending.propose((), None, now, new_targets=Targets()))
    refused("trust_content", lambda: Pending.from_bytes(pending.propose((), None, now).to_bytes()))
    assert pending.propose((), None, now, new_root=root).new_root
    refused(
        "trust_version", lambda: rules.accept_root(world.init.new_root, world.init.new_root.to_bytes(), now)
    )  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff", b'{"schema": 2}', b"[" * 99, b'{"schema":1,"schema":1}',
     b'{"schema":1,"roots":{},"targets":null,"new_root":null,"new_targets":null,"gap":false}',
     b'{"schema":1,"roots":[],"targets":null,"new_root":null,"new_targets":null,"gap":false}',
     b'{"schema":1,"roots":[1],"targets":null,"new_root":null,"new_targets":null,"gap":false}',
     b'{"schema":1,"roots":[],"targets":null,"new_root":{"signed":{}},"new_targets":null,"gap":false}'],
)  # fmt: skip
def test_a_file_that_is_no_proposal_is_refused(content: bytes) -> None:
    refused("trust_content", lambda: Pending.from_bytes(content))


def test_a_role_in_the_place_of_another_is_refused(world: World) -> None:
    tree = json.loads(proposal(world).to_bytes())
    tree["new_root"] = tree["new_targets"]
    refused("trust_content", lambda: Pending.from_bytes(json.dumps(tree).encode()))
    tree["new_root"], tree["roots"] = None, tree["roots"] * 2
    refused("trust_content", lambda: pending.check(Pending.from_bytes(json.dumps(tree).encode()), world.now))


def test_a_document_larger_than_devices_take_is_refused() -> None:
    refused("trust_content", lambda: rules.read(b" " * 600_000, Root, "root"))


# What a person is shown


def test_a_person_sees_each_release_key_and_threshold_that_changes(world: World) -> None:
    published = world.load()
    assert published.targets
    targets = repository.retire(repository.add_release(published.targets.signed, NEW), [OLD.id])
    key = generate().public_key
    targets = repository.rotate(targets, "rollout", [key])
    root = deepcopy(published.root.signed)
    gone = world.signers["root"][0].public_key.keyid
    root = repository.remove_key(root, "root", gone)
    root.roles["root"].threshold = 1

    lines = pending.describe(world.propose(new_root=root, new_targets=targets))

    assert lines == (
        "root: version 1, expires 2031-06-01 12:00 UTC → version 2, expires 2031-06-01 12:00 UTC",
        f"  − key of root {gone}",
        "  threshold of root 2 → 1 of 2 keys",
        "targets: version 2, expires 2030-11-28 12:00 UTC → version 3, expires 2030-11-28 12:00 UTC",
        "  1 releases, 1 new, 1 retired",
        f"  − release kws 1.0.0 (30 bytes, id {OLD.id})",
        f"  + release kws 2.0.0 (30 bytes, id {NEW.id})",
        f"  − key of rollout {world.signers['rollout'][0].public_key.keyid}",
        f"  + key of rollout {key.keyid}",
        "  threshold of rollout stays 1, now of 1 keys",
    )


def test_the_first_root_and_targets_are_shown_whole(tmp_path: Path) -> None:
    lines = pending.describe(World(tmp_path).init)
    assert lines[0].startswith("root: nothing → version 1")
    assert sum("+ key of" in line for line in lines) == 9
    assert "  threshold of targets 2 of 3 keys" in lines


def test_a_gap_is_named(world: World) -> None:
    assert "gap" in pending.describe(world.rotating("targets", gap=True))[-1]


# Changes, as a whole


RELEASES = st.lists(
    st.integers(0, 50).map(lambda n: release(f"1.{n}")), unique_by=lambda each: each.id, max_size=6
)


@given(have=RELEASES, add=RELEASES, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_change_touches_what_it_names_and_never_what_it_was_given(
    have: list, add: list, data: st.DataObject
) -> None:
    targets = repository.first_targets([generate().public_key])
    for each in have:
        targets = repository.add_release(targets, each)
    before = targets.to_dict()

    new = targets
    for each in add:
        new = repository.add_release(new, each)
    go = data.draw(
        st.lists(st.sampled_from([*have, *add]), unique_by=lambda each: each.id)
        if have or add
        else st.just([])
    )
    new = repository.retire(new, [each.id for each in go])

    assert targets.to_dict() == before
    left = {each.id for each in [*have, *add]} - {each.id for each in go}
    assert set(new.targets) == {f"releases/{each}.json" for each in left}
    lines = describe.describe(targets, new)
    for each in {*[x.id for x in have]} ^ left:
        assert sum(each in line for line in lines) == 1
    with pytest.raises(FleetError):
        repository.retire(new, ["0" * 64])


@given(days=st.floats(0, 400))
def test_what_is_due_stays_due(days: float) -> None:
    targets = repository.as_version(Targets(), 1, "targets", TODAY)
    assert repository.is_due(targets, "targets", TODAY + timedelta(days=days)) == (days >= 135)
