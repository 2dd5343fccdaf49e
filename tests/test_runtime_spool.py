"""The spool: what was taken in survives power cuts and weeks offline, and what gave way is counted, once."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_runtime.disk import Disk
from edgekit_runtime.spool import Spool
from support.crashes import Recorder, cuts, rebuild


def key(number: int) -> str:
    return f"{number:08x}"


def keys(spool: Spool) -> list[int]:
    return [int(entry.key, 16) for entry in spool]


def test_documents_come_out_in_the_order_in_which_they_came_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=1000)
    for number in (3, 1, 2):
        assert spool.put(key(number), f"größe {number}".encode())
    again = Spool(tmp_path / "spool", max_bytes=1000)
    assert keys(again) == [3, 1, 2]
    assert [again.read(entry).decode() for entry in again] == ["größe 3", "größe 1", "größe 2"]
    for entry in again:
        again.done(entry)
    assert keys(again) == []


def test_the_same_document_is_not_taken_twice(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=1000)
    assert spool.put(key(1), b"first")
    assert spool.put(key(1), b"again")
    (entry,) = spool
    assert spool.read(entry) == b"first"


def test_what_is_worth_least_gives_way_first_and_of_that_the_oldest(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=40)
    for number, value in ((1, 5), (2, 1), (3, 1), (4, 9)):
        spool.put(key(number), bytes(10), value=value)
    assert spool.put(key(5), bytes(10), value=5)
    assert keys(spool) == [1, 3, 4, 5]
    assert spool.put(key(6), bytes(20), value=5)
    assert keys(spool) == [4, 5, 6]
    assert spool.dropped == 3
    assert not spool.put(key(7), bytes(40), value=5), "what is worth more stays"
    assert not spool.put(key(8), bytes(41), value=9), "what never fits"
    assert keys(spool) == [4, 5, 6]
    assert Spool(tmp_path / "spool", max_bytes=40).dropped == 5


def test_thirty_days_offline_keep_to_the_limit_and_every_window_is_kept_or_counted(tmp_path: Path) -> None:
    spool, hours = Spool(tmp_path / "spool", max_bytes=20_000), 30 * 24
    for hour in range(hours):
        spool.put(key(hour), bytes(100 + hour % 50), value=9 if hour % 24 == 0 else 3)
        if hour % 100 == 0:
            spool = Spool(tmp_path / "spool", max_bytes=20_000)
    left = keys(spool)
    assert sum(len(spool.read(entry)) for entry in spool) <= 20_000
    assert len(left) + spool.dropped == hours
    assert left == sorted(left)
    assert {hour for hour in range(hours) if hour % 24 == 0} <= set(left)


OPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 12), st.integers(0, 60), st.integers(0, 9)),
        st.tuples(st.just("done"), st.integers(0, 3), st.just(0), st.just(0)),
        st.tuples(st.just("open"), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(OPS)
def test_over_any_history_it_keeps_to_its_limit_and_loses_nothing_uncounted(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("spool") / "s"
    spool, taken, told = Spool(path, max_bytes=100), 0, 0
    for what, number, size, value in history:
        if what == "put":
            taken += key(number) not in [entry.key for entry in spool]
            spool.put(key(number), bytes(size), value=value)
        elif what == "done":
            for entry in list(spool)[:number]:
                spool.done(entry)
                told += 1
        else:
            spool = Spool(path, max_bytes=100)
        assert sum(len(spool.read(entry)) for entry in spool) <= 100
        assert len(list(spool)) + spool.dropped + told == taken
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"dropped": -1}', b"\0" * 50])
def test_a_damaged_counter_is_no_reason_to_lose_documents(tmp_path: Path, content: bytes) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=100)
    spool.put(key(1), b"document")
    (spool.path / "dropped.json").write_bytes(content)
    (spool.path / "something else").write_bytes(b"of somebody else")
    assert keys(Spool(tmp_path / "spool", max_bytes=100)) == [1]


def document(number: int) -> bytes:
    return f"document {number} ".encode() * 2


def life(root: Path, recorder: Recorder) -> None:
    """Take documents in, more than there is room for; after each, what is there and what was dropped is promised."""
    disk: Any = recorder
    spool = Spool(root / "spool", max_bytes=60, disk=disk)
    recorder.mark((set(), 0))
    for number in range(9):
        assert spool.put(key(number), document(number), value=number // 3)
        recorder.mark((set(keys(spool)), spool.dropped))


def broken(recorder: Recorder, root: Path, scratch: Path) -> Iterator[str]:
    """What does not hold after some cut; a line for each state of the disk, "" for a good one."""
    for number, (end, image) in enumerate(cuts(recorder, root)):
        place = scratch / str(number)
        place.mkdir()
        rebuild(image, root, place)
        made = [promise for count, promise in recorder.marks if count <= end] or [(set(), 0)]
        before, dropped = made[-1]
        spool = Spool(place / "spool", max_bytes=60)
        here = set(keys(spool))
        if any(spool.read(entry) != document(int(entry.key, 16)) for entry in spool):
            yield f"after {end}: a document is torn"
        elif len(before - here) != spool.dropped - dropped:
            yield f"after {end}: {before - here} are gone and {spool.dropped - dropped} were counted"
        elif len(here - before) > 1:
            yield f"after {end}: {here - before} came from nowhere"
        else:
            yield ""
        shutil.rmtree(place)


def test_after_any_power_cut_what_was_taken_in_is_there_or_counted(tmp_path: Path) -> None:
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    root.mkdir()
    scratch.mkdir()
    recorder = Recorder()
    life(root, recorder)
    found = list(broken(recorder, root, scratch))
    assert [line for line in found if line] == []
    assert len(found) > 100


@pytest.mark.parametrize("skipped", [("sync", ".new"), ("sync_folder", "spool")])
def test_the_check_sees_every_sync_that_is_left_out(tmp_path: Path, skipped: tuple[str, str]) -> None:
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    root.mkdir()
    scratch.mkdir()
    recorder = Recorder(skip=skipped)
    life(root, recorder)
    assert any(broken(recorder, root, scratch))


def test_a_disk_that_fails_leaves_neither_halves_nor_what_was_said_to_be_lost(tmp_path: Path) -> None:
    class Failing(Disk):
        left = 0

        def sync_folder(self, path: Path) -> None:
            if self.left:
                raise OSError(errno.ENOSPC, "no room")
            super().sync_folder(path)

    disk = Failing()
    spool = Spool(tmp_path / "spool", max_bytes=1 << 20, disk=disk)
    disk.left = 1
    for _ in range(5):
        with pytest.raises(OSError, match="no room"):
            spool.put("ab" * 16, b"window")
    assert not list((tmp_path / "spool").glob("*-*"))
    disk.left = 0
    assert spool.put("ab" * 16, b"window")
    assert len(list(spool)) == 1


def test_what_no_server_will_ever_have_is_counted_as_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=1 << 20)
    for number in range(3):
        spool.put(f"{number:032x}", b"window")
    spool.give_up(next(iter(spool)))
    again = Spool(tmp_path / "spool", max_bytes=1 << 20)
    assert (len(list(again)), again.dropped) == (2, 1)


def test_what_gave_way_on_its_way_to_the_server_is_not_lost_when_it_arrives(tmp_path: Path) -> None:
    sender, writer = (Spool(tmp_path / "spool", max_bytes=100) for _ in range(2))
    writer.put(key(1), bytes(80))
    (sent,) = sender
    writer.put(key(2), bytes(80))
    assert writer.dropped == 1
    sender.done(sent)
    assert sender.dropped == 0
    sender.give_up(sent)
    assert Spool(tmp_path / "spool", max_bytes=100).dropped == 0
    assert keys(sender) == [2]


def test_documents_that_come_and_go_at_once_are_counted_once(tmp_path: Path) -> None:
    def writes() -> None:
        spool = Spool(tmp_path / "spool", max_bytes=300)
        for number in range(100):
            spool.put(key(number), bytes(50))

    thread, told = threading.Thread(target=writes), set[int]()
    thread.start()
    sender = Spool(tmp_path / "spool", max_bytes=300)
    while thread.is_alive() or list(sender):
        for entry in sender:
            sender.done(entry)
            told.add(int(entry.key, 16))
    thread.join()
    assert len(told) + Spool(tmp_path / "spool", max_bytes=300).dropped == 100
