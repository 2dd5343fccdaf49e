"""What polling costs: devices ask a real nginx, with the configuration that operators get, for policy and metadata.

    python -m benchmarks.polling

Writes `benchmarks/results/polling.json`: bytes of a first poll, of one without a change and of one after a change, as
nginx counts them with all heads; and the CPU time that the processes of the server took meanwhile, beside what they
take while nobody polls.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


from benchmarks.machine import machine
from edgekit.fleet.conduct import steering
from edgekit.fleet.context import Fleet
from edgekit.fleet.operations import setup
from edgekit.fleet.releases import publication
from edgekit.fleet.rules.rollouts import Plan
from edgekit_runtime.agent.fetcher import METADATA, TARGETS, Fetcher
from edgekit_runtime.agent.transport import HttpTransport
from edgekit_runtime.trust import Trust
from support.fleets import ADMIN, World
from support.nginx import Line, Nginx, nginx

RESULT = Path(__file__).parent / "results" / "polling.json"
MODEL = "größe"


class Device:
    """As an agent polls."""

    def __init__(self, front: Nginx, root: bytes, folder: Path) -> None:
        self.trust = Trust(
            folder, metadata_url=METADATA, targets_url=TARGETS, fetcher=Fetcher(HttpTransport(front.address))
        )
        self.trust.init(root)
        self.known = ""

    def poll(self) -> None:
        """As `edgekit_runtime.agent.loop` does: a policy that is known already is not fetched again."""
        self.trust.refresh()
        sha256 = self.trust.target("rollout/stable.json").sha256
        if sha256 != self.known:
            self.trust.document("rollout/stable.json", 1 << 20)
            self.known = sha256


def cost(lines: Sequence[Line], polls: int) -> dict[str, Any]:
    """Of one poll, on average."""
    return {
        "requests": round(len(lines) / polls, 3),
        "statuses": {str(status): sum(each.status == status for each in lines) for status in (200, 304, 404)},
        "sent_bytes": round(sum(each.sent for each in lines) / polls, 1),
        "received_bytes": round(sum(each.received for each in lines) / polls, 1),
    }


def cpu_s(process: psutil.Process) -> float:
    """Of a process and its children, so far."""
    family = [process, *process.children(recursive=True)]
    return sum(sum(each.cpu_times()[:2]) for each in family)


@contextmanager
def running(folder: Path) -> Iterator[tuple[World, str, psutil.Process]]:
    """A fleet, and its server as a process of its own, set up as it comes."""
    made = setup.init(folder, settings={})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "edgekit.cli", "fleet", "serve", str(folder), "--port", str(port)]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    fleet = Fleet.open(folder)
    try:
        while not answers(address):
            time.sleep(0.1)
        yield World(made, fleet, time.time), address, process  # type: ignore[arg-type] # a clock, too
    finally:
        process.terminate()
        process.wait(60)
        fleet.close()


def answers(address: str) -> bool:
    """Whether a server does."""
    try:
        return httpx.get(f"{address}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def rolled_out(world: World, version: str) -> None:
    """Change the policy."""
    world.release(version)
    found = steering.create(
        world.fleet,
        ADMIN,
        model=MODEL,
        version=version,
        channel="stable",
        plan=Plan((100.0,), first_devices=0),
    )
    steering.said(world.fleet, ADMIN, found.id, "promote")
    publication.publish(world.fleet)


def measured(folder: Path, devices: int, polls: int) -> dict[str, Any]:
    """The figures."""
    with running(folder / "served") as (world, address, process):
        rolled_out(world, "1.0.0")
        blobs = Path(world.fleet.settings.blobs_url)
        with nginx(folder / "nginx", blobs, address.removeprefix("http://")) as front:
            root = world.made.root.read_bytes()
            fleet = [Device(front, root, folder / f"device-{number}") for number in range(devices)]
            first = each_polls(front, fleet)
            idle_s, began_s = cpu_s(process), time.monotonic()
            time.sleep(20)
            idle = (cpu_s(process) - idle_s) / (time.monotonic() - began_s)
            asked, polled_s, began_s = asked_of(address), cpu_s(process), time.monotonic()
            at = len(front.lines())
            seconds = timed(fleet, polls)
            took_s = time.monotonic() - began_s
            polled = (cpu_s(process) - polled_s) / took_s
            quiet = front.lines()[at:]
            asked = asked_of(address) - asked
            rolled_out(world, "2.0.0")
            changed = each_polls(front, fleet)
        return {
            "devices": devices,
            "first_poll": cost(first, devices),
            "poll_without_a_change": cost(quiet, devices * polls),
            "poll_after_a_change": cost(changed, devices),
            "polls_per_s": round(devices * polls / took_s, 1),
            "poll_ms": {"p50": round(statistics.median(seconds) * 1000, 3),
                        "p99": round(statistics.quantiles(seconds, n=100)[98] * 1000, 3)},
            "server_requests": asked,
            "server_cpu_share": {"nobody_polls": round(idle, 4), "while_devices_poll": round(polled, 4)},
            "daily_bytes_of_a_device_that_polls_every_5_minutes": round(
                288 * sum(each.sent for each in quiet) / (devices * polls)
            ),
        }  # fmt: skip


def each_polls(front: Nginx, fleet: Sequence[Device]) -> list[Line]:
    """What nginx answered while each device polled once."""
    at = len(front.lines())
    for each in fleet:
        each.poll()
    return front.lines()[at:]


def timed(fleet: Sequence[Device], polls: int) -> list[float]:
    """Seconds of each poll."""
    found: list[float] = []

    def run(each: Device) -> None:
        for _ in range(polls):
            began_s = time.perf_counter()
            each.poll()
            found.append(time.perf_counter() - began_s)

    threads = [threading.Thread(target=run, args=(each,)) for each in fleet]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def asked_of(address: str) -> int:
    """Requests that the server saw, but for those for this figure."""
    text = httpx.get(f"{address}/metrics").text
    rows = [row for row in text.splitlines() if row.startswith("edgekit_requests_total{")]
    return int(sum(float(row.rsplit(" ", 1)[1]) for row in rows if 'route="/metrics"' not in row))


if __name__ == "__main__":
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--devices", type=int, default=20)
    reader.add_argument("--polls", type=int, default=50)
    given = reader.parse_args()
    with tempfile.TemporaryDirectory() as made:
        found = measured(Path(made), given.devices, given.polls)
    RESULT.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
