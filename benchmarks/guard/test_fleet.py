"""On the server: gates, posts that are read and stored, and windows that are added up."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert

from benchmarks.guard.conftest import Against
from benchmarks.guard.references import columns, documents, together, transactions
from edgekit.fleet.context import Fleet
from edgekit.fleet.rules.evidence import Columns, Evidence
from edgekit.fleet.rules.gates import Limits, judged
from edgekit.fleet.rules.rollouts import Plan, Rollout
from edgekit.fleet.settings import Settings
from edgekit.fleet.storage.blobs import open_blobs
from edgekit.fleet.storage.database import Database, insert_new
from edgekit.fleet.storage.tables import devices, rollouts, versions
from edgekit.fleet.windows.ingest import Taken, store
from edgekit.fleet.windows.merging import merge
from edgekit.fleet.windows.posts import Post, read_post
from edgekit_runtime.policies import BUCKETS
from edgekit_runtime.sketches import Sketch
from edgekit_runtime.windows import Counts, Figures, Noise, Side, Window

LIVE, CANDIDATE = "a" * 64, "b" * 64
NOW_S = 1_800_000_000
DEVICES = 50
WINDOWS = 8
STATUS: dict[str, Any] = {
    "phase": "shadow", "live": LIVE, "candidate": CANDIDATE, "last_good": None, "pinned": False, "rollbacks": 0,
    "failed": {}, "dropped": 0,
}  # fmt: skip


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    url = f"sqlite:///{tmp_path}/fleet.db"
    database = Database.open(url, create=True)
    database.migrate()
    made = Fleet(database, open_blobs(str(tmp_path / "blobs")), Settings(tmp_path, url), lambda: float(NOW_S))
    rows = [
        {
            "id": f"kitchen-{n}", "token_hash": f"{n:064x}", "labels": {"region": ("eu", "us")[n % 2]},
            "enrolled_s": NOW_S, "status": {},
        }
        for n in range(DEVICES)
    ]  # fmt: skip
    rollout = Rollout(
        "r1", "m", "stable", CANDIDATE, LIVE, "salt", Plan(), shadow_bound=BUCKETS, live_bound=BUCKETS
    )
    with database.writing() as connection:
        insert_new(connection, devices, rows, ["id"])
        connection.execute(
            insert(versions).values(
                id=CANDIDATE, model="m", version="2", state="signed", size_bytes=1, release="{}", manifest={},
                report={}, lineage={}, published_s=NOW_S, published_by="guard",
            )
        )  # fmt: skip
        connection.execute(
            insert(rollouts).values(
                id="r1", model="m", channel="stable", release=CANDIDATE, state=rollout.state,
                document=rollout.to_tree(), revision=0, created_s=NOW_S, created_by="guard",
            )
        )  # fmt: skip
    yield made
    made.close()


def window(key: int) -> Window:
    """Of a classifier, with sketches as wide as a minute of predictions makes them."""
    rng = np.random.default_rng(key % 16)
    live, candidate = (
        Side(Sketch.of(*rng.lognormal(1, 0.2, 100)), Sketch.of(*rng.beta(8, 2, 100))) for _ in range(2)
    )
    return Window(
        f"{key:032x}", LIVE, CANDIDATE, "classification", NOW_S - 300, 300.0,
        Figures(
            counts=Counts(seen=5000, compared=100, agreed=98), live=live, candidate=candidate,
            noise=Noise(10, 10, Sketch.of(0.0)), confusion={("cat", "dog"): 2},
        ),
    )  # fmt: skip


def body(number: int) -> bytes:
    """A post of some windows that nobody has posted before."""
    keys = range(number * WINDOWS, (number + 1) * WINDOWS)
    tree = {
        "schema": 1, "device": f"kitchen-{number % DEVICES}", "status": STATUS, "reports": [],
        "windows": [json.loads(window(key).to_json()) for key in keys],
    }  # fmt: skip
    return json.dumps(tree).encode()


def posts() -> Iterator[list[Post]]:
    """Lists of four posts without end."""
    for first in itertools.count(0, 4):
        yield [read_post(body(number), windows=WINDOWS) for number in range(first, first + 4)]


def test_gates(against: Against) -> None:
    rng = np.random.default_rng(0)
    n = 1000
    shown = Columns(
        rng.beta(98, 2, n), rng.uniform(0, 0.002, n), rng.uniform(0, 0.002, n), rng.uniform(0.8, 1.0, n)
    )
    confidence = Sketch.of(*rng.beta(8, 2, 1000))
    evidence = Evidence(
        meant=n, taken=n, outcomes=np.zeros(n, dtype=bool), first=shown, now=shown, samples=100 * n,
        live_confidence=confidence, confidence=confidence, heard=(n, 0),
    )  # fmt: skip
    against(lambda: judged(evidence, Limits(), mode="shadow", phase="shadow"), columns(), rounds=80)


def test_ingest_read_post(against: Against) -> None:
    given = body(1)
    against(lambda: read_post(given, windows=WINDOWS), documents(), rounds=200, calls=4, reference_calls=5)


def test_ingest_store(against: Against, fleet: Fleet, tmp_path: Path) -> None:
    waiting, taken = posts(), list[Post]()

    def save() -> None:
        answers = fleet.database.write(lambda connection: store(connection, taken, NOW_S))
        assert sum(each.windows for each in answers if isinstance(each, Taken)) == 4 * WINDOWS

    def bring() -> None:
        taken[:] = next(waiting)

    reference = together(transactions(tmp_path), documents(600))
    against(save, reference, rounds=80, before=bring)


def test_merging(against: Against, fleet: Fleet) -> None:
    waiting = posts()

    def add_up() -> None:
        assert merge(fleet, "guard", frozenset({"region"})) == 4 * WINDOWS

    def bring() -> None:
        fleet.database.write(lambda connection: store(connection, next(waiting), NOW_S))

    against(add_up, documents(), rounds=80, reference_calls=30, before=bring)
