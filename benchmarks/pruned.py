"""Networks on CIFAR-10 pruned, trained and quantized: accuracy on the 10,000 test images, and latency beside float.

`python -m benchmarks.pruned teacher labels-only teacher-only latency` prunes ResNet-20; `--network mobilenet-v2` a
MobileNetV2 that is trained first. Epochs are chosen on training images that were set apart. Figures of earlier runs
of other variants stay in the results; an interrupted run goes on.

The files are kept in `.cache`, and those of all variants of a network are timed in one interleaved run at the end;
without a variant (`--time`) that is all that is done.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from benchmarks import data_cifar10
from benchmarks.data_cifar10 import CACHE, Cifar10, normalise
from benchmarks.engines import open_file, predict_all
from benchmarks.machine import machine
from benchmarks.measure import float_outputs, quality
from benchmarks.networks import MissingDataError, resnet20
from benchmarks.trained import IMAGE, trained
from edgekit.attempt import Attempt, Task, attempt
from edgekit.bench import ratio, runner, sample, stats
from edgekit.clock import Clock
from edgekit.intake import load, metric_for, open_inputs
from edgekit.recipe import Prune, Recipe, Train
from edgekit.workdir import WorkDir

RESULT = Path(__file__).parent / "results" / "pruned.json"
FILES = CACHE / "pruned"
SET_APART = 1024
SUFFIXES: Mapping[str, str] = MappingProxyType({"onnx": ".onnx", "tflite": ".tflite"})
RESNET, MOBILENET = "resnet-20", "mobilenet-v2"
# What a run is told beside the ratio and the epochs.
VARIANTS: Mapping[str, tuple[Prune, Train]] = MappingProxyType(
    {
        "teacher": (Prune(by="macs"), Train()),
        "labels-only": (Prune(by="macs"), Train(distill=False)),
        "teacher-only": (Prune(by="macs"), Train(labels=False)),
        "latency": (Prune(by="latency"), Train()),
    }
)


def network(options: argparse.Namespace, everything: Cifar10) -> nn.Module:
    """The float network.

    Raises:
        MissingDataError: the checkpoint is not on this machine.
    """
    if options.network == RESNET:
        return resnet20()
    train = Cifar10(everything.x[: options.images], everything.y[: options.images])
    apart = Cifar10(everything.x[-SET_APART:], everything.y[-SET_APART:])
    return trained(options.network, train, apart, options.float_epochs)


def data(images: int, everything: Cifar10) -> dict[str, Any]:
    """Training images, and some of them set apart to choose epochs by."""
    x, y = normalise(everything.x), everything.y
    return {
        "train_x": x[:images],
        "train_y": y[:images],
        "eval_x": x[-SET_APART:],
        "eval_y": y[-SET_APART:],
    }


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One variant: prune, train, quantize and judge; its files are kept to be timed.

    Raises:
        MissingDataError: the checkpoint is not on this machine.
        RuntimeError: CIFAR-10 cannot be fetched.
    """
    everything = data_cifar10.training_split(batches=5)
    module = network(options, everything)
    prune, train = VARIANTS[name]
    recipe = replace(
        Recipe(formats=tuple(SUFFIXES)),
        metric="top1",
        prune=replace(prune, ratio=options.ratio, multiple=options.multiple),
        train=replace(train, epochs=options.epochs),
    )
    candidate = load(module, None, {"input_shapes": (IMAGE,)})
    began = time.monotonic()
    with WorkDir(CACHE / f"pruned-{options.network}-{name}", resume=True) as work:
        inputs = open_inputs(data(options.images, everything), recipe, candidate, work, training=True)
        metric = metric_for(recipe, inputs, candidate.program, where="CIFAR-10")
        made = attempt(Task(candidate, inputs, metric, work, Clock(tell)), recipe)
        _keep_files(made, FILES / options.network, options.save_as or name)
        figures = _judged(made, module)
    pruning = next(stage for stage in made.stages if stage.name == "prune")
    return {
        "network": options.network,
        "ratio": options.ratio,
        "multiple": options.multiple,
        "epochs": options.epochs,
        "images": options.images,
        "macs": pruning.after["macs"] / pruning.before["macs"],
        "plan": pruning.notes,
        "predicted_ms": {form: list(ms) for form, ms in made.shrunk.predicted.items()},
        "figures": figures,
        "seconds": round(time.monotonic() - began, 1),
        "notes": [note for stage in made.stages if stage.name == "train" for note in stage.notes],
    }


