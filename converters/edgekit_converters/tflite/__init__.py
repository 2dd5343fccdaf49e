"""Quantized torch program to a TFLite file, through litert-torch."""

from edgekit_converters.tflite.export import export_tflite
from edgekit_converters.tflite.hybrid import MINIMUM_RUNTIME as HYBRID_RUNTIME

__all__ = ["HYBRID_RUNTIME", "export_tflite"]
