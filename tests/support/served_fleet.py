"""A fleet with devices and rollouts for tests of the server: databases of both kinds, windows, and real HTTP."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy import func, insert, select

from edgekit.fleet.context import Fleet
from edgekit.fleet.identity.access import Actor, Device, device_of
from edgekit.fleet.identity.enrolment import enrol, make_code
from edgekit.fleet.rules.rollouts import Plan, Rollout
from edgekit.fleet.server.app import create_app
from edgekit.fleet.server.lines import BoundedLine
from edgekit.fleet.settings import Settings
from edgekit.fleet.storage.blobs import open_blobs
from edgekit.fleet.storage.database import Database
from edgekit.fleet.storage.tables import rollouts, versions
from edgekit_runtime.policies import BUCKETS
from edgekit_runtime.sketches import Sketch
from edgekit_runtime.windows import Counts, Figures, Noise, Side, Window
from support.databases import url_of
from support.fleets import Clock

ADA = Actor("ada", "admin")
OPERATOR = Actor("olga", "operator")
VIEWER = Actor("vic", "viewer")
BASELINE, RELEASE, OTHER = "a" * 64, "b" * 64, "c" * 64
_IDLE = {
    "phase": "idle",
    "live": BASELINE,
    "candidate": None,
    "last_good": None,
    "pinned": False,
    "rollbacks": 0,
}


@contextmanager
def a_fleet(folder: Path, kind: str = "sqlite", **settings: Any) -> Iterator[Fleet]:
    """A fleet with nothing in it, by a clock that the test sets."""
    with url_of(kind, folder) as url:
        found = Fleet(
            Database.open(url),
            open_blobs(str(folder / "blobs")),
            Settings(folder, database_url=url, **settings),
            Clock(),
        )
        try:
            yield found
        finally:
            found.close()


def enrolled(fleet: Fleet, name: str, **labels: str) -> tuple[Device, str]:
    """A device and its token."""
    found = enrol(fleet, make_code(fleet, ADA, labels=labels).code, name)
    with fleet.database.reading() as connection:
        return device_of(connection, found.token), found.token


def add_rollout(
    fleet: Fleet,
    plan: Plan | None = None,
    *,
    name: str = "r1",
    release: str = RELEASE,
    baseline: str = BASELINE,
    **more: Any,
) -> Rollout:
    """An open rollout whose bound is everybody, where nothing else is said."""
    bounds = {"shadow_bound": BUCKETS, "live_bound": BUCKETS}
    found = Rollout(name, "m", "stable", release, baseline, "salt", plan or Plan(), **{**bounds, **more})
    with fleet.database.writing() as connection:
        if not connection.scalar(select(func.count()).select_from(versions).where(versions.c.id == release)):
            connection.execute(
                insert(versions).values(
                    id=release, model="m", version=release[:8], state="signed", size_bytes=1, release="{}", manifest={},
                    report={}, lineage={}, published_s=1, published_by="ada",
                )
            )  # fmt: skip
        connection.execute(
            insert(rollouts).values(
                id=name, model="m", channel="stable", release=release, state=found.state, document=found.to_tree(),
                revision=0, created_s=int(fleet.now()), created_by="ada",
            )
        )  # fmt: skip
    return found


def a_window(
    key: int, *, live: str = BASELINE, candidate: str = RELEASE, compared: int = 50, **counts: int
) -> Window:
    """A window of a device on which the two versions agree, but where it is told otherwise."""
    alone = live == candidate
    told = {"seen": 500} if alone else {"seen": 500, "compared": compared, "agreed": compared}
    sides = (
        Side(Sketch.of(2.0, 2.5, 3.0), Sketch.of(0.8, 0.9)),
        Side(Sketch.of(2.0, 2.6), Sketch.of(0.7, 0.9)),
    )
    figures = Figures(
        counts=Counts(**{**told, **counts}),
        live=sides[0],
        candidate=Side() if alone else sides[1],
        noise=Noise() if alone else Noise(10, 10, Sketch.of(0.0)),
        confusion={} if alone else {("cat", "dog"): 1},
    )
    return Window(f"{key:032x}", live, candidate, "classification", 1_700_000_000, 300.0, figures)


def a_report(key: int, kind: str, reason: str = "", release: str = RELEASE) -> dict[str, Any]:
    """As an agent tells it."""
    return {"key": f"{key:032x}", "kind": kind, "release": release, "reason": reason, "at_s": 1_700_000_000}


def a_body(device: str, *windows: Window, reports: tuple[dict[str, Any], ...] = (), **status: Any) -> bytes:
    """What a device posts, not packed."""
    tree = {
        "schema": 1, "device": device, "status": {**_IDLE, "failed": {}, "dropped": 0, **status},
        "reports": list(reports), "windows": [json.loads(window.to_json()) for window in windows],
    }  # fmt: skip
    return json.dumps(tree).encode()


def moved(fleet: Fleet, seconds: float) -> Fleet:
    """The fleet with its clock moved on."""
    at = fleet.now() + seconds
    return replace(fleet, now=lambda: at)


def count(fleet: Fleet, table: Any) -> int:
    """Rows of a table."""
    with fleet.database.reading() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


@contextmanager
def serving(fleet: Fleet) -> Iterator[str]:
    """Its address, while a real server answers on it."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(fleet), http=BoundedLine, lifespan="on", log_level="error", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
