"""What `edgekit compress model.pt -o out` costs when it is given no data.

`python -m benchmarks.without_data`. The command distils its own inputs; the saved files are then judged on
real images that it never saw.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from examples.photos import crops
from torch import nn

from benchmarks import data_cifar10, data_photos
from benchmarks.cases import run_cases
from benchmarks.engines import open_file, predict_all
from benchmarks.measure import float_outputs, quality
from benchmarks.networks import Floats, efficientnet_lite0, resnet20

RESULT = Path(__file__).parent / "results" / "without_data.json"


@dataclass(frozen=True, slots=True)
class Case:
    """A network that must survive compression without data.

    Attributes:
        name: as it stands in the result.
        make: the float module.
        samples: real inputs to judge on, float32 `[n, …]`.
        min_agreement: with the float network, in percent.
    """

    name: str
    make: Callable[[], nn.Module]
    samples: Callable[[], Floats]
    min_agreement: float


def _cifar() -> Floats:
    return data_cifar10.normalise(data_cifar10.heldout_split().x)


CASES: tuple[Case, ...] = (
    Case("ResNet-20", resnet20, _cifar, 97.0),
    Case(
        "EfficientNet-Lite0",
        efficientnet_lite0,
        partial(crops, data_photos.EVALUATION + data_photos.CALIBRATION, 512),
        90.0,
    ),
)


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Export, compress by the command line alone, judge the saved files.

    Args:
        case: what to compress.
        folder: an empty one to work in.

    Returns:
        Seconds of the command, and the figures of each file.

    Raises:
        MissingDataError: weights are not on this machine.
        RuntimeError: the command failed, or data cannot be fetched.
    """
    module, samples = case.make(), case.samples()
    exported, bundle = folder / "model.pt", folder / "out"
    torch.export.save(torch.export.export(module, (torch.from_numpy(samples[:1]),)), exported)
    start = time.perf_counter()
    command = [str(Path(sys.executable).with_name("edgekit")), "compress", str(exported), "-o", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    # Status 3 is a missed budget, here speed on this machine: the files are written, and accuracy is asked.
    if done.returncode not in {0, 3}:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    reference = float_outputs(module, samples)
    files = {
        suffix: quality(predict_all(open_file(bundle / f"model.{suffix}"), samples), reference)
        for suffix in ("onnx", "tflite")
    }
    held = all(figures["agreement"] >= case.min_agreement for figures in files.values())
    return {
        "seconds": round(seconds, 1),
        "exit_status": done.returncode,
        "files": files,
        "min_agreement": case.min_agreement,
        "held": held,
    }


def main() -> int:
    """Exit status 0 when every bar that could be tried holds."""
    results = run_cases(CASES, measure, RESULT)
    return 0 if all(r["held"] for r in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
