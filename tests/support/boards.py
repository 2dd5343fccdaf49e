"""Boards of the tests: an agent process each, as a device runs it, with a store of its own, and applications that
predict; a real server of the fleet, and the command line that an operator types at.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from edgekit.fleet import setup
from edgekit.fleet.setup import Made
from edgekit_runtime.store import Store
from support.candidates import MODEL
from support.colours import write_bundle
from support.releases import Published

# Looks and polls as often as a test can wait for; a fleet of that size has no need for them in the field.
QUICK = "\nlook_every_s = 0.5\nmerge_every_s = 0.2\ndevice_posts_per_s = 50.0\ndevice_burst = 1000\n"
POLL_S = 1.0
# Of these regions the first one's devices see what `support.candidates` calls marked.
REGIONS = ("eu", "us")
TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Operator:
    """A person at the command line.

    Attributes:
        made: the fleet.
        address: of its server.
        folder: for bundles.
    """

    made: Made
    address: str
    folder: Path

    def types(self, *words: object, status: int = 0) -> Any:
        """Run `edgekit …` and read what it says as JSON."""
        environment = {**os.environ, "EDGEKIT_SERVER": self.address, "EDGEKIT_TOKEN": self.made.token}
        command = [sys.executable, "-m", "edgekit.cli", *map(str, words), "--json"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout) if done.stdout else None

    def publishes(self, published: Published) -> str:
        """Publish and sign a release; its version."""
        bundle = write_bundle(published, self.folder / published.release.version)
        key = next(each for each in self.made.offline if "targets" in each.name)
        told = self.types(
            "publish", bundle, "--model", MODEL, "--version", published.release.version, "--key", key,
            "--root", self.made.root,
        )  # fmt: skip
        assert told["version"]["state"] == "signed", told
        return published.release.version

    def rolls_out(self, version: str, **options: object) -> str:
        """Begin a rollout; its id."""
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        told = self.types("rollout", "create", "--model", MODEL, "--version", version, *words)
        return str(told["id"])

    def asks(self, path: str) -> Any:
        """What the server says."""
        headers = {"Authorization": f"Bearer {self.made.token}"}
        return httpx.get(f"{self.address}/v1/{path}", headers=headers, timeout=30).raise_for_status().json()


@dataclass(frozen=True)
class Board:
    """A device.

    Attributes:
        name: of it.
        region: its label.
        store: of its versions.
    """

    name: str
    region: str
    store: Path

    def state(self) -> Any:
        """Of its versions."""
        return Store(self.store).state()


@contextmanager
def served(folder: Path) -> Iterator[Operator]:
    """A new fleet, and its server as a process of its own."""
    made = setup.init(folder / "fleet", settings={})
    with (folder / "fleet" / "fleet.toml").open("a") as file:
        file.write(QUICK)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "edgekit.cli", "fleet", "serve", str(made.folder), "--port", str(port)]
    with _process(command, folder / "server.log"):
        until(lambda: _answers(address), 60, "the server answers")
        yield Operator(made, address, folder / "bundles")


@contextmanager
def boards(operator: Operator, folder: Path, count: int, *, every_s: float = 0.1) -> Iterator[list[Board]]:
    """Devices that are enrolled, with their agents and applications running."""
    found = [
        Board(f"board-{n:02}", REGIONS[n % len(REGIONS)], folder / f"board-{n:02}" / "store")
        for n in range(count)
    ]
    with ExitStack() as stack:
        for board in found:
            stack.enter_context(_agent(operator, board))
        stores = [f"{board.store}{':marked' if board.region == REGIONS[0] else ''}" for board in found]
        command = [sys.executable, "-m", "support.board_app", *stores, "--every", str(every_s)]
        stack.enter_context(_process(command, folder / "applications.log"))
        yield found


@contextmanager
def _agent(operator: Operator, board: Board) -> Iterator[None]:
    headers = {"Authorization": f"Bearer {operator.made.token}"}
    with httpx.Client(base_url=operator.address, headers=headers, timeout=30) as client:
        code = client.post(
            "/v1/codes", json={"labels": {"region": board.region}, "channel": "stable"}
        ).raise_for_status().json()["codes"][0]["code"]  # fmt: skip
        enrolled = (
            client.post("/v1/enrol", json={"code": code, "device": board.name}).raise_for_status().json()
        )
    board.store.parent.mkdir(parents=True)
    token = board.store.parent / "token"
    token.write_text(enrolled["token"])
    token.chmod(0o600)
    command = [
        sys.executable, "-m", "edgekit_runtime.cli", "--store", str(board.store), "agent", "--server",
        operator.address, "--device", board.name, "--root", str(operator.made.root), "--token-file", str(token),
        "--interval", str(POLL_S),
    ]  # fmt: skip
    with _process(command, board.store.parent / "agent.log"):
        yield


@contextmanager
def _process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    log.parent.mkdir(parents=True, exist_ok=True)
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something holds.

    Raises:
        AssertionError: it does not within so many seconds.
    """
    end_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end_s, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
