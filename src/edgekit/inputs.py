"""Where calibration, proof and evaluation inputs come from: the user's data, or the model itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.data import Data
from edgekit.synth import distill_calibration
from edgekit.workdir import Facts, WorkDir, stage_key
from edgekit_converters.program import Program

Array = NDArray[Any]
Batch = tuple[torch.Tensor, ...]

# Values of a batch over all inputs: what fits the caches runs twice as fast as what does not.
BATCH_VALUES = 1 << 18
MAX_BATCH = 64
# The first calibration inputs, to whose statistics weights and biases are fitted; more hardly change them.
CORRECTION_SAMPLES = 32
SCORING_SAMPLES = 64
FEWEST_SCORED = 8
SCORING_VALUES = 5 << 19
PROOF_SAMPLES = 32
# A 99.9th percentile means little below a few thousand values; a classifier of ten classes needs more inputs.
PROOF_VALUES = 2500
MAX_PROOF_SAMPLES = 256
DISTILLED_SAMPLES = 64


@dataclass(frozen=True)
class Training:
    """Samples to train on, in any order that is asked for.

    Attributes:
        n: number of samples.
        has_labels: batches carry labels.
        batches: row numbers (int64, each in 0…n − 1, at most once) and a batch size → (inputs, labels or None).
        sha256: of the samples.
    """

    n: int
    has_labels: bool
    batches: Callable[[NDArray[np.int64], int], Iterator[tuple[tuple[Array, ...], Array | None]]]
    sha256: str

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n is {self.n}, expected at least 1")


@dataclass(frozen=True)
class Inputs:
    """All inputs that the pipeline needs, streamed anew at each call.

    Attributes:
        calibration: batches for the observers.
        evaluation: (inputs, labels) batches to judge the saved files on.
        proof: `PROOF_SAMPLES` inputs that no observer has seen, one array per input.
        sha256: of the calibration inputs.
        real: False when they were drawn from the model.
        has_labels: evaluation batches carry labels.
        labels: class names, or nothing.
        notes: sentences for the report.
        name: what the user calls the evaluation sample of a number, for messages.
        training: samples to train on, None without any.
    """

    calibration: Callable[[], Iterator[Batch]]
    evaluation: Callable[[], Iterator[tuple[tuple[Array, ...], Array | None]]]
    proof: tuple[Array, ...]
    sha256: str
    real: bool
    has_labels: bool
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    name: Callable[[int], str]
    training: Training | None = None


def from_data(data: Data, program: Program) -> Inputs:
    """Inputs of the user."""
    size = batch_size(program)
    return Inputs(
        calibration=lambda: (tensors(batch) for batch in data.calibration(size)),
        evaluation=lambda: data.evaluation(size),
        proof=first(proof_samples(program), (x for x, _ in data.evaluation(size))),
        sha256=data.calibration_sha256,
        real=data.real,
        has_labels=data.has_labels,
        labels=data.labels or (),
        notes=data.notes,
        name=data.evaluation_name,
        training=_training(data),
    )


def _training(data: Data) -> Training | None:
    if not data.n_training:
        return None
    return Training(data.n_training, data.training_has_labels, data.training, data.training_sha256)


def from_model(program: Program, model_sha256: str, work: WorkDir, *, seed: int) -> Inputs:
    """Inputs distilled from the model; part of them is kept from the observers for proof and evaluation."""

    def make(folder: Path) -> Facts:
        batches, note = distill_calibration(program, n=DISTILLED_SAMPLES + PROOF_SAMPLES, seed=seed)
        arrays = first(DISTILLED_SAMPLES + PROOF_SAMPLES, ([x.numpy() for x in b] for b in batches))
        np.savez(folder / "inputs.npz", *arrays)
        return {"note": note}

    def read(folder: Path, facts: Facts) -> tuple[tuple[Array, ...], str]:
        with np.load(folder / "inputs.npz", allow_pickle=False) as archive:
            return tuple(archive[f"arr_{i}"] for i in range(len(program.inputs))), str(facts["note"])

    key = stage_key("distil", model_sha256, seed, DISTILLED_SAMPLES, PROOF_SAMPLES)
    arrays, note = work.stage("distil", key, make, read)
    calibration = tuple(a[:DISTILLED_SAMPLES] for a in arrays)
    held_out = tuple(a[DISTILLED_SAMPLES:] for a in arrays)
    size = batch_size(program)
    return Inputs(
        calibration=lambda: (tensors(b) for b in split(calibration, size)),
        evaluation=lambda: ((b, None) for b in split(held_out, size)),
        proof=held_out,
        sha256=stage_key([a.tobytes().hex() for a in calibration]),
        real=False,
        has_labels=False,
        labels=(),
        notes=(note,),
        name="distilled sample {}".format,
    )


def proof_samples(program: Program) -> int:
    """How many inputs the proof takes."""
    values = sum(math.prod(o.shape) for o in program.outputs)
    return min(MAX_PROOF_SAMPLES, max(PROOF_SAMPLES, -(-PROOF_VALUES // max(values, 1))))


def input_values(program: Program) -> int:
    """Number of values of one sample over all inputs."""
    return max(1, sum(math.prod(i.shape) for i in program.inputs))


def batch_size(program: Program) -> int:
    """Samples of a batch; one where the graph takes no other."""
    return max(1, min(MAX_BATCH, BATCH_VALUES // input_values(program))) if program.dynamic_batch else 1


def scoring(inputs: Inputs) -> list[Batch]:
    """Calibration inputs to judge on: `SCORING_SAMPLES` or fewer where they are large.

    Those to which weights and biases are fitted are passed over, unless hardly any others are there.
    """
    all_batches = inputs.calibration()
    early = _take(all_batches, CORRECTION_SAMPLES)
    values = sum(x[0].numel() for x in early[0])
    wanted = min(SCORING_SAMPLES, max(FEWEST_SCORED, SCORING_VALUES // values))
    later = _take(all_batches, wanted)
    return later if sum(len(b[0]) for b in later) >= FEWEST_SCORED else early


def _take(batches: Iterator[Batch], n: int) -> list[Batch]:
    """Whole batches until `n` samples are there, or no more come."""
    taken, seen = [], 0
    while seen < n and (batch := next(batches, None)) is not None:
        taken.append(batch)
        seen += len(batch[0])
    return taken


def tensors(arrays: tuple[Array, ...]) -> Batch:
    """Torch tensors over contiguous copies where needed."""
    return tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)


def split(arrays: tuple[Array, ...], size: int) -> Iterator[tuple[Array, ...]]:
    """Batches of at most `size` along axis 0."""
    for i in range(0, len(arrays[0]), size):
        yield tuple(a[i : i + size] for a in arrays)


def first(n: int, batches: Any) -> tuple[Array, ...]:
    """The first `n` samples of a stream of tuples of arrays, or all when there are fewer."""
    kept: list[tuple[Array, ...]] = []
    seen = 0
    for batch in batches:
        kept.append(tuple(np.asarray(a) for a in batch))
        seen += len(kept[-1][0])
        if seen >= n:
            break
    return tuple(np.concatenate(column)[:n] for column in zip(*kept, strict=True))


__all__ = [
    "Inputs",
    "Training",
    "batch_size",
    "first",
    "from_data",
    "from_model",
    "input_values",
    "scoring",
    "split",
    "tensors",
]
