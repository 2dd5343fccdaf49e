"""ResNet-20 on the 10,000 test images of CIFAR-10, 256 images to calibrate.

`python -m benchmarks.resnet20_cifar10`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import data_cifar10
from benchmarks.compressed import compressed
from benchmarks.engines import open_file, predict_all
from benchmarks.machine import machine
from benchmarks.measure import float_outputs, quality
from benchmarks.networks import MissingDataError, resnet20

RESULT = Path(__file__).parent / "results" / "resnet20_cifar10.json"
# The bars: top-1 may fall by this many points, and so many percent of the answers stay as they were.
MAX_DROP, MIN_AGREEMENT = 0.15, 99.0


def measure(out: Path) -> dict[str, Any]:
    """Compress into `out` and judge the saved files.

    Args:
        out: folder of the bundle.

    Returns:
        Figures of the float network and of each file, and whether all bars hold.

    Raises:
        MissingDataError: the checkpoint is not on this machine.
        RuntimeError: CIFAR-10 cannot be fetched.
    """
    module, training, test = resnet20(), data_cifar10.training_split(), data_cifar10.heldout_split()
    samples = data_cifar10.normalise(test.x)
    # Images 256 to 1279 of the training set judge the candidates inside, the test set judges the result.
    first = data_cifar10.normalise(training.x[:1280])
    bundle = compressed(
        module,
        first[:256],
        out,
        formats=("onnx", "tflite"),
        evaluation=first[256:],
        labels=training.y[256:1280],
    )
    reference = float_outputs(module, samples)
    figures = {"float": quality(reference, reference, test.y)}
    for suffix in ("onnx", "tflite"):
        outputs = predict_all(open_file(bundle / f"model.{suffix}"), samples)
        figures[suffix] = quality(outputs, reference, test.y)
    lowest = figures["float"]["top1"] - MAX_DROP
    held = all(
        figures[suffix]["top1"] >= lowest and figures[suffix]["agreement"] >= MIN_AGREEMENT
        for suffix in ("onnx", "tflite")
    )
    return {
        "machine": machine(),
        "figures": figures,
        "max_drop": MAX_DROP,
        "min_agreement": MIN_AGREEMENT,
        "held": held,
    }


def main() -> int:
    """Exit status 0 when the bars hold, 1 when not, 77 when the data is not here."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = measure(Path(folder) / "bundle")
        except (MissingDataError, RuntimeError) as missing:
            print(f"skipped: {missing}", file=sys.stderr)
            return 77
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["figures"], indent=1))
    return 0 if result["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
