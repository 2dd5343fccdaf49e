"""MobileNetV3-small on CIFAR-10: what calibration loses at 8, 6 and 4 bits of weights, and what training wins back.

`python -m benchmarks.qat_mobilenetv3`. The network is trained here first; its weights are kept in `.cache`, and so is
every epoch of every training, so that an interrupted run goes on. Epochs are chosen on training images that were set
apart; the figures are from the 10,000 test images, by the quantized reference that all files are proven against.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import data_cifar10
from benchmarks.data_cifar10 import CACHE, Cifar10, normalise
from benchmarks.machine import machine
from benchmarks.measure import float_outputs, quality
from benchmarks.trained import BATCH, IMAGE, samples_of, tell, trained
from edgekit.evaluate import METRICS
from edgekit.inputs import Inputs, scoring, split, tensors
from edgekit.load import load_candidate
from edgekit.recipe import Qat, Quantize, Train
from edgekit.stages.qat import qat
from edgekit.stages.quantize.search import search
from edgekit.stages.train.device import device_for
from edgekit_converters.cleanup import clean
from edgekit_converters.parity import run_reference
from edgekit_converters.program import Program, QuantizedProgram

RESULT = Path(__file__).parent / "results" / "qat.json"
# Points of top-1 that may be lost at 8 bits after training.
MAX_LOSS = 0.15
# Training images that choose epochs; so many calibrate.
SET_APART, CALIBRATED = 4096, 256
NETWORK = "mobilenet-v3-small"


def inputs_of(train: Cifar10, apart: Cifar10) -> Inputs:
    """What the stages take: calibration and training images, and those that choose epochs."""
    first = normalise(train.x[:CALIBRATED])
    return Inputs(
        calibration=lambda: (tensors(batch) for batch in split((first,), 64)),
        evaluation=lambda: (
            ((normalise(apart.x[i : i + 64]),), apart.y[i : i + 64]) for i in range(0, len(apart.y), 64)
        ),
        proof=(normalise(apart.x[:32]),),
        sha256=hashlib.sha256(first.tobytes()).hexdigest(),
        real=True,
        has_labels=True,
        labels=(),
        notes=(),
        name="image {}".format,
        training=samples_of(train),
    )


def at_bits(
    bits: int, program: Program, teacher: Program, inputs: Inputs, test: Cifar10, options: argparse.Namespace
) -> dict[str, Any]:
    """Top-1 after calibration and after training at some bits of weights."""
    settings = Quantize(weight_bits=bits, compensation=False if options.nearest else "try")
    choice = search(program, settings, inputs.calibration, scoring(inputs), step=tell)
    trained_on = f"{options.images}-{options.epochs}", f"{options.qat_images}-{options.qat_epochs}"
    rounding = "-nearest" if options.nearest else ""
    state = CACHE / f"{NETWORK}-{'-'.join(trained_on)}-{bits}-bits{rounding}"
    began = time.monotonic()
    result = qat(
        choice.program,
        choice.observed.program,
        teacher,
        inputs,
        METRICS["top1"],
        Train(batch_size=BATCH),
        Qat(epochs=options.qat_epochs, learned_steps=options.learned_steps),
        seed=0,
        checkpoint=state.with_suffix(".lsq" if options.learned_steps else ".plain"),
        step=tell,
        device=options.device,
    )
    return {
        "calibrated": {"setting": str(choice.best), "top1": top1(choice.program, test)},
        "trained": {
            "top1": top1(result.program, test),
            "seconds": round(time.monotonic() - began, 1),
            "notes": list(result.notes),
        },
    }


def top1(program: QuantizedProgram, test: Cifar10) -> float:
    """In percent, of the quantized reference."""
    right = 0
    for i in range(0, len(test.y), 500):
        (scores,) = run_reference(program, (normalise(test.x[i : i + 500]),))
        right += int((scores.argmax(1) == test.y[i : i + 500]).sum())
    return round(100 * right / len(test.y), 3)


def images_for(options: argparse.Namespace) -> tuple[Cifar10, Cifar10, Cifar10]:
    """Images to train on, those set apart, and test images.

    Raises:
        RuntimeError: CIFAR-10 cannot be fetched.
    """
    everything = data_cifar10.training_split(batches=-(-(options.images + SET_APART) // 10_000))
    train = Cifar10(everything.x[: options.images], everything.y[: options.images])
    apart = Cifar10(everything.x[-SET_APART:], everything.y[-SET_APART:])
    test = data_cifar10.heldout_split()
    return train, apart, Cifar10(test.x[: options.judge], test.y[: options.judge])


def measure(train: Cifar10, apart: Cifar10, test: Cifar10, options: argparse.Namespace) -> dict[str, Any]:
    """Train, calibrate and train on the grid; figures of the test images."""
    module = trained(NETWORK, train, apart, options.epochs, options.device)
    teacher = load_candidate(module, input_shapes=[IMAGE]).program
    program, _ = clean(teacher)
    reference = float_outputs(module, normalise(test.x))
    whole = quality(reference, reference, test.y)["top1"]
    rows = {}
    shown = Cifar10(train.x[: options.qat_images], train.y[: options.qat_images])
    for bits in options.bits:
        row = at_bits(bits, program, teacher, inputs_of(shown, apart), test, options)
        for figures in row.values():
            figures["loss"] = round(whole - figures["top1"], 3)
        rows[str(bits)] = row
        print(f"{bits} bits: {json.dumps(row)}", flush=True)
    losses = [row["trained"]["loss"] for bits, row in rows.items() if bits == "8"]
    return {
        "machine": machine(),
        "device": device_for(options.device),
        "network": "MobileNetV3-small, 32 × 32",
        "images": options.images,
        "judged": len(test.y),
        "epochs": options.epochs,
        "qat_images": len(shown.y),
        "qat_epochs": options.qat_epochs,
        "learned_steps": options.learned_steps,
        "rounding": "nearest" if options.nearest else "compensated where that is closer to float",
        "float": whole,
        "bits": rows,
        "max_loss": MAX_LOSS,
        "held": all(loss <= MAX_LOSS for loss in losses),
    }


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 when the bar at 8 bits holds, 1 when not, 77 when the data is not here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.qat_mobilenetv3", description=__doc__)
    parser.add_argument("--epochs", type=int, default=60, help="of the float network")
    parser.add_argument("--qat-epochs", type=int, default=6, help="on the grid, for each number of bits")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4])
    parser.add_argument("--images", type=int, default=50_000 - SET_APART, help="to train on")
    parser.add_argument("--qat-images", type=int, help="to train on, on the grid; default: all")
    parser.add_argument("--judge", type=int, default=10_000, help="test images")
    parser.add_argument("--learned-steps", action="store_true")
    parser.add_argument(
        "--nearest", action="store_true", help="round weights to the nearest: calibration that hurts"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(argv)
    try:
        images = images_for(options)
    except RuntimeError as missing:
        print(f"skipped: {missing}", file=sys.stderr)
        return 77
    result = measure(*images, options)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({"float": result["float"], "bits": result["bits"]}, indent=1))
    return 0 if result["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
