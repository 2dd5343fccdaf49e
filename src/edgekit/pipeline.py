"""`compress`: load → clean → choose the grid → lower three times → prove → judge → bundle.

Each stage takes what the one before it gave and reaches back to nothing. Stages whose results are files run through
`WorkDir`, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from edgekit import __version__
from edgekit.bench import LatencyStats
from edgekit.bundle import Bundle, Golden, assemble, check_out, digest, write_golden, write_manifest, write_report
from edgekit.data import Preprocessing, check_labels, check_range, open_data
from edgekit.errors import Interrupted, LoweringError, UsageError
from edgekit.evaluate import Metric, choose_metric, has_classes
from edgekit.inputs import Inputs, from_data, from_model, scoring
from edgekit.judge import Quality, assess, census, prove, time_files
from edgekit.load import Candidate, load_candidate
from edgekit.lower import SUFFIX, Job, lower
from edgekit.recipe import Recipe
from edgekit.report import (
    ArtifactResult,
    Baseline,
    Provenance,
    StageResult,
    build_report,
    render_html,
)
from edgekit.stages.quantize.choose import Settled, settle
from edgekit.workdir import WorkDir, stage_key
from edgekit_converters.cleanup import clean
from edgekit_converters.onnx import opset_of
from edgekit_converters.parity import Proof, output_steps, run_reference
from edgekit_converters.predict import SavedModel
from edgekit_converters.program import Program, QuantizedProgram
from edgekit_converters.store import load_program, save_program
from edgekit_devices import load_profile
from edgekit_runtime import contract

GOLDEN_SAMPLES: Final = 32
# The golden inputs travel to every device.
GOLDEN_BYTES: Final = 4_000_000
TIMING_SECONDS: Final = 10.0
MINIMUM_RUNTIME: Final = {"onnx": "1.17.0", "tflite": "2.14.0", "coreml": "17.0"}

Progress = Callable[[str, str], None]


@dataclass(frozen=True)
class Request:
    """Everything that one compression is asked to do.

    Attributes:
        model: file, module or exported program.
        out: directory of the bundle.
        recipe: how.
        data: see `edgekit.data.open_data`; None distils calibration inputs from the model.
        factory: "module:callable" for a state dict.
        trust: allow unpickling.
        input_shapes: one per input, batch first, where the model does not tell.
        resume: go on from the finished stages of an interrupted run.
        command: for the provenance.
    """

    model: Any
    out: Path
    recipe: Recipe = field(default_factory=Recipe)
    data: Any = None
    factory: str | None = None
    trust: bool = False
    input_shapes: tuple[tuple[int, ...], ...] | None = None
    resume: bool = False
    command: str = "edgekit.compress"


def run(request: Request, progress: Progress = lambda _stage, _detail: None) -> Bundle:
    """Compress a model.

    Args:
        request: what to do.
        progress: told (stage, detail) whenever something starts.

    Returns:
        The bundle on disk; `report["accepted"]` says whether every budget and proof holds.

    Raises:
        UsageError: an input cannot be used.
        LoweringError: no format could be made.
        Interrupted: Ctrl-C; finished stages are kept for `resume`.
    """
    check_out(request.out)
    try:
        return _run(request, progress)
    except KeyboardInterrupt as stop:
        raise Interrupted(f"interrupted; finished stages are kept, `--resume` with the same options goes on ({request.out})") from stop


def _run(request: Request, progress: Progress) -> Bundle:
    clock = _Clock(progress)
    recipe = _for_targets(request.recipe)
    with clock.stage("load") as notes:
        candidate = load(request)
        notes.extend(candidate.notes)
    work = WorkDir(request.out, resume=request.resume)
    with clock.stage("clean") as notes:
        program, changes = clean(candidate.program)
        notes.extend(f"{c.name}: {c.rewrites}" for c in changes)
    with clock.stage("data") as notes:
        inputs = open_inputs(request, recipe, candidate, work)
        metric = metric_for(recipe, inputs, candidate.program)
        notes.extend(inputs.notes)
    with clock.stage("quantize") as notes:
        settled = settle(program, inputs, recipe, metric, work, candidate.sha256, step=clock.detail)
        notes.extend(settled.notes)
    with clock.stage("lower"):
        files, failures = write_files(settled, candidate, recipe, work, step=clock.detail)
    if not files:
        raise next(iter(failures))
    with clock.stage("prove"):
        proofs = prove(settled.program, files, inputs.proof)
    with clock.stage("evaluate"):
        value, n, quality = assess(candidate.program, files, inputs, metric, step=clock.detail)
    with clock.stage("time"):
        latency = time_files(timed_files(files), max_seconds=TIMING_SECONDS)
    baseline = Baseline(
        metric=metric.name,
        value=value,
        n=n,
        params=candidate.params,
        macs=sum(layer.macs for layer in settled.layers),
        size_bytes=4 * candidate.params,
        latency=latency.get("onnx float"),
    )
    results = [
        _result(name, saved, proofs[name], quality[name], latency)
        for name, saved in files.items()
    ]
    with clock.stage("bundle"):
        bundle = write_bundle(
            request, recipe, candidate, settled, inputs, files, baseline, results, tuple(failures), clock.results()
        )
    work.remove()
    return bundle


def load(request: Request) -> Candidate:
    """Read the model; where it does not tell its input shapes, the data does."""
    wish = {"factory": request.factory, "trust": request.trust}
    if request.input_shapes is not None or request.data is None:
        return load_candidate(request.model, input_shapes=request.input_shapes, **wish)
    try:
        return load_candidate(request.model, **wish)
    except UsageError as unknown:
        from edgekit.data import peek

        example = peek(request.data)
        if example is None or "--input-shape" not in str(unknown):
            raise
        return load_candidate(request.model, example=tuple(torch.from_numpy(x) for x in example), **wish)


def open_inputs(request: Request, recipe: Recipe, candidate: Candidate, work: WorkDir) -> Inputs:
    """The user's data, checked against the float model; or inputs distilled from the model."""
    program = candidate.program
    if request.data is None:
        inputs = from_model(program, candidate.sha256, work, seed=recipe.seed)
        note = "No data was given: calibration inputs were distilled from the model and nothing was measured on real data."
        return replace(inputs, notes=(note, *inputs.notes))
    preprocessing = Preprocessing.from_dict(recipe.preprocessing) if recipe.preprocessing else None
    data = open_data(
        request.data,
        inputs=program.inputs,
        preprocessing=preprocessing,
        seed=recipe.seed,
        calibration_size=recipe.quantize.calibration_size,
    )
    inputs = from_data(data, program)
    warning = check_range(program, next(iter(data.calibration(1))))
    return replace(inputs, notes=(*inputs.notes, warning)) if warning else inputs


