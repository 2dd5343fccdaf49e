"""How fast files are and what really runs in them: interleaved timing, and a census of the kernels."""

from edgekit.bench.census import OpCensus, delegated_partitions, onnx_ops, tflite_ops
from edgekit.bench.onnx_kernels import kernel_ms, slower_kernels
from edgekit.bench.runners import onnx_runner, runner, tflite_runner
from edgekit.bench.timing import LatencyStats, Ratio, interleave, ratio, sample, stats

__all__ = [
    "LatencyStats",
    "OpCensus",
    "Ratio",
    "delegated_partitions",
    "interleave",
    "kernel_ms",
    "onnx_ops",
    "onnx_runner",
    "ratio",
    "runner",
    "sample",
    "slower_kernels",
    "stats",
    "tflite_ops",
    "tflite_runner",
]
