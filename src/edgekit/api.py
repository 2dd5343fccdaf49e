"""Everything that the command does, as one Python call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.recipe import load_recipe

if TYPE_CHECKING:
    from edgekit.bundle import Bundle


def compress(
    model: Any,
    *,
    data: Any = None,
    out: str | Path | None = None,
    factory: str | None = None,
    trust: bool = False,
    input_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    recipe: str | Path | None = None,
    preset: str | None = None,
    formats: Sequence[str] | None = None,
    target: Sequence[str] = (),
    max_drop: float | None = None,
    max_latency_ms: float | None = None,
    max_size_mb: float | None = None,
    allow_slower: bool | None = None,
    prune: float | None = None,
    distill: bool | None = None,
    qat: bool | None = None,
    epochs: int | None = None,
    student: str | None = None,
    metric: str | None = None,
    io: str | None = None,
    layout: str | None = None,
    seed: int | None = None,
    resume: bool = False,
    from_trial: int | None = None,
    progress: Callable[[str, str], None] | None = None,
    command: str = "edgekit.compress",
) -> Bundle:
    """Make a trained model smaller, quantize it to INT8 once, write it in up to three formats, prove each saved file.

    Args:
        model: `torch.nn.Module`, `torch.export.ExportedProgram`, or the path of a model file. It is not
            changed.
        data: `.npz`, folder of class folders of images, "module:callable"; or in Python a dict of arrays,
            `(x, y)`, an iterable of batches. Without it calibration inputs are distilled from the model.
        out: directory of the bundle; default: `<model name>-edgekit` in the current directory.
        factory: "module:callable" that builds the network, for a state dict.
        trust: allow unpickling, which runs code from the file.
        input_shape: of the input, or one per input, batch first, where neither model nor data tells.
        recipe: TOML file; the other arguments win over it.
        preset: "fast", "balanced" or "max".
        formats: of "onnx", "tflite", "coreml".
        target: device profiles that the files must suit.
        max_drop: largest loss of the metric against float, in the metric's unit (0.01: a point of top-1).
        max_latency_ms: largest median latency.
        max_size_mb: largest file in 10^6 bytes.
        allow_slower: accept a file that is more than 5% slower than its float twin.
        prune: share of the cost to remove before quantizing, e.g. 0.5; the recipe says which cost.
        distill: what was pruned learns from the original model; on unless the recipe says otherwise.
        qat: train on the INT8 grid: always, never, or, by default, where calibration alone misses the budget.
        epochs: passes over the training inputs.
        student: "module:callable" that builds another network to train in the model's place.
        metric: "top1", "f1", "mae", "agreement" or "module:callable".
        io: "float32" or "int8" ends of the TFLite file.
        layout: "nchw" or "nhwc" input of the TFLite file.
        seed: of every random choice.
        resume: go on from the finished stages of an interrupted run.
        from_trial: make this trial of the search whose bundle is at `out` again, with the same other arguments.
        progress: called with (stage, detail).
        command: recorded in the report.

    Returns:
        The bundle; `bundle.report["accepted"]` is true only if every budget and every proof holds.

    Raises:
        UsageError: an input cannot be used.
        LoweringError: no format could be made.
    """
    from edgekit.pipeline import Request, run

    budget = _given(
        max_drop=max_drop, max_latency_ms=max_latency_ms, max_size_mb=max_size_mb, allow_slower=allow_slower
    )
    overrides = _given(
        preset=preset,
        prune=_given(ratio=prune) or None,
        train=_given(distill=distill, epochs=epochs, student=student) or None,
        qat=_given(enabled=qat) or None,
        formats=list(formats) if formats is not None else None,
        targets=list(target) or None,
        io=io,
        layout=layout,
        metric=metric,
        seed=seed,
        budget=budget or None,
    )
    request = Request(
        model=model,
        out=Path(out) if out is not None else default_out(model),
        recipe=load_recipe(Path(recipe) if recipe is not None else None, overrides),
        data=data,
        factory=factory,
        trust=trust,
        input_shapes=_shapes(input_shape),
        resume=resume,
        from_trial=from_trial,
        command=command,
    )
    return run(request, progress or (lambda _stage, _detail: None))


def default_out(model: Any) -> Path:
    """`<file stem>-edgekit`, or the class name for a module in memory, in the current directory."""
    stem = Path(model).stem if isinstance(model, (str, Path)) else type(model).__name__
    return Path(f"{stem}-edgekit")


def _given(**options: Any) -> dict[str, Any]:
    """The options that were set."""
    return {name: value for name, value in options.items() if value is not None}


def _shapes(given: Any) -> tuple[tuple[int, ...], ...] | None:
    if given is None:
        return None
    first = next(iter(given), None)
    rows = [given] if isinstance(first, int) else given
    return tuple(tuple(int(n) for n in row) for row in rows)
