"""Transformers in INT8: activations on a fixed grid, on one found at each call, or float, beside the dynamic peers.

`python -m benchmarks.transformer`. A vision transformer that is trained here on CIFAR-10 (its weights are kept in
`.cache`), and ViT-tiny at 224 × 224 with settled weights. Judged on samples that nobody calibrated with; latencies on
one thread, interleaved, against the float file in the same runtime. The dynamic peers need no calibration.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from torch import nn

import edgekit
from benchmarks import data_cifar10
from benchmarks.cases import run_cases
from benchmarks.data_cifar10 import Cifar10, normalise
from benchmarks.engines import open_file, predict_all
from benchmarks.measure import float_outputs, interleaved, latency, quality, ratio
from benchmarks.networks import NETWORKS, Floats, Network
from benchmarks.peers import float_litert, float_onnx
from benchmarks.trained import trained

RESULT = Path(__file__).parent / "results" / "transformer.json"
SET_APART, CALIBRATED = 4096, 128
# As a recipe says it; all three are made of the same network and the same samples.
OURS: Final = ("static", "dynamic", "float")


def ort_dynamic(module: nn.Module, calibration: Floats, out: Path) -> None:
    """ONNX Runtime's `quantize_dynamic`, int8 weights per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared = Path(folder) / "float.onnx", Path(folder) / "prepared.onnx"
        float_onnx.build(module, calibration, plain)
        quant_pre_process(plain, prepared)
        quantize_dynamic(prepared, out, per_channel=True, weight_type=QuantType.QInt8)


def edge_dynamic(module: nn.Module, calibration: Floats, out: Path) -> None:
    """ai-edge-quantizer's recipe of int8 weights and dynamic activations."""
    from ai_edge_quantizer import quantizer, recipe  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "float.tflite"
        float_litert.build(module, calibration, plain)
        worker = quantizer.Quantizer(str(plain), recipe.dynamic_wi8_afp32())
        worker.quantize().export_model(str(out), overwrite=True)


PEERS: Mapping[str, Callable[[nn.Module, Floats, Path], None]] = MappingProxyType(
    {
        "float.onnx": float_onnx.build,
        "float.tflite": float_litert.build,
        "ORT dynamic.onnx": ort_dynamic,
        "ai-edge dynamic.tflite": edge_dynamic,
    }
)


def build(module: nn.Module, calibration: Floats, folder: Path) -> dict[str, Path]:
    """All files, by name."""
    files = {}
    for name, make in PEERS.items():
        files[name] = folder / name
        try:
            make(module, calibration, files[name])
        except ImportError as missing:
            print(f"{name}: skipped, {missing}", file=sys.stderr)
            del files[name]
    for activations in OURS:
        recipe = folder / f"{activations}.toml"
        lines = ("[quantize]", f"calibration_size = {len(calibration)}", f'activations = "{activations}"')
        recipe.write_text("\n".join((*lines, "")), encoding="utf-8")
        out = folder / activations
        edgekit.compress(
            module,
            data={"calib_x": calibration, "eval_x": calibration},
            out=out,
            formats=["onnx", "tflite"],
            recipe=recipe,
            allow_slower=True,
        )
        files |= {f"edgekit {activations}.{form}": out / f"model.{form}" for form in ("onnx", "tflite")}
    return files


def figures(network: Network, folder: Path, rounds: int) -> dict[str, Any]:
    """Quality and latency of every file."""
    module = network.make()
    samples = network.evaluation(network.judge)
    labels = network.labels()[: network.judge] if network.labels else None
    wanted = float_outputs(module, samples)
    files = build(module, network.calibration(network.calibrate), folder)
    engines = {name: open_file(path) for name, path in files.items()}
    rows: dict[str, Any] = {"float": quality(wanted, wanted, labels)}
    for name, engine in engines.items():
        rows[name] = dict(quality(predict_all(engine, samples), wanted, labels))
        rows[name]["size_bytes"] = files[name].stat().st_size
    times = interleaved({name: e.prepare(samples[:1]) for name, e in engines.items()}, rounds=rounds)
    for name, values in times.items():
        twin = f"float{files[name].suffix}"
        rows[name] |= {"latency": latency(values), "to_float": ratio(values, times[twin])}
    return rows


def _trained(options: argparse.Namespace) -> nn.Module:
    everything = data_cifar10.training_split(batches=5)
    cut = len(everything.y) - SET_APART
    train, apart = (
        Cifar10(everything.x[part], everything.y[part]) for part in (slice(cut), slice(cut, None))
    )
    return trained("vit", train, apart, options.epochs)


def networks(options: argparse.Namespace) -> tuple[Network, ...]:
    """What is compressed."""
    tiny = next(network for network in NETWORKS if network.name == "ViT-tiny")
    return (
        Network(
            "ViT, 32 × 32, trained",
            partial(_trained, options),
            lambda n: normalise(data_cifar10.training_split().x[:n]),
            lambda n: normalise(data_cifar10.heldout_split().x[:n]),
            calibrate=CALIBRATED,
            judge=options.judge,
            labels=lambda: data_cifar10.heldout_split().y,
        ),
        tiny,
    )


def main() -> int:
    """Exit status 77 when the data is not here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8, help="of the network that is trained here")
    parser.add_argument("--judge", type=int, default=10_000, help="test images")
    parser.add_argument("--rounds", type=int, default=200, help="of timing")
    options = parser.parse_args()
    try:
        run_cases(networks(options), lambda case, folder: figures(case, folder, options.rounds), RESULT)
    except RuntimeError as missing:
        print(f"skipped: {missing}", file=sys.stderr)
        return 77
    return 0


if __name__ == "__main__":
    sys.exit(main())
