"""The whole command, pruning and two epochs of training included, killed (SIGKILL) at random moments and gone on with.

`python -m benchmarks.killed [--kills 20] [--images 4096]`. Every kill has a run of its own; after `--resume` its files
have to be those of a run that nobody disturbed, byte for byte. ResNet-20 on CIFAR-10; the digits of scikit-learn and a
smaller network where one of them is not to be had, or with `--digits`.

Two things are chosen by time and not by arithmetic: which channels go where pruning is steered by latency, and which
rung of the ladder a file takes where INT8 is slower than float. Layer latencies are kept in a table on the machine,
so the choice of channels is the same in every run. The rung is settled by `--allow-slower`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import data_cifar10
from benchmarks.machine import machine
from benchmarks.networks import MissingDataError, resnet20

RESULT = Path(__file__).parent / "results" / "killed.json"
# What may differ between two runs: the report says when, where and how fast.
REPORTS = frozenset({"report.json", "report.html"})
SET_APART, CALIBRATION = 1024, 64
RECIPE = f"[quantize]\ncalibration_size = {CALIBRATION}\n[train]\nbatch_size = 64\n"
TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Subject:
    """What is compressed.

    Attributes:
        name: as it stands in the result.
        folder: of `model.pt2`, `data.npz` and `recipe.toml`.
        options: of the command.
    """

    name: str
    folder: Path
    options: tuple[str, ...]

    def command(self, out: Path, *more: str) -> list[str]:
        """The command line."""
        files = ("--data", str(self.folder / "data.npz"), "--recipe", str(self.folder / "recipe.toml"))
        tool = [sys.executable, "-m", "edgekit.cli", "compress", str(self.folder / "model.pt2")]
        return [*tool, *files, "-o", str(out), *self.options, *more]


@dataclass(frozen=True, slots=True)
class Kill:
    """What a kill hit.

    Attributes:
        after_s: seconds from the start of the process.
        hit: last line of progress before it, "" where there was none yet.
        finished: the command was done before.
    """

    after_s: float
    hit: str
    finished: bool


def save(
    name: str, folder: Path, module: nn.Module, data: dict[str, Any], *options: str, recipe: str = RECIPE
) -> Subject:
    """Write the files of a subject.

    Args:
        name: of the subject.
        folder: an empty one.
        module: the float network.
        data: arrays of the `.npz` file; its training inputs give the shape.
        options: of the command.
        recipe: text of the recipe.
    """
    example = torch.from_numpy(data["train_x"][:2])
    exported = torch.export.export(
        module.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(exported, folder / "model.pt2")
    np.savez(folder / "data.npz", **data)
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    return Subject(name, folder, options)


def hashes(bundle: Path) -> dict[str, str]:
    """Sha256 of every file of a bundle but its reports."""
    files = [p for p in sorted(bundle.rglob("*")) if p.is_file() and p.name not in REPORTS]
    return {str(p.relative_to(bundle)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def run(subject: Subject, out: Path, *more: str) -> float:
    """Let the command run to its end; returns its seconds.

    Raises:
        RuntimeError: it failed; a missed budget is no failure, the files are there.
    """
    began = time.monotonic()
    done = subprocess.run(
        subject.command(out, *more), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if done.returncode not in {0, 3}:
        raise RuntimeError(
            f"{' '.join(subject.command(out, *more))} ended with {done.returncode}: {done.stderr}"
        )
    return time.monotonic() - began


def kill(subject: Subject, out: Path, after_s: float, *more: str, stage: str = "") -> Kill:
    """Start the command and kill its process, not those that it started.

    Args:
        subject: to compress.
        out: directory of the bundle.
        after_s: seconds to wait.
        more: options.
        stage: whose first line of progress the seconds count from; the start without one.
    """
    process = subprocess.Popen(
        subject.command(out, *more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    lines: list[str] = []
    while stage and (line := process.stderr.readline()):
        lines.append(line)
        if line.split()[-1:] == [stage]:
            break
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    status = process.wait()
    # To the end of the pipe and no further: processes that outlived this one may hold it.
    os.set_blocking(process.stderr.fileno(), False)
    rest = os.read(process.stderr.fileno(), 1 << 16) if select.select([process.stderr], [], [], 0)[0] else b""
    lines += rest.decode().splitlines()
    process.stderr.close()
    return Kill(round(after_s, 2), lines[-1].strip() if lines else "", status != -signal.SIGKILL)


def _resnet20(folder: Path, images: int) -> Subject:
    everything = data_cifar10.training_split()
    x, y = data_cifar10.normalise(everything.x), everything.y
    data = {
        "train_x": x[:images], "train_y": y[:images], "eval_x": x[-SET_APART:], "eval_y": y[-SET_APART:],
    }  # fmt: skip
    return save("ResNet-20 on CIFAR-10", folder, resnet20(), data, *_options("0.5"))


def _digits(folder: Path) -> Subject:
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = (found.images[:, None] / 8 - 1).astype(np.float32), found.target
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    data = {"train_x": x[:-500], "train_y": y[:-500], "eval_x": x[-500:], "eval_y": y[-500:]}
    return save("a network for digits", folder, net, data, *_options("0.5"))


def _options(prune: str) -> tuple[str, ...]:
    return ("--prune", prune, "--epochs", "2", "--format", "onnx,tflite", "--allow-slower")


def _subject(folder: Path, options: argparse.Namespace) -> Subject:
    if options.digits:
        return _digits(folder)
    try:
        return _resnet20(folder, options.images)
    except (MissingDataError, RuntimeError) as missing:
        print(f"ResNet-20: {missing}; the digits instead", file=sys.stderr)
        return _digits(folder)


def measure(subject: Subject, kills: int, seed: int) -> dict[str, Any]:
    """Kill and go on, many times; prints every kill.

    Moments are drawn evenly over the time of an undisturbed run.
    """
    out, moments = subject.folder / "out", random.Random(seed)
    run(subject, subject.folder / "first")  # measures the layers, whose times are kept
    seconds = run(subject, subject.folder / "whole")
    expected = hashes(subject.folder / "whole")
    rows: list[dict[str, Any]] = []
    while len(rows) < kills:
        hit = kill(subject, out, moments.uniform(0, seconds))
        if hit.finished:
            continue
        resumed = run(subject, out, "--resume")
        row = {
            "after_s": hit.after_s, "hit": hit.hit, "resumed_s": round(resumed, 1),
            "identical": hashes(out) == expected,
        }  # fmt: skip
        rows.append(row)
        print(f"{len(rows)} of {kills}: {json.dumps(row)}", flush=True)
    return {
        "subject": subject.name,
        "options": list(subject.options),
        "undisturbed_s": round(seconds, 1),
        "files": expected,
        "identical": sum(row["identical"] for row in rows),
        "kills": rows,
    }


def main() -> int:
    """Exit status 0 when every run that was killed ended with the files of the undisturbed one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=4096, help="of an epoch, at most 8976")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--digits", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(_subject(Path(folder), options), options.kills, options.seed)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n", encoding="utf-8")
    return 0 if found["identical"] == len(found["kills"]) == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
