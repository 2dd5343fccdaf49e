"""Deltas between versions of real networks: size against the full file, and what it costs a device to apply them.

`python -m benchmarks.deltas` makes each version with edgekit: the base; its classifier trained anew; all layers
trained on; and, of ResNet-20, pruned by 30% and then by 50%. The files are kept in `.cache/deltas`. Of a made-up file
of 96 MB only the time and the memory are of interest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import zstandard
from torch import Tensor, nn

from benchmarks import data_cifar10, data_photos
from benchmarks.data_cifar10 import CACHE
from benchmarks.machine import machine
from benchmarks.networks import MissingDataError, efficientnet_lite0, resnet20
from edgekit.fleet.releases import deltas
from edgekit.fleet.releases.tensor_bytes import tensors
from edgekit_runtime.deltas import COPY, LITERAL, WIDTHS

RESULT = Path(__file__).parent / "results" / "deltas.json"
FILES = CACHE / "deltas"
SUFFIXES = ("onnx", "tflite")
CALIBRATED, JUDGED, TRAINED = 256, 1024, 2048
MADE_UP_BYTES = 96 << 20
# What becomes of the base: (its version, the new version, share of the full file that the delta may take).
PAIRS: Mapping[str, tuple[str, str, float]] = MappingProxyType(
    {
        "head retrained": ("base", "head", 0.05),
        "all fine-tuned": ("base", "tuned", 0.35),
        "pruned again": ("pruned", "pruned again", 1.0),
    }
)
APPLY = """
import re, sys, time
from pathlib import Path
from edgekit_runtime.deltas import apply, usable
usable()
import numpy
form, base, delta, size = sys.argv[1:]
# What getrusage tells begins with the memory of whoever started this process.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before, began = peak(), time.perf_counter()
total = sum(len(part) for part in apply(form, Path(base), Path(delta), int(size)))
print((time.perf_counter() - began) * 1000, peak() - before)
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A trained network and real samples.

    Attributes:
        make: gives the network.
        head: name of its classifier.
        samples: gives what it is compressed and trained on, as `edgekit.compress` takes it, and what it is tuned on.
        rate: of learning, where all layers are tuned.
        steps: of tuning.
        versions: that are made.
    """

    make: Callable[[], nn.Module]
    head: str
    samples: Callable[[], tuple[dict[str, npt.NDArray[Any]], Tensor, Tensor]]
    rate: float
    steps: int
    versions: tuple[str, ...]


def cifar() -> tuple[dict[str, npt.NDArray[Any]], Tensor, Tensor]:
    """CIFAR-10: 20,000 training images, of which the second half tunes."""
    images = data_cifar10.training_split(batches=2)
    x, y = data_cifar10.normalise(images.x), images.y
    judged = CALIBRATED + JUDGED
    trained = judged + TRAINED
    data: dict[str, npt.NDArray[Any]] = {
        "calib_x": x[:CALIBRATED],
        "eval_x": x[CALIBRATED:judged],
        "eval_y": y[CALIBRATED:judged],
        "train_x": x[judged:trained],
        "train_y": y[judged:trained],
    }
    return data, torch.from_numpy(x[10_000:]), torch.from_numpy(y[10_000:])


def photos() -> tuple[dict[str, npt.NDArray[Any]], Tensor, Tensor]:
    """Crops of photographs; to tell from which of them one comes is what is tuned for."""
    from examples.photos import crops

    data = {"calib_x": crops(data_photos.CALIBRATION, 128), "eval_x": crops(data_photos.EVALUATION, 128)}
    every = [crops((path,), 48, seed=2) for path in data_photos.CALIBRATION]
    labels = np.repeat(np.arange(len(every)), [len(each) for each in every])
    return data, torch.from_numpy(np.concatenate(every)), torch.from_numpy(labels)


CASES: Mapping[str, Case] = MappingProxyType(
    {
        "ResNet-20": Case(
            resnet20, "linear", cifar, 0.01, 120, ("base", "head", "tuned", "pruned", "pruned again")
        ),
        "EfficientNet-Lite0": Case(efficientnet_lite0, "_fc", photos, 0.001, 40, ("base", "head", "tuned")),
    }
)


def network(case: Case, version: str, x: Tensor, y: Tensor) -> nn.Module:
    """The float network of a version."""
    torch.manual_seed(1)
    module = case.make()
    head = module.get_submodule(case.head)
    assert isinstance(head, nn.Linear)
    if version == "head":
        head.reset_parameters()
        features = _features(module, head, x[:4096])
        _train(head, features, y[:4096], torch.optim.AdamW(head.parameters(), 1e-2), steps=640)
    elif version == "tuned":
        optimizer = torch.optim.SGD(module.parameters(), case.rate, momentum=0.9)
        _train(module.train(), x, y, optimizer, steps=case.steps, batch=64 if len(x) > 1000 else 16)
    return module.eval()


def _features(module: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
    found: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach()))
    with torch.no_grad():
        for part in x.split(64):
            module(part)
    hook.remove()
    return torch.cat(found)


def _train(
    module: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, *, steps: int, batch: int = 64
) -> None:
    for _ in range(steps):
        chosen = torch.randint(len(x), (batch,))
        optimizer.zero_grad()
        F.cross_entropy(module(x[chosen]), y[chosen]).backward()
        optimizer.step()


def make_files(name: str, case: Case) -> None:
    """Make the versions of a network that are not in the cache."""
    import edgekit

    data, x, y = case.samples()
    for version in case.versions:
        folder = FILES / name / version
        if folder.exists():
            continue
        module = network(case, version, x, y)
        ratio = {"pruned": 0.3, "pruned again": 0.5}.get(version)
        with tempfile.TemporaryDirectory() as made:
            out = Path(made) / "bundle"
            edgekit.compress(
                module,
                data=data,
                out=out,
                formats=SUFFIXES,
                allow_slower=True,
                prune=ratio,
                epochs=None if ratio is None else 1,
            )
            shutil.copytree(out, folder.with_suffix(".part"), dirs_exist_ok=True)
            folder.with_suffix(".part").rename(folder)


def measure(base: Path, new: Path) -> dict[str, Any]:
    """Sizes as shares of the full file, seconds to make the delta, and what applying it takes."""
    full = new.stat().st_size
    began = time.perf_counter()
    made = deltas.make(base, new)
    seconds = time.perf_counter() - began
    tried = {
        form: made.content if made is not None and made.offer.format == form else way(base, new)
        for form, way in (("tensor", deltas.subtract), ("zstd", deltas.patch))
    }
    packed = zstandard.ZstdCompressor(level=deltas.ZSTD_LEVEL).compress(new.read_bytes())
    return {
        "full_bytes": full,
        "full_zstd": round(len(packed) / full, 4),
        "chosen": made.offer.format if made else "full",
        "share": round(made.offer.size_bytes / full, 4) if made else 1.0,
        **entropy(base, new),
        "make_s": round(seconds, 2),
        **{form: applied(form, base, each, full) for form, each in tried.items() if each is not None},
    }


def entropy(base: Path, new: Path) -> dict[str, float]:
    """Of tensors that were subtracted: share of numbers that changed, and what no coder without a context beats.

    The bound is Shannon's entropy of the differences of each tensor by itself, as a share of the full file.
    """
    old, fresh = base.read_bytes(), new.read_bytes()
    a, b = np.frombuffer(old, np.uint8), np.frombuffer(fresh, np.uint8)
    pairs = deltas.matched(tensors(memoryview(old)), tensors(memoryview(fresh)))
    numbers = changed = 0
    bits = 0.0
    for each in deltas.plan(pairs, a, b):
        if each.op in (LITERAL, COPY):
            continue
        width = WIDTHS[each.op]
        was, now = a[each.base : each.base + each.size].copy(), b[each.at : each.at + each.size].copy()
        bits += deltas.bits(deltas.difference(was, now, width), width)
        changed += int((was.reshape(-1, width) != now.reshape(-1, width)).any(1).sum())
        numbers += each.size // width
    return {"changed": round(changed / max(1, numbers), 4), "entropy": round(bits / 8 / len(fresh), 4)}


def applied(form: str, base: Path, content: bytes, size: int) -> dict[str, float]:
    """Size, median time of five processes of their own, and the memory that the worst of them took for it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        command = [sys.executable, "-c", APPLY, form, str(base), file.name, str(size)]
        runs = [
            [float(part) for part in subprocess.check_output(command, text=True).split()] for _ in range(5)
        ]
    return {
        "share": round(len(content) / size, 4),
        "apply_ms": round(float(np.median([ms for ms, _ in runs])), 1),
        "apply_mb": round(max(mb for _, mb in runs), 1),
    }


