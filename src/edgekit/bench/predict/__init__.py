"""Latency of a file on a device that is not here: an estimate with its interval, never taken for a measurement.

ops.py ← onnx_ops.py, tflite_ops.py            what a file computes
process.py → rates.py                          what it takes, from operators that were timed on the device
cores.py                                       the same from the data sheet of a processor
intervals.py                                   how far such estimates were off
roofline.py                                    all of it together
probe.py → light.py, products.py → probes.py   operators to time: layers, those without weights, other products
onnx_chains.py, tflite_chains.py → calibrate.py   their files, and the profile that comes of them
"""

from edgekit.bench.predict.ops import Op
from edgekit.bench.predict.roofline import (
    Prediction,
    can_predict,
    check_predictable,
    estimate,
    predict,
    read_ops,
)

__all__ = [
    "Op",
    "Prediction",
    "can_predict",
    "check_predictable",
    "estimate",
    "predict",
    "read_ops",
]
