"""Writes the files of one lowering, and the float twins that they are timed beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgekit.errors import LoweringError
from edgekit.judge import TIMED
from edgekit.load import Candidate
from edgekit.lower import SUFFIX, Job, lower
from edgekit.recipe import Recipe
from edgekit.stages.quantize.rungs import Variant
from edgekit.workdir import Facts, WorkDir, stage_key
from edgekit_converters.cleanup import clean
from edgekit_converters.predict import SavedModel
from edgekit_converters.program import Program
from edgekit_converters.store import save_program

LONGEST_FIRST: Final = ("tflite", "coreml", "onnx")


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
    key = stage_key("lower", settled_key, variant.name, sorted(formats), recipe.layout, recipe.io)

    def make(folder: Path) -> Facts:
        twin = folder / "float.pt2"
        save_program(candidate.program, twin)
        jobs = [
            _job(name, variant.archive, twin, folder, recipe) for name in LONGEST_FIRST if name in formats
        ]
        step(", ".join(formats))
        failed = lower(jobs, original=candidate.program)
        _twins_again(candidate.program, jobs, failed, folder)
        fields = ("format", "op", "where", "why", "way_out")
        errors = [e for out, e in failed.items() if out.stem == "model"]
        return {"failures": [{f: getattr(e, f) for f in fields} for e in errors]}

    def read(folder: Path, facts: Facts) -> tuple[Path, list[LoweringError]]:
        return folder, [LoweringError(**f) for f in facts["failures"]]

    folder, failures = work.stage("lower", key, make, read)
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


def _twins_again(
    program: Program, jobs: Sequence[Job], failed: Mapping[Path, LoweringError], folder: Path
) -> None:
    """Float twins that a converter refused, from the cleaned network: without any, nothing would be called slower."""
    lost = [job for job in jobs for _, out in job.files if out.stem == "float" and out in failed]
    if not lost:
        return
    cleaned = folder / "cleaned.pt2"
    save_program(clean(program)[0], cleaned)
    files = {job.format: ((cleaned, folder / f"float{SUFFIX[job.format]}"),) for job in lost}
    lower([replace(job, files=files[job.format]) for job in lost], original=program)


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


def _job(name: str, archive: Path, twin: Path, folder: Path, recipe: Recipe) -> Job:
    files = [(archive, folder / f"model{SUFFIX[name]}")]
    if name in TIMED:
        files.append((twin, folder / f"float{SUFFIX[name]}"))
    return Job(name, tuple(files), layout=recipe.layout if name == "tflite" else "nchw", io=recipe.io)
