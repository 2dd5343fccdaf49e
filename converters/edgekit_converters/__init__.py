"""Quantized torch program to `.onnx`, `.tflite` and `.mlpackage`; graph clean-ups; parity of the saved files."""
