"""Puts the bundle together: manifest, golden vectors, report, and the files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from edgekit.attempt import Attempt
from edgekit.bundle import (
    Bundle,
    Golden,
    assemble,
    digest,
    write_golden,
    write_manifest,
    write_report,
)
from edgekit.drawing.numbers import milliseconds
from edgekit.evaluate import Metric
from edgekit.inputs import Inputs
from edgekit.judge import Judged, census
from edgekit.load import Candidate
from edgekit.lower import SUFFIX
from edgekit.recipe import Recipe
from edgekit.report import (
    ArtifactResult,
    Baseline,
    Provenance,
    SearchResult,
    StageResult,
    build_report,
    render_html,
)
from edgekit.stages.quantize.rungs import DYNAMIC, ISLANDS, STATIC, WEIGHTS
from edgekit.trials import Found
from edgekit.versions import versions
from edgekit_converters.onnx import opset_of
from edgekit_converters.parity import output_steps, run_reference
from edgekit_converters.program import QuantizedProgram
from edgekit_converters.tflite import HYBRID_RUNTIME
from edgekit_runtime import contract

# Kernels that quantize at run time do it by format.
GOLDEN_FILES: Final = {
    STATIC: "golden.npz",
    ISLANDS: "golden-islands.npz",
    DYNAMIC: "golden-dynamic-{format}.npz",
    WEIGHTS: "golden-weights.npz",
}
# Metrics of a first choice among classes.
CLASS_METRICS: Final = frozenset({"top1", "f1"})
GOLDEN_SAMPLES: Final = 32
# The golden inputs travel to every device.
GOLDEN_BYTES: Final = 4_000_000
MINIMUM_RUNTIME: Final = {"onnx": "1.17.0", "tflite": "2.14.0", "coreml": "17.0"}
# Of files whose linear layers quantize at run time.
MINIMUM_DYNAMIC_RUNTIME: Final = {**MINIMUM_RUNTIME, "tflite": HYBRID_RUNTIME}


def write_bundle(
    out: Path,
    command: str,
    candidate: Candidate,
    inputs: Inputs,
    metric: Metric,
    found: Found,
    before: Sequence[StageResult],
) -> Bundle:
    """Assemble the directory; it appears whole or not at all.

    Args:
        out: where.
        command: for the provenance.
        candidate: the model.
        inputs: that it was judged on.
        metric: that it was judged by.
        found: what is shipped, and what else was tried.
        before: stages that ran before the attempts.
    """
    made = found.attempt
    recipe, judged = made.recipe, made.judged
    name = recipe.model.name or candidate.name
    provenance = Provenance(
        seed=recipe.seed,
        versions=versions(),
        recipe_sha256=recipe.digest(),
        model_sha256=candidate.sha256,
        calibration_sha256=inputs.sha256,
        command=command,
    )
    report = build_report(
        name=name,
        version=recipe.model.version,
        baseline=_baseline(candidate, metric, made),
        artifacts=[_result(j, made.shrunk.predicted, recipe.budget.max_latency_ms) for j in judged.values()],
        layers=made.settled.layers,
        stages=(*before, *made.stages),
        budget=recipe.budget,
        provenance=provenance,
        notes=inputs.notes,
        failures=made.failures,
        search=SearchResult(found.trials, found.number, found.miss),
        pruning=made.shrunk.pruning,
    )
    with assemble(out) as folder:
        for j in judged.values():
            _copy(j.saved.path, folder / j.saved.path.name)
        write_manifest(folder, _manifest(name, made, inputs, metric, provenance))
        for file, j in {_golden_file(j): j for j in judged.values()}.items():
            allowed = max(other.proof.max_allowed for other in judged.values() if _golden_file(other) == file)
            write_golden(folder, _golden(j.variant.program, j.saved.format, inputs, allowed), file)
        write_report(folder, report, render_html(report))
    return Bundle.open(out)


def _baseline(candidate: Candidate, metric: Metric, made: Attempt) -> Baseline:
    value, n = next(iter(made.judged.values())).baseline
    return Baseline(
        metric=metric.name,
        value=value,
        n=n,
        params=candidate.params,
        macs=made.shrunk.macs or sum(layer.macs for layer in made.settled.layers),
        size_bytes=4 * candidate.params,
        latency=next((j.float_latency for j in made.judged.values() if j.float_latency), None),
    )


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def _golden_file(judged: Judged) -> str:
    return GOLDEN_FILES[judged.variant.name].format(format=judged.saved.format)


def _golden(program: QuantizedProgram, format: str, inputs: Inputs, allowed: float) -> Golden:
    reference = run_reference(program, inputs.proof, format)
    sample_bytes = sum(a[:1].nbytes for a in (*inputs.proof, *reference))
    n = max(2, min(GOLDEN_SAMPLES, GOLDEN_BYTES // sample_bytes))
    return Golden(
        inputs=tuple(x[:n] for x in inputs.proof),
        outputs=tuple(y[:n] for y in reference),
        step=output_steps(program, reference),
        tolerance_steps=tuple(allowed for _ in reference),
    )


def _manifest(
    name: str, made: Attempt, inputs: Inputs, metric: Metric, provenance: Provenance
) -> contract.Manifest:
    recipe, judged, source = made.recipe, made.judged, made.shrunk.program
    specs = [
        tuple(
            contract.TensorSpec(
                t.name, t.dtype, (-1, *t.shape[1:]) if source.dynamic_batch and t.batch else t.shape
            )
            for t in side
        )
        for side in (source.inputs, source.outputs)
    ]
    censuses = {n: census(n, j.saved.path) for n, j in judged.items()}
    return contract.Manifest(
        name=name,
        version=recipe.model.version,
        inputs=specs[0],
        outputs=specs[1],
        artifacts=tuple(_artifact(j, recipe) for j in judged.values()),
        task=recipe.model.task or _task(metric, specs[1]),
        labels=recipe.model.labels or inputs.labels,
        preprocessing=dict(recipe.preprocessing),
        compatibility=contract.Compatibility(
            opset=opset_of(judged["onnx"].saved.path) if "onnx" in judged else None,
            minimum_runtime={n: _minimum_runtime(j) for n, j in judged.items()},
            ops={n: tuple(sorted(c.all())) for n, c in censuses.items() if c is not None},
            max_latency_ms=recipe.device.max_latency_ms,
        ),
        # Neither the command nor a path: the same model, recipe and data give the same bytes anywhere.
        provenance={k: v for k, v in asdict(provenance).items() if k != "command"},
    )


def _task(metric: Metric, outputs: Sequence[contract.TensorSpec]) -> str:
    """What a model does whose recipe does not say: who judges it by its first choice has a classifier."""
    scores = len(outputs) == 1 and len(outputs[0].shape) == 2
    return "classification" if scores and metric.name in CLASS_METRICS else ""


def _minimum_runtime(judged: Judged) -> str:
    dynamic = judged.variant.program.dynamic
    return (MINIMUM_DYNAMIC_RUNTIME if dynamic else MINIMUM_RUNTIME)[judged.saved.format]


def _artifact(judged: Judged, recipe: Recipe) -> contract.Artifact:
    saved = judged.saved
    content = digest(saved.path)
    grids = [
        tuple(contract.Grid(g.scale, g.zero_point) if g else None for g in side)
        for side in (saved.input_grids, saved.output_grids)
    ]
    return contract.Artifact(
        format=saved.format,
        file=saved.path.name,
        sha256=content.sha256,
        size_bytes=content.size_bytes,
        io_dtype=recipe.io if saved.format == "tflite" else "float32",
        input_grids=grids[0],
        output_grids=grids[1],
        input_layout=saved.layout,
        golden=_golden_file(judged),
    )


def _undecided(judged: Judged, limit: float | None) -> list[str]:
    """Targets whose limit lies within the interval of the estimate."""
    return [
        f"the limit of {limit:g} ms lies within the interval of the estimate for {target}; measure there: "
        f"edgekit bench {judged.saved.path.name} --device ssh://user@host"
        for target, found in judged.predicted.items()
        if limit is not None and found.low_ms <= limit <= found.high_ms
    ]


def _result(
    judged: Judged, predicted: Mapping[str, tuple[float, float]], limit: float | None
) -> ArtifactResult:
    saved, quality = judged.saved, judged.quality
    counted = census(saved.format, saved.path)
    twin = saved.path.with_name(f"float{SUFFIX[saved.format]}")
    notes = list(judged.notes)
    if saved.format == "coreml":
        notes.append(f"judged on {quality.n} inputs by the reference evaluator")
    if saved.format in predicted and judged.latency:
        whole, left = predicted[saved.format]
        notes.append(
            f"layers predicted to take {milliseconds(left)} after pruning ({milliseconds(whole)} before); "
            f"the file was measured at {milliseconds(judged.latency.p50_ms)}"
        )
    notes += _undecided(judged, limit)
    return ArtifactResult(
        format=saved.format,
        file=saved.path.name,
        size_bytes=digest(saved.path).size_bytes,
        proof=judged.proof,
        n=quality.n,
        metric=quality.metric,
        drop=quality.drop,
        agreement=quality.agreement,
        snr_db=quality.snr_db,
        latency=judged.latency,
        float_latency=judged.float_latency,
        float_size_bytes=digest(twin).size_bytes if twin.exists() else None,
        lowering=judged.variant.name,
        int8_ops=counted.int8_ops if counted else None,
        float_ops=dict(counted.floating) if counted else {},
        delegated_partitions=counted.partitions if counted and saved.format == "tflite" else None,
        notes=tuple(notes),
        predicted=judged.predicted,
    )
