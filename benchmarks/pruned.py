"""ResNet-20 on CIFAR-10 pruned, trained and quantized: accuracy and latency on the 10,000 test images.

`python -m benchmarks.pruned teacher labels-only teacher-only latency`. Epochs are chosen on training images that were
set apart. Figures of earlier runs of other variants stay in the results; an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from benchmarks import data_cifar10
from benchmarks.data_cifar10 import CACHE, normalise
from benchmarks.engines import open_file, predict_all
from benchmarks.machine import machine
from benchmarks.measure import float_outputs, quality
from benchmarks.networks import MissingDataError, resnet20
from edgekit.attempt import Task, attempt
from edgekit.bench import runner, sample, stats
from edgekit.clock import Clock
from edgekit.intake import load, metric_for, open_inputs
from edgekit.recipe import Prune, Recipe, Train
from edgekit.workdir import WorkDir

RESULT = Path(__file__).parent / "results" / "pruned.json"
SET_APART = 1024
IMAGE = (1, 3, 32, 32)
FORMATS = ("onnx", "tflite")
# What a run is told beside the ratio and the epochs.
VARIANTS: Mapping[str, tuple[Prune, Train]] = MappingProxyType(
    {
        "teacher": (Prune(by="macs"), Train()),
        "labels-only": (Prune(by="macs"), Train(distill=False)),
        "teacher-only": (Prune(by="macs"), Train(labels=False)),
        "latency": (Prune(by="latency"), Train()),
    }
)


def data(images: int) -> dict[str, Any]:
    """Training images, and some of them set apart to choose epochs by."""
    everything = data_cifar10.training_split(batches=5)
    x, y = normalise(everything.x), everything.y
    return {
        "train_x": x[:images],
        "train_y": y[:images],
        "eval_x": x[-SET_APART:],
        "eval_y": y[-SET_APART:],
    }


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One variant: prune, train, quantize, judge and time.

    Raises:
        MissingDataError: the checkpoint is not on this machine.
        RuntimeError: CIFAR-10 cannot be fetched.
    """
    prune, train = VARIANTS[name]
    recipe = replace(
        Recipe(formats=FORMATS),
        metric="top1",
        prune=replace(prune, ratio=options.ratio, multiple=options.multiple),
        train=replace(train, epochs=options.epochs),
    )
    candidate = load(resnet20(), None, {"input_shapes": (IMAGE,)})
    began = time.monotonic()
    with WorkDir(CACHE / f"pruned-{name}", resume=True) as work:
        inputs = open_inputs(data(options.images), recipe, candidate, work, training=True)
        metric = metric_for(recipe, inputs, candidate.program, where="CIFAR-10")
        made = attempt(Task(candidate, inputs, metric, work, Clock(tell)), recipe)
        test = data_cifar10.heldout_split()
        samples = normalise(test.x)
        reference = float_outputs(resnet20(), samples)
        narrow = _outputs(made.shrunk.program.graph, samples)
        files = {form: judged.saved.path for form, judged in made.judged.items()}
        figures = {
            "float": quality(reference, reference, test.y),
            "pruned float": quality(narrow, reference, test.y),
            **{
                f: quality(predict_all(open_file(path), samples), reference, test.y)
                for f, path in files.items()
            },
        }
        speed = {form: _ratio(path, path.with_name(f"float{path.suffix}")) for form, path in files.items()}
    pruning = next(stage for stage in made.stages if stage.name == "prune")
    return {
        "ratio": options.ratio,
        "multiple": options.multiple,
        "epochs": options.epochs,
        "images": options.images,
        "macs": pruning.after["macs"] / pruning.before["macs"],
        "widths": pruning.notes[0],
        "predicted_ms": {form: list(ms) for form, ms in made.shrunk.predicted.items()},
        "figures": figures,
        "speed": speed,
        "seconds": round(time.monotonic() - began, 1),
        "notes": [note for stage in made.stages if stage.name == "train" for note in stage.notes],
    }


def _outputs(graph: torch.fx.GraphModule, samples: Any) -> Any:
    with torch.no_grad():
        parts = [graph(part)[0] for part in torch.from_numpy(samples).split(500)]
    return torch.cat(parts).numpy()


def _ratio(file: Path, twin: Path) -> dict[str, float]:
    """Median latency of a file and of its float twin, in interleaved rounds on one thread."""
    rounds = sample({"int8": runner(file), "float": runner(twin)}, max_seconds=20.0)
    medians = {name: stats(values).p50_ms for name, values in rounds.items()}
    return {**medians, "speedup": medians["float"] / medians["int8"]}


def tell(stage: str, detail: str) -> None:
    """One line on stderr."""
    print(f"{stage}: {detail}"[:150].ljust(150), end="\r", file=sys.stderr, flush=True)


def _variant(name: str) -> str:
    if name not in VARIANTS:
        raise argparse.ArgumentTypeError(f"{name}: expected one of {', '.join(VARIANTS)}")
    return name


def main() -> int:
    """Exit status 0 when all variants ran, 77 when the data is not here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", type=_variant, metavar="|".join(VARIANTS))
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--multiple", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, default=50_000 - SET_APART)
    parser.add_argument("--save-as", help="name in the results; default: the variant")
    options = parser.parse_args()
    for name in options.variants or VARIANTS:
        try:
            row = measure(name, options)
        except (MissingDataError, RuntimeError) as missing:
            print(f"skipped: {missing}", file=sys.stderr)
            return 77
        print(f"{name}: {json.dumps(row, indent=1)}", flush=True)
        rows = json.loads(RESULT.read_text())["variants"] if RESULT.exists() else {}
        rows[options.save_as or name] = row
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({"machine": machine(), "variants": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
