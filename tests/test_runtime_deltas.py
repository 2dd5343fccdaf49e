"""Deltas on a device: the right file or the full one, whatever a server, a line or a disk does."""

from __future__ import annotations

import hashlib
import lzma
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.fleet.releases.deltas import Segment, pack
from edgekit_runtime import deltas
from edgekit_runtime.agent import by_delta
from edgekit_runtime.agent.fetch import fetch, release_path
from edgekit_runtime.agent.transport import Answer
from edgekit_runtime.contract import ContractError, Release
from edgekit_runtime.deltas import Offer, apply, choose, delta_path, index_path, read_index, write_index
from edgekit_runtime.errors import ArtifactError, NetworkError
from edgekit_runtime.state import State
from edgekit_runtime.store import Store
from support.crashes import Recorder, cuts, rebuild
from support.fleet import PART_BYTES, Fleet
from support.releases import Published, publish

RNG = np.random.default_rng(0)
OLD = RNG.integers(0, 256, 100_000, np.uint8).tobytes()
# Every byte by at most one, and a few that are new.
NEW = (np.frombuffer(OLD, np.uint8) + (np.arange(len(OLD)) % 50 == 0)).astype(np.uint8).tobytes() + b"the end"
FIRST, SECOND = publish("1.0.0", OLD), publish("2.0.0", NEW)
SHA256 = {data: hashlib.sha256(data).hexdigest() for data in (OLD, NEW)}


def array(data: bytes) -> Any:
    return np.frombuffer(data, np.uint8)


def subtracted(old: bytes, new: bytes) -> bytes:
    short = min(len(old), len(new))
    segments = [Segment(2, 0, short, 0)]
    if len(new) > short:
        segments.append(Segment(deltas.LITERAL, short, len(new) - short))
    packed = pack(segments, array(old), array(new))
    assert packed is not None
    return packed


def patched(old: bytes, new: bytes) -> bytes:
    prefix = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(level=3, dict_data=prefix).compress(new)


MADE = {"tensor": subtracted(OLD, NEW), "zstd": patched(OLD, OLD[:50_000] + b"between" + OLD[50_000:])}
MAKES = {"tensor": NEW, "zstd": OLD[:50_000] + b"between" + OLD[50_000:]}


def made(folder: Path, form: str, content: bytes, size: int, base: bytes = OLD) -> bytes:
    (folder / "base").write_bytes(base)
    (folder / "delta").write_bytes(content)
    return b"".join(apply(form, folder / "base", folder / "delta", size))


# A delta


@pytest.mark.parametrize("form", MADE)
def test_a_delta_makes_the_new_file_in_small_parts(form: str, tmp_path: Path) -> None:
    assert made(tmp_path, form, MADE[form], len(MAKES[form])) == MAKES[form]
    parts = apply(form, tmp_path / "base", tmp_path / "delta", len(MAKES[form]))
    assert max(map(len, parts)) <= deltas.BLOCK_BYTES


