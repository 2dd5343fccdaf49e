"""From results to `report.json`: the pieces, the verdict over them, and the document with its stable keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.bench import LatencyStats
from edgekit.bench.predict import Prediction
from edgekit.drawing import numbers
from edgekit.errors import LoweringError
from edgekit.recipe import SLOWER, Budget

if TYPE_CHECKING:
    # It takes torch, and whoever prints a number or serves a page does not.
    from edgekit_converters.parity import Proof

__all__ = [
    "ArtifactResult",
    "Baseline",
    "LayerResult",
    "Provenance",
    "SearchResult",
    "StageResult",
    "build_report",
    "verdict",
]


@dataclass(frozen=True, slots=True)
class Baseline:
    """The float model that everything is judged against.

    Attributes:
        metric: name of the metric, "top1", "mae", "agreement", ….
        value: of the float model, None when nothing could be measured.
        n: number of evaluation inputs.
        params: number of weights.
        macs: multiply-accumulates of one inference at batch one.
        size_bytes: of the float weights.
        latency: of the float graph, None when it was not timed.
    """

    metric: str
    value: float | None
    n: int
    params: int
    macs: int
    size_bytes: int
    latency: LatencyStats | None = None


@dataclass(frozen=True, slots=True)
class ArtifactResult:
    """One saved file and everything that was measured on it.

    Attributes:
        format: "onnx", "tflite" or "coreml".
        file: name inside the bundle.
        size_bytes: of the file or package.
        proof: None when no runtime or evaluator could read it here.
        n: evaluation inputs that it was judged on, None when it was not.
        metric: value of the baseline's metric on the file.
        drop: loss against the baseline in the metric's own unit, above 0 is worse.
        agreement: share of inputs with the same answer as the float model.
        snr_db: of the file's outputs against the float model's.
        latency: of the file, None when it could not be timed here.
        float_latency: of its float twin in the same runtime, timed in the same rounds.
        float_size_bytes: of its float twin.
        lowering: "static int8", or which fallback was taken.
        int8_ops: number of integer kernels that run.
        float_ops: float kernels that run, by name.
        delegated_partitions: of XNNPACK, None for other formats.
        outside_ops: ops that XNNPACK left to slower kernels, by name.
        notes: plain sentences.
        predicted: target to the estimate for it, which a limit is held against in the place of the latency here.
    """

    format: str
    file: str
    size_bytes: int
    proof: Proof | None = None
    n: int | None = None
    metric: float | None = None
    drop: float | None = None
    agreement: float | None = None
    snr_db: float | None = None
    latency: LatencyStats | None = None
    float_latency: LatencyStats | None = None
    float_size_bytes: int | None = None
    lowering: str = "static int8"
    int8_ops: int | None = None
    float_ops: Mapping[str, int] = field(default_factory=dict)
    delegated_partitions: int | None = None
    outside_ops: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    predicted: Mapping[str, Prediction] = field(default_factory=dict)

    @property
    def speedup(self) -> float | None:
        """Median of the float twin over the median of the file; above 1 is faster."""
        if self.latency is None or self.float_latency is None or self.latency.p50_ms <= 0:
            return None
        return self.float_latency.p50_ms / self.latency.p50_ms


@dataclass(frozen=True, slots=True)
class StageResult:
    """One stage of the pipeline; `before` and `after` hold `params`, `macs` and `value`."""

    name: str
    seconds: float
    before: Mapping[str, float | None] = field(default_factory=dict)
    after: Mapping[str, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One layer of the quantized program.

    Attributes:
        name: as in the user's model.
        op: "conv2d", "linear", ….
        weight_bytes: as stored.
        macs: multiply-accumulates of one inference.
        snr_db: of the layer's output with everything quantized, against float.
        damage_db: of the model's output with this layer alone quantized; lower is worse.
        kept_float: the layer stayed float32.
        reason: why it did, "" when it did not.
    """

    name: str
    op: str
    weight_bytes: int = 0
    macs: int = 0
    snr_db: float | None = None
    damage_db: float | None = None
    kept_float: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What was tried to hold the budget.

    Attributes:
        trials: number, setting, outcome, feasible, why and pareto of each; empty where nothing was searched.
        chosen: number of the trial whose files these are; None without a search.
        miss: sentences on what binds; empty where the budget holds.
    """

    trials: tuple[Mapping[str, Any], ...] = ()
    chosen: int | None = None
    miss: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PruningResult:
    """What could go in one round of pruning, what that does, and what went.

    Attributes:
        layer: the first layer whose outputs these are; of a residual branch, its first and last.
        branch: it is a whole residual branch, which goes or stays.
        before: channels, heads times their width, or hidden units; one for a branch.
        after: those that stayed.
        widths: at which the damage was measured, ascending.
        damage: mean divergence of a sample's answers at each width, with everything else in place.
    """

    layer: str
    branch: bool
    before: int
    after: int
    widths: tuple[int, ...]
    damage: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the bundle comes from; hashes in hex."""

    seed: int
    versions: Mapping[str, str]
    recipe_sha256: str
    model_sha256: str
    calibration_sha256: str
    command: str