def _keep_files(made: Attempt, folder: Path, name: str) -> None:
    (folder / "float").mkdir(parents=True, exist_ok=True)
    (folder / name).mkdir(exist_ok=True)
    for form, judged in made.judged.items():
        path, suffix = judged.saved.path, SUFFIXES[form]
        shutil.copy2(path, folder / name / f"model{suffix}")
        shutil.copy2(path.with_name(f"float{suffix}"), folder / "float" / f"model{suffix}")


def _judged(made: Attempt, module: nn.Module) -> dict[str, Any]:
    """Top-1 and distance from float, of the pruned network and of the files."""
    test = data_cifar10.heldout_split()
    samples = normalise(test.x)
    reference = float_outputs(module, samples)
    figures = {
        "float": quality(reference, reference, test.y),
        "pruned float": quality(_outputs(made.shrunk.program.graph, samples), reference, test.y),
    }
    for form, judged in made.judged.items():
        figures[form] = quality(predict_all(open_file(judged.saved.path), samples), reference, test.y)
    return figures


def _outputs(graph: torch.fx.GraphModule, samples: Any) -> Any:
    with torch.no_grad():
        parts = [graph(part)[0] for part in torch.from_numpy(samples).split(500)]
    return torch.cat(parts).numpy()


def speeds(name: str, seconds: float) -> dict[str, Any]:
    """Latency of all files of a network that were kept, on one thread, in interleaved rounds.

    Returns:
        For every variant and format: median milliseconds, and how many times as fast as the float network in ONNX
        Runtime it is, with the interval of that median.
    """
    folder = FILES / name
    paths = {
        f"{each.name} {form}": each / f"model{suffix}"
        for each in sorted(folder.iterdir())
        for form, suffix in SUFFIXES.items()
        if (each / f"model{suffix}").exists()
    }
    rounds = sample(
        {key: runner(path) for key, path in paths.items()}, min_rounds=200, max_seconds=seconds * len(paths)
    )
    found = {}
    for key, values in rounds.items():
        times = ratio(rounds["float onnx"], values)
        found[key] = {
            "p50_ms": stats(values).p50_ms,
            "speedup": times.value,
            "interval": [times.low, times.high],
        }
    return found


def tell(stage: str, detail: str) -> None:
    """One line on stderr."""
    print(f"{stage}: {detail}"[:150].ljust(150), end="\r", file=sys.stderr, flush=True)


def _variant(name: str) -> str:
    if name not in VARIANTS:
        raise argparse.ArgumentTypeError(f"{name}: expected one of {', '.join(VARIANTS)}")
    return name


def _write(part: str, key: str, row: dict[str, Any]) -> None:
    """Put one row into the results."""
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    rows = {**results.get(part, {}), key: row}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({**results, "machine": machine(), part: rows}, indent=1) + "\n")


def main() -> int:
    """Exit status 0 when all variants ran, 77 when the data is not here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", type=_variant, metavar="|".join(VARIANTS))
    parser.add_argument("--network", choices=[RESNET, MOBILENET], default=RESNET)
    parser.add_argument(
        "--float-epochs", type=int, default=20, help="of a network that is trained here first"
    )
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--multiple", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, default=50_000 - SET_APART)
    parser.add_argument("--save-as", help="name in the results; default: the variant")
    parser.add_argument("--time", action="store_true", help="only time the files that were kept")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, for each file")
    options = parser.parse_args()
    for name in () if options.time else options.variants or VARIANTS:
        try:
            row = measure(name, options)
        except (MissingDataError, RuntimeError) as missing:
            print(f"skipped: {missing}", file=sys.stderr)
            return 77
        print(f"{name}: {json.dumps(row, indent=1)}", flush=True)
        _write("variants", f"{options.network} {options.save_as or name}", row)
    row = speeds(options.network, options.seconds)
    print(json.dumps(row, indent=1))
    _write("speed", options.network, row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
