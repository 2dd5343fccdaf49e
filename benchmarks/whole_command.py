"""One whole `edgekit compress`, run twice: seconds, memory, the proofs of all three files, and equal bytes.

`python -m benchmarks.whole_command`. 128 or 256 inputs to calibrate, others to prove and to judge on.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from examples.photos import crops
from torch import nn

from benchmarks import data_cifar10, data_photos
from benchmarks.cases import run_cases
from benchmarks.networks import Floats, efficientnet_lite0, resnet20

RESULT = Path(__file__).parent / "results" / "whole_command.json"
# What may differ between two runs: the report says when, where and how fast.
REPORTS = frozenset({"report.json", "report.html"})
MAX_STEPS = {"onnx": 2.0, "tflite": 2.0, "coreml": 1.0}


@dataclass(frozen=True, slots=True)
class Case:
    """A network and its data.

    Attributes:
        name: as it stands in the result.
        make: the float module.
        data: arrays of the `.npz` file.
    """

    name: str
    make: Callable[[], nn.Module]
    data: Callable[[], dict[str, Any]]


def _cifar() -> dict[str, Any]:
    training = data_cifar10.training_split()
    x = data_cifar10.normalise(training.x[:1280])
    return {"calib_x": x[:256], "eval_x": x[256:], "eval_y": training.y[256:1280]}


def _photos() -> dict[str, Floats]:
    return {
        "calib_x": crops(data_photos.CALIBRATION, 128),
        "eval_x": crops(data_photos.EVALUATION, 128, seed=1),
    }


CASES = (Case("ResNet-20", resnet20, _cifar), Case("EfficientNet-Lite0", efficientnet_lite0, _photos))


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Export, then compress twice into different directories.

    Args:
        case: what to compress.
        folder: an empty one to work in.

    Raises:
        MissingDataError: weights are not on this machine.
        RuntimeError: the command failed, or data cannot be fetched.
    """
    data = case.data()
    example = torch.from_numpy(data["calib_x"][:2])
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(
        torch.export.export(case.make(), (example,), dynamic_shapes=(batch,)), folder / "model.pt"
    )
    np.savez(folder / "data.npz", **data)
    runs = [_compress(folder, folder / name) for name in ("first", "second")]
    report = json.loads((folder / "first" / "report.json").read_text(encoding="utf-8"))
    proofs = {
        name: {key: artifact["proof"][key] for key in ("max_steps", "p999_steps", "equal")}
        for name, artifact in report["artifacts"].items()
    }
    held = all(p["max_steps"] <= MAX_STEPS[n] and p["p999_steps"] <= 1 for n, p in proofs.items())
    one, other = (_hashes(folder / name) for name in ("first", "second"))
    return {
        "runs": runs,
        "proofs": proofs,
        "held": held and len(proofs) == len(MAX_STEPS),
        "identical": one == other,
        "files_compared": len(one),
    }


def _compress(folder: Path, out: Path) -> dict[str, Any]:
    tool = Path(sys.executable).with_name("edgekit")
    command = [str(tool), "compress", str(folder / "model.pt"), "--data", str(folder / "data.npz")]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "-o", str(out)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    said = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    seconds, exit_status = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
    process.returncode = exit_status
    # Status 3 is a missed budget, and agreement on unlabelled crops is one; the files are written.
    if exit_status not in {0, 3}:
        raise RuntimeError(f"{' '.join(command)} ended with {exit_status}: {said[-2000:]}")
    return {
        "seconds": round(seconds, 1),
        "peak_gb": round(usage.ru_maxrss / 1e6, 2),
        "exit_status": exit_status,
    }


def _hashes(bundle: Path) -> dict[str, str]:
    files = [p for p in sorted(bundle.rglob("*")) if p.is_file() and p.name not in REPORTS]
    return {str(p.relative_to(bundle)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main() -> int:
    """Exit status 0 when every proof holds and the second run gave the same bytes."""
    results = run_cases(CASES, measure, RESULT)
    return 0 if all(r["held"] and r["identical"] for r in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
