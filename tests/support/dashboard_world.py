"""A fleet as it looks after some weeks: devices, versions, rollouts that real gates decided on, and what devices told.

All of it is drawn with one seed by a clock that stands still, so that pages of it are the same every time.
"""

from __future__ import annotations

import atexit
import hashlib
import math
import random
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from sqlalchemy import insert, update

from edgekit.fleet.conduct import steering
from edgekit.fleet.conduct.conductor import LEASE
from edgekit.fleet.conduct.steering import CONDUCTOR
from edgekit.fleet.context import Fleet
from edgekit.fleet.identity.access import Actor, make_token
from edgekit.fleet.releases import registry
from edgekit.fleet.rules import rollouts as rules
from edgekit.fleet.rules.evidence import Columns, Evidence, Observation, Slice
from edgekit.fleet.rules.gates import Limits, judged
from edgekit.fleet.rules.rollouts import Plan, Rollout
from edgekit.fleet.storage.tables import devices, leases
from edgekit.fleet.windows.merging import cohort_size
from edgekit_runtime.contract import Artifact, File, Manifest, Release, TensorSpec
from edgekit_runtime.policies import BUCKETS
from edgekit_runtime.sketches import Sketch
from support import fleets
from support.dashboard_told import HOSTILE, Board, sketch, tell
from support.fleets import ADMIN, PUBLISHER, Clock, World
from support.releases import Published

OLGA = Actor("olga", "operator")
TICK_S = 120
OPEN_LOOKS = 150
# Of the step that is open: enough for some gates, and not for all.
TOLD = 38
MISSED = "top1 of the TFLite file is 92.1%, 1.9 points below float; at most 1.0 is allowed"


def make(folder: Path, *, hostile: bool = False) -> Board:
    """A fleet full of data.

    Args:
        folder: empty or new.
        hostile: whether labels, names and notes try to be scripts.
    """
    board = Board(fleets.make(folder))
    world, drawn = board.world, np.random.default_rng(20)
    ends_s = world.clock.at
    world.clock.at = ends_s - 30 * 86400
    _devices(board, drawn)
    _versions(board, hostile=hostile)
    with ids_that_repeat():
        _rollouts(board, ends_s)
    tell(board, drawn, hostile=hostile)
    with world.fleet.database.writing() as connection:
        connection.execute(insert(leases).values(name=LEASE, holder="server-1", until_s=world.clock.at + 60))
    for role in ("viewer", "publisher", "operator", "admin"):
        name = {"viewer": "vic", "publisher": "pia", "operator": "olga", "admin": "ada"}[role]
        board.tokens[role] = make_token(world.fleet, ADMIN, name=name, role=role)
    return board


def copied(folder: Path) -> Board:
    """A hostile one to be changed at will; it is made once in a process, and then copied.

    Args:
        folder: new.
    """
    made = _hostile()
    shutil.copytree(made.world.fleet.settings.folder, folder)
    opened, clock = Fleet.open(folder), Clock(made.world.clock.at)
    fleet = Fleet(opened.database, opened.blobs, opened.settings, clock)
    return replace(made, world=World(made.world.made, fleet, clock))