def metric_for(recipe: Recipe, inputs: Inputs, program: Program) -> Metric:
    """The metric that was asked for or suits the data; labels are checked against the number of classes."""
    with torch.no_grad():
        outputs = [y.numpy() for y in program.graph(*program.example)]
    classes = has_classes(outputs[0])
    metric = choose_metric(recipe.metric, labels=inputs.has_labels, classes=classes)
    if inputs.has_labels and classes and metric.name in {"top1", "f1"}:
        axis = 1 if outputs[0].ndim in {2, 4} else 2
        for _, labels in inputs.evaluation():
            if labels is not None:
                check_labels(labels, outputs[0].shape[axis], "evaluation labels")
    return metric


def write_files(
    settled: Settled, candidate: Candidate, recipe: Recipe, work: WorkDir, *, step: Callable[[str], None]
) -> tuple[dict[str, SavedModel], list[LoweringError]]:
    """Every format and, for those that can be timed here, its float twin."""
    key = stage_key("lower", settled.key, sorted(recipe.formats), recipe.layout, recipe.io, _versions())
    failures: list[LoweringError] = []

    def make(folder: Path) -> dict[str, Any]:
        twin = folder / "float.pt2"
        save_program(candidate.program, twin)
        jobs = [_job(name, settled.archive, folder / f"model{SUFFIX[name]}", recipe) for name in recipe.formats]
        jobs += [
            _job(name, twin, folder / f"float{SUFFIX[name]}", recipe)
            for name in recipe.formats
            if name in {"onnx", "tflite"}
        ]
        step(", ".join(recipe.formats))
        failed = lower(jobs, original=candidate.program)
        fields = ("format", "op", "where", "why", "way_out")
        errors = [e for out, e in failed.items() if out.stem == "model"]
        return {"failures": [{f: getattr(e, f) for f in fields} for e in errors]}

    folder, facts, _ = work.stage("lower", key, make)
    failures.extend(LoweringError(**f) for f in facts["failures"])
    program = settled.program
    files = {
        name: SavedModel(
            name,
            folder / f"model{SUFFIX[name]}",
            program.program.inputs,
            program.program.outputs,
            program.input_grids,
            program.output_grids,
            layout=recipe.layout if name == "tflite" else "nchw",
        )
        for name in recipe.formats
        if name not in {f.format for f in failures}
    }
    return files, failures


