"""Files that were uploaded and never became a version go after a day; nothing that is named goes, whoever races."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update

from edgekit.fleet.errors import InvalidError
from edgekit.fleet.operations import leftovers, retention
from edgekit.fleet.operations.leftovers import collect
from edgekit.fleet.releases import offers, registry
from edgekit.fleet.storage.blobs import open_blobs
from edgekit.fleet.storage.tables import versions
from support.fleets import PUBLISHER, REPORT, World, make
from support.releases import publish
from support.s3 import bucket_url

DAY_S = 86_400


@pytest.fixture(params=["folder", "s3"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """By the real clock: storages date files by it."""
    made = make(tmp_path / "fleet", blobs_url=bucket_url(monkeypatch) if request.param == "s3" else "")
    made.clock.at = time.time()
    yield made
    made.fleet.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[World]:
    made = make(tmp_path / "fleet")
    made.clock.at = time.time()
    yield made
    made.fleet.close()


def upload(world: World, content: bytes) -> str:
    name = f"blobs/{hashlib.sha256(content).hexdigest()}"
    world.fleet.blobs.put(name, (content,), max_bytes=1 << 20)
    return name


def files(world: World) -> set[str]:
    return {*world.fleet.blobs.names()}


def test_what_no_version_names_goes_after_a_day_and_all_else_stays(world: World) -> None:
    world.release("1.0.0")
    world.propose("1.1.0")
    retired = world.release("0.9.0")
    registry.retire(world.fleet, PUBLISHER, "größe", "0.9.0")
    world.sign()
    named = files(world)
    nobodys = upload(world, b"uploaded and forgotten")
    assert retired

    world.clock.at += DAY_S - 600
    assert collect(world.fleet) == 0
    world.clock.at += 1200
    assert collect(world.fleet) == 1
    assert files(world) == named
    assert nobodys not in named
    assert collect(world.fleet) == 0


def test_the_same_upload_again_makes_a_file_young(small: World) -> None:
    name = upload(small, b"once more")
    path = small.fleet.blobs.root / name  # type: ignore[attr-defined]
    os.utime(path, (1, 1))
    upload(small, b"once more")
    assert collect(small.fleet) == 0
    os.utime(path, (1, 1))
    assert collect(small.fleet) == 1


def test_more_files_than_go_at_once_all_go(small: World) -> None:
    for number in range(3 * leftovers.AT_ONCE + 1):
        upload(small, b"%d" % number)
    small.clock.at += 2 * DAY_S
    assert collect(small.fleet) == 3 * leftovers.AT_ONCE + 1


def test_a_version_that_is_proposed_meanwhile_keeps_its_files(small: World) -> None:
    """Between the look at what is named and the moment in which a file would go."""
    release = publish("1.0.0", b"weights")
    small.upload(release)
    small.clock.at += 2 * DAY_S

    class Racing:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def names(self, prefix: str = "") -> Iterator[str]:
            found = list(self.inner.names(prefix))
            registry.propose(small.fleet, PUBLISHER, release=release.release.to_json(), report=REPORT)
            yield from found

    assert collect(replace(small.fleet, blobs=Racing(small.fleet.blobs))) == 0
    assert small.sign().published


def test_a_version_whose_files_just_went_is_refused_and_comes_with_its_files_again(small: World) -> None:
    release = publish("1.0.0", b"weights")
    small.upload(release)
    small.clock.at += 2 * DAY_S
    gone = threading.Event()

    class Racing:
        """Between the first look at the files of a version and the row that names them."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def open(self, name: str, at: int = 0, length: int | None = None) -> Iterator[bytes]:
            content = b"".join(self.inner.open(name, at, length))
            if not gone.is_set():
                gone.set()
                assert collect(small.fleet) == 3
            return iter((content,))

    racing = replace(small.fleet, blobs=Racing(small.fleet.blobs))
    with pytest.raises(InvalidError) as caught:
        registry.propose(racing, PUBLISHER, release=release.release.to_json(), report=REPORT)
    assert caught.value.code == "not_uploaded"
    small.upload(release)
    registry.propose(racing, PUBLISHER, release=release.release.to_json(), report=REPORT)
    assert small.sign().published


def test_an_upload_that_is_under_way_is_not_touched(small: World) -> None:
    small.clock.at += 2 * DAY_S
    content = b"slow"
    name = f"blobs/{hashlib.sha256(content).hexdigest()}"

    def parts() -> Iterator[bytes]:
        yield content[:2]
        assert collect(small.fleet) == 0
        yield content[2:]

    small.fleet.blobs.put(name, parts(), max_bytes=10)
    assert small.fleet.blobs.size(name) == 4


def test_a_file_that_goes_while_it_is_uploaded_again_is_there_afterwards(tmp_path: Path) -> None:
    blobs = open_blobs(str(tmp_path / "blobs"))
    name, stop = "blobs/" + "a" * 64, threading.Event()

    def away() -> None:
        while not stop.is_set():
            blobs.delete(name)

    thread = threading.Thread(target=away)
    thread.start()
    try:
        for _ in range(150):
            blobs.put(name, (b"x" * 100,), max_bytes=100)
    finally:
        stop.set()
        thread.join()
    blobs.put(name, (b"x" * 100,), max_bytes=100)
    assert blobs.size(name) == 100


def test_files_of_what_targets_sign_stay_where_the_database_knows_nothing_of_them(small: World) -> None:
    small.release("1.0.0")
    with small.fleet.database.writing() as connection:
        connection.execute(delete(versions))
    small.clock.at += 2 * DAY_S
    before = files(small)
    assert collect(small.fleet) == 0
    assert files(small) == before


def test_deltas_and_what_they_lead_from_and_to_stay(small: World) -> None:
    world = small
    old, new = bytes(range(256)) * 400, bytes(range(256)) * 399 + b"x" * 256
    first, second = world.release("1.0.0", old), world.release("1.1.0", new)
    assert first != second
    pair = offers.Pair(hashlib.sha256(new).hexdigest(), hashlib.sha256(old).hexdigest())
    assert offers.make(world.fleet.blobs, pair)
    world.clock.at += 2 * DAY_S
    before = files(world)
    assert collect(world.fleet) == 0
    assert files(world) == before


def test_nothing_goes_where_a_version_cannot_be_read_and_the_rest_of_the_sweep_does(
    small: World, caplog: pytest.LogCaptureFixture
) -> None:
    release = small.release("1.0.0")
    upload(small, b"nobody's")
    with small.fleet.database.writing() as connection:
        connection.execute(update(versions).where(versions.c.id == release).values(release="{}"))
    small.clock.at += 2 * DAY_S
    with pytest.raises(InvalidError):
        collect(small.fleet)
    rounds = retention.repeated(small.fleet, "me")
    rounds._act(lambda: False)
    with caplog.at_level(logging.WARNING):
        rounds._act(lambda: False)
    assert "files that no version names stay" in caplog.text
