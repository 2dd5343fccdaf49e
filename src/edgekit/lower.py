"""Lowers a quantized program to several formats at once, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit_converters.errors import LoweringError
from edgekit_converters.program import Program
from edgekit_converters.source import find_source

SUFFIX: Final = {"onnx": ".onnx", "tflite": ".tflite", "coreml": ".mlpackage"}
# A converter that makes no progress for this long is hung, not slow.
TIMEOUT_S: Final = 1800.0


@dataclass(frozen=True, slots=True)
class Job:
    """One file to be made.

    Attributes:
        format: "onnx", "tflite" or "coreml".
        program: archive written by `save_program`.
        out: file or package to write.
        layout: "nchw" or "nhwc", for TFLite.
        io: "float32" or "int8", for TFLite.
    """

    format: str
    program: Path
    out: Path
    layout: str = "nchw"
    io: str = "float32"


def lower(jobs: Sequence[Job], *, original: Program, processes: int | None = None) -> dict[Path, LoweringError]:
    """Run the jobs, at most `processes` at a time.

    Args:
        jobs: files to make; each gets a fresh process.
        original: the program as the user's source lines know it, to name the line of an op that has no form.
        processes: default: the number of cores, at most four.

    Returns:
        `out` of each job that failed to its error; the others are written.
    """
    limit = processes or min(4, os.cpu_count() or 1)
    waiting, running = list(jobs), list[_Running]()
    failed: dict[Path, LoweringError] = {}
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                running.append(_Running(waiting.pop(0)))
            for task in [t for t in running if t.finished()]:
                running.remove(task)
                error = task.error(original)
                if error is not None:
                    failed[task.job.out] = error
            time.sleep(0.02)
    finally:
        for task in running:
            task.kill()
    return failed


class _Running:
    """A worker process and where it answers."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.file = job.out.parent / f"{job.out.name}.job.json"
        self.log = self.file.with_suffix(".log")
        fields = {"format": job.format, "program": str(job.program), "out": str(job.out)}
        self.file.write_text(json.dumps({**fields, "layout": job.layout, "io": job.io}), encoding="utf-8")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgekit.worker", str(self.file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        self.deadline = time.monotonic() + TIMEOUT_S

    def finished(self) -> bool:
        if self.process.poll() is None and time.monotonic() > self.deadline:
            self.kill()
        return self.process.poll() is not None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def error(self, original: Program) -> LoweringError | None:
        result = Path(f"{self.file}.result")
        answer: dict[str, Any] = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
        for leftover in (self.file, result):
            leftover.unlink(missing_ok=True)
        if "error" in answer:
            return LoweringError(**{**answer["error"], "where": _where(original, answer["error"])})
        if self.process.returncode == 0:
            self.log.unlink(missing_ok=True)
            return None
        text = answer.get("crash") or self.log.read_text(encoding="utf-8", errors="replace")
        last = text.strip().splitlines()[-1] if text.strip() else f"exit status {self.process.returncode}"
        return LoweringError(
            format=self.job.format,
            op="the model",
            where="",
            why=f"the converter's process died ({last[:300]})",
            way_out="Run `edgekit doctor`; if all is well there, leave this format out of --format and report it.",
        )


def _where(original: Program, error: dict[str, str]) -> str:
    """The user's line: the worker only knows the archive, the original graph knows the source."""
    op = error["op"].removeprefix("aten.").split(".")[0]
    for node in original.graph.graph.nodes:
        if node.op == "call_function" and str(node.target).removeprefix("aten.").split(".")[0] == op:
            return find_source(node) or error["where"]
    return error["where"]
