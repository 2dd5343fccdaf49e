"""Runs schemathesis on a real server with something of everything in its database.

A longer run than that of the tests, from `tests`: `python -m support.contract_runs --examples 200 --seed 7`.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import httpx
import numpy as np
from sqlalchemy import select

from edgekit.fleet.conduct import conductor
from edgekit.fleet.identity.enrolment import enrol, make_code
from edgekit.fleet.storage.tables import tokens
from edgekit.fleet.windows import merging
from support.fleet_api import client, serving
from support.fleets import ADMIN, World, make
from support.served_fleet import a_body, a_report, a_window

MODEL: Final = "größe"
SENDER: Final = "sender"
# The run deletes and revokes them, and has to find others afterwards.
DEVICES: Final = tuple(f"kiln-{n}" for n in range(60))
# Floods are another test's.
UNBOUNDED: Final = dict.fromkeys(
    ("device_posts_per_s", "enrols_per_s", "api_calls_per_s", "api_burst", "device_burst"), 10**6
)
# So that there are inputs of devices, too.
ASKED: Final = {"disagreements_per_device": 20}
# Operations that refuse with 422 what no schema of JSON can tell from what is right, and why.
SEMANTIC: Final = {
    "GET /v1/devices": "a cohort is a grammar",
    "POST /v1/rollouts": "a cohort is a grammar, stages rise, a time-out is longer than the soak, inputs need a shadow",
    "POST /v1/channels/{name}/settle": "a cohort is a grammar",
    "POST /v1/versions": "a release is a document within a text, whose id is its hash",
    "POST /v1/targets": "a proposal is a document within a text, with signatures",
    "POST /v1/rotation": "which keys may come and go depends on the role and on what is published",
    "POST /v1/webhooks": "an address is more than a pattern",
    "PUT /v1/uploads/{sha256}": "the address is the hash of the body",
    "POST /v1/reports": "sums and names of a window depend on one another",
    "POST /devices/{name}": "likewise",
    "POST /devices/{name}/disagreements": "a payload is an archive of arrays",
}


@dataclass(frozen=True)
class Ran:
    """What came of a run.

    Attributes:
        passed: whether every check held.
        text: as schemathesis printed it.
    """

    passed: bool
    text: str


@dataclass(frozen=True)
class Target:
    """A server to run against.

    Attributes:
        address: of it.
        token: of an admin, which the run keeps.
        device: token of a device, which the run keeps.
        kept: what it must not take back.
        known: parameter of a path to what is there.
    """

    address: str
    token: str
    device: str
    kept: tuple[str, ...]
    known: Mapping[str, Sequence[str]]


@contextmanager
def target(folder: Path, *, database_url: str = "") -> Iterator[Target]:
    """A server with versions, rollouts, devices, windows, codes, tokens and webhooks."""
    world = make(folder / "fleet", database_url=database_url)
    fleet = replace(world.fleet, settings=replace(world.fleet.settings, **UNBOUNDED, **ASKED))
    world = World(world.made, fleet, world.clock)
    with serving(world) as address:
        yield _filled(world, address)
    fleet.close()


def _filled(world: World, address: str) -> Target:
    fleet = world.fleet
    old, new = world.release("1.0.0"), world.release("2.0.0")
    waiting = world.propose("3.0.0").id
    asks = client(world, address)
    own = _tokens(world)
    asks.post("tokens", {"name": "ci", "role": "viewer"})
    asks.post("tokens", {"name": "nightly", "role": "operator"})
    found = [enrol(fleet, make_code(fleet, ADMIN, labels={"site": "lab"}).code, name) for name in DEVICES]
    sender = enrol(fleet, make_code(fleet, ADMIN, labels={}).code, SENDER)
    rollouts = [asks.post("rollouts", {"model": MODEL, "version": "1.0.0", "stages": [100]})["id"]]
    asks.post(f"rollouts/{rollouts[0]}/promote", {})
    asked = {"model": MODEL, "version": "2.0.0", "stages": [100], "disagreements": 3}
    rollouts.append(asks.post("rollouts", asked)["id"])
    for number, each in enumerate(found[:4]):
        body = a_body(
            each.device, a_window(number, live=old, candidate=new),
            reports=(a_report(number, "refused", "slow", release=new),), live=old,
        )  # fmt: skip
        head = {"Authorization": f"Bearer {each.token}"}
        httpx.post(f"{address}/v1/reports", content=body, headers=head).raise_for_status()
        body = json.dumps({
            "schema": 1, "device": each.device, "key": f"{number:032x}", "live": old, "candidate": new,
            "labels": ["cat", "dog"], "at_s": 1, "payload": base64.b64encode(_arrays()).decode(),
        }).encode()  # fmt: skip
        path = f"{address}/devices/{each.device}/disagreements"
        httpx.post(path, content=body, headers=head).raise_for_status()
    merging.merge(fleet, "tests")
    conductor.act(fleet, "tests")
    hooks = [asks.post("webhooks", {"url": f"https://chat{n}.example/"})["id"] for n in range(3)]
    inputs = asks.get(f"rollouts/{rollouts[1]}/disagreements")["disagreements"]
    codes = [each["code"] for each in asks.post("codes", {"count": 20})["codes"]]
    asks.close()
    names = [f"metadata/{name.removeprefix('metadata/')}" for name in fleet.blobs.names("metadata")]
    return Target(
        address, asks.at.token, sender.token, (*own, SENDER),
        {
            "path.device": DEVICES, "path.rollout": rollouts, "path.release": [old, new, waiting],
            "path.other": [old, new], "path.webhook": hooks, "path.token": sorted(set(_tokens(world)) - set(own)),
            "path.number": [str(each["id"]) for each in inputs],
            "path.path": [name.partition("/")[2] for name in names], "body.code": codes, "query.model": [MODEL],
            "body.model": [MODEL], "body.version": ["1.0.0", "2.0.0", "3.0.0"],
        },
    )  # fmt: skip


def _arrays() -> bytes:
    packed = io.BytesIO()
    np.savez(packed, **{"input/x": np.zeros((1, 4), np.float32)})
    return packed.getvalue()


def _tokens(world: World) -> list[str]:
    with world.fleet.database.reading() as connection:
        return list(connection.scalars(select(tokens.c.id)))


def run(at: Target, folder: Path, *, examples: int, seed: int, phases: str = "") -> Ran:
    """Run every check of schemathesis on every operation.

    Args:
        at: what to run against.
        folder: for files of the run.
        examples: of each operation at most, in each phase.
        seed: of what is made up.
        phases: those that are run, parted by commas; "" for all.
    """
    config = folder / "schemathesis.toml"
    config.write_text(_config(at))
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", f"{at.address}/openapi.json",
        "--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure", "--checks", "all",
        *(("--phases", phases) if phases else ()),
    ]  # fmt: skip
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "CONTRACT_KEPT": ",".join(at.kept), "PYTHONPATH": tests, "NO_COLOR": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=3600
    )
    return Ran(done.returncode == 0, done.stdout + done.stderr)


def _config(at: Target) -> str:
    lines = ['hooks = "support.contract_hooks"', "request-timeout = 20", "max-stream-events = 1", "[cache]",
             "enabled = false", "[generation]", 'database = "none"']  # fmt: skip
    for name, token in (("token", at.token), ("device", at.device)):
        lines += [f"[auth.openapi.{name}]", f"bearer = {json.dumps(token)}"]
    for name, values in at.known.items():
        lines += [f"[dictionaries.{_key(name)}]", f"values = {json.dumps(list(values))}"]
    lines.append("[parameters]")
    lines += [f'"{name}" = {{ dictionary = "{_key(name)}", probability = 0.8 }}' for name in at.known]
    for name, reason in SEMANTIC.items():
        lines += [
            "[[operations]]", f"include-name = {json.dumps(name)}  # {reason}",
            "checks.positive_data_acceptance.expected-statuses = "
            "['2xx', '3xx', 401, 403, 404, 409, 422, 429, '5xx']",
        ]  # fmt: skip
    # It tells what happens, for as long as something does.
    lines += ["[[operations]]", 'include-name = "GET /v1/events"', "request-timeout = 0.5"]
    for name in ("POST /devices/{name}", "POST /devices/{name}/disagreements"):
        lines += ["[[operations]]", f"include-name = {json.dumps(name)}",
                  f'parameters = {{ "path.name" = "{SENDER}" }}']  # fmt: skip
    lines += ["[[operations]]", 'include-path = "/v1/channels/{name}/settle"',
              'parameters = { "path.name" = "stable" }']  # fmt: skip
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return re.sub("[^a-z]", "_", name)


if __name__ == "__main__":
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--examples", type=int, default=100)
    reader.add_argument("--seed", type=int, default=1)
    reader.add_argument("--phases", default="")
    reader.add_argument("--database-url", default="")
    given = reader.parse_args()
    with tempfile.TemporaryDirectory() as made, target(Path(made), database_url=given.database_url) as server:
        ran = run(server, Path(made), examples=given.examples, seed=given.seed, phases=given.phases)
    sys.stdout.write(ran.text)
    sys.exit(not ran.passed)
