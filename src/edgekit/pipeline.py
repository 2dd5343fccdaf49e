"""`compress`: load → clean → choose the grid → lower three times → prove → judge → bundle.

Each stage takes what the one before it gave and reaches back to nothing. Stages whose results are files run through
`WorkDir`, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import math
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch

from edgekit import __version__
from edgekit.bench import LatencyStats
from edgekit.bundle import (
    Bundle,
    Golden,
    assemble,
    check_out,
    digest,
    write_golden,
    write_manifest,
    write_report,
)
from edgekit.data import Preprocessing, check_labels, check_range, open_data
from edgekit.errors import Interrupted, LoweringError, UsageError
from edgekit.evaluate import Metric, choices, choose_metric, class_axis, has_classes
from edgekit.inputs import Inputs, from_data, from_model, scoring
from edgekit.judge import TIMED, Quality, assess, census, prove, time_files
from edgekit.load import Candidate, load_candidate
from edgekit.lower import SUFFIX, Job, lower
from edgekit.recipe import Recipe
from edgekit.report import (
    SLOWER,
    ArtifactResult,
    Baseline,
    Provenance,
    StageResult,
    build_report,
    render_html,
)
from edgekit.stages.quantize.choose import STATIC, WEIGHTS, Settled, Variant, settle
from edgekit.workdir import WorkDir, stage_key
from edgekit_converters.cleanup import clean
from edgekit_converters.onnx import opset_of
from edgekit_converters.parity import Proof, output_steps, run_reference
from edgekit_converters.predict import SavedModel
from edgekit_converters.program import Program, QuantizedProgram
from edgekit_converters.store import load_program, save_program
from edgekit_devices import load_profile
from edgekit_runtime import contract

LONGEST_FIRST: Final = ("tflite", "coreml", "onnx")
GOLDEN_FILES: Final = {STATIC: "golden.npz", WEIGHTS: "golden-weights.npz"}
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
    # The caller may be in the middle of a training: its random numbers are not ours to spend.
    with _listening() as interrupted, torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.recipe.seed)

        def told(stage: str, detail: str) -> None:
            if interrupted():
                raise KeyboardInterrupt
            progress(stage, detail)

        try:
            return _run(request, told)
        except (KeyboardInterrupt, Exception) as stop:
            if not (isinstance(stop, KeyboardInterrupt) or interrupted()):
                raise
            raise Interrupted(
                f"interrupted; finished stages are kept, `--resume` with the same options goes on ({request.out})"
            ) from stop


@contextmanager
def _listening() -> Iterator[Callable[[], bool]]:
    """Tell whether Ctrl-C was pressed: native libraries swallow the exception, or make another one of it."""
    before, pressed = signal.getsignal(signal.SIGINT), False
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: False
        return

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        before(number, frame)

    signal.signal(signal.SIGINT, hear)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


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
        metric = metric_for(recipe, inputs, candidate.program, where=_named(request.data))
        recipe = _with_drop(recipe, metric)
        notes.extend(inputs.notes)
    with clock.stage("quantize") as notes:
        settled = settle(program, inputs, recipe, metric, work, candidate.sha256, step=clock.detail)
        notes.extend(settled.notes)
    judged, failures = judge_files(
        STATIC, recipe.formats, settled, candidate, inputs, metric, recipe, work, clock
    )
    slow = [name for name, j in judged.items() if j.slower and not recipe.budget.allow_slower]
    if slow:
        again, _ = judge_files(WEIGHTS, slow, settled, candidate, inputs, metric, recipe, work, clock)
        judged |= {name: j for name, j in again.items() if j.faster_than(judged[name])}
    if not judged:
        work.remove()
        first, *others = failures
        for other in others:
            first.add_note(str(other))
        raise first
    value, n, latency = float_baseline(judged)
    baseline = Baseline(
        metric=metric.name,
        value=value,
        n=n,
        params=candidate.params,
        macs=sum(layer.macs for layer in settled.layers),
        size_bytes=4 * candidate.params,
        latency=latency,
    )
    with clock.stage("bundle"):
        bundle = write_bundle(
            request, recipe, candidate, settled, inputs, judged, baseline, tuple(failures), clock.results()
        )
    work.remove()
    return bundle


@dataclass(frozen=True)
class Judged:
    """A saved file with everything that was measured on it.

    Attributes:
        saved: the file.
        variant: how it was lowered.
        proof: against the quantized reference.
        quality: against the float model.
        latency: of the file, None where it cannot be timed here.
        float_latency: of its float twin.
        baseline: metric of the float model and number of inputs.
    """

    saved: SavedModel
    variant: Variant
    proof: Proof
    quality: Quality
    latency: LatencyStats | None
    float_latency: LatencyStats | None
    baseline: tuple[float, int]

    @property
    def slower(self) -> bool:
        """More than 5% slower than its float twin."""
        both = self.latency is not None and self.float_latency is not None
        return both and self.latency.p50_ms > SLOWER * self.float_latency.p50_ms  # type: ignore[union-attr]

    def faster_than(self, other: Judged) -> bool:
        """Relative to the float twin of the same rounds; the machine may have changed between two timings."""
        ratios = [
            j.latency.p50_ms / j.float_latency.p50_ms if j.latency and j.float_latency else math.inf
            for j in (self, other)
        ]
        return ratios[0] < ratios[1]


def judge_files(
    variant_name: str,
    formats: Sequence[str],
    settled: Settled,
    candidate: Candidate,
    inputs: Inputs,
    metric: Metric,
    recipe: Recipe,
    work: WorkDir,
    clock: _Clock,
) -> tuple[dict[str, Judged], list[LoweringError]]:
    """Lower one variant to some formats, prove every file, measure it, and time it beside its float twin."""
    variant = settled.variants[variant_name]
    with clock.stage("lower"):
        files, failures = write_files(
            variant, formats, settled.key, candidate, recipe, work, step=clock.detail
        )
    with clock.stage("prove"):
        proofs = prove(variant.program, files, inputs.proof)
    with clock.stage("evaluate"):
        value, n, quality = assess(candidate.program, files, inputs, metric, step=clock.detail)
    with clock.stage("time"):
        latency = time_files(timed_files(files), max_seconds=TIMING_SECONDS)
    judged = {
        name: Judged(
            saved,
            variant,
            proofs[name],
            quality[name],
            latency.get(name),
            latency.get(f"{name} float"),
            (value, n),
        )
        for name, saved in files.items()
    }
    return judged, failures


def float_baseline(judged: Mapping[str, Judged]) -> tuple[float, int, LatencyStats | None]:
    """Metric of the float model, number of inputs, and its latency in the first runtime that has one."""
    first = next(iter(judged.values()))
    latency = next((j.float_latency for j in judged.values() if j.float_latency), None)
    return (*first.baseline, latency)


def load(request: Request) -> Candidate:
    """Read the model; where it does not tell its input shapes, the data does."""
    wish: dict[str, Any] = {"factory": request.factory, "trust": request.trust}
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


def metric_for(recipe: Recipe, inputs: Inputs, program: Program, *, where: str) -> Metric:
    """The metric that was asked for or suits the data; labels are checked against the number of classes."""
    with torch.no_grad():
        outputs = [y.numpy() for y in program.graph(*program.example)]
    classes = has_classes(outputs[0])
    metric = choose_metric(recipe.metric, labels=inputs.has_labels, classes=classes)
    if metric.needs_labels:
        counted = metric.name in {"top1", "f1"}
        per_input = choices(outputs[0]).size if counted else outputs[0].size
        axis = class_axis(outputs[0])
        for arrays, labels in inputs.evaluation():
            assert labels is not None
            if labels.size != per_input * len(arrays[0]):
                raise UsageError(
                    f"{where}: labels of shape {labels.shape[1:]} for each input",
                    expected=f"{per_input} for each input, for --metric {metric.name}",
                    way_out="Give class numbers, not one-hot rows."
                    if counted
                    else "Give one value per output.",
                )
            if counted and axis is not None:
                check_labels(labels, outputs[0].shape[axis], f"{where}: evaluation labels")
    return metric


def _named(data: Any) -> str:
    return str(data) if isinstance(data, (str, Path)) else "data"


def write_files(
    variant: Variant,
    formats: Sequence[str],
    settled_key: str,
    candidate: Candidate,
    recipe: Recipe,
    work: WorkDir,
    *,
    step: Callable[[str], None],
) -> tuple[dict[str, SavedModel], list[LoweringError]]:
    """Every format and, for those that can be timed here, its float twin."""
    key = stage_key(
        "lower", settled_key, variant.name, sorted(formats), recipe.layout, recipe.io, _versions()
    )

    def make(folder: Path) -> dict[str, Any]:
        twin = folder / "float.pt2"
        save_program(candidate.program, twin)
        jobs = [
            _job(name, variant.archive, twin, folder, recipe) for name in LONGEST_FIRST if name in formats
        ]
        step(", ".join(formats))
        failed = lower(jobs, original=candidate.program)
        fields = ("format", "op", "where", "why", "way_out")
        errors = [e for out, e in failed.items() if out.stem == "model"]
        return {"failures": [{f: getattr(e, f) for f in fields} for e in errors]}

    folder, facts, _ = work.stage("lower", key, make)
    failures = [LoweringError(**f) for f in facts["failures"]]
    program = variant.program
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
        for name in formats
        if name not in {f.format for f in failures}
    }
    return files, failures


def timed_files(files: Mapping[str, SavedModel]) -> dict[str, Path]:
    """What is timed side by side: each file and its float twin, where the twin could be made."""
    timed: dict[str, Path] = {}
    for name, saved in files.items():
        if name in TIMED:
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
    judged: Mapping[str, Judged],
    baseline: Baseline,
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
        artifacts=[_result(j) for j in judged.values()],
        layers=settled.layers,
        stages=stages,
        budget=recipe.budget,
        provenance=provenance,
        notes=inputs.notes,
        failures=failures,
    )
    with assemble(request.out) as folder:
        for j in judged.values():
            _copy(j.saved.path, folder / j.saved.path.name)
        write_manifest(folder, _manifest(name, recipe, judged, inputs, provenance))
        for variant in {j.variant.name: j.variant for j in judged.values()}.values():
            allowed = max(j.proof.max_allowed for j in judged.values() if j.variant is variant)
            write_golden(folder, _golden(variant.program, inputs, allowed), GOLDEN_FILES[variant.name])
        write_report(folder, report, render_html(report))
    return Bundle.open(request.out)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def _golden(program: QuantizedProgram, inputs: Inputs, allowed: float) -> Golden:
    reference = run_reference(program, inputs.proof)
    sample_bytes = sum(a[:1].nbytes for a in (*inputs.proof, *reference))
    n = max(2, min(GOLDEN_SAMPLES, GOLDEN_BYTES // sample_bytes))
    return Golden(
        inputs=tuple(x[:n] for x in inputs.proof),
        outputs=tuple(y[:n] for y in reference),
        step=output_steps(program, reference),
        tolerance_steps=tuple(allowed for _ in reference),
    )


def _manifest(
    name: str, recipe: Recipe, judged: Mapping[str, Judged], inputs: Inputs, provenance: Provenance
) -> contract.Manifest:
    source = next(iter(judged.values())).variant.program.program
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
        task=recipe.model.task,
        labels=recipe.model.labels or inputs.labels,
        preprocessing=dict(recipe.preprocessing),
        compatibility=contract.Compatibility(
            opset=opset_of(judged["onnx"].saved.path) if "onnx" in judged else None,
            minimum_runtime={n: MINIMUM_RUNTIME[n] for n in judged},
            ops={n: tuple(sorted(c.all())) for n, c in censuses.items() if c is not None},
        ),
        # Neither the command nor a path: the same model, recipe and data give the same bytes anywhere.
        provenance={k: v for k, v in asdict(provenance).items() if k != "command"},
    )


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
        golden=GOLDEN_FILES[judged.variant.name],
    )


def _result(judged: Judged) -> ArtifactResult:
    saved, quality = judged.saved, judged.quality
    counted = census(saved.format, saved.path)
    twin = saved.path.with_name(f"float{SUFFIX[saved.format]}")
    notes = []
    if saved.format == "coreml":
        notes.append(f"judged on {quality.n} inputs by the reference evaluator")
    if judged.variant.name == WEIGHTS:
        notes.append(
            "integers were slower than float here: int8 weights with float compute, a quarter of the size"
        )
    return ArtifactResult(
        format=saved.format,
        file=saved.path.name,
        size_bytes=digest(saved.path).size_bytes,
        proof=judged.proof,
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
    )


def _job(name: str, archive: Path, twin: Path, folder: Path, recipe: Recipe) -> Job:
    files = [(archive, folder / f"model{SUFFIX[name]}")]
    if name in TIMED:
        files.append((twin, folder / f"float{SUFFIX[name]}"))
    return Job(name, tuple(files), layout=recipe.layout if name == "tflite" else "nchw", io=recipe.io)


def _for_targets(recipe: Recipe) -> Recipe:
    """Narrow the weights when a target's integer kernels saturate."""
    if not any(load_profile(t).int8_saturates for t in recipe.targets):
        return recipe
    return replace(recipe, quantize=replace(recipe.quantize, weight_bits=7))


def _with_drop(recipe: Recipe, metric: Metric) -> Recipe:
    """Spell the default of `max_drop` out; it depends on what is measured."""
    if recipe.budget.max_drop is not None:
        return recipe
    return replace(recipe, budget=replace(recipe.budget, max_drop=metric.default_drop))


def _versions() -> dict[str, str]:
    names = (
        "torch",
        "torchao",
        "onnx",
        "onnxruntime",
        "litert-torch",
        "ai-edge-litert",
        "coremltools",
        "numpy",
    )
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
