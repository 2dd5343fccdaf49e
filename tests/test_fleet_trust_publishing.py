"""What is published, as devices find it: at every moment, after every kill, with several servers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from edgekit.fleet.errors import ConflictError, FleetError, InvalidError, NotFoundError
from edgekit.fleet.trust import publishing, repository
from edgekit.fleet.trust.documents import Folder
from edgekit.fleet.trust.keys import generate
from edgekit.fleet.trust.layout import LIFE, TIMESTAMP, metadata_name, policy_path
from edgekit.fleet.trust.pending import Pending
from edgekit.fleet.trust.published import due
from edgekit_runtime.errors import TrustError
from support.trust_world import TODAY, Device, Killed, Memory, Torn, World, policy, release

OLD, NEW, OTHER = release("1.0.0"), release("2.0.0"), release("1.0.0", "größe")


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path).start()
    world.release(OLD, OTHER)
    world.select({"stable": policy(OLD)})
    return world


def refused(code: str, deed: Callable[[], object]) -> FleetError:
    with pytest.raises(FleetError) as caught:
        deed()
    assert caught.value.code == code
    return caught.value


# What devices find


def test_a_device_finds_the_policy_and_the_release_that_it_names(world: World) -> None:
    device = world.device()
    found = device.policy()
    assert found == policy(OLD)
    assert device.release(OLD) == OLD
    assert device.boot().target(f"releases/{OTHER.id}.json").custom == {
        "model": "größe", "version": "1.0.0", "size": 30,
    }  # fmt: skip


def test_timestamps_say_when_they_were_signed(world: World) -> None:
    world.device().refresh()
    clock = (world.path / "device-1" / "device" / "clock.json").read_text()
    assert f"{TODAY:%Y-%m-%dT%H:%M:%SZ}" in clock


def test_policies_of_other_channels_stay_and_one_may_be_taken_away(world: World) -> None:
    world.select({"beta": policy(OTHER)})
    assert world.device().policy() == policy(OLD)
    world.select({"beta": None})
    device = world.device()
    assert device.policy() == policy(OLD)
    with pytest.raises(TrustError):
        device.policy("beta")
    world.select({"beta": policy(OTHER)}, anew=True)
    with pytest.raises(TrustError):
        world.device().policy("stable")


def test_the_same_policy_again_writes_nothing(world: World) -> None:
    torn = Torn(world.documents, 0)
    publishing.set_policies(torn, world.online(), {"stable": policy(OLD)}, world.now)
    assert torn.names == []


def test_a_policy_for_what_targets_do_not_sign_is_refused(world: World) -> None:
    error = refused("release", lambda: world.select({"stable": policy(NEW)}))
    assert NEW.id[:16] in str(error)


@pytest.mark.parametrize("channel", ["", "..", "a/b", "-x", "ü", "a" * 129, "a\n"])
def test_a_channel_that_no_device_takes_is_refused(channel: str) -> None:
    refused("channel", lambda: policy_path(channel))


def test_before_the_first_publication_that_is_said(tmp_path: Path) -> None:
    world = World(tmp_path)
    refused("trust_empty", world.renew)
    refused("trust_empty", lambda: world.select({}))
    with pytest.raises(NotFoundError):
        _ = world.load().root
    assert due(world.load(), world.now) == ()


def test_the_first_publication_cut_at_any_write_is_completed_by_the_next(tmp_path: Path) -> None:
    for cut in range(6):
        world = World(tmp_path / str(cut))
        torn = Torn(world.documents, cut)
        try:
            world.submit(world.init, documents=torn)
        except Killed:
            world.submit(world.init)
        device = world.device()
        device.refresh()
        assert torn.names[:1] == [metadata_name("root", 1)][:cut]
    assert cut >= len(torn.names)


# Cut between any two writes


def add_a_policy(world: World) -> Callable[[Torn], None]:
    return lambda torn: (
        publishing.set_policies(torn, world.online(), {"stable": policy(OTHER)}, world.now) and None
    )


def submits(
    make: Callable[[World], Pending], *releases: object, **more: object
) -> Callable[[World], Callable]:
    def prepare(world: World) -> Callable[[Torn], None]:
        pending = make(world)
        return lambda torn: world.submit(pending, *releases, documents=torn, **more)  # type: ignore[arg-type]

    return prepare


def renewing(world: World) -> Callable[[Torn], None]:
    world.pass_days(1.5)
    return lambda torn: publishing.renew(torn, world.online(), world.now) and None


CHANGES = {
    "a policy": add_a_policy,
    "a release": submits(lambda world: world.targets_with(NEW), NEW),
    "a release and its policy": submits(
        lambda world: world.targets_with(NEW), NEW, policies={"beta": policy(NEW)}
    ),
    "a release that is retired": submits(lambda world: world.retiring(OTHER)),
    "new keys of rollout": submits(lambda world: world.rotating("rollout"), delegation_may_change=True),
    "new keys of timestamp": submits(lambda world: world.rotating("timestamp")),
    "new keys of the server": submits(
        lambda world: world.rotating("timestamp", "snapshot", "rollout"), delegation_may_change=True
    ),
    "new keys of root": submits(lambda world: world.rotating("root")),
    "new keys of targets": submits(lambda world: world.rotating("targets")),
    "all keys": submits(
        lambda world: world.rotating("root", "targets", "timestamp", "snapshot", "rollout"),
        delegation_may_change=True,
    ),
    "new signatures": renewing,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_server_killed_between_any_two_writes_leaves_what_devices_take(tmp_path: Path, change: str) -> None:
    world = World(tmp_path, documents=Memory()).start()
    world.release(OLD, OTHER)
    world.select({"stable": policy(OLD)})
    old = world.device()
    old.policy()
    publish = CHANGES[change](world)
    before: Memory = world.documents  # type: ignore[assignment]

    cut, whole = 0, False
    while not whole:
        world.documents = after = Memory(dict(before.files))
        torn = Torn(after, cut)
        try:
            publish(torn)
            whole = True
        except Killed:
            assert len(torn.names) == cut
        for each in (
            old.copy(tmp_path / f"{cut}-old", after),
            Device(tmp_path / f"{cut}-new", world, after),
        ):
            trust = each.boot()
            assert each.policy(trust=trust) in (policy(OLD), policy(OTHER))
            assert each.release(OLD, trust=trust) == OLD
        # The next server goes on, whatever this one left behind, and devices of every kind come along.
        publish(Torn(after, 1000))
        world.select({"stable": policy(OTHER)} if change != "a release that is retired" else {"stable": None})
        old.copy(tmp_path / f"{cut}-next", after).refresh()
        Device(tmp_path / f"{cut}-fresh", world, after).refresh()
        cut += 1
    assert cut > 1


def test_targets_that_a_killed_server_stored_are_published_by_the_next(world: World) -> None:
    pending = world.targets_with(NEW)
    with pytest.raises(Killed):
        world.submit(pending, NEW, documents=Torn(world.documents, 2))
    assert world.load().waiting is not None

    refused("trust_version", lambda: world.submit(_other_version_of(pending, world)))
    world.renew()

    assert world.load().waiting is None
    assert world.device().release(NEW) == NEW


def _other_version_of(pending: Pending, world: World) -> Pending:
    before = pending.targets
    assert before
    new = repository.as_version(
        repository.retire(before.signed, [OLD.id]), before.signed.version + 1, "targets", world.now
    )
    return world.sign(Pending(pending.roots, before, None, Metadata(new)))


def test_submitting_the_same_again_changes_nothing(world: World) -> None:
    pending = world.targets_with(NEW)
    world.submit(pending, NEW)
    torn = Torn(world.documents, 0)
    world.submit(pending, NEW, documents=torn)
    assert torn.names == []


# Keys


def test_old_keys_may_go_once_the_new_root_is_out(world: World) -> None:
    device = world.device()
    device.refresh()
    world.submit(
        world.rotating("root", "targets", "timestamp", "snapshot", "rollout"), delegation_may_change=True
    )
    world.forget_old_keys()
    world.select({"stable": policy(OTHER)})
    world.release(NEW)
    world.pass_days(3)
    world.renew()
    assert device.policy() == policy(OTHER)
    assert device.release(NEW) == NEW


def test_lost_keys_of_targets_are_replaced_by_root_and_devices_refuse_in_between_only(world: World) -> None:
    device = world.device()
    device.refresh()
    pending = world.rotating("targets", gap=True)
    torn = Torn(world.documents, 1)
    with pytest.raises(Killed):
        world.submit(pending, documents=torn)
    assert torn.names == ["metadata/2.root.json"]
    with pytest.raises(TrustError):
        device.refresh()

    world.submit(pending)

    device.refresh()
    assert device.release(OLD) == OLD


def test_a_server_without_a_key_writes_nothing(world: World) -> None:
    for roles in (("timestamp",), ("rollout",)):
        pending = world.rotating(*roles)
        held = {role: signers[:1] for role, signers in world.online().items()}
        torn = Torn(world.documents, 0)
        error = refused(
            "key_missing",
            lambda p=pending, h=held, t=torn: publishing.submit(
                t, h, p, world.now, delegation_may_change=True
            ),
        )
        assert roles[0] in str(error)


def test_new_keys_of_rollout_are_published_only_where_that_is_asked_for(world: World) -> None:
    refused("trust_content", lambda: world.submit(world.rotating("rollout")))


# Time


def test_with_renewals_a_fleet_goes_on_and_people_are_told_in_time(tmp_path: Path) -> None:
    world = World(tmp_path, documents=Memory()).start()
    device = world.device()
    told = {}
    for day in range(140):
        world.pass_days(1)
        for role in due(world.load(), world.now):
            told.setdefault(role, day + 1)
        world.renew()
        if day % 5 == 0:
            device.refresh()
    assert told == {"timestamp": 1, "snapshot": 4, "rollout": 7, "targets": 135}
    assert due(world.load(), world.now) == ("targets",)
    world.submit(world.targets_with())
    world.pass_days(135)
    world.renew()
    assert due(world.load(), world.now) == ("root", "targets")


def test_without_a_renewal_devices_install_nothing_more(world: World) -> None:
    device = world.device()
    device.refresh()
    world.pass_days(LIFE["timestamp"].days + 0.1)
    with pytest.raises(TrustError) as caught:
        device.refresh()
    assert caught.value.code == "tuf_expired"
    world.renew()
    device.refresh()


# Several servers


def test_servers_that_publish_at_once_lose_nothing(tmp_path: Path) -> None:
    world = World(tmp_path).start()
    world.release(OLD)
    errors: list[BaseException] = []

    def server(number: int) -> None:
        folder = Folder(tmp_path / "site")
        try:
            for turn in range(4):
                publishing.set_policies(
                    folder, world.online(), {f"channel-{number}-{turn}": policy(OLD)}, world.now
                )
        except BaseException as error:  # noqa: BLE001 - shown by the test
            errors.append(error)

    threads = [threading.Thread(target=server, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    device = world.device()
    assert {f"channel-{a}-{b}" for a in range(4) for b in range(4)} == {
        path.removeprefix("rollout/").removesuffix(".json")
        for path in world.load().rollout.signed.targets  # type: ignore[union-attr]
    }
    assert device.policy("channel-3-3") == policy(OLD)


def test_who_is_always_overtaken_gives_up(world: World) -> None:
    class Overtaken(Torn):
        def write(self, name: str, content: bytes, *, replaces: bytes | None) -> None:
            if name == TIMESTAMP:
                raise ConflictError(name, expected="", way_out="", code="document_taken")
            super().write(name, content, replaces=replaces)

    deed = lambda: publishing.publish(  # noqa: E731
        Overtaken(world.documents, 99), world.online(),
        lambda _: publishing.Change(policies={"stable": policy(OTHER)}), world.now, attempts=3,
    )  # fmt: skip
    refused("document_taken", deed)
    assert world.device().policy() == policy(OLD)


def test_a_server_that_signs_with_old_keys_beside_a_new_root_is_put_right(world: World) -> None:
    pending = world.rotating("timestamp", "snapshot")
    stale = {role: signers[:1] for role, signers in world.online().items()}

    class Beside(Torn):
        """Another server publishes just before the new root is written."""

        def write(self, name: str, content: bytes, *, replaces: bytes | None) -> None:
            if name == metadata_name("root", 2):
                publishing.set_policies(self.inner, stale, {"stable": policy(OTHER)}, world.now)
            super().write(name, content, replaces=replaces)

    world.submit(pending, documents=Beside(world.documents, 99))
    assert world.device().policy() == policy(OTHER)


# The storage


def test_policies_that_somebody_wrote_to_the_storage_get_no_signature(world: World) -> None:
    published = world.load()
    name = metadata_name("rollout", published.rollout.signed.version)  # type: ignore[union-attr]
    content = world.documents.read(name)
    assert content
    world.documents.write(name, content.replace(OLD.id[:2].encode(), b"00"), replaces=content)
    forged = content.replace(b'"rollout/stable.json"', b'"rollout/other.json"')
    world.documents.write(name, forged, replaces=world.documents.read(name))

    refused("trust_signatures", lambda: world.select({"beta": policy(OTHER)}))
    world.select({"stable": policy(OTHER)}, anew=True)
    assert world.device().policy() == policy(OTHER)


def test_a_release_without_its_document_or_with_another_is_refused(world: World) -> None:
    pending = world.targets_with(NEW)
    torn = Torn(world.documents, 0)
    refused("release", lambda: world.submit(pending, documents=torn))
    lie = {NEW.id: OLD.to_json().encode()}
    refused("release", lambda: publishing.submit(torn, world.online(), pending, world.now, releases=lie))
    lie = {NEW.id: b"{}"}
    refused("release", lambda: publishing.submit(torn, world.online(), pending, world.now, releases=lie))


def test_a_storage_that_lost_a_document_says_which(world: World) -> None:
    version = world.load().snapshot.signed.version  # type: ignore[union-attr]
    (world.path / "site" / metadata_name("snapshot", version)).unlink()
    assert metadata_name("snapshot", version) in str(refused("documents", world.load))


def test_a_folder_swaps_only_what_was_read(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "site")
    folder.write("metadata/a.json", b"1", replaces=None)
    refused("document_taken", lambda: folder.write("metadata/a.json", b"2", replaces=None))
    refused("document_taken", lambda: folder.write("metadata/a.json", b"2", replaces=b"0"))
    folder.write("metadata/a.json", b"2", replaces=b"1")
    assert folder.read("metadata/a.json") == b"2"
    assert folder.read("metadata/b.json") is None
    assert sorted(each.name for each in (tmp_path / "site").iterdir()) == [".lock", "metadata"]
    assert (tmp_path / "site" / "metadata" / "a.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a.json",
        "metadata/../x",
        "/metadata/a",
        "metadata//a",
        "metadata/.a",
        "targets/a\0",
        "metadata/a\n",
    ],
)
def test_a_folder_takes_no_name_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    folder = Folder(tmp_path)
    refused("document_name", lambda: folder.write(name, b"", replaces=None))
    refused("document_name", lambda: folder.read(name))


def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "site").write_bytes(b"")
    refused("documents", lambda: Folder(tmp_path / "site").write("metadata/a.json", b"", replaces=None))
    refused("documents", lambda: Folder(tmp_path / "site").read("metadata/a.json"))


def test_a_key_that_only_this_server_knows_is_no_harm(world: World) -> None:
    world.signers["timestamp"].append(generate())
    world.select({"stable": policy(OTHER)})
    assert world.device().policy() == policy(OTHER)


def test_errors_of_a_proposal_are_invalid_and_name_a_way_out(world: World) -> None:
    with pytest.raises(InvalidError) as caught:
        world.submit(world.init, documents=Memory({metadata_name("root", 1): b"junk"}))
    assert caught.value.status == 422
    assert caught.value.way_out
