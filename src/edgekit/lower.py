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

from edgekit.interrupts import held
from edgekit.staging import NO_ROOM
from edgekit_converters.errors import LoweringError
from edgekit_converters.program import Program
from edgekit_converters.source import find_source

SUFFIX: Final = {"onnx": ".onnx", "tflite": ".tflite", "coreml": ".mlpackage"}
# A converter that makes no progress for this long is hung, not slow.
TIMEOUT_S: Final = 1800.0
# What a worker needs to say why it failed.
ROOM_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class Job:
    """Files of one format, made in one process.

    Attributes:
        format: "onnx", "tflite" or "coreml".
        files: (archive written by `save_program`, file or package to write), in order.
        layout: "nchw" or "nhwc", for TFLite.
        io: "float32" or "int8", for TFLite.
    """

    format: str
    files: tuple[tuple[Path, Path], ...]
    layout: str = "nchw"
    io: str = "float32"


def lower(
    jobs: Sequence[Job], *, original: Program, processes: int | None = None
) -> dict[Path, LoweringError]:
    """Run the jobs, at most `processes` at a time.

    Args:
        jobs: each gets a fresh process; the longest first.
        original: the program as the user's source lines know it, to name the line of an op that has no form.
        processes: default: the number of cores, at most four.

    Returns:
        Each file that could not be made, to its error; the others are written.

    Raises:
        OSError: there was no room for the files.
    """
    limit = processes or min(4, os.cpu_count() or 1)
    waiting, running = list(jobs), list[_Running]()
    failed: dict[Path, LoweringError] = {}
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                # A worker that is not in the list yet could not be ended.
                with held():
                    running.append(_Running(waiting.pop(0)))
            for task in [t for t in running if t.finished()]:
                running.remove(task)
                failed |= task.errors(original)
            time.sleep(0.02)
    finally:
        for task in running:
            task.kill()
    return failed


class _Running:
    """A worker process and where it answers."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.file = job.files[0][1].parent / f"{job.format}.job.json"
        self.log = self.file.with_suffix(".log")
        files = [{"program": str(program), "out": str(out)} for program, out in job.files]
        fields = {"format": job.format, "layout": job.layout, "io": job.io, "files": files}
        self.file.write_text(json.dumps(fields), encoding="utf-8")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own module, by our own interpreter
                [sys.executable, "-m", "edgekit.worker", str(self.file)],
                # It closes with this process, however that ends, and the worker ends with it.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Set iteration must not decide the order of anything in a file. A converter is Python; the threads
                # of several would only get in one another's way.
                env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            )
        self.deadline = time.monotonic() + TIMEOUT_S

    def finished(self) -> bool:
        if self.process.poll() is None and time.monotonic() > self.deadline:
            self.kill()
        return self.process.poll() is not None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._hang_up()

    def _hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def errors(self, original: Program) -> dict[Path, LoweringError]:
        self._hang_up()
        result = Path(f"{self.file}.result")
        log = self.log.read_text(encoding="utf-8", errors="replace")
        answers = _answers(result)
        for leftover in (self.file, result, self.log):
            leftover.unlink(missing_ok=True)
        if len(answers) != len(self.job.files) or any(answers):
            _check_room(f"{answers} {log}", self.file.parent)
        if len(answers) != len(self.job.files):
            # The process died; which file it was at is not known, so none of them counts.
            answers = [{"crash": answers[0]["crash"] if answers else log}] * len(self.job.files)
        failed = {}
        for (_, out), answer in zip(self.job.files, answers, strict=True):
            if "error" in answer:
                where = _where(original, answer["error"])
                failed[out] = LoweringError(**{**answer["error"], "where": where})
            elif "crash" in answer:
                failed[out] = self._died(answer["crash"])
        return failed

    def _died(self, text: str) -> LoweringError:
        lines = text.strip().splitlines()
        last = lines[-1][:300] if lines else f"exit status {self.process.returncode}"
        return LoweringError(
            format=self.job.format,
            op="the model",
            where="",
            why=f"the converter's process died ({last})",
            way_out="Run `edgekit doctor`; if all is well there, "
            "leave this format out of --format and report it.",
        )


def _answers(result: Path) -> list[dict[str, Any]]:
    """What a worker wrote; nothing if it died before, or in the middle of it."""
    try:
        answers: list[dict[str, Any]] = json.loads(result.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return []
    return answers


def _check_room(said: str, folder: Path) -> None:
    """Tell a full disk from a model that has no form: the worker said so, or had no room to say anything."""
    for code in NO_ROOM:
        if f"[Errno {code}]" in said:
            raise OSError(code, os.strerror(code), str(folder))
    probe = folder / "room"
    try:
        probe.write_bytes(bytes(ROOM_BYTES))
    finally:
        probe.unlink(missing_ok=True)


def _where(original: Program, error: dict[str, str]) -> str:
    """The user's line: the worker only knows the archive, the original graph knows the source."""
    op = error["op"].removeprefix("aten.").split(".")[0]
    for node in original.graph.graph.nodes:
        if node.op == "call_function" and str(node.target).removeprefix("aten.").split(".")[0] == op:
            return find_source(node) or error["where"]
    return error["where"]
