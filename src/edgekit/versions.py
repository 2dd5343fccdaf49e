"""Versions that decide what the files look like, for the provenance and the keys of stages."""

from __future__ import annotations

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Distribution to version, of those that are installed."""
    # `import edgekit` asks for the number above alone, and is to take no time.
    import platform
    from importlib import metadata

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