@cache
def _hostile() -> Board:
    folder = tempfile.mkdtemp(prefix="edgekit-tests-dashboard-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    board = make(Path(folder) / "fleet", hostile=True)
    board.world.fleet.close()
    return board


def empty(folder: Path) -> Board:
    """A fleet in which nothing happened yet."""
    board = Board(fleets.make(folder))
    board.tokens["admin"] = board.world.made.token
    return board


@contextmanager
def ids_that_repeat() -> Iterator[None]:
    """Ids and salts of rollouts are the same every time, and so are the devices that they draw."""
    numbers = random.Random(20)
    steering.secrets = SimpleNamespace(token_hex=lambda size: numbers.randbytes(size).hex())  # type: ignore[attr-defined]
    try:
        yield
    finally:
        steering.secrets = secrets  # type: ignore[attr-defined]


def _devices(board: Board, drawn: np.random.Generator) -> None:
    world = board.world
    rows = []
    for number in range(240):
        hardware = ("pi5", "pi4", "jetson-orin")[int(drawn.choice(3, p=(0.5, 0.35, 0.15)))]
        region = ("eu", "us", "apac")[int(drawn.choice(3, p=(0.55, 0.3, 0.15)))]
        name = f"door-{hashlib.sha256(str(number).encode()).hexdigest()[:6]}"
        labels = {"hardware": hardware, "region": region, "customer": f"site-{number % 40:02d}"}
        rows.append(
            {
                "id": name, "token_hash": hashlib.sha256(name.encode()).hexdigest(), "revoked": number == 17,
                "channel": "stable" if number < 200 else "gauges", "labels": labels,
                "enrolled_s": int(world.clock.at) + number * 60, "seen_s": int(world.clock.at), "phase": "idle",
                "live": "", "candidate": "", "last_good": "", "pinned": False,
                "status": {"failed": {}, "rollbacks": 0, "dropped": 0},
            }
        )  # fmt: skip
    with world.fleet.database.writing() as connection:
        connection.execute(insert(devices), rows)


def _versions(board: Board, *, hostile: bool) -> None:
    world = board.world
    gauge = f"gauge {HOSTILE}"[:120] if hostile else "gauge-reader"
    plan = (
        ("doorbell", "1.3.0", "", 0.912, 3_410_000, 9.8, "First version with parcels."),
        ("doorbell", "1.4.0", "1.3.0", 0.927, 3_380_000, 9.1, "Retrained with 40 000 images of the winter."),
        (gauge, "2.0.0", "", 0.981, 1_120_000, 3.4, HOSTILE if hostile else ""),
        (gauge, "2.1.0", "2.0.0", 0.983, 870_000, 2.6, "Pruned by half."),
        (
            "doorbell",
            "1.5.0",
            "1.4.0",
            0.936,
            2_790_000,
            7.6,
            "Distilled from the large teacher; a third fewer MACs.",
        ),
    )
    for model, version, parent, metric, size, latency, notes in plan:
        board.versions[f"{model.partition(' ')[0]} {version}"] = _publish(
            board, model, version, parent, metric, size, latency, notes
        )
        assert world.sign().published
    _publish(
        board, "doorbell", "1.6.0-rc1", "1.5.0", 0.921, 2_610_000, 7.2, "Not yet good enough.", accepted=False
    )


def _publish(
    board: Board, model: str, version: str, parent: str, metric: float, size: int, latency: float, notes: str,
    *, accepted: bool = True,
) -> str:  # fmt: skip
    world = board.world
    world.clock.at += 3600
    published = release_of(model, version)
    world.upload(published)
    figures = {
        "metric": metric, "drop": 0.004, "agreement": 0.987, "size_bytes": size, "latency_ms": {"p50": latency},
        "speedup": 2.3, "snr_db": 35.7,
    }  # fmt: skip
    report: dict[str, Any] = {
        "accepted": accepted,
        "baseline": {"metric": "top1", "value": metric + 0.004},
        "artifacts": {
            "tflite": figures,
            "onnx": {
                **figures, "size_bytes": int(size * 1.04), "latency_ms": {"p50": latency * 1.2},
                "metric": metric - 0.001,
            },
        },
        "reasons": [] if accepted else [MISSED],
        "provenance": {
            "model_sha256": _hash(f"model {version}"), "recipe_sha256": _hash("recipe"),
            "calibration_sha256": _hash("calibration"), "seed": 0, "versions": {},
            "command": f"edgekit compress {model}.pt --target pi5",
        },
    }  # fmt: skip
    return registry.propose(
        world.fleet, PUBLISHER, release=published.release.to_json(), report=report, parent=parent, notes=notes
    ).id


def release_of(model: str, version: str) -> Published:
    """A small release of any model."""
    data = f"{model} {version}".encode()
    spec = TensorSpec("x", "float32", (-1, 4))
    artifacts = tuple(
        Artifact(
            form, f"model.{form}", hashlib.sha256(data).hexdigest(), len(data), "float32", (None,), (None,)
        )
        for form in ("tflite", "onnx")
    )
    manifest = Manifest(model, version, (spec,), (spec,), artifacts)
    content = {
        "manifest.json": manifest.to_json().encode(), "model.tflite": data, "model.onnx": data, "golden.npz": b"golden",
    }  # fmt: skip
    files = {path: File(hashlib.sha256(each).hexdigest(), len(each)) for path, each in content.items()}
    return Published(Release(model, version, files), content)


# Rollouts: the real gates and rules look at what is drawn here.

Draw = Callable[[int], Observation]


def _rollouts(board: Board, ends_s: float) -> None:
    world = board.world
    quick = {"soak_s": 600, "timeout_s": 86400, "first_devices": 10}
    gauge = next(name.split(" ")[0] for name in board.versions if name.startswith("gauge"))
    model_of = {row.id: row.model for row in _listed(world)}
    gauge_model = model_of[board.versions[f"{gauge} 2.0.0"]]

    @cache
    def good(number: int) -> Observation:
        draw = np.random.default_rng(number)
        return Observation(
            float(draw.beta(98, 1.4)), float(draw.beta(1, 900)), 0.0, float(draw.normal(0.84, 0.06)),
            int(draw.integers(150, 900)),
        )  # fmt: skip

    @cache
    def bad(number: int) -> Observation:
        draw = np.random.default_rng(number)
        return Observation(float(draw.beta(40, 9)), 0.001, 0.0, float(draw.normal(0.8, 0.05)), 300)

    def run(name: str, version: str, plan: Plan, draw: Draw, begins_s: float, **more: Any) -> None:
        model, channel = ("doorbell", "stable") if version.startswith("1.") else (gauge_model, "gauges")
        world.clock.at = begins_s
        _alive(board)
        made = steering.create(world.fleet, OLGA, model=model, version=version, channel=channel, plan=plan)
        board.rollouts[name] = made.id
        drive(board, made.id, draw, **more)

    canary = Plan(stages=(10, 100), mode="canary", limits=Limits(samples=100), **quick)
    run("first", "1.3.0", canary, good, ends_s - 25 * 86400)
    run("completed", "1.4.0", Plan(**quick), good, ends_s - 12 * 86400)
    run("gauges", "2.0.0", canary, good, ends_s - 9 * 86400)
    run("failed", "2.1.0", Plan(stages=(10, 50, 100), **quick), bad, ends_s - 3 * 86400)
    slower = Plan(limits=Limits(devices=30), soak_s=1800, timeout_s=7 * 86400, first_devices=10)
    begins_s = ends_s - OPEN_LOOKS * TICK_S
    run("open", "1.5.0", slower, good, begins_s, looks=OPEN_LOOKS, stop_at=(2, "shadow"))
    world.clock.at = ends_s
    drive(board, board.rollouts["open"], good, looks=1, told=TOLD)


def _listed(world: World) -> list[registry.Version]:
    with world.fleet.database.reading() as connection:
        return registry.listed(connection)


def drive(
    board: Board,
    rollout_id: str,
    draw: Draw,
    *,
    looks: int = 400,
    stop_at: tuple[int, str] = (99, ""),
    told: int = 0,
) -> None:
    """Look again and again, as the conductor does, at what is drawn for each device.

    Args:
        board: the fleet.
        rollout_id: that is open.
        draw: number of a device to what it shows.
        looks: at most.
        stop_at: stage and phase in which no device tells enough any more.
        told: devices that have told in this one look, where that is not to grow with time.
    """
    world = board.world
    since, step_before = 0, (-1, "")
    for _ in range(looks):
        world.clock.at += TICK_S if not told else 0
        with world.fleet.database.reading() as connection:
            rollout, revision = steering.read(connection, rollout_id)
            size = cohort_size(connection, rollout, world.clock.at, world.fleet.settings)
        at = rollout.stage, rollout.phase
        since, step_before = since + 1 if at == step_before else 0, at
        seen = evidence_at(
            rollout, size, draw, told or (min(since // 2, TOLD) if at == stop_at else since * 4)
        )
        verdicts = judged(seen, rollout.plan.limits, mode=rollout.plan.mode, phase=rollout.phase)
        step = rules.look(rollout, verdicts, devices=size, taken=seen.taken, now_s=world.clock.at)
        with world.fleet.database.writing() as connection:
            steering.taken(connection, step, revision, verdicts, CONDUCTOR, world.clock.at)
            steering.looked(connection, rollout, seen, verdicts, world.clock.at)
        if not step.rollout.is_open:
            break


def evidence_at(rollout: Rollout, size: int, draw: Draw, told: int) -> Evidence:
    """What the first `told` devices of a step show."""
    meant = max(1, math.ceil(size * rollout.bound / BUCKETS))
    n = min(told, meant)
    columns = Columns.of([draw(number) for number in range(n)])
    latency = np.random.default_rng(3)
    live = sketch(latency.beta(9, 1.4, 40 * n)) if n else Sketch()
    after = sketch(latency.beta(9, 1.3, 40 * n)) if n else Sketch()
    failed = np.zeros(n, dtype=bool)
    failed[14:15] = True
    pi5 = np.arange(n) % 2 == 0
    return Evidence(
        meant=meant, taken=min(meant, n + 2), outcomes=failed, reasons={"golden": 1} if failed.any() else {},
        first=columns, now=columns, slices={"hardware=pi5": Slice(math.ceil(meant / 2), pi5)} if meant > 8 else {},
        samples=sum(draw(number).samples for number in range(n)), live_confidence=live, confidence=after,
        heard=(meant, size - meant), share=rollout.bound / BUCKETS,
    )  # fmt: skip


def _alive(board: Board) -> None:
    """Devices were heard of a moment ago."""
    with board.world.fleet.database.writing() as connection:
        connection.execute(update(devices).values(seen_s=int(board.world.clock.at) - 60))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