def timed_files(files: Mapping[str, SavedModel]) -> dict[str, Path]:
    """What is timed side by side: each file and its float twin, where the twin could be made."""
    timed: dict[str, Path] = {}
    for name, saved in files.items():
        if name in {"onnx", "tflite"}:
            timed[name] = saved.path
            twin = saved.path.with_name(f"float{SUFFIX[name]}")
            if twin.exists():
                timed[f"{name} float"] = twin
    return timed


def write_bundle(
    request: Request,
    recipe: Recipe,
    candidate: Candidate,
    settled: Settled,
    inputs: Inputs,
    files: Mapping[str, SavedModel],
    baseline: Baseline,
    results: Sequence[ArtifactResult],
    failures: Sequence[LoweringError],
    stages: Sequence[StageResult],
) -> Bundle:
    """Assemble the directory; it appears whole or not at all."""
    name = recipe.model.name or candidate.name
    provenance = Provenance(
        seed=recipe.seed,
        versions=_versions(),
        recipe_sha256=recipe.digest(),
        model_sha256=candidate.sha256,
        calibration_sha256=inputs.sha256,
        command=request.command,
    )
    report = build_report(
        name=name,
        version=recipe.model.version,
        baseline=baseline,
        artifacts=results,
        layers=settled.layers,
        stages=stages,
        budget=recipe.budget,
        provenance=provenance,
        notes=inputs.notes,
        failures=failures,
    )
    with assemble(request.out) as folder:
        for saved in files.values():
            saved.path.rename(folder / saved.path.name)
        placed = {n: replace(s, path=folder / s.path.name) for n, s in files.items()}
        write_manifest(folder, _manifest(name, recipe, settled.program, placed, inputs, provenance))
        write_golden(folder, _golden(settled.program, inputs, results))
        write_report(folder, report, render_html(report))
    return Bundle.open(request.out)


