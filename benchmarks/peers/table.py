"""Who is compared; a candidate is a file of this folder and a row here."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.environments import HERE, ROOT, Environment
from benchmarks.peers.inputs import Inputs
from benchmarks.peers.served import environ

# Seconds that a conversion may take.
PATIENCE_S: Final = 3600
RESULT: Final = "conversion.json"
# Parts of edgekit that no file of a bundle comes from.
APART: Final = frozenset({"fleet", "remote", "provision", "drawing", "predict", "targets"})


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way from a float network to a file.

    Attributes:
        name: as it stands in results.
        suffix: of the file.
        build: "module:function" of this folder that writes it.
        environment: that it is converted in.
        runtime: environment that runs it.
        timed: whether its latency is of interest.
    """

    name: str
    suffix: str
    build: str
    environment: str = HERE
    runtime: str = HERE
    timed: bool = True


CANDIDATES: tuple[Candidate, ...] = (
    Candidate("onnx-float", ".onnx", "given:onnx"),
    Candidate("ort-static", ".onnx", "ort_static:build", "onnxruntime"),
    Candidate("ort-percentile", ".onnx", "ort_static:build_percentile", "onnxruntime", timed=False),
    Candidate("neural-compressor", ".onnx", "neural_compressor_onnx:build", "neural-compressor"),
    Candidate("olive", ".onnx", "olive_static:build", "olive"),
    Candidate("edgekit-onnx", ".onnx", "ours:build"),
    Candidate("litert-float", ".tflite", "given:tflite"),
    Candidate("ai-edge-quantizer", ".tflite", "ai_edge_quantizer:build", "ai-edge-quantizer"),
    Candidate("litert-pt2e", ".tflite", "litert_pt2e:build", "litert-torch"),
    Candidate("edgekit-tflite", ".tflite", "ours:build"),
    # ai-edge-quantizer's files take and give int8: like is compared with like.
    Candidate("edgekit-tflite-int8-ends", ".tflite", "ours:build_tflite_int8_ends"),
    Candidate("openvino-float", ".xml", "nncf_openvino:build_float", "nncf", "nncf"),
    Candidate("nncf", ".xml", "nncf_openvino:build", "nncf", "nncf"),
    Candidate("ncnn-float", ".param", "ncnn_int8:build_float", "ncnn", "ncnn"),
    Candidate("ncnn", ".param", "ncnn_int8:build", "ncnn-tools", "ncnn"),
    Candidate("mnn-float", ".mnn", "mnn_quant:build_float", "mnn", "mnn"),
    Candidate("mnn", ".mnn", "mnn_quant:build", "mnn", "mnn"),
)

# (ours, theirs, largest ratio of latencies that is accepted)
CONTESTS: tuple[tuple[str, str, float], ...] = (
    ("edgekit-onnx", "ort-static", 1.03),
    ("edgekit-onnx", "onnx-float", 1.0),
    ("edgekit-tflite-int8-ends", "ai-edge-quantizer", 1.0),
    ("edgekit-tflite", "ai-edge-quantizer", 1.0),
    ("edgekit-tflite", "litert-float", 1.0),
)


class FailedError(Exception):
    """A conversion that a peer refused or that took too long; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What a candidate made.

    Attributes:
        file: that its runtime opens; others beside it belong to it.
        size_bytes: of all of them.
        seconds: that the conversion took.
        peak_mb: of its resident memory.
    """

    file: Path
    size_bytes: int
    seconds: float
    peak_mb: float


def obtain(candidate: Candidate, inputs: Inputs, environment: Environment) -> Converted:
    """The candidate's file, converted unless it was from the same inputs, sources and versions.

    Args:
        candidate: that converts.
        inputs: of the network.
        environment: of the candidate.

    Raises:
        FailedError: it gives no file.
    """
    folder = inputs.folder.parent / f"{candidate.name}-{_key(candidate, inputs, environment)}"
    file, result = folder / f"model{candidate.suffix}", folder / RESULT
    if not result.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        found = _convert(candidate, inputs, environment, file)
        found["size_bytes"] = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        result.write_text(json.dumps(found) + "\n")
    known = json.loads(result.read_text())
    return Converted(file, known["size_bytes"], known["seconds"], known["peak_mb"])


def _convert(candidate: Candidate, inputs: Inputs, environment: Environment, file: Path) -> dict[str, Any]:
    command = [str(environment.python), "-m", "benchmarks.peers.convert"]
    # Some leave folders of their own where they run.
    with tempfile.TemporaryDirectory() as place:
        try:
            done = subprocess.run(
                [*command, candidate.build, str(inputs.folder), str(file)],
                capture_output=True, text=True, errors="replace", check=False, timeout=PATIENCE_S, cwd=place,
                env=environ(),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise FailedError(f"not done after {PATIENCE_S} s") from None
    said = done.stdout.splitlines()
    if not said:
        last = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise FailedError(f"ended with status {done.returncode}: {last[-1][:300]}")
    found: dict[str, Any] = json.loads(said[-1])
    if "failed" in found:
        raise FailedError(found["failed"])
    if not file.is_file():
        raise FailedError("it wrote no file")
    return found


def _key(candidate: Candidate, inputs: Inputs, environment: Environment) -> str:
    module = candidate.build.partition(":")[0]
    digest = hashlib.sha256(repr((candidate.build, sorted(environment.versions.items()))).encode())
    for path in (inputs.samples, inputs.onnx, Path(__file__).with_name(f"{module}.py")):
        digest.update(path.read_bytes())
    if module == "ours":
        for folder in ("src", "converters"):
            for path in sorted((ROOT / folder).rglob("*.py")):
                if not APART & set(path.parts):
                    digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
