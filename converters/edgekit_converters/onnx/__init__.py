"""Quantized torch program to an ONNX file whose QDQ pairs ONNX Runtime fuses to integer kernels."""

from edgekit_converters.onnx.export import OPSET, export_onnx, opset_of

__all__ = ["OPSET", "export_onnx", "opset_of"]
