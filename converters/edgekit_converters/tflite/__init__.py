"""Quantized torch program to a TFLite file, through litert-torch."""

from edgekit_converters.tflite.export import export_tflite

__all__ = ["export_tflite"]
