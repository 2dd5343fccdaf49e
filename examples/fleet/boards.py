"""A server of the fleet, and devices: an agent process each, as a board runs it, with a store of its own."""

from __future__ import annotations

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

from edgekit.fleet.client import Client, Place
from edgekit.fleet.commands.publishing import prepare, publish
from edgekit.fleet.operations import setup
from edgekit.fleet.operations.setup import Made
from edgekit.fleet.trust import keys
from edgekit_runtime.state import IDLE, State
from edgekit_runtime.store import Store

# Looks and polls as often as an example can wait for; a fleet in the field has no need for them.
QUICK = "\nlook_every_s = 0.5\nmerge_every_s = 0.2\ndevice_posts_per_s = 50.0\ndevice_burst = 1000\n"
POLL_S = 1.0
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Operator:
    """A person who publishes and rolls out.

    Attributes:
        made: the fleet.
        address: of its server.
    """

    made: Made
    address: str

    def client(self) -> Client:
        """To the server, as its first admin."""
        return Client(Place(self.address, self.made.token))

    def publishes(self, bundle: Path, model: str, version: str) -> None:
        """Publish and sign a version."""
        key = next(each for each in self.made.offline if "targets" in each.name)
        with self.client() as client:
            found = publish(
                client, prepare(bundle, model, version), signers=[keys.load(key)],
                first_root=self.made.root.read_bytes(),
            )  # fmt: skip
        assert found.version["state"] == "signed", found.missing

    def rolls_out(self, model: str, version: str, **plan: Any) -> str:
        """Begin a rollout; its id."""
        with self.client() as client:
            return str(client.post("rollouts", {"model": model, "version": version, **plan})["id"])

    def asks(self, path: str) -> Any:
        """What the server says."""
        with self.client() as client:
            return client.get(path)

    def waits(self, rollout: str, seconds: float, told: Callable[[str], object] | None = None) -> Any:
        """Wait for the end of a rollout, and tell of each step; the rollout."""
        seen, found = "", {}

        def over() -> bool:
            nonlocal seen
            found.update(self.asks(f"rollouts/{rollout}"))
            if found["why"] != seen:
                seen = found["why"]
                if told:
                    told(seen)
            return bool(found["state"] != "running")

        until(over, seconds, f"the end of rollout {rollout}")
        return found


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

    def state(self) -> State:
        """Of its versions."""
        return Store(self.store).state()

    def rests_on(self, release: str) -> bool:
        """Whether it serves a release, and nothing is under way."""
        state = self.state()
        return state.live == release and state.phase == IDLE


@contextmanager
def served(folder: Path) -> Iterator[Operator]:
    """A new fleet in a folder, and its server as a process of its own."""
    made = setup.init(folder, settings={})
    with (folder / "fleet.toml").open("a") as file:
        file.write(QUICK)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = ["-m", "edgekit.cli", "fleet", "serve", str(folder), "--port", str(port)]
    with process(command, folder / "server.log"):
        until(lambda: _answers(address), 60, "an answer of the server")
        yield Operator(made, address)


@contextmanager
def boards(
    operator: Operator, folder: Path, count: int, inputs: Mapping[str, Path], *, every_s: float = 0.1
) -> Iterator[list[Board]]:
    """Devices that are enrolled, with their agents and applications running.

    Args:
        operator: of the fleet.
        folder: for their stores and logs.
        count: of devices.
        inputs: region to a .npy file of what its devices see; devices are dealt out to the regions in turn.
        every_s: seconds between two predictions of a device.
    """
    regions = list(inputs)
    found = [
        Board(f"board-{n:02}", regions[n % len(regions)], folder / f"board-{n:02}" / "store")
        for n in range(count)
    ]
    with ExitStack() as stack:
        for board in found:
            stack.enter_context(process(_agent(operator, board), board.store.parent / "agent.log"))
        pairs = [f"{board.store}={inputs[board.region]}" for board in found]
        command = ["-m", "examples.fleet.application", *pairs, "--every", str(every_s)]
        stack.enter_context(process(command, folder / "applications.log"))
        yield found


def _agent(operator: Operator, board: Board) -> list[str]:
    """Enrol a device; the command of its agent."""
    with operator.client() as client:
        code = client.post("codes", {"labels": {"region": board.region}})["codes"][0]["code"]
        answer = httpx.post(
            f"{operator.address}/v1/enrol", json={"code": code, "device": board.name}, timeout=30
        )
    board.store.parent.mkdir(parents=True)
    token = board.store.parent / "token"
    token.touch(0o600)
    token.write_text(answer.raise_for_status().json()["token"])
    return [
        "-m", "edgekit_runtime.cli", "--store", str(board.store), "agent", "--server", operator.address,
        "--device", board.name, "--root", str(operator.made.root), "--token-file", str(token),
        "--interval", str(POLL_S),
    ]  # fmt: skip


@contextmanager
def process(arguments: Sequence[str], log: Path) -> Iterator[None]:
    """A process of this Python, until the block ends."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        running = subprocess.Popen(
            [sys.executable, *arguments], stdout=file, stderr=file, env=environment, cwd=ROOT
        )
    try:
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: it does not within so many seconds.
    """
    end_s = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end_s:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.2)


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
