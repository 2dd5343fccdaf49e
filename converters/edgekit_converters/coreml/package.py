"""Writes a Core ML package whose bytes depend on its content alone."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

AUTHOR = "com.apple.CoreML"
SPEC = f"{AUTHOR}/model.mlmodel"
WEIGHTS = f"{AUTHOR}/weights"
# Metadata that changes from day to day without a change of the model.
VOLATILE = ("com.github.apple.coremltools.conversion_date",)


def write_package(spec: Any, weights: Path, path: Path) -> None:
    """Writes `spec` and its weights as a package directory.

    coremltools draws random identifiers for the manifest, dates the model and leaves a debug mapping in the
    package; here the identifiers are derived from the content and the rest is left out.

    Args:
        spec: `Model` message; not changed.
        weights: `weight.bin` that the spec's offsets point into; may be absent for a model without weights.
        path: package directory; replaced if it is a package already.

    Raises:
        FileExistsError: something that is not a package is there.
        OSError: the directory cannot be written.
    """
    stable = type(spec)()
    stable.CopyFrom(spec)
    for key in VOLATILE:
        stable.description.metadata.userDefined.pop(key, None)
    model_bytes: bytes = stable.SerializeToString(deterministic=True)

    if path.exists():
        if not (path / "Manifest.json").is_file():
            raise FileExistsError(
                f"{path} exists and is not a Core ML package; choose another path or move it"
            )
        shutil.rmtree(path)
    data = path / "Data"
    (data / WEIGHTS).mkdir(parents=True)
    (data / SPEC).write_bytes(model_bytes)
    weight_bytes = weights.read_bytes() if weights.exists() else b""
    if weight_bytes:
        (data / WEIGHTS / "weight.bin").write_bytes(weight_bytes)
    (path / "Manifest.json").write_text(_manifest(model_bytes, weight_bytes), encoding="utf-8")


def _manifest(model_bytes: bytes, weight_bytes: bytes) -> str:
    model_id, weights_id = _identifier(b"model", model_bytes), _identifier(b"weights", weight_bytes)
    items = {
        model_id: {
            "author": AUTHOR,
            "description": "CoreML Model Specification",
            "name": "model.mlmodel",
            "path": SPEC,
        },
        weights_id: {
            "author": AUTHOR,
            "description": "CoreML Model Weights",
            "name": "weights",
            "path": WEIGHTS,
        },
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": model_id}
    return json.dumps(manifest, indent=4, sort_keys=True) + "\n"


def _identifier(role: bytes, content: bytes) -> str:
    # The manifest asks for UUIDs; one made from a digest is as unique as the content.
    return str(uuid.UUID(bytes=hashlib.sha256(role + b"\0" + content).digest()[:16], version=4))
