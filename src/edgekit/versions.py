"""Versions that decide what the files look like, for the provenance and the keys of stages."""

from __future__ import annotations

import platform
from importlib import metadata

from edgekit import __version__


def versions() -> dict[str, str]:
    """Distribution to version, of those that are installed."""
    names = (
        "torch",
        "torchao",
        "onnx",
        "onnxruntime",
        "litert-torch",
        "ai-edge-litert",
        "coremltools",
        "numpy",
    )
    found = {"edgekit": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
