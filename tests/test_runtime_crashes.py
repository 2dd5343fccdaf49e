"""Power cuts at every operation of a store's life: whatever is left, a good version serves and nothing half is live."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit_runtime.disk import Disk
from edgekit_runtime.errors import ArtifactError, DeviceError
from edgekit_runtime.events import Activated, Health, Loading, MarkedGood, RolledBack
from edgekit_runtime.manager import Manager
from edgekit_runtime.state import IDLE, PROBATION, ROLLBACK, SHADOW, Process, State
from edgekit_runtime.store import Store
from support.crashes import Recorder, cuts, rebuild
from support.releases import Published, publish

FIRST, SECOND, BAD, REFUSED = (
    publish("1.0.0", b"the first model"),
    publish("2.0.0", b"the second model, longer", labels__de=b"labels"),
    publish("3.0.0", b"a bad model"),
    publish("4.0.0", b""),
)
PUBLISHED = {each.release.id: each for each in (FIRST, SECOND, BAD, REFUSED)}


# Of the states that a cut leaves, every so many is recovered and cut again.
SAMPLED = 25


class Unsynced:
    """A disk that returns before anything is safe: what is rebuilt after a cut is not cut again."""

    def __init__(self) -> None:
        disk = Disk()
        self.make_folder, self.write, self.rename, self.remove = (
            disk.make_folder, disk.write, disk.rename, disk.remove,
        )  # fmt: skip

    def sync(self, path: Path) -> None:
        assert path.is_file()

    def sync_folder(self, path: Path) -> None:
        assert path.is_dir()


def manager_of(store: Store) -> Manager:
    def fetch(release: str) -> None:
        published = PUBLISHED[release]
        store.add_release(published.release, published.read)

    def stage(release: str) -> None:
        if release == REFUSED.release.id:
            raise ArtifactError("an empty model", expected="a model", way_out="-", code="load")

    return Manager(store, fetch=fetch, stage=stage, now=lambda: 0.0)


def noted(root: Path, recorder: Recorder) -> Store:
    """A store on a recorded disk, each of whose states is a promise once it was persisted."""
    disk: Any = recorder
    store = Store(root / "store", disk=disk)
    store.make()
    recorder.mark(store.state())
    save = store.save

    def promised(state: State) -> None:
        save(state)
        recorder.mark(state)

    store.save = promised  # type: ignore[method-assign]
    return store


def life(root: Path, recorder: Recorder) -> State:
    """Install, activate, commit, roll back and collect."""
    manager = manager_of(noted(root, recorder))
    manager.install(FIRST.release.id)
    manager.tell(MarkedGood(FIRST.release.id))
    manager.go_on()
    manager.install(SECOND.release.id, shadow=True)
    manager.tell(Activated())
    manager.tell(Loading(Process(7, 1, "boot")))
    manager.tell(MarkedGood(SECOND.release.id))
    manager.go_on()
    manager.install(BAD.release.id)
    manager.tell(Health(BAD.release.id, 1.0, 100, errors=99))
    manager.go_on()
    manager.install(REFUSED.release.id)
    manager.install(FIRST.release.id, forced=True)
    manager.tell(RolledBack())
    return manager.go_on()


def whole(store: Store, slot: str | None) -> None:
    if slot is not None:
        store.check(store.release(slot))


def broken(recorder: Recorder, root: Path, scratch: Path) -> Iterator[str]:
    """What does not hold after some cut; one line for each state of the disk that was tried, "" for a good one."""
    number = itertools.count()
    for end, image in cuts(recorder, root):
        place = scratch / str(next(number))
        place.mkdir()
        rebuild(image, root, place)
        yield _wrong(recorder, end, place)
        shutil.rmtree(place)


def _wrong(recorder: Recorder, end: int, place: Path) -> str:
    made = [promise for count, promise in recorder.marks if count <= end]
    coming = [promise for count, promise in recorder.marks if count > end][:1]
    disk: Any = Unsynced()
    store = Store(place / "store", disk=disk)
    try:
        store.make()
        found = store.state()
        if made and found not in (made[-1], *coming):
            return f"after {end} operations: {found} instead of {made[-1]}"
        for slot in (found.live, found.last_good):
            whole(store, slot)
        state = manager_of(store).go_on()
        for slot in (state.live, state.last_good):
            whole(store, slot)
    except DeviceError as error:
        return f"after {end} operations: {error}"
    if state.phase not in {IDLE, SHADOW, PROBATION}:
        return f"after {end} operations: left in {state.phase}"
    if found.live is not None and state.live is None:
        return f"after {end} operations: nothing is live any more"
    return ""


def test_after_any_power_cut_a_whole_version_serves_and_the_update_goes_on(tmp_path: Path) -> None:
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    root.mkdir()
    scratch.mkdir()
    recorder = Recorder()
    final = life(root, recorder)
    assert (final.phase, final.live) == (IDLE, SECOND.release.id)
    assert ROLLBACK in {promise.phase for _, promise in recorder.marks}
    found = list(broken(recorder, root, scratch))
    assert [line for line in found if line] == []
    assert len(found) > 700


@pytest.mark.slow
def test_a_recovery_that_is_cut_off_itself_is_recovered_from(tmp_path: Path) -> None:
    root, scratch, again = tmp_path / "root", tmp_path / "scratch", tmp_path / "again"
    for folder in (root, scratch, again):
        folder.mkdir()
    recorder = Recorder()
    life(root, recorder)
    found: list[str] = []
    for number, (_, image) in enumerate(cuts(recorder, root)):
        if number % SAMPLED == 0:
            place = again / str(number)
            place.mkdir()
            rebuild(image, root, place)
            found += broken(recovered(place), place, scratch)
    assert [line for line in found if line] == []
    assert len(found) > 1000


def recovered(place: Path) -> Recorder:
    """The record of a recovery, which begins with what a cut left."""
    recorder = Recorder()
    recorder.found(place)
    manager_of(noted(place, recorder)).go_on()
    return recorder


@pytest.mark.parametrize(
    "skipped",
    [("sync", "state.json.new"), ("sync", "incoming"), ("sync_folder", "blobs"), ("sync_folder", "store")],
)
def test_the_check_sees_every_sync_that_is_left_out(tmp_path: Path, skipped: tuple[str, str]) -> None:
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    root.mkdir()
    scratch.mkdir()
    recorder = Recorder(skip=skipped)
    life(root, recorder)
    assert any(broken(recorder, root, scratch))


def test_two_lives_of_a_store_leave_the_same_record(tmp_path: Path) -> None:
    records = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        recorder = Recorder()
        life(tmp_path / name, recorder)
        records.append([(op.kind, op.path.name, op.data, op.at, op.synced_by) for op in recorder.ops])
    assert records[0] == records[1]


def published_again() -> Published:
    return publish("1.0.0", b"the first model")


def test_equal_content_is_the_same_release() -> None:
    assert published_again().release.id == FIRST.release.id
