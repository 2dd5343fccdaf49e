"""Backups: whole, of one moment, brought back elsewhere, and damaged ones that are noticed."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import insert

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError, FleetError, InvalidError
from edgekit.fleet.operations.backup import restore, save
from edgekit.fleet.releases import publication
from edgekit.fleet.storage import audit
from edgekit.fleet.storage.tables import channels, deliveries, leases, metadata, webhooks, windows
from support.fleets import World, make, rows
from support.postgres import postgres

KINDS = ("sqlite", "postgresql")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def url(stack: ExitStack, kind: str) -> str:
    return stack.enter_context(postgres().database()) if kind == "postgresql" else ""


def filled(folder: Path, database_url: str = "") -> World:
    world = make(folder, database_url=database_url)
    release = world.release("1.0.0", b"weights" * 1000)
    with world.fleet.database.writing() as connection:
        settled = [{"cohort": "", "release": release}]
        connection.execute(insert(channels).values(name="stable", model="größe", settled=settled, revision=0))
        connection.execute(
            insert(windows),
            [
                {
                    "device": "kiln", "key": f"{n:08x}", "live": release, "candidate": release, "received_s": n,
                    "merged": bool(n % 2), "document": bytes([0, 255, n % 256]),
                }
                for n in range(1201)
            ],
        )  # fmt: skip
        connection.execute(
            insert(webhooks).values(
                id="ab", url="https://x/", events=[], secret="s", created_s=1, created_by="ada"
            )
        )
    publication.publish(world.fleet)
    return world


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
def test_a_fleet_comes_back_as_it_was_in_either_database(
    tmp_path: Path, stack: ExitStack, before: str, after: str
) -> None:
    world = filled(tmp_path / "fleet", url(stack, before))
    stack.callback(world.fleet.close)
    saved = save(world.fleet, tmp_path / "fleet.tar", keys=True)
    target = url(stack, after) or f"sqlite:///{tmp_path / 'restored' / 'fleet.db'}"
    options = {"database_url": target, "blobs_url": str(tmp_path / "other blobs")}
    found = restore(tmp_path / "fleet.tar", tmp_path / "restored", options)
    assert (found.rows, found.blobs, found.head) == (saved.rows, saved.blobs, saved.head)

    opened = Fleet.open(tmp_path / "restored")
    stack.callback(opened.close)
    again = Fleet(opened.database, opened.blobs, opened.settings, world.clock)
    for table in metadata.sorted_tables:
        if table is not leases:
            assert rows(again.database, table) == rows(world.fleet.database, table), table.name
    assert sorted(again.blobs.names()) == sorted(world.fleet.blobs.names())
    with again.database.reading() as connection:
        assert audit.verify(connection, saved.head) is None
    # It goes on: new rows get new numbers, and the keys sign.
    with again.database.writing() as connection:
        connection.execute(insert(deliveries).values(webhook="ab", event="failed", body="{}", next_s=1))
        connection.execute(
            insert(windows).values(
                device="x", key="ff" * 8, live="", candidate="", received_s=1, merged=False, document=b""
            )
        )
    world.clock.at += 5 * 86400
    assert publication.publish(again)
    World(world.made, again, world.clock).policy(tmp_path / "device")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = filled(tmp_path / "fleet")
    yield made
    made.fleet.close()


def test_private_keys_go_along_only_where_that_is_asked_for(world: World, tmp_path: Path) -> None:
    save(world.fleet, tmp_path / "plain.tar")
    save(world.fleet, tmp_path / "keys.tar", keys=True)
    assert b"PRIVATE KEY" not in (tmp_path / "plain.tar").read_bytes()
    assert b"PRIVATE KEY" in (tmp_path / "keys.tar").read_bytes()
    assert stat.S_IMODE((tmp_path / "plain.tar").stat().st_mode) == 0o600
    offline = (world.made.folder / "keys" / "offline" / "targets-1.pem").read_bytes()
    assert offline not in (tmp_path / "keys.tar").read_bytes()


def test_nothing_is_overwritten_and_nothing_is_left_of_a_backup_that_failed(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "there.tar").write_bytes(b"mine")
    with pytest.raises(ConflictError):
        save(world.fleet, tmp_path / "there.tar")
    with pytest.raises(InvalidError):
        save(world.fleet, tmp_path / "no folder" / "x.tar")
    world.fleet.blobs.delete("metadata/timestamp.json")
    save(world.fleet, tmp_path / "x.tar")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["fleet", "there.tar", "x.tar"]


def test_a_damaged_file_is_noticed_wherever_it_is_damaged(world: World, tmp_path: Path) -> None:
    path = tmp_path / "fleet.tar"
    save(world.fleet, path)
    whole = path.read_bytes()
    marks = [
        b"weightsweights",
        b'"audit"',
        b'{"sequence": 2',
        b"public_url" if b"public_url" in whole else b"# Settings",
    ]
    for mark in marks:
        at = whole.index(mark) + len(mark) // 2
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(FleetError):
            restore(path, tmp_path / "restored")
        assert not (tmp_path / "restored").exists()
    for short in (0, 100, len(whole) // 2, len(whole) - 20_000):
        path.write_bytes(whole[:short])
        with pytest.raises(InvalidError):
            restore(path, tmp_path / "restored")
    with pytest.raises(InvalidError):
        restore(tmp_path / "nowhere.tar", tmp_path / "restored")


def test_a_place_that_holds_something_is_left_alone(world: World, tmp_path: Path) -> None:
    save(world.fleet, tmp_path / "fleet.tar")
    with pytest.raises(ConflictError):
        restore(tmp_path / "fleet.tar", world.made.folder)
    with pytest.raises(ConflictError, match="holds something"):
        restore(tmp_path / "fleet.tar", tmp_path / "new", {"database_url": world.fleet.settings.database_url})
    with pytest.raises(ConflictError, match="holds something"):
        restore(tmp_path / "fleet.tar", tmp_path / "new", {"blobs_url": world.fleet.settings.blobs_url})
    assert not (tmp_path / "new").exists()


def test_a_log_that_was_changed_before_the_backup_does_not_come_back_unnoticed(
    world: World, tmp_path: Path
) -> None:
    with world.fleet.database.writing() as connection:
        connection.execute(audit.audit.update().where(audit.audit.c.sequence == 1).values(actor="nobody"))
    save(world.fleet, tmp_path / "fleet.tar")
    with pytest.raises(InvalidError, match="audit log is broken at row 1"):
        restore(tmp_path / "fleet.tar", tmp_path / "restored")
