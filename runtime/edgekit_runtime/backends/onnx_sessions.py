"""How every session of ONNX Runtime is opened, so that a file means the same integers on every processor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit_runtime.backends import BACKENDS, import_backend

# Products of uint8 and int8 are added in pairs, in 16 bits that clip at 32,767, by x86 processors without VNNI. This
# entry has ONNX Runtime compute them as uint8 × uint8 there, exactly; weights within ±64, which cannot clip, stay.
# On processors with VNNI it would take their faster kernels away for nothing, so it is set where it is needed only.
EXACT: Final = "session.x64quantprecision"
# Between its DequantizeLinear and QuantizeLinear everything is computed in float: slow, and right to a rounding.
IN_FLOAT: Final = "session.disable_quant_qdq"
# MatMulInteger of `a`, uint8 of 2 × 4, with 4 × 8 weights of 127: the largest pairs that there are.
PROBE: Final = (
    b'\x08\x08:t\n\x18\n\x01a\n\x01w\x12\x01y"\rMatMulInteger\x12\x01g*+\x08\x04\x08\x08\x10\x03B\x01wJ '
    + b"\x7f" * 32
    + b"Z\x13\n\x01a\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x02\n\x02\x08\x04"
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x02\n\x02\x08\x08B\x04\n\x00\x10\r"
)
SUM: Final = 4 * 255 * 127


def session_options(threads: int, *, severity: int = 4) -> Any:
    """Options of a session whose idle threads leave the cores to the application.

    Args:
        threads: intra-op threads.
        severity: least severity that is logged; 4 is fatal errors only.

    Raises:
        BackendError: ONNX Runtime is not installed.
    """
    options = import_backend(BACKENDS["onnx"]).SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = severity
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(path: Path, options: Any, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """A session of a file that computes its integers exactly, on processors whose kernels clip by slower ones.

    Raises:
        BackendError: ONNX Runtime is not installed.
        Exception: whatever it says of a file that it refuses.
    """
    ort = import_backend(BACKENDS["onnx"])
    if saturates():
        options.add_session_config_entry(EXACT, "1")
        try:
            return ort.InferenceSession(str(path), options, providers=list(providers))
        except Exception:  # noqa: BLE001 - a damaged file fails again below, and in its own words
            # Layers that share their weights or a zero point cannot be rewritten one after the other (1.31).
            options.add_session_config_entry(EXACT, "0")
            options.add_session_config_entry(IN_FLOAT, "1")
    return ort.InferenceSession(str(path), options, providers=list(providers))


@cache
def saturates() -> bool:
    """Whether the uint8 × int8 kernels of this processor clip; a product computed by them tells, in milliseconds."""
    ort = import_backend(BACKENDS["onnx"])
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = ort.InferenceSession(PROBE, options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"a": np.full((2, 4), 255, np.uint8)})
    except Exception:  # noqa: BLE001 - a build with the operators of some model only: exact is at most slower
        return True
    return bool((found != SUM).any())
