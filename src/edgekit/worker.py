"""One format in one process: `python -m edgekit.worker JOB.json`.

Converters are large native libraries. In a process of their own they cannot take the pipeline down with them,
two formats are lowered side by side, and their memory is gone when they are done.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit_converters.errors import LoweringError
from edgekit_converters.predict import SavedModel, open_saved
from edgekit_converters.program import Program, QuantizedProgram
from edgekit_converters.store import load_program


def _onnx(program: Program | QuantizedProgram, path: Path, job: dict[str, Any]) -> None:
    from edgekit_converters.onnx import export_onnx

    del job
    export_onnx(program, path)


def _tflite(program: Program | QuantizedProgram, path: Path, job: dict[str, Any]) -> None:
    from edgekit_converters.tflite import export_tflite

    io = job["io"] if isinstance(program, QuantizedProgram) else "float32"
    export_tflite(program, path, layout=job["layout"], io_dtype=io)


def _coreml(program: Program | QuantizedProgram, path: Path, job: dict[str, Any]) -> None:
    from edgekit_converters.coreml import export_coreml

    del job
    assert isinstance(program, QuantizedProgram)
    export_coreml(program, path)


CONVERTERS: Final[dict[str, Callable[[Program | QuantizedProgram, Path, dict[str, Any]], None]]] = {
    "onnx": _onnx,
    "tflite": _tflite,
    "coreml": _coreml,
}


def run(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Convert some programs to one format and run each file once on zeros.

    Args:
        job: "format", "layout", "io", and "files": list of {"program": `.pt2`, "out": path}.

    Returns:
        `{}` or `{"error": {...}}` with the fields of `LoweringError`, one per file.
    """
    return [_convert(job, file) for file in job["files"]]


def _convert(job: dict[str, Any], file: dict[str, str]) -> dict[str, Any]:
    program = load_program(Path(file["program"]))
    try:
        CONVERTERS[job["format"]](program, Path(file["out"]), job)
        _try_out(program, job, Path(file["out"]))
    except LoweringError as error:
        return {"error": {k: getattr(error, k) for k in ("format", "op", "where", "why", "way_out")}}
    return {}


def _try_out(program: Program | QuantizedProgram, job: dict[str, Any], path: Path) -> None:
    """A file that its own runtime refuses, or that kills it, is no file; better here than in the pipeline."""
    source = program.program if isinstance(program, QuantizedProgram) else program
    grids = (program.input_grids, program.output_grids) if isinstance(program, QuantizedProgram) else ((), ())
    saved = SavedModel(job["format"], path, source.inputs, source.outputs, *grids, layout=job["layout"])
    try:
        open_saved(saved)([np.zeros(i.shape, dtype=i.dtype) for i in source.inputs])
    except Exception as error:
        said = str(error.__cause__ or error).strip().splitlines()[0][:300].rstrip(".")
        op = re.search(r"\((\w+)\) failed to", said)
        raise LoweringError(
            format=job["format"],
            op=op[1] if op else "the model",
            where="",
            why=f"the converter wrote a file that its own runtime refuses: {said}",
            way_out="Replace the op in the model by supported ones, "
            f"or leave {job['format']} out of --format.",
        ) from error


def end_with_parent() -> None:
    """End this process when the one that holds the other end of its stdin is gone: killed, it cannot end others.

    A worker that lived on would write over the files of the run that resumes. Other stdins than pipes say nothing.
    """
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(path: str) -> int:
    """Read the job, write `JOB.json.result`; the exit status is 1 when the job itself broke."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        result = run(job)
    except Exception:  # noqa: BLE001 - the parent turns the text into an error that names the format
        result = [{"crash": traceback.format_exc()}]
    Path(f"{path}.result").write_text(json.dumps(result), encoding="utf-8")
    return int(any("crash" in r for r in result))


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(sys.argv[1]))
