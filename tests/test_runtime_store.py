"""The store: what comes in has the hash that it should have, what is needed is never removed, and errors say why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit_runtime import state as states
from edgekit_runtime.contract import ContractError, Manifest
from edgekit_runtime.errors import ArtifactError, DeviceError, RefusedError, StoreError
from edgekit_runtime.events import Activated, Health, MarkedGood, Pinned
from edgekit_runtime.manager import REFUSALS, Manager
from edgekit_runtime.state import IDLE, PHASES, PROBATION, SHADOW, UNKNOWN, Process, Report, State
from edgekit_runtime.store import SPARE_BYTES, Store
from support.releases import Published, publish

FIRST, SECOND = publish("1.0.0", b"first " * 50), publish("2.0.0", b"second " * 50)
LIVE, NEW = FIRST.release.id, SECOND.release.id


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "größe" / "store")
    made.make()
    return made


def manager_of(store: Store, *published: Published, refuses: str = "") -> Manager:
    known = {each.release.id: each for each in published}

    def fetch(release: str) -> None:
        if release not in known:
            raise DeviceError("no network", expected="-", way_out="-", code="network")
        store.add_release(known[release].release, known[release].read)

    def stage(release: str) -> None:
        if known[release].release.version == refuses:
            raise ArtifactError("wrong answers", expected="-", way_out="-", code="golden")

    return Manager(store, fetch=fetch, stage=stage)


def serving(store: Store) -> Manager:
    manager = manager_of(store, FIRST, SECOND)
    manager.install(LIVE)
    manager.tell(MarkedGood(LIVE))
    manager.go_on()
    return manager


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# The document

FULL = State(
    phase=SHADOW,
    live=LIVE,
    candidate=NEW,
    last_good="0" * 64,
    failed={"2" * 64: "nan", "1" * 64: "crash_loop"},
    pinned=True,
    shadow=True,
    tries=2,
    attempts=(Process(7, 123, "größe"),),
    crashes=1,
    rollbacks=3,
    reports=(Report("refused", LIVE, "golden", 5), Report("committed", LIVE, "", 6)),
)


@pytest.mark.parametrize("state", [State(), FULL])
def test_a_state_comes_back_as_it_was_persisted(store: Store, state: State) -> None:
    store.save(state)
    assert Store(store.path).state() == state
    assert list(store.state().failed) == list(state.failed), "the oldest is forgotten first"


@given(st.integers(0, len(states.to_json(FULL)) - 1), st.integers(1, 255))
def test_a_state_with_any_byte_changed_is_found_out_or_means_the_same(at: int, flip: int) -> None:
    document = bytearray(states.to_json(FULL))
    document[at] ^= flip
    try:
        assert states.from_json(bytes(document)) == FULL
    except ContractError:
        return


@given(st.integers(0, len(states.to_json(FULL)) - 2))
def test_a_torn_state_is_found_out(length: int) -> None:
    with pytest.raises(ContractError):
        states.from_json(states.to_json(FULL)[:length])


def test_a_phase_that_nobody_knows_is_read_as_unknown(store: Store) -> None:
    store.save(replace(FULL, phase="teleport"))
    assert store.state() == replace(FULL, phase=UNKNOWN)
    assert "teleport" not in PHASES


def test_a_damaged_state_is_replaced_by_the_one_before(store: Store) -> None:
    store.save(State(live=LIVE))
    store.save(State(live=NEW))
    (store.path / "state.json").write_bytes(b"\0" * 100)
    assert store.state() == State(live=LIVE)
    store.save(FULL)
    assert store.state() == FULL
    (store.path / "state.json").unlink()
    assert store.state() == State(live=LIVE), "a damaged copy took the place of a whole one"


def test_two_damaged_states_are_an_error_and_no_empty_store(store: Store) -> None:
    for name in ("state.json", "state.before.json"):
        (store.path / name).write_text("{")
    with pytest.raises(StoreError, match="the state is damaged") as caught:
        store.state()
    assert caught.value.code == "state_damaged"
    assert "state.before.json" in caught.value.what


def test_a_state_that_the_disk_cannot_read_is_replaced_by_the_one_before(store: Store) -> None:
    store.save(State(live=LIVE))
    store.save(State(live=NEW))
    (store.path / "state.json").unlink()
    (store.path / "state.json").mkdir()
    assert store.state() == State(live=LIVE)


def test_of_the_state_of_a_later_version_what_serves_is_understood() -> None:
    tree = json.loads(states.to_json(FULL))
    tree["state"]["telepathy"] = 1
    later = {"schema": 2, "sha256": states._digest(tree["state"]), "state": tree["state"]}
    assert states.from_json(json.dumps(later).encode()) == State(phase=UNKNOWN, live=LIVE, last_good="0" * 64)
    tree["state"]["live"] = ["?"]
    later["sha256"] = states._digest(tree["state"])
    with pytest.raises(ContractError, match="live"):
        states.from_json(json.dumps(later).encode())


# Blobs


def test_what_comes_in_lies_under_its_hash_and_equal_content_once(store: Store) -> None:
    store.add_release(FIRST.release, FIRST.read)
    store.add_release(SECOND.release, SECOND.read)
    shared = FIRST.release.files["golden.npz"].sha256
    assert store.blob(shared).read_bytes() == b"golden"
    assert len(names(store.blobs)) == 2 * 4 - 1
    assert names(store.incoming) == set()
    assert store.release(LIVE) == FIRST.release
    assert store.manifest(FIRST.release).version == "1.0.0"
    store.check(FIRST.release)


@pytest.mark.parametrize(
    "content",
    [b"", b"golde", b"golden!", b"golden" * 1000, b"Golden", b"\0" * 6],
    ids=["empty", "short", "long", "endless", "other", "zeros"],
)
def test_content_that_is_not_what_was_named_does_not_stay(store: Store, content: bytes) -> None:
    file = FIRST.release.files["golden.npz"]
    with pytest.raises(ArtifactError, match="bytes with the hash") as caught:
        store.add(file.sha256, file.size_bytes, (content,))
    assert caught.value.code == "damaged"
    assert names(store.blobs) == names(store.incoming) == set()


def test_endless_content_is_cut_off_at_its_length(store: Store) -> None:
    file, drawn = FIRST.release.files["golden.npz"], []

    def endless() -> Iterator[bytes]:
        while True:
            drawn.append(1)
            yield b"gold"

    with pytest.raises(ArtifactError):
        store.add(file.sha256, file.size_bytes, endless())
    assert len(drawn) < 5


def test_a_transfer_that_was_cut_off_goes_on_where_it_stopped(store: Store) -> None:
    file, data = FIRST.release.files["model.tflite"], FIRST.content["model.tflite"]

    def cut() -> Iterator[bytes]:
        yield data[:100]
        raise OSError(5, "Input/output error")

    with pytest.raises(StoreError):
        store.add(file.sha256, file.size_bytes, cut())
    assert store.received(file.sha256) == 100
    store.add(file.sha256, file.size_bytes, (data[100:],), at=100)
    assert store.blob(file.sha256).read_bytes() == data
    assert store.received(file.sha256) == 0


def test_a_release_is_there_only_when_all_of_it_is(store: Store) -> None:
    def cut(path: str) -> Iterator[bytes]:
        if path == "model.tflite":
            raise OSError(5, "Input/output error")
        yield FIRST.content[path]

    with pytest.raises(StoreError):
        store.add_release(FIRST.release, cut)
    with pytest.raises(ArtifactError, match="is not there"):
        store.release(LIVE)
    assert set(store.missing(FIRST.release)) >= {FIRST.release.files["model.tflite"].sha256}
    store.add_release(FIRST.release, FIRST.read)
    assert store.missing(FIRST.release) == {}


@pytest.mark.parametrize("name", ["model.tflite", "golden.npz", "manifest.json"])
def test_a_bit_that_flipped_on_the_disk_is_found_and_the_file_is_brought_again(
    store: Store, name: str
) -> None:
    store.add_release(FIRST.release, FIRST.read)
    blob = store.blob(FIRST.release.files[name].sha256)
    data = bytearray(blob.read_bytes())
    data[3] ^= 1
    blob.write_bytes(data)
    with pytest.raises(ArtifactError, match="another hash than its name"):
        store.check(FIRST.release)
    assert not blob.exists()
    store.add_release(FIRST.release, FIRST.read)
    store.check(FIRST.release)


def test_a_link_in_the_place_of_a_transfer_is_not_followed(store: Store, tmp_path: Path) -> None:
    victim, file = tmp_path / "victim", FIRST.release.files["golden.npz"]
    victim.write_text("precious")
    (store.incoming / file.sha256).symlink_to(victim)
    with pytest.raises(StoreError):
        store.add(file.sha256, file.size_bytes, (b"golden",))
    assert victim.read_text() == "precious"


def test_what_does_not_fit_is_said_before_anything_is_fetched(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving(store)
    small = Store(store.path, quota_bytes=1000)
    with pytest.raises(StoreError, match="at most 1,000 bytes") as caught:
        small.check_room(SECOND.release, small.state())
    assert caught.value.code == "quota"
    Store(store.path, quota_bytes=100_000).check_room(SECOND.release, store.state())

    class Usage:
        free = SPARE_BYTES

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(StoreError, match="are free") as caught:
        store.check_room(SECOND.release, store.state())
    assert caught.value.code == "no_room"


def test_what_another_candidate_left_makes_way_where_there_is_no_room(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving(store)
    third = publish("3.0.0", b"third " * 5000)
    store.add_release(third.release, third.read)
    (store.incoming / ("0" * 64)).write_bytes(b"half")
    needed = SECOND.release.size_bytes

    class Usage:
        @property
        def free(self) -> int:
            held = sum(
                path.stat().st_size for folder in (store.blobs, store.incoming) for path in folder.iterdir()
            )
            return SPARE_BYTES + needed - max(0, held - FIRST.release.size_bytes - 5000)

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage())
    store.check_room(SECOND.release, store.state())
    assert names(store.incoming) == set()
    assert not store.blob(third.release.id).exists()
    store.check(FIRST.release)


def test_what_came_in_before_a_transfer_was_cut_off_needs_no_room_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving(store)
    files = {file.sha256: path for path, file in SECOND.release.files.items()}
    for sha256 in store.missing(SECOND.release):
        (store.incoming / sha256).write_bytes(SECOND.content[files[sha256]])

    class Usage:
        free = SPARE_BYTES

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    store.check_room(SECOND.release, store.state())


# What rots


@pytest.mark.parametrize("rotten", ["the document", "model.tflite", "all"])
def test_files_of_what_serves_that_rotted_come_again(store: Store, rotten: str) -> None:
    manager = serving(store)
    assert not manager.mend(), "nothing is wrong"
    blobs = {"the document": {LIVE}, "all": names(store.blobs)}
    chosen = blobs.get(rotten) or {FIRST.release.files[rotten].sha256}
    for name in chosen:
        store.blob(name).write_bytes(b"rotten")
    before = store.state()
    assert manager.install(LIVE) == before, "as good as new, and not `already_live`"
    store.check(store.release(LIVE))
    with pytest.raises(RefusedError, match="already_live"):
        manager.install(LIVE)


def test_what_rotted_stays_wanted_while_nobody_has_it(store: Store) -> None:
    serving(store)
    store.blob(FIRST.release.files["model.tflite"].sha256).unlink()
    with pytest.raises(DeviceError, match="no network"):
        manager_of(store).mend()
    assert store.state().live == LIVE
    assert manager_of(store, FIRST).mend()


# What goes


def test_only_what_no_slot_needs_is_removed(store: Store) -> None:
    manager = serving(store)
    manager.install(NEW)
    third = publish("3.0.0", b"third")
    store.add_release(third.release, third.read)
    (store.incoming / "half").write_bytes(b"half")
    freed = store.collect(store.state())
    assert freed > 0
    assert names(store.incoming) == set()
    for each in (FIRST, SECOND):
        store.check(store.release(each.release.id))
    assert not store.blob(third.release.id).exists()
    assert store.collect(store.state()) == 0


def test_while_a_candidate_comes_in_nothing_is_removed(store: Store) -> None:
    manager = serving(store)
    manager.install(NEW, shadow=True)
    (store.incoming / "half").write_bytes(b"half")
    assert store.collect(store.state()) == 0
    assert names(store.incoming) == {"half"}


def test_where_a_version_s_document_is_damaged_nothing_is_removed(store: Store) -> None:
    serving(store)
    before = names(store.blobs)
    store.blob(LIVE).write_text("rotten")
    with pytest.raises(ArtifactError):
        store.collect(store.state())
    assert names(store.blobs) == before


# Who drives


def test_one_process_drives_and_others_may_read_and_tell(store: Store) -> None:
    manager = serving(store)
    with store.driven():
        other = manager_of(Store(store.path), FIRST, SECOND)
        with pytest.raises(StoreError, match="another process holds `driver`") as caught:
            other.install(NEW)
        assert caught.value.code == "store_busy"
        assert other.store.state().live == LIVE
        assert other.tell(Pinned(on=True)).refused == ""
    assert manager.store.state().pinned


def test_a_driver_that_was_killed_holds_nobody_up(store: Store) -> None:
    program = (
        "import os, sys; from pathlib import Path; from edgekit_runtime.store import Store\n"
        "with Store(Path(sys.argv[1])).driven(): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(store.path)], check=False, env=dict(os.environ))
    assert done.returncode == -9
    with store.driven():
        pass


def test_what_fails_on_the_way_is_remembered_only_where_the_release_is_to_blame(store: Store) -> None:
    serving(store)
    lost = manager_of(store, FIRST)
    state = lost.install(NEW)
    assert (state.phase, state.live, state.failed) == (IDLE, LIVE, {})
    assert state.reports[-1].reason == "network"
    picky = manager_of(store, FIRST, SECOND, refuses="2.0.0")
    state = picky.install(NEW)
    assert (state.phase, state.live, state.failed) == (IDLE, LIVE, {NEW: "golden"})
    with pytest.raises(RefusedError, match="failed_before") as caught:
        picky.install(NEW)
    assert "--forced" in caught.value.way_out
    assert picky.install(NEW, forced=True).failed == {NEW: "golden"}


def test_a_fault_of_our_own_does_not_hold_a_device_in_a_phase(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    serving(store)

    def broken(_: str) -> None:
        raise KeyError("slip")

    state = Manager(store, fetch=broken, stage=lambda _: None).install(NEW)
    assert (state.phase, state.live, state.failed) == (IDLE, LIVE, {})
    assert state.reports[-1].reason == "unexpected"
    assert "KeyError: 'slip'" in caplog.text


def test_bytes_that_are_not_the_release_say_nothing_of_it(store: Store) -> None:
    serving(store)
    liar = Published(SECOND.release, {**SECOND.content, "model.tflite": b"something else"})
    state = manager_of(store, FIRST, liar).install(NEW)
    assert (state.phase, state.live, state.failed) == (IDLE, LIVE, {})
    assert state.reports[-1].reason == "damaged"
    assert manager_of(store, FIRST, SECOND).install(NEW).phase == PROBATION


def test_a_manifest_that_breaks_the_contract_is_the_release_s_fault(store: Store) -> None:
    serving(store)
    for number, manifest in enumerate(
        (b"", b"{}", b"[" * 5000, b"\xff\xfe", json.dumps({"schema": 1}).encode())
    ):
        bad = publish(f"9.0.{number}", b"model", manifest=b"")
        content = {**bad.content, "manifest.json": manifest}
        lying = publish_raw(bad, content)
        state = manager_of(store, FIRST, lying).install(lying.release.id)
        assert (state.phase, state.live) == (IDLE, LIVE)
        assert state.failed[lying.release.id] == "manifest"


@pytest.mark.parametrize("change", [{"name": "somebody else's"}, {"version": "9.9.9"}], ids=str)
def test_a_release_that_holds_another_model_than_it_is_named_for_is_refused(
    store: Store, change: dict[str, str]
) -> None:
    serving(store)
    tree = json.loads(SECOND.content["manifest.json"]) | change
    document = Manifest.from_json(json.dumps(tree)).to_json().encode()
    lying = publish_raw(SECOND, {**SECOND.content, "manifest.json": document})
    said: list[DeviceError] = []
    manager = manager_of(store, FIRST, lying)
    manager.told = said.append
    state = manager.install(lying.release.id)
    assert (state.phase, state.live, state.failed[lying.release.id]) == (IDLE, LIVE, "manifest")
    assert next(iter(change.values())) in str(said[0])


def publish_raw(like: Published, content: dict[str, bytes]) -> Published:
    import hashlib

    from edgekit_runtime.contract import File, Release

    files = {path: File(hashlib.sha256(data).hexdigest(), len(data)) for path, data in content.items()}
    return Published(Release(like.release.name, like.release.version, files), content)


def test_a_pause_of_the_application_in_the_middle_is_gone_on_with(store: Store) -> None:
    manager = serving(store)
    manager.install(NEW, shadow=True)
    manager.tell(Activated())
    manager.tell(MarkedGood(NEW))
    with pytest.raises(RefusedError, match="already_live"):
        manager.install(NEW)
    assert store.state().phase == IDLE, "what was left of the commit was done first"
    manager.install(LIVE)
    manager.tell(Health(LIVE, 1.0, 20, errors=20))
    assert manager.go_on().live == NEW


def test_every_refusal_of_an_offer_says_what_to_do() -> None:
    for code in ("busy", "already_live", "pinned", "failed_before", "rolled_back_too_often"):
        expected, way_out = REFUSALS[code]
        assert expected
        assert way_out


# Disks that do not do what they should


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mounted)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.decode().strip()}")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as log:
        while True:
            log.write(bytes(4096))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tmpfs is Linux's")
def test_a_full_disk_stops_the_update_and_not_what_serves(full_disk: Path) -> None:
    store = Store(full_disk / "store")
    store.make()
    manager = serving(store)
    large = publish("5.0.0", os.urandom(4 << 20))
    state = manager_of(store, FIRST, large).install(large.release.id)
    assert (state.phase, state.live, state.failed) == (IDLE, LIVE, {})
    assert state.reports[-1].reason == "no_room"
    # Somebody else takes the room while the file comes in.
    file = large.release.files["model.tflite"]
    with pytest.raises(StoreError, match="No space left"):
        store.add(file.sha256, file.size_bytes, large.read("model.tflite"))
    assert manager.tell(Pinned(on=True)).state.pinned, "there is room left to say so"
    # Not even a state fits.
    fill(full_disk / "log")
    with pytest.raises(StoreError, match="No space left") as caught:
        manager.tell(Pinned(on=False))
    assert caught.value.code == "no_room"
    assert store.state().live == LIVE
    store.check(store.release(LIVE))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tmpfs is Linux's")
def test_a_disk_that_became_read_only_still_serves(full_disk: Path) -> None:
    store = Store(full_disk / "store")
    store.make()
    manager = serving(store)
    subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], check=True)
    for change in (lambda: manager.install(NEW), lambda: manager.tell(Pinned(on=True)), manager.go_on):
        with pytest.raises(StoreError, match="Read-only") as caught:
            change()
        assert caught.value.code == "disk"
    assert store.state().live == LIVE
    store.check(store.release(LIVE))


def test_a_file_in_the_place_of_the_store_is_said(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match="store"):
        Store(tmp_path / "store").make()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_no_document_makes_reading_a_release_or_a_state_do_more_than_refuse(
    tmp_path: Path, data: bytes
) -> None:
    store = Store(tmp_path / "store")
    store.make()
    for name in ("state.json", "state.before.json"):
        (store.path / name).write_bytes(data)
    store.blob(LIVE).write_bytes(data)
    with pytest.raises(StoreError):
        store.state()
    with pytest.raises(ArtifactError):
        store.release(LIVE)