@pytest.mark.parametrize("form", MADE)
@given(data=st.data())
@settings(max_examples=60)
def test_a_damaged_delta_never_makes_more_and_says_what_is_wrong(
    form: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(MADE[form])
    for _ in range(data.draw(st.integers(0, 4))):
        # Headers and tables come first, and deserve more than their share.
        at = data.draw(st.integers(0, 200) | st.integers(0, len(content) - 1))
        content[at % len(content)] ^= 1 << data.draw(st.integers(0, 7))
    del content[data.draw(st.just(len(content)) | st.integers(0, len(content))) :]
    size = data.draw(st.sampled_from([0, 1, 4096, len(MAKES[form]), 10**6]))
    base = data.draw(st.sampled_from([OLD, OLD[:-1], b"x"]))
    folder = tmp_path_factory.mktemp("damaged")
    try:
        outcome: object = len(made(folder, form, bytes(content), size, base))
    except ArtifactError as error:
        outcome = error.code
    assert outcome in {size, "delta"}


@given(st.sampled_from(list(MADE)), st.binary(max_size=200))
def test_bytes_that_are_no_delta_are_refused(
    tmp_path_factory: pytest.TempPathFactory, form: str, content: bytes
) -> None:
    head = deltas.MAGIC if form == "tensor" else b"\x28\xb5\x2f\xfd"
    for each in (content, head + content):
        with pytest.raises(ArtifactError):
            made(tmp_path_factory.mktemp("none"), form, each, 1000)


def header(*, old: int = len(OLD), new: int = 1000, packed: tuple[int, ...]) -> bytes:
    return deltas.HEADER.pack(deltas.MAGIC, old, new, *packed)


def squeezed(content: bytes) -> bytes:
    return lzma.compress(content, lzma.FORMAT_RAW, filters=deltas.FILTERS)


def told(*segments: tuple[int, int, int], new: int = 1000, streams: tuple[bytes, ...] = (b"",) * 5) -> bytes:
    """A delta of (operation, skip, size), whatever they say."""
    ops, skips, sizes = zip(*segments, strict=True)
    count = len(segments)
    table = squeezed(bytes(ops) + struct.pack(f"<{count}q", *skips) + struct.pack(f"<{count}Q", *sizes))
    return header(new=new, packed=(len(table), *map(len, streams))) + table + b"".join(streams)


LIES = {
    "another size of the file": told((1, 0, 1000), new=999),
    "segments that make less": told((1, 0, 999)),
    "segments that make more": told((1, 0, 1001)),
    "an operation of a later version": told((9, 0, 1000)),
    "bytes before the base": told((1, -1, 1000)),
    "bytes behind the base": told((1, len(OLD) - 999, 1000)),
    "bytes far behind the base": told((1, 2**62, 1000)),
    "a size that is negative": told((1, 0, 2**64 - 1000), (1, 0, 2000)),
    "a segment of nothing": told((1, 0, 0), (1, 0, 1000)),
    "half a number": told((4, 0, 998), (1, 0, 2)),
    "a stream that is not there": told((0, 0, 1000)),
    "a stream that ends early": told((0, 0, 1000), streams=(squeezed(bytes(999)), b"", b"", b"", b"")),
    "parts that are longer than the file": header(packed=(2**63, 0, 0, 0, 0, 0)),
    "a table without end": header(packed=(len(squeezed(bytes(10**7))), 0, 0, 0, 0, 0))
    + squeezed(bytes(10**7)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_delta_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        made(tmp_path, "tensor", LIES[lie], 1000)
    assert caught.value.code == "delta"


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    zeros = bytes(40 << 20)
    stream = squeezed(zeros)
    literal = told((0, 0, 1000), streams=(stream, b"", b"", b"", b""))
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=30, write_content_size=False)
    frames = [zstandard.ZstdCompressor().compress(zeros)]
    frames.append(zstandard.ZstdCompressor(compression_params=parameters).compressobj().compress(zeros))
    table = header(packed=(len(stream), 0, 0, 0, 0, 0)) + stream
    del zeros
    tracemalloc.start()
    try:
        # What follows what is needed is not even unpacked.
        assert made(tmp_path, "tensor", literal, 1000) == bytes(1000)
        for form, content in (("tensor", table), ("zstd", frames[0]), ("zstd", frames[1])):
            with pytest.raises(ArtifactError):
                made(tmp_path, form, content, 1000)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_zstd_that_is_not_here_or_would_not_fit_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deltas, "MAX_ZSTD_BYTES", 1000)
    with pytest.raises(ArtifactError, match="beyond 1,000 bytes"):
        made(tmp_path, "zstd", MADE["zstd"], len(MAKES["zstd"]))
    without_zstd(monkeypatch)
    with pytest.raises(ArtifactError, match="not installed"):
        made(tmp_path, "zstd", MADE["zstd"], len(MAKES["zstd"]))


def without_zstd(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "zstandard"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    assert deltas.usable() == {"tensor"}


# The list of deltas

OFFER = Offer(SHA256[OLD], "tensor", 500, "d" * 64)


@given(st.lists(st.builds(replace, st.just(OFFER), size_bytes=st.integers(1, 2**53)), max_size=5))
def test_a_list_is_read_as_it_was_written(offers: list[Offer]) -> None:
    assert list(read_index(write_index(offers))) == offers


@pytest.mark.parametrize(
    "document",
    [
        b"", b"[]", b"{}", b'{"schema": 2, "deltas": []}', b'{"schema": 1, "deltas": [{}]}',
        write_index([OFFER]).replace(b"tensor", b"../../etc"), write_index([OFFER]).replace(b"500", b"-1"),
        write_index([OFFER]).replace(SHA256[OLD].encode(), b"../live"), write_index([OFFER] * 2000),
    ],
)  # fmt: skip
def test_a_list_that_breaks_the_contract_is_refused(document: bytes) -> None:
    with pytest.raises(ContractError):
        read_index(document)


def test_the_smallest_delta_that_can_be_used_is_chosen() -> None:
    others = [
        replace(OFFER, size_bytes=400, format="later"),
        replace(OFFER, size_bytes=300, base="e" * 64),
        replace(OFFER, size_bytes=600),
    ]
    bases = frozenset({SHA256[OLD]})
    assert choose([*others, OFFER], bases, 1000) == OFFER
    assert choose(others[:2], bases, 1000) is None
    assert choose([replace(OFFER, size_bytes=901)], bases, 1000) is None


# A device


class Device:
    """A store with a first version that serves, and a second one that is fetched."""

    def __init__(self, path: Path, *, quota_bytes: int | None = None, first: Published = FIRST) -> None:
        self.store, self.fleet, self.counts = Store(path, quota_bytes=quota_bytes), Fleet(), Counter[str]()
        self.store.make()
        self.store.add_release(first.release, first.read)
        self.going_on: Callable[[], None] = lambda: None
        self.state(live=first.release.id, candidate=SECOND.release.id)
        self.fleet.upload(SECOND)

    def state(self, **slots: str) -> None:
        self.store.save(State(phase="fetch", **slots))

    def serve(self, path: str, content: bytes) -> None:
        self.fleet.repository.server.files[path] = content

    def offer(self, content: bytes, **lies: Any) -> Offer:
        offer = Offer(SHA256[OLD], "tensor", len(content), hashlib.sha256(content).hexdigest())
        offer = replace(offer, **lies)
        self.serve(index_path(SHA256[NEW]), write_index([offer]))
        self.serve(delta_path(SHA256[NEW], offer), content)
        return offer

    def fetch(self, release: Release = SECOND.release) -> list[str]:
        """Paths that it asked for."""
        self.fleet.asked.clear()
        documents = {release_path(release.id): release.to_json().encode()}
        deed = fetch(self.store, lambda path, _: documents[path], self.fleet, self._going_on, self.counts)
        deed(release.id)
        self.store.check(self.store.release(release.id))
        return [path for path, _ in self.fleet.asked]

    def _going_on(self) -> None:
        self.going_on()

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in self.store.incoming.iterdir())


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "store")