def made_up(folder: Path) -> Iterator[Path]:
    """Two files of one large tensor, of which every fourth number changes by one."""
    from onnx import TensorProto, helper, save

    rng = np.random.default_rng(0)
    weights = rng.normal(0, 30, MADE_UP_BYTES).clip(-127, 127).astype(np.int8)
    for number in range(2):
        tensor = helper.make_tensor("w", TensorProto.INT8, weights.shape, weights.tobytes(), raw=True)
        save(helper.make_model(helper.make_graph([], "made up", [], [], [tensor])), folder / f"{number}.onnx")
        yield folder / f"{number}.onnx"
        weights += rng.choice(np.array([-1, 0, 0, 0, 0, 0, 0, 1], np.int8), weights.shape)


def _write(key: str, row: dict[str, Any]) -> None:
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results = {**results, "machine": machine(), "zstandard": zstandard.__version__, key: row}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(results, indent=1) + "\n")


def main() -> int:
    """Exit status 0 when every share is within its limit, 1 when not, 77 when the data is not here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="|".join((*CASES, "made up")), help="default: all")
    names = parser.parse_args().networks or [*CASES, "made up"]
    if unknown := set(names) - {*CASES, "made up"}:
        parser.error(f"{min(unknown)}: expected {', '.join((*CASES, 'made up'))}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    held = True
    for name in names:
        if name == "made up":
            with tempfile.TemporaryDirectory() as folder:
                _write(name, measure(*made_up(Path(folder))))
            continue
        try:
            make_files(name, CASES[name])
        except (MissingDataError, RuntimeError) as missing:
            print(f"skipped: {missing}", file=sys.stderr)
            return 77
        for pair, (base, new, most) in PAIRS.items():
            if new not in CASES[name].versions:
                continue
            for suffix in SUFFIXES:
                row = measure(FILES / name / base / f"model.{suffix}", FILES / name / new / f"model.{suffix}")
                row = {**row, "limit": most, "held": row["share"] <= most}
                held = held and row["held"]
                print(f"{name}, {pair}, {suffix}: {json.dumps(row)}", flush=True)
                _write(f"{name}, {pair}, {suffix}", row)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
