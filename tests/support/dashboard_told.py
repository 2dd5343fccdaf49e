"""What the devices of the dashboard's fleet told: status, reports, windows by the hour, and figures by the minute."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import insert, update

from edgekit.fleet.conduct import steering
from edgekit.fleet.rules.rollouts import Rollout
from edgekit.fleet.storage.tables import devices, evidence, minutes, reports, windows
from edgekit.fleet.windows.belonging import evidence_row
from edgekit.fleet.windows.figures import packed
from edgekit_runtime.policies import bucket_of
from edgekit_runtime.sketches import LOG_GROWTH, Moments, Sketch
from edgekit_runtime.windows import Counts, Drift, Figures, Noise, Side, Window
from support.fleets import World

HOSTILE = '<script>window.hostile = "ran"</script><img src=x onerror="window.hostile=1">'
LABELS = ("person", "parcel", "car", "cat", "dog", "bicycle", "empty")
# Which label becomes which, the most frequent first.
PAIRS = ((0, 6), (1, 6), (3, 4), (4, 3), (2, 5), (0, 1), (6, 1), (5, 2))
Rows = list[dict[str, Any]]


@dataclass
class Board:
    """A fleet for the dashboard.

    Attributes:
        world: database, blobs and clock.
        tokens: role to a token of it.
        versions: "model version" to the id of its release.
        rollouts: name to the id of the rollout: "open", "completed", "failed".
        device: one that has told much.
    """

    world: World
    tokens: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    rollouts: dict[str, str] = field(default_factory=dict)
    device: str = ""


def tell(board: Board, random: np.random.Generator, *, hostile: bool) -> None:
    """Let the devices tell of the rollout that is open, and of what became of earlier ones."""
    world = board.world
    now_s = int(world.clock.at)
    live, candidate = board.versions["doorbell 1.4.0"], board.versions["doorbell 1.5.0"]
    with world.fleet.database.reading() as connection:
        rollout, _ = steering.read(connection, board.rollouts["open"])
        known = [dict(row) for row in connection.execute(devices.select().order_by(devices.c.id)).mappings()]
    stable = [each for each in known if each["channel"] == "stable" and not each["revoked"]]
    drawn = [each for each in stable if bucket_of(rollout.salt, each["id"]) < rollout.bound]
    board.device = drawn[0]["id"]
    broken = drawn[1]["id"]
    gauge = next(release for name, release in board.versions.items() if name.endswith("2.0.0"))
    with world.fleet.database.writing() as connection:
        for number, each in enumerate(known):
            serves = live if each["channel"] == "stable" else gauge
            ages = (240, 2400, 40_000, 300_000, 900_000)
            age_s = ages[int(random.choice(5, p=(0.82, 0.1, 0.05, 0.02, 0.01)))]
            change: dict[str, Any] = {"live": serves, "seen_s": now_s - age_s + number % 60}
            if each in drawn:
                change |= {"phase": "shadow", "candidate": candidate, "seen_s": now_s - 40}
            if each["channel"] == "stable":
                change["last_good"] = board.versions["doorbell 1.3.0"]
            if each["id"] == broken:
                told = {"failed": {candidate: "golden"}, "rollbacks": 1, "dropped": 2}
                change |= {"phase": "idle", "candidate": "", "status": told}
            if hostile and number == 3:
                change["labels"] = {**each["labels"], "site": HOSTILE[:128]}
            connection.execute(update(devices).where(devices.c.id == each["id"]).values(**change))
        _evidence(connection, rollout, drawn, broken, now_s, random)
        _reports(connection, board, broken, now_s)
        _minutes(connection, rollout, now_s, random)


def _evidence(
    connection: Any, rollout: Rollout, drawn: Rows, broken: str, now_s: int, random: np.random.Generator
) -> None:
    rows = []
    for each in drawn:
        compared = int(random.integers(150, 900))
        row = evidence_row(rollout, each["id"], each["labels"], now_s - 60)
        shown = {
            "accepted_s": now_s - 9000,
            "compared": compared,
            "agreed": int(compared * random.uniform(0.95, 1)),
        }
        rows.append({**row, **shown, "failed": "golden" if each["id"] == broken else ""})
    connection.execute(insert(evidence), rows)
    # Some hours ago it was switched off.
    hours = [
        (drawn[0]["id"], f"{hour:08x}{number:08x}", now_s - hour * 3600 - number * 200)
        for hour in range(47)
        for number in range(int(random.integers(4, 13)) if not 20 < hour < 27 else 0)
    ]
    connection.execute(
        insert(windows),
        [
            {
                "device": device, "key": key, "live": rollout.baseline, "candidate": rollout.release,
                "received_s": at_s, "merged": True, "document": b"",
            }
            for device, key, at_s in hours
        ],
    )  # fmt: skip


def _reports(connection: Any, board: Board, broken: str, now_s: int) -> None:
    first, second, third = (board.versions[f"doorbell {each}"] for each in ("1.3.0", "1.4.0", "1.5.0"))
    told = (
        (board.device, "committed", first, "", 24.9), (board.device, "rolled_back", first, "crash_loop", 20.0),
        (board.device, "committed", first, "", 19.8), (board.device, "committed", second, "", 11.6),
        (broken, "committed", second, "", 11.5), (broken, "refused", third, "golden", 0.1),
    )  # fmt: skip
    connection.execute(
        insert(reports),
        [
            {
                "device": device, "key": f"{number:08x}", "kind": kind, "release": release, "reason": reason,
                "at_s": int(now_s - days * 86400), "received_s": int(now_s - days * 86400),
            }
            for number, (device, kind, release, reason, days) in enumerate(told)
        ],
    )  # fmt: skip


def _minutes(connection: Any, rollout: Rollout, now_s: int, random: np.random.Generator) -> None:
    rows = []
    last = now_s // 60
    for step in range(36):
        minute = last - 5 * 60 + step * 8
        for part, weight in (
            ("", 6),
            ("hardware=pi5", 3),
            ("hardware=pi4", 2),
            ("region=eu", 3),
            ("region=us", 2),
        ):
            window = Window(
                f"{step:08x}", rollout.baseline, rollout.release, "classification", minute * 60, 480.0,
                figures(random, 60 * weight, step / 36),
            )  # fmt: skip
            rows.append(
                {
                    "rollout": rollout.id, "stage": 0 if step < 14 else 1 if step < 26 else 2, "slice": part,
                    "live": rollout.baseline, "candidate": rollout.release, "minute": minute, "windows": weight * 3,
                    "figures": packed(window),
                }
            )  # fmt: skip
    connection.execute(insert(minutes), rows)


def figures(random: np.random.Generator, compared: int, drifted: float) -> Figures:
    """Figures of some minutes; the inputs drift slowly."""
    apart = int(random.binomial(compared, 0.022))
    confusion: dict[tuple[str, str], int] = {}
    for chosen in random.choice(len(PAIRS), apart, p=np.array([6, 5, 4, 3, 3, 2, 1, 1]) / 25):
        pair = tuple(LABELS[at] for at in PAIRS[int(chosen)])
        confusion[pair] = confusion.get(pair, 0) + 1  # type: ignore[index, arg-type]
    tried, errors = compared // 4, int(random.random() < 0.06)
    return Figures(
        counts=Counts(seen=compared * 12, compared=compared, agreed=compared - apart, errors=errors),
        distance=sketch(random.exponential(0.02, compared // 4)),
        confusion=confusion,  # type: ignore[arg-type]
        live=Side(sketch(random.lognormal(math.log(9.1), 0.16, compared)), sketch(random.beta(9, 1.4, compared))),
        candidate=Side(
            sketch(random.lognormal(math.log(7.6), 0.2, compared)), sketch(random.beta(9 - drifted, 1.35, compared))
        ),
        noise=Noise(tried, tried - int(random.binomial(tried, 0.006)), sketch(random.exponential(0.004, 9))),
        inputs={"image": Drift(Moments(), sketch(random.normal(0.5 + 0.08 * drifted, 0.14, compared)))},
    )  # fmt: skip


def sketch(values: NDArray[np.float64]) -> Sketch:
    """Of many numbers at once; those that are not above zero are left out."""
    values = values[values > 0]
    bins, counts = np.unique(np.ceil(np.log(values) / LOG_GROWTH).astype(int), return_counts=True)
    return Sketch(above=dict(zip(bins.tolist(), counts.tolist(), strict=True)))
