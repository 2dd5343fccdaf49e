"""Who is compared; a candidate is a file of this folder and a row here."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from benchmarks.machine import version
from benchmarks.networks import Floats
from benchmarks.peers import ai_edge_quantizer, float_litert, float_onnx, litert_pt2e, ort_static, ours

ROOT = Path(__file__).parents[2]
OURS = ("edgekit", "edgekit_converters")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way from a torch module to a file.

    Attributes:
        name: as it stands in results.
        suffix: ".onnx" or ".tflite"; it decides the runtime.
        build: writes the file from the module and calibration samples `[n, …]`.
        packages: whose versions make the file; our own source is hashed instead.
        timed: whether its latency is of interest.
    """

    name: str
    suffix: str
    build: Callable[[nn.Module, Floats, Path], None]
    packages: tuple[str, ...]
    timed: bool = True


CANDIDATES: tuple[Candidate, ...] = (
    Candidate("onnx-float", ".onnx", float_onnx.build, ("torch",)),
    Candidate("ort-static", ".onnx", ort_static.build, ("torch", "onnxruntime")),
    Candidate("ort-percentile", ".onnx", ort_static.build_percentile, ("torch", "onnxruntime"), timed=False),
    Candidate("edgekit-onnx", ".onnx", ours.build_onnx, OURS),
    Candidate("litert-float", ".tflite", float_litert.build, ("litert-torch",)),
    Candidate("ai-edge-quantizer", ".tflite", ai_edge_quantizer.build, ("litert-torch", "ai-edge-quantizer")),
    Candidate("litert-pt2e", ".tflite", litert_pt2e.build, ("litert-torch", "torchao")),
    Candidate("edgekit-tflite", ".tflite", ours.build_tflite, OURS),
    # ai-edge-quantizer's files take and give int8: like is compared with like.
    Candidate("edgekit-tflite-int8-ends", ".tflite", ours.build_tflite_int8_ends, OURS),
)

# (ours, theirs, largest ratio of latencies that is accepted)
CONTESTS: tuple[tuple[str, str, float], ...] = (
    ("edgekit-onnx", "ort-static", 1.03),
    ("edgekit-onnx", "onnx-float", 1.0),
    ("edgekit-tflite-int8-ends", "ai-edge-quantizer", 1.0),
    ("edgekit-tflite", "ai-edge-quantizer", 1.0),
    ("edgekit-tflite", "litert-float", 1.0),
)


def obtain(candidate: Candidate, module: nn.Module, calibration: Floats, cache: Path) -> Path:
    """The candidate's file, converted unless `cache` holds it from the same weights, samples and versions."""
    path = cache / f"{candidate.name}-{_key(candidate, module, calibration)}{candidate.suffix}"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        written = path.with_name("." + path.name)
        with _quiet():
            candidate.build(module, calibration, written)
        written.rename(path)
    return path


def _key(candidate: Candidate, module: nn.Module, calibration: Floats) -> str:
    digest = hashlib.sha256(calibration.tobytes())
    for name, value in module.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    if candidate.packages == OURS:
        for folder in ("src", "converters"):
            for path in sorted((ROOT / folder).rglob("*.py")):
                digest.update(path.read_bytes())
    else:
        digest.update(repr([version(name) for name in candidate.packages]).encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Converters print pages; what matters of a failure is in its exception."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
