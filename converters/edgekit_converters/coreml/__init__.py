"""Core ML: a program on the INT8 grid becomes a W8A8 `.mlpackage` for iOS 17 and macOS 14."""

from edgekit_converters.coreml.export import export_coreml

__all__ = ["export_coreml"]
