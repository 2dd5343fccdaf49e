"""The error tree of the `edgekit` distribution.

    EdgekitError                 exit code 1, never raised itself
    ├── UsageError          (2)  wrong option, unreadable model or data            edgekit.errors
    ├── LoweringError       (4)  an op, its source line, the way out               here
    └── Interrupted       (130)  resumable                                         edgekit.errors

A missed budget or proof is no error: the files are written, `accepted` is false, and the command exits with 3.
The root lives here because converters are imported by the workbench and never the other way round.
"""

from __future__ import annotations


class EdgekitError(Exception):
    """Root of every error that edgekit raises on purpose; `str()` is fit to be shown to a person.

    Attributes:
        exit_code: process exit status of the command line for this error.
    """

    exit_code = 1


class LoweringError(EdgekitError):
    """A format cannot express an op of the model.

    Args:
        format: "onnx", "tflite", "coreml" or "torch" (the model cannot even be captured).
        op: the op as the field names it, e.g. "aten.fft_rfft".
        where: source line or module path, "" when the model does not carry one.
        why: what the format lacks.
        way_out: what the user can do.
    """

    exit_code = 4

    def __init__(self, *, format: str, op: str, where: str, why: str, way_out: str) -> None:
        self.format, self.op, self.where, self.why, self.way_out = format, op, where, why, way_out
        at = f" ({where})" if where else ""
        super().__init__(f"{format}: cannot lower {op}{at}: {why}. {way_out}")
