"""The rest of the way: publish a model, run it on twenty devices, roll out a better one, and stop a bad one.

Everything is real and on this machine: the server, its signed files, an agent process for each device, applications
that predict digits, and candidates beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import nn

import edgekit
from edgekit.progress import shown
from examples import demo_digits
from examples.fleet.boards import Board, Operator, boards, served, until

MODEL = "digits"
DEVICES = 20
REGIONS = ("eu", "us")
# Minutes instead of days: what soaks for an hour in the field soaks for two seconds here.
PLAN: Mapping[str, Any] = {
    "stages": [25.0, 50.0, 100.0], "soak_s": 2, "timeout_s": 600, "patience_s": 300, "first_devices": 0,
    "limits": {"devices": 4, "samples": 25, "agreement": 0.93, "latency_ratio": 2.5},
}  # fmt: skip
LONGEST_S = 600


def run(out: Path, console: Console) -> bool:
    """Take the digits all the way to a fleet.

    Args:
        out: directory for bundles, fleet and devices; new.
        console: to print on.

    Returns:
        Whether the good version reached every device and the bad one none.
    """
    console.rule("[bold]A fleet of twenty devices, a good version and a bad one", align="left")
    data = demo_digits.data()
    bundles = {
        version: _compressed(network, data, out / "bundles" / version, console)
        for version, network in _networks(data).items()
    }
    seen = {region: out / f"{region}.npy" for region in REGIONS}
    for part, path in zip(np.array_split(data["eval_x"], len(REGIONS)), seen.values(), strict=True):
        np.save(path, part)
    with served(out / "fleet") as operator, boards(operator, out / "devices", DEVICES, seen) as devices:
        console.print(f"dashboard: {operator.address}/   token: {operator.made.token}", soft_wrap=True)
        _rolled_out(operator, bundles["1.0.0"], "1.0.0", console, stages=[100.0])
        good = _rolled_out(operator, bundles["1.1.0"], "1.1.0", console)
        bad = _rolled_out(operator, bundles["1.2.0"], "1.2.0", console)
        console.print("waiting until every device is back on 1.1.0")
        until(lambda: all(_serves(device, good) for device in devices), LONGEST_S, "every device on 1.1.0")
        served_by = sum(_serves(device, good) for device in devices)
        console.print(f"{served_by} of {len(devices)} devices serve 1.1.0")
    console.print(f"look again: edgekit fleet serve {out / 'fleet'}", soft_wrap=True)
    console.print()
    return bool(good["state"] == "completed" and bad["state"] == "failed")


def _networks(data: Mapping[str, npt.NDArray[Any]]) -> dict[str, nn.Module]:
    """Version to network: one that serves, the same trained a little longer, and one of confused labels."""
    x, y = data["train_x"], data["train_y"]
    first = demo_digits.train(x, y)
    longer = demo_digits.train(x, y, epochs=demo_digits.EPOCHS + 4)
    # Somebody's label file was off: every 3 is an 8, and the other way round.
    confused = np.where(y == 3, 8, np.where(y == 8, 3, y))
    return {"1.0.0": first, "1.1.0": longer, "1.2.0": demo_digits.train(x, confused)}


def _compressed(
    network: nn.Module, data: Mapping[str, npt.NDArray[Any]], out: Path, console: Console
) -> Path:
    # Without labels of its own a network is held against itself, which is all that a publisher of a bad one would see.
    with torch.no_grad():
        told = network(torch.from_numpy(data["eval_x"])).argmax(1).numpy()
    given = {**data, "eval_y": told}
    with shown(Console(stderr=True, highlight=False)) as progress:
        bundle = edgekit.compress(
            network, data=given, out=out, formats=["onnx", "tflite"], max_drop=0.02, allow_slower=True,
            progress=progress,
        )  # fmt: skip
    report = bundle.report["artifacts"]["onnx"]
    console.print(
        f"{out.name}: {report['size_bytes']:,} bytes, INT8 agrees with itself {report['metric']:.1%}"
    )
    return bundle.path


def _rolled_out(
    operator: Operator, bundle: Path, version: str, console: Console, **plan: Any
) -> dict[str, Any]:
    operator.publishes(bundle, MODEL, version)
    rollout = operator.rolls_out(MODEL, version, **{**PLAN, **plan})
    console.print(f"rollout of {version}")
    found = operator.waits(rollout, LONGEST_S, lambda why: console.print(f"  {why}", soft_wrap=True))
    return dict(found)


def _serves(device: Board, rollout: Mapping[str, Any]) -> bool:
    return device.rests_on(str(rollout["release"]))