def verdict(
    *,
    baseline: Baseline,
    artifacts: Sequence[ArtifactResult],
    layers: Sequence[LayerResult],
    budget: Budget,
    failures: Sequence[LoweringError] = (),
) -> tuple[str, ...]:
    """Return why the result is refused, in words with layer names; empty when it is accepted."""
    reasons = [str(failure).split("\n", 1)[0] for failure in failures]
    if not artifacts:
        reasons.append("no artifact was written")
    for artifact in artifacts:
        found = (
            _proof_reason(artifact),
            _drop_reason(artifact, baseline, layers, budget),
            _size_reason(artifact, budget),
            *_latency_reasons(artifact, layers, budget),
        )
        reasons.extend(f"{artifact.format}: {reason}" for reason in found if reason)
    return tuple(reasons)


def _proof_reason(artifact: ArtifactResult) -> str:
    proof = artifact.proof
    if proof is None:
        return "not proven, nothing on this machine could read the file back"
    if proof.holds:
        return ""
    return (
        f"{proof.reference} differs from the quantized reference by up to {proof.max_steps:g} steps "
        f"(p99.9 {proof.p999_steps:g}); allowed are {proof.max_allowed:g} (p99.9 {proof.p999_allowed:g})"
    )


def _drop_reason(
    artifact: ArtifactResult, baseline: Baseline, layers: Sequence[LayerResult], budget: Budget
) -> str:
    if artifact.drop is None or budget.max_drop is None or artifact.drop <= budget.max_drop:
        return ""
    lost = numbers.points(artifact.drop, baseline.metric)
    allowed = numbers.points(budget.max_drop, baseline.metric)
    judged = [layer for layer in layers if layer.damage_db is not None and not layer.kept_float]
    worst = sorted(judged, key=lambda layer: layer.damage_db or 0.0)[:3]
    named = ", ".join(f"{layer.name} ({layer.damage_db:.1f} dB alone)" for layer in worst)
    because = f"; the layers that cost most: {named}" if named else ""
    return f"{baseline.metric} fell by {lost}, allowed is {allowed}{because}"


def _size_reason(artifact: ArtifactResult, budget: Budget) -> str:
    if budget.max_size_mb is None or artifact.size_bytes <= budget.max_size_mb * 1e6:
        return ""
    return f"{numbers.size(artifact.size_bytes)}, allowed is {budget.max_size_mb:g} MB"


def _latency_reasons(
    artifact: ArtifactResult, layers: Sequence[LayerResult], budget: Budget
) -> tuple[str, ...]:
    reasons = _late(artifact, budget.max_latency_ms)
    if not budget.allow_slower and artifact.speedup is not None and artifact.speedup * SLOWER < 1:
        kept = ", ".join(layer.name for layer in layers if layer.kept_float)
        partitions = artifact.delegated_partitions or 0
        found = (
            f"in float: {_counted(artifact.float_ops)}" if artifact.float_ops else "",
            f"{partitions} delegated partitions" if partitions > 1 else "",
            f"outside the delegate: {_counted(artifact.outside_ops)}" if artifact.outside_ops else "",
            f"layers kept float: {kept}" if kept else "",
        )
        detail = "; ".join(part for part in found if part)
        slower = f"{1 / artifact.speedup:.2f} times the latency of its float twin"
        reasons.append(f"{slower} ({detail})" if detail else slower)
    return tuple(reasons)


def _late(artifact: ArtifactResult, limit: float | None) -> list[str]:
    """What takes longer than allowed: by estimate on the targets, where there are any, else as measured here."""
    if limit is None:
        return []
    if artifact.predicted:
        return [
            f"by estimate {numbers.milliseconds(found.ms)} on {target} "
            f"({numbers.milliseconds(found.low_ms)} to {numbers.milliseconds(found.high_ms)}), allowed is {limit:g} ms"
            for target, found in artifact.predicted.items()
            if found.ms > limit
        ]
    if artifact.latency is None or artifact.latency.p50_ms <= limit:
        return []
    return [f"median latency {numbers.milliseconds(artifact.latency.p50_ms)}, allowed is {limit:g} ms"]


def _counted(ops: Mapping[str, int]) -> str:
    return ", ".join(f"{count}× {op}" for op, count in sorted(ops.items()))