FULL = f"blobs/{SHA256[NEW]}"


def test_a_delta_comes_in_place_of_a_large_file(device: Device) -> None:
    offer = device.offer(MADE["tensor"])
    asked = device.fetch()
    assert FULL not in asked
    assert [each for each in asked if each.startswith("deltas/")] == [
        index_path(SHA256[NEW]), delta_path(SHA256[NEW], offer),
    ]  # fmt: skip
    assert device.counts == {"applied": 1, "saved_bytes": len(NEW) - offer.size_bytes}
    assert device.left == []


def test_the_last_good_version_is_a_base_as_well(device: Device) -> None:
    other = publish("1.5.0", b"x" * 90_000)
    device.store.add_release(other.release, other.read)
    device.state(live=other.release.id, last_good=FIRST.release.id, candidate=SECOND.release.id)
    device.offer(MADE["tensor"])
    assert FULL not in device.fetch()


def test_where_there_is_no_delta_one_more_question_is_all_that_it_costs(device: Device) -> None:
    asked = device.fetch()
    assert [each for each in asked if each.startswith("deltas/")] == [index_path(SHA256[NEW])]
    assert FULL in asked
    assert device.counts == {}


@pytest.mark.parametrize("missing", ["versions", "the file of the base", "the document of the base"])
def test_without_a_base_nobody_asks_for_a_delta(missing: str, device: Device) -> None:
    if missing == "versions":
        device.state(candidate=SECOND.release.id)
    else:
        gone = SHA256[OLD] if missing == "the file of the base" else FIRST.release.id
        device.store.blob(gone).write_bytes(b"") if gone != SHA256[OLD] else device.store.blob(gone).unlink()
    # The model that serves cannot be told any more where its document rotted; the release is fetched all the same.
    deed = device.fetch if missing != "the document of the base" else lambda: fetch_unchecked(device)
    assert not [each for each in deed() if each.startswith("deltas/")]


def fetch_unchecked(device: Device) -> list[str]:
    way = by_delta.ByDelta(
        device.store, device.fleet, lambda: None, SECOND.release, device.store.state(), device.counts
    )
    assert not way.bring(SHA256[NEW], len(NEW))
    return [path for path, _ in device.fleet.asked]


