"""What a fleet does while what it stands on fails: database, disk and clock, and servers in the middle of a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from edgekit.fleet.background import Repeated
from edgekit.fleet.conduct import conductor, steering, webhooks
from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError
from edgekit.fleet.operations import setup
from edgekit.fleet.releases import publication
from edgekit.fleet.rules.rollouts import Plan
from edgekit.fleet.storage import audit, tables
from edgekit.fleet.storage.database import Database
from edgekit.fleet.storage.tables import decisions, deliveries, looks, rollouts, windows
from support.databases import KINDS, url_of
from support.disks import small_disk
from support.fleets import ADMIN, Clock, World, make, rows
from support.postgres import postgres
from support.served_fleet import a_body, a_window, count, enrolled, serving

MODEL = "größe"
YEAR_S = 365 * 86400


def quick(world: World) -> Fleet:
    """The fleet, with a conductor that looks often, by the clock of the machine."""
    return replace(world.fleet, settings=replace(world.fleet.settings, look_every_s=0.05))


def rollout_of(world: World, **plan: Any) -> tuple[str, str, str]:
    """Ids of a rollout, of what is settled and of the release that comes."""
    old, new = world.release("1.0.0"), world.release("2.0.0")
    first = steering.create(
        world.fleet, ADMIN, model=MODEL, version="1.0.0", channel="stable", plan=Plan((100.0,))
    )
    steering.said(world.fleet, ADMIN, first.id, "promote")
    given = Plan(mode="canary", first_devices=0, **{"stages": (100.0,), **plan})
    found = steering.create(world.fleet, ADMIN, model=MODEL, version="2.0.0", channel="stable", plan=given)
    publication.publish(world.fleet)
    return found.id, old, new


def post(url: str, token: str, body: bytes) -> httpx.Response:
    return httpx.post(
        f"{url}/v1/reports", content=body, headers={"Authorization": f"Bearer {token}"}, timeout=30
    )


def until(holds: Callable[[], bool], what: str, seconds: float = 20) -> None:
    end_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end_s, what
        time.sleep(0.02)


@contextmanager
def conducting(fleet: Fleet) -> Iterator[Repeated]:
    found = conductor.repeated(fleet, "tests")
    found.start()
    try:
        yield found
    finally:
        found.stop()


# PostgreSQL


def test_postgresql_is_stopped_and_started_under_a_server_and_nothing_that_was_acknowledged_is_lost(
    tmp_path: Path,
) -> None:
    server = postgres()
    with server.database() as url:
        world = make(tmp_path / "fleet", database_url=url)
        fleet = quick(world)
        rollout_of(world)
        _, token = enrolled(fleet, "kiln")
        with serving(fleet) as address, conducting(fleet):
            body = a_body("kiln", a_window(1))
            assert post(address, token, body).status_code == 200
            until(lambda: count(fleet, looks) > 2, "the conductor looks")
            server.stop()
            try:
                for _ in range(3):
                    answer = post(address, token, a_body("kiln", a_window(2)))
                    assert (answer.status_code, answer.json()["code"]) == (503, "database_away")
                    assert int(answer.headers["retry-after"]) >= 1
                until(lambda: httpx.get(f"{address}/healthz").status_code == 503, "health says so")
                health = httpx.get(f"{address}/healthz").json()
                assert (health["ok"], health["database"]["why"], health["blobs"]["ok"]) == (
                    False, "database_away", True,
                )  # fmt: skip
                # Devices read on.
                assert httpx.get(f"{address}/metadata/timestamp.json").status_code == 200
                asked = httpx.get(
                    f"{address}/v1/rollouts", headers={"Authorization": f"Bearer {world.made.token}"}
                )
                assert asked.status_code == 503
                time.sleep(0.3)
            finally:
                server.start()
            # As an agent does: the same again.
            until(
                lambda: post(address, token, a_body("kiln", a_window(1), a_window(2))).status_code == 200,
                "taken",
            )
            until(lambda: httpx.get(f"{address}/healthz").status_code == 200, "health says so")
            seen = count(fleet, looks)
            until(lambda: count(fleet, looks) > seen, "the conductor goes on")
        assert count(fleet, windows) == 2
        world.fleet.close()


# The disk


def test_a_full_disk_takes_nothing_loses_nothing_and_is_said(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "24m") as disk:
        world = make(disk / "fleet")
        rollout_id, *_ = rollout_of(world)
        _, token = enrolled(world.fleet, "kiln")
        with serving(world.fleet) as address:
            ballast = fill(disk)
            taken, answer = [], None
            # The log of SQLite has some room of its own.
            for key in range(2000):
                answer = post(address, token, a_body("kiln", a_window(key)))
                if answer.status_code != 200:
                    break
                taken.append(key)
            assert answer is not None
            assert (answer.status_code, answer.json()["code"]) == (503, "no_room")
            assert int(answer.headers["retry-after"]) >= 1
            until(lambda: httpx.get(f"{address}/healthz").status_code == 503, "health says so")
            health = httpx.get(f"{address}/healthz").json()
            assert {health["database"]["why"], health["blobs"]["why"]} == {"no_room"}
            upload = httpx.put(
                f"{address}/v1/uploads/{'0' * 64}", content=b"x" * 100_000,
                headers={"Authorization": f"Bearer {world.made.token}"},
            )  # fmt: skip
            assert (upload.status_code, upload.json()["code"]) == (503, "no_room")
            with suppress(Exception):
                conductor.act(world.fleet, "tests")
            assert rows(world.fleet.database, rollouts)[-1]["state"] == "running"
            ballast.unlink()
            assert post(address, token, a_body("kiln", a_window(9999))).status_code == 200
            until(lambda: httpx.get(f"{address}/healthz").status_code == 200, "health says so")
            assert conductor.act(world.fleet, "tests").failures == ()
        assert count(world.fleet, windows) == len(taken) + 1
        assert steering.said(world.fleet, ADMIN, rollout_id, "abort").state == "aborted"
        with world.fleet.database.reading() as connection:
            assert audit.verify(connection) is None
        world.fleet.close()


def fill(disk: Path) -> Path:
    """A file that takes all that is left."""
    path = disk / "ballast"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    return path


# The clock


def test_a_clock_that_jumps_by_ten_years_neither_soaks_nor_times_out_nor_silences_anybody(
    tmp_path: Path,
) -> None:
    world = make(tmp_path / "fleet")
    # Before there are enough devices for a verdict, only time can end a step.
    rollout_id, _, new = rollout_of(world, soak_s=9000, timeout_s=20_000, patience_s=900)
    _, token = enrolled(world.fleet, "kiln")
    true_s = world.clock.at

    def told() -> None:
        answer = post(address, token, a_body("kiln", live=new, phase="probation"))
        assert answer.status_code == 200, answer.text

    def look() -> tuple[dict[str, Any], dict[str, Any]]:
        conductor.act(world.fleet, "tests")
        return rows(world.fleet.database, rollouts)[-1]["document"], rows(world.fleet.database, looks)[-1][
            "counts"
        ]

    with serving(world.fleet) as address:
        told()
        look()
        for years in (10, -10, 10, 0):
            world.clock.at = true_s + years * YEAR_S
            for posts in (False, True):
                if posts:
                    told()
                document, counts = look()
                assert document["state"] == "running", years
                assert counts["reasons"] == {}, years
                assert counts["meant"] == 1, years
        assert document["counted_s"] <= 8 * 120 < 9000
        # Whoever falls silent after that is still found, once what was lost is longer ago than twice the patience.
        for _ in range(32):
            world.clock.at += 100
            _, counts = look()
        assert counts["reasons"] == {"silent": 1}
    assert rows(world.fleet.database, rollouts)[-1]["id"] == rollout_id
    world.fleet.close()


def test_what_is_published_never_goes_back_in_time_whatever_the_clock_says(tmp_path: Path) -> None:
    world = make(tmp_path / "fleet")
    rollout_id, old, new = rollout_of(world)
    # A device with a clock that is right.
    device = World(world.made, world.fleet, Clock(world.clock.at))
    true_s, before = world.clock.at, signed_at(world)
    assert [each.release for each in device.policy(tmp_path / "device").rules] == [new, old]

    world.clock.at = true_s + 10 * YEAR_S
    failures = conductor.act(world.fleet, "tests").failures
    assert [each.code for each in failures] == ["expired"]
    assert "clock" in failures[0].what
    assert signed_at(world) == before
    device.policy(tmp_path / "device")

    # A person decides meanwhile, and devices hear of it, whatever the clock.
    world.clock.at = true_s - 10 * YEAR_S
    steering.said(world.fleet, ADMIN, rollout_id, "abort")
    assert conductor.act(world.fleet, "tests").failures == ()
    assert signed_at(world) >= before
    assert [each.release for each in device.policy(tmp_path / "device").rules] == [old]

    # Within the life of what people signed a clock is believed; afterwards nothing is dated back behind it.
    world.clock.at = true_s + 100 * 86400
    assert conductor.act(world.fleet, "tests").failures == ()
    ahead = signed_at(world)
    assert ahead > before
    device.policy(tmp_path / "device")
    world.clock.at = true_s
    back = steering.create(
        world.fleet, ADMIN, model=MODEL, version="2.0.0", channel="stable", plan=Plan((100.0,))
    )
    assert conductor.act(world.fleet, "tests").failures == ()
    assert signed_at(world) >= ahead
    assert device.policy(tmp_path / "device").rules[0].release == new
    assert back.state == "running"
    world.fleet.close()


def signed_at(world: World) -> datetime:
    content = b"".join(world.fleet.blobs.open("metadata/timestamp.json"))
    return datetime.strptime(json.loads(content)["signed"]["signed_at"], "%Y-%m-%dT%H:%M:%SZ").replace(
        tzinfo=UTC
    )


def test_a_lease_of_a_clock_that_ran_ahead_holds_nobody_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with url_of("sqlite", tmp_path) as url:
        database = Database.open(url)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 10 * YEAR_S)
        assert database.lease("conductor", "dead", 60)
        assert not database.lease("conductor", "other", 60)
        monkeypatch.setattr(time, "time", real)
        assert database.lease("conductor", "other", 60)
        assert not database.lease("conductor", "dead", 60)
        database.close()


# Servers that race


@pytest.mark.parametrize("kind", KINDS)
def test_two_servers_on_one_rollout_lose_no_decision_and_take_no_step_twice(
    kind: str, tmp_path: Path
) -> None:
    with url_of(kind, tmp_path, empty=True) as url:
        world = make(tmp_path / "fleet", database_url=url)
        rollout_id, *_ = rollout_of(world)
        webhooks.add(world.fleet, ADMIN, url="https://chat.example/")
        taken: list[str] = []

        def run(server: Fleet, number: int) -> None:
            for each in range(100):
                why = f"{number}-{each}"
                with suppress(ConflictError):
                    conductor.look(server, rollout_id)
                with suppress(ConflictError):
                    word = ("pause", "resume")[(each + number) % 2]
                    steering.said(server, ADMIN, rollout_id, word, why=why)
                    taken.append(why)

        with ExitStack() as stack:
            stack.callback(world.fleet.close)
            threads = []
            for number in range(2):
                database = Database.open(url)
                stack.callback(database.close)
                server = replace(world.fleet, database=database)
                threads.append(threading.Thread(target=run, args=(server, number)))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            # Whoever says the opposite of what holds is heard: 99 at the least, were nobody in the way of the other.
            assert len(taken) > 50
            check_decisions(world.fleet, rollout_id, taken)


@pytest.mark.parametrize("kind", KINDS)
def test_servers_that_are_killed_in_the_middle_of_a_step_lose_no_decision(kind: str, tmp_path: Path) -> None:
    with url_of(kind, tmp_path, empty=True) as url:
        made = setup.init(tmp_path / "fleet", settings={"database_url": url})
        world = World(made, Fleet.open(made.folder), time.time)  # type: ignore[arg-type] # a clock, too
        rollout_id, *_ = rollout_of(world)
        webhooks.add(world.fleet, ADMIN, url="https://chat.example/")
        taken: list[str] = []
        running = [racing(made.folder, f"{number}", rollout_id, taken) for number in range(2)]
        try:
            for number, name in ((0, "2"), (1, "3")):
                enough = len(taken) + 20
                until(lambda enough=enough: len(taken) > enough, "decisions are taken", 60)
                kill(running[number])
                running[number] = racing(made.folder, name, rollout_id, taken)
            until(lambda: {each[0] for each in taken} >= {"2", "3"} and len(taken) > 80, "both go on", 60)
        finally:
            for each in running:
                kill(each)
        check_decisions(world.fleet, rollout_id, taken)
        # Whoever holds the lease that a dead one left: here nobody waits for a minute.
        world.fleet.database.release_lease(conductor.LEASE, "2")
        publication.publish(world.fleet)
        world.fleet.close()


def racing(
    folder: Path, name: str, rollout: str, taken: list[str]
) -> tuple[subprocess.Popen[str], threading.Thread]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "support.racing_server", str(folder), name, rollout],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip

    def follow() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            # A line that was cut off was not heard.
            taken.extend([line.strip()] if line.endswith("\n") else [])

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    return process, thread


def kill(running: tuple[subprocess.Popen[str], threading.Thread]) -> None:
    process, thread = running
    process.kill()
    process.wait()
    thread.join()
    if process.stdout is not None:
        process.stdout.close()


def check_decisions(fleet: Fleet, rollout_id: str, taken: list[str]) -> None:
    """Every decision that was acknowledged is there once, under the next number, in the log and in what is told."""
    with fleet.database.reading() as connection:
        own = connection.execute(
            select(decisions.c.revision, decisions.c.kind, decisions.c.why)
            .where(decisions.c.rollout == rollout_id)
            .order_by(decisions.c.revision)
        ).all()
        revision = connection.scalar(select(rollouts.c.revision).where(rollouts.c.id == rollout_id))
        logged = connection.scalars(
            select(tables.audit.c.action)
            .where(tables.audit.c.subject == rollout_id)
            .order_by(tables.audit.c.sequence)
        ).all()
        told = connection.scalars(select(deliveries.c.event).order_by(deliveries.c.id)).all()
        assert audit.verify(connection) is None
    assert [each.revision for each in own] == list(range(len(own)))
    assert revision == own[-1].revision
    said = [each.why.partition(": ")[2] for each in own if ": " in each.why]
    assert len(said) == len(set(said))
    assert set(taken) <= set(said)
    assert list(logged) == [f"rollout.{each.kind}" for each in own]
    # The first was before anybody wanted to hear.
    assert list(told) == [each.kind for each in own[1:] if each.kind in steering.EVENTS]
    # A pause follows what runs, and what goes on follows a pause: no step was taken from an older state.
    kinds = [each.kind for each in own[1:] if each.kind in {"paused", "resumed"}]
    assert all(before != after for before, after in pairwise(kinds))