def build_report(
    *,
    name: str,
    version: str,
    baseline: Baseline,
    artifacts: Sequence[ArtifactResult],
    layers: Sequence[LayerResult],
    stages: Sequence[StageResult],
    budget: Budget,
    provenance: Provenance,
    notes: Sequence[str] = (),
    failures: Sequence[LoweringError] = (),
    search: SearchResult | None = None,
    pruning: Sequence[PruningResult] = (),
) -> dict[str, Any]:
    """Return the content of `report.json`: plain JSON values, no NaN, infinities as null.

    Args:
        name: of the model.
        version: of the model.
        baseline: the float model.
        artifacts: one per written format.
        layers: in the order of execution.
        stages: in the order in which they ran.
        budget: what had to hold.
        provenance: where it comes from.
        notes: plain sentences that a reader must not miss.
        failures: formats that could not be lowered.
        search: what was tried to hold the budget.
        pruning: what could be removed, and was.
    """
    search = search or SearchResult()
    found = verdict(baseline=baseline, artifacts=artifacts, layers=layers, budget=budget, failures=failures)
    # What binds among all trials counts only where the files that were written do miss the budget.
    reasons = [*found, *(search.miss if found else ())]
    report = {
        "schema": 1,
        "model": {"name": name, "version": version},
        "accepted": not reasons,
        "reasons": reasons,
        "notes": list(notes),
        "budget": {key: getattr(budget, key) for key in _BUDGET_KEYS},
        "baseline": _baseline_tree(baseline),
        "artifacts": {artifact.format: _artifact_tree(artifact) for artifact in artifacts},
        "failures": [_failure_tree(failure) for failure in failures],
        "stages": [_stage_tree(stage) for stage in stages],
        "layers": [_layer_tree(layer) for layer in layers],
        "pruning": [asdict(each) for each in pruning],
        "trials": [dict(trial) for trial in search.trials],
        "trial": search.chosen,
        "provenance": _provenance_tree(provenance),
    }
    plain: dict[str, Any] = _plain(report)
    return plain


_BUDGET_KEYS = ("max_drop", "max_latency_ms", "max_size_mb", "allow_slower")


def _plain(value: Any) -> Any:
    """Return JSON values: numpy numbers as Python's, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _latency_tree(latency: LatencyStats | None) -> dict[str, Any] | None:
    if latency is None:
        return None
    return {"p50": latency.p50_ms, "p90": latency.p90_ms, "p99": latency.p99_ms, "rounds": latency.n}


def _estimate_tree(found: Prediction) -> dict[str, Any]:
    keys = ("estimated", "ms", "low", "high", "threads", "basis")
    tree = found.to_dict()
    return {key: tree[key] for key in keys}


def _baseline_tree(baseline: Baseline) -> dict[str, Any]:
    return {
        "metric": baseline.metric,
        "value": baseline.value,
        "n": baseline.n,
        "params": baseline.params,
        "macs": baseline.macs,
        "size_bytes": baseline.size_bytes,
        "latency_ms": _latency_tree(baseline.latency),
    }


def _artifact_tree(artifact: ArtifactResult) -> dict[str, Any]:
    proof = artifact.proof
    return {
        "file": artifact.file,
        "size_bytes": artifact.size_bytes,
        "float_size_bytes": artifact.float_size_bytes,
        "n": artifact.n,
        "metric": artifact.metric,
        "drop": artifact.drop,
        "agreement": artifact.agreement,
        "snr_db": artifact.snr_db,
        "proof": None
        if proof is None
        else {
            "reference": proof.reference,
            "n": proof.n,
            "max_steps": proof.max_steps,
            "p999_steps": proof.p999_steps,
            "equal": proof.equal,
            "max_allowed": proof.max_allowed,
            "p999_allowed": proof.p999_allowed,
            "holds": proof.holds,
        },
        "latency_ms": _latency_tree(artifact.latency),
        "float_latency_ms": _latency_tree(artifact.float_latency),
        "speedup": artifact.speedup,
        "predicted": {target: _estimate_tree(found) for target, found in artifact.predicted.items()},
        "lowering": artifact.lowering,
        "int8_ops": artifact.int8_ops,
        "float_ops": dict(sorted(artifact.float_ops.items())),
        "delegated_partitions": artifact.delegated_partitions,
        "outside_ops": dict(sorted(artifact.outside_ops.items())),
        "notes": list(artifact.notes),
    }


def _failure_tree(failure: LoweringError) -> dict[str, Any]:
    return {key: getattr(failure, key) for key in ("format", "op", "where", "why", "way_out")}


def _stage_tree(stage: StageResult) -> dict[str, Any]:
    return {
        "name": stage.name,
        "seconds": stage.seconds,
        "before": dict(stage.before),
        "after": dict(stage.after),
        "notes": list(stage.notes),
    }


def _layer_tree(layer: LayerResult) -> dict[str, Any]:
    keys = ("name", "op", "snr_db", "damage_db", "weight_bytes", "macs", "kept_float", "reason")
    return {key: getattr(layer, key) for key in keys}


def _provenance_tree(provenance: Provenance) -> dict[str, Any]:
    keys = ("seed", "recipe_sha256", "model_sha256", "calibration_sha256", "command")
    return {**{key: getattr(provenance, key) for key in keys}, "versions": dict(provenance.versions)}