def _golden(program: QuantizedProgram, inputs: Inputs, results: Sequence[ArtifactResult]) -> Golden:
    reference = run_reference(program, inputs.proof)
    loosest = max(r.proof.max_allowed for r in results if r.proof)
    sample_bytes = sum(a[:1].nbytes for a in (*inputs.proof, *reference))
    n = max(2, min(GOLDEN_SAMPLES, GOLDEN_BYTES // sample_bytes))
    return Golden(
        inputs=tuple(x[:n] for x in inputs.proof),
        outputs=tuple(y[:n] for y in reference),
        step=output_steps(program, reference),
        tolerance_steps=tuple(loosest for _ in reference),
    )


def _manifest(
    name: str,
    recipe: Recipe,
    program: QuantizedProgram,
    files: Mapping[str, SavedModel],
    inputs: Inputs,
    provenance: Provenance,
) -> contract.Manifest:
    source = program.program
    specs = [
        tuple(
            contract.TensorSpec(t.name, t.dtype, (-1, *t.shape[1:]) if source.dynamic_batch and t.batch else t.shape)
            for t in side
        )
        for side in (source.inputs, source.outputs)
    ]
    censuses = {n: census(n, s.path) for n, s in files.items()}
    return contract.Manifest(
        name=name,
        version=recipe.model.version,
        inputs=specs[0],
        outputs=specs[1],
        artifacts=tuple(_artifact(s, recipe) for s in files.values()),
        task=recipe.model.task,
        labels=recipe.model.labels or inputs.labels,
        preprocessing=dict(recipe.preprocessing),
        compatibility=contract.Compatibility(
            opset=opset_of(files["onnx"].path) if "onnx" in files else None,
            minimum_runtime={n: MINIMUM_RUNTIME[n] for n in files},
            ops={
                n: tuple(sorted({*c.int8, *c.hybrid, *c.floating, *c.boundary, *c.other}))
                for n, c in censuses.items()
                if c is not None
            },
        ),
        # Neither the command nor a path: the same model, recipe and data give the same bytes anywhere.
        provenance={k: v for k, v in asdict(provenance).items() if k != "command"},
    )


def _artifact(saved: SavedModel, recipe: Recipe) -> contract.Artifact:
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
    )


def _result(
    name: str, saved: SavedModel, proof: Proof, quality: Quality, latency: Mapping[str, LatencyStats]
) -> ArtifactResult:
    counted = census(name, saved.path)
    twin = saved.path.with_name(f"float{SUFFIX[name]}")
    return ArtifactResult(
        format=name,
        file=saved.path.name,
        size_bytes=digest(saved.path).size_bytes,
        proof=proof,
        metric=quality.metric,
        drop=quality.drop,
        agreement=quality.agreement,
        snr_db=quality.snr_db,
        latency=latency.get(name),
        float_latency=latency.get(f"{name} float"),
        float_size_bytes=digest(twin).size_bytes if twin.exists() else None,
        int8_ops=counted.int8_ops if counted else None,
        float_ops=dict(counted.floating) if counted else {},
        delegated_partitions=counted.partitions if counted and name == "tflite" else None,
        notes=(f"judged on {quality.n} inputs by the reference evaluator",) if name == "coreml" else (),
    )


def _job(name: str, archive: Path, out: Path, recipe: Recipe) -> Job:
    return Job(name, archive, out, layout=recipe.layout if name == "tflite" else "nchw", io=recipe.io)


def _for_targets(recipe: Recipe) -> Recipe:
    """Narrow the weights when a target's integer kernels saturate."""
    if not any(load_profile(t).int8_saturates for t in recipe.targets):
        return recipe
    return replace(recipe, quantize=replace(recipe.quantize, weight_bits=7))


def _versions() -> dict[str, str]:
    names = ("torch", "torchao", "onnx", "onnxruntime", "litert-torch", "ai-edge-litert", "coremltools", "numpy")
    found = {"edgekit": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class _Clock:
    """Times stages and passes their names on."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.done: list[StageResult] = []
        self.name = ""

    def stage(self, name: str) -> _Stage:
        self.name = name
        self.progress(name, "")
        return _Stage(self, name)

    def detail(self, text: str) -> None:
        self.progress(self.name, text)

    def results(self) -> tuple[StageResult, ...]:
        return tuple(self.done)


class _Stage:
    def __init__(self, clock: _Clock, name: str) -> None:
        self.clock, self.name, self.notes = clock, name, list[str]()

    def __enter__(self) -> list[str]:
        self.started = time.monotonic()
        return self.notes

    def __exit__(self, *_: object) -> None:
        seconds = round(time.monotonic() - self.started, 3)
        self.clock.done.append(StageResult(self.name, seconds, notes=tuple(self.notes)))


__all__ = ["Progress", "Request", "run"]

