"""What really runs in a saved file: integer kernels, float kernels, and the conversions between them."""

from __future__ import annotations

from pathlib import Path

from edgekit.bench import onnx_census, tflite_census
from edgekit.bench.counts import OpCensus

__all__ = ["OpCensus", "delegated_partitions", "onnx_ops", "tflite_ops"]


def onnx_ops(path: Path) -> OpCensus:
    """Count the ops of a `.onnx` file after ONNX Runtime's own optimisation for this machine.

    Raises:
        UsageError: ONNX Runtime refuses the file.
    """
    return onnx_census.census(path)


def tflite_ops(path: Path) -> OpCensus:
    """Count the ops of a `.tflite` file and the partitions that XNNPACK takes on this machine.

    Raises:
        UsageError: the interpreter refuses the file, or none is installed.
    """
    return tflite_census.census(path)


def delegated_partitions(path: Path) -> int:
    """Return the number of XNNPACK partitions of a `.tflite` file; one is ideal, each boundary costs."""
    return tflite_ops(path).partitions
