"""edgekit beside ONNX Runtime's and Google's own quantizers; `python -m benchmarks.peers`."""