def test_small_files_and_what_came_in_half_are_fetched_as_ever(device: Device) -> None:
    device.offer(MADE["tensor"])
    (device.store.incoming / SHA256[NEW]).write_bytes(NEW[:5000])
    asked = device.fetch()
    assert not [each for each in asked if each.startswith("deltas/")]
    assert (FULL, 5000) in device.fleet.asked


def half_way() -> bytes:
    """Numbers that come out right, and then nothing of the literal that follows."""
    table, literal, numbers = deltas.HEADER.unpack_from(MADE["tensor"])[3:6]
    begin = deltas.HEADER.size + table + literal
    streams = (b"", MADE["tensor"][begin : begin + numbers], b"", b"", b"")
    return told((2, 0, len(OLD)), (0, 0, 7), new=len(NEW), streams=streams)


def turned(data: bytes) -> bytes:
    return data[:-30] + bytes([data[-30] ^ 1]) + data[-29:]


FAULTS: dict[str, Callable[[Device], object]] = {
    "a list that is none": lambda d: d.serve(index_path(SHA256[NEW]), b"<html>"),
    "a list without end": lambda d: d.serve(index_path(SHA256[NEW]), b" " * 10**6),
    "a delta that is gone": lambda d: (d.offer(b"x" * 50), d.fleet.repository.server.files.pop(
        delta_path(SHA256[NEW], Offer(SHA256[OLD], "tensor", 50, "0" * 64)))),
    "another delta than the list says": lambda d: d.offer(MADE["tensor"], sha256="0" * 64),
    "a longer delta than the list says": lambda d: d.offer(MADE["tensor"], size_bytes=100),
    "a shorter delta than the list says": lambda d: d.offer(MADE["tensor"][:-10], size_bytes=len(MADE["tensor"])),
    "a delta that is damaged": lambda d: d.offer(turned(MADE["tensor"])),
    "a delta that makes another file": lambda d: d.offer(subtracted(OLD, OLD + b"7 bytes")),
    "a delta that fails half way": lambda d: d.offer(half_way()),
    "a delta in another format than it says": lambda d: d.offer(MADE["tensor"], format="zstd"),
    "a base that rotted": lambda d: (d.offer(MADE["tensor"]), d.store.blob(SHA256[OLD]).write_bytes(turned(OLD))),
    "a base that was cut off": lambda d: (d.offer(MADE["tensor"]), d.store.blob(SHA256[OLD]).write_bytes(OLD[:9])),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_is_wrong_with_a_delta_the_full_file_comes_at_once(fault: str, device: Device) -> None:
    FAULTS[fault](device)
    assert (FULL, 0) in device.fleet.asked or FULL in device.fetch()
    assert device.counts == {"failed": 1}
    assert device.store.blob(SHA256[NEW]).read_bytes() == NEW
    assert device.left == []


def test_a_delta_that_names_the_hash_of_what_serves_takes_nothing_from_it(device: Device) -> None:
    for victim in (SHA256[OLD], FIRST.release.id, SECOND.release.id, SHA256[NEW]):
        device.offer(MADE["tensor"], sha256=victim)
        device.fetch()
        device.store.check(device.store.release(FIRST.release.id))
        device.store.blob(SHA256[NEW]).unlink()


def test_without_zstd_a_delta_of_it_is_not_fetched(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    content = patched(OLD, NEW)
    device.offer(content, format="zstd", size_bytes=min(len(content), 80_000))
    without_zstd(monkeypatch)
    asked = device.fetch()
    assert FULL in asked
    assert device.counts == {}


def test_without_memory_the_full_file_comes(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.offer(MADE["tensor"])

    def hungry(*_: object) -> Iterator[bytes]:
        yield NEW[:100]
        raise MemoryError

    monkeypatch.setattr(deltas, "FORMATS", {"tensor": hungry})
    assert FULL in device.fetch()
    assert device.counts == {"failed": 1}


def test_where_a_delta_does_not_fit_beside_the_file_it_is_not_fetched(tmp_path: Path) -> None:
    sizes = FIRST.release.size_bytes + SECOND.release.size_bytes + 5000
    device = Device(tmp_path / "store", quota_bytes=sizes)
    offer = device.offer(MADE["tensor"] + bytes(10_000))
    asked = device.fetch()
    assert delta_path(SHA256[NEW], offer) not in asked
    assert FULL in asked


class Breaking:
    """A line to a fleet that breaks after some bytes of a delta."""

    def __init__(self, fleet: Fleet, after: int) -> None:
        self.fleet, self.after = fleet, after

    def get(self, path: str, *, at: int = 0, tag: str = "") -> Answer:
        answer = self.fleet.get(path, at=at, tag=tag)
        large = path.startswith("deltas/") and not path.endswith(".json")
        return replace(answer, parts=self._parts(answer.parts)) if large else answer

    def post(self, path: str, body: bytes) -> bytes:
        return self.fleet.post(path, body)

    def _parts(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        content = b"".join(parts)
        for begin in range(0, len(content), PART_BYTES):
            if begin >= self.after:
                raise NetworkError("cut", expected="", way_out="", code="network")
            yield content[begin : begin + PART_BYTES]


@pytest.mark.parametrize(("after", "counts"), [(20_000, "applied"), (2_000, "failed")])
def test_a_delta_goes_on_as_long_as_the_line_brings_something_of_it(
    device: Device, after: int, counts: str
) -> None:
    noise = RNG.integers(0, 256, 60_000, np.uint8).tobytes()
    content = pack(
        [Segment(0, 0, 60_000), Segment(2, 60_000, len(OLD) - 60_000, 60_000), Segment(0, len(OLD), 7)],
        array(OLD),
        array(NEW),
    )
    assert content is not None
    assert len(content) > len(noise)
    offer = device.offer(content)
    device.fleet, fleet = Breaking(device.fleet, after), device.fleet  # type: ignore[assignment]
    device.fleet.asked = fleet.asked
    asked = device.fetch()
    assert device.counts[counts] == 1
    assert (FULL in asked) == (counts == "failed")
    starts = [at for path, at in fleet.asked if path == delta_path(SHA256[NEW], offer)]
    assert starts == sorted(set(starts))


def test_a_device_that_is_told_to_stop_keeps_nothing_half_and_goes_on_with_the_delta(device: Device) -> None:
    device.offer(MADE["tensor"])
    calls = iter(range(10**6))

    def stop() -> None:
        # The list, the delta and the first part of the file have come.
        if next(calls) >= 3:
            raise NetworkError("stopped", expected="", way_out="", code="stopped")

    device.going_on = stop
    with pytest.raises(NetworkError):
        device.fetch()
    assert FULL not in [path for path, _ in device.fleet.asked]
    assert SHA256[NEW] not in device.left
    device.going_on = lambda: None
    assert FULL not in device.fetch()
    assert device.counts["applied"] == 1


def test_after_a_power_cut_at_any_operation_the_right_file_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_delta, "LEAST_BYTES", 100)
    old, new = bytes(range(256)) * 2, bytes(range(1, 256)) * 2
    first, second = publish("1.0.0", old), publish("2.0.0", new)
    content = subtracted(old, new)
    sha256 = hashlib.sha256(new).hexdigest()

    def prepared(path: Path) -> Device:
        device = Device.__new__(Device)
        device.store, device.fleet, device.counts = Store(path), Fleet(), Counter()
        device.going_on = lambda: None
        device.fleet.upload(second)
        offer = Offer(
            hashlib.sha256(old).hexdigest(), "tensor", len(content), hashlib.sha256(content).hexdigest()
        )
        device.serve(index_path(sha256), write_index([offer]))
        device.serve(delta_path(sha256, offer), content)
        return device

    device = prepared(tmp_path / "before")
    device.store.make()
    device.store.add_release(first.release, first.read)
    device.state(live=first.release.id, candidate=second.release.id)
    recorder = Recorder()
    recorder.found(device.store.path)
    device.store.disk = recorder  # type: ignore[assignment]
    device.fetch(second.release)
    assert device.counts["applied"] == 1
    seen = 0
    for number, (_, image) in enumerate(cuts(recorder, device.store.path, drawn=1)):
        after = tmp_path / str(number)
        after.mkdir()
        rebuild(image, device.store.path, after)
        recovered = prepared(after)
        for _ in range(2):
            try:
                recovered.fetch(second.release)
                break
            except ArtifactError:
                # Bytes that were not safe are found out and thrown away; the next poll begins anew.
                continue
        else:
            pytest.fail("it did not recover")
        assert recovered.store.blob(sha256).read_bytes() == new
        recovered.store.check(first.release)
        seen += 1
    assert seen > 30
