"""Small releases of a model, whole and honest, whose files are in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from edgekit_runtime.contract import Artifact, File, Manifest, Release, TensorSpec


@dataclass(frozen=True)
class Published:
    """A release and its content.

    Attributes:
        release: the document.
        content: path inside the bundle to bytes.
    """

    release: Release
    content: dict[str, bytes]

    def read(self, path: str) -> Iterable[bytes]:
        """In parts of seven bytes."""
        data = self.content[path]
        return (data[i : i + 7] for i in range(0, len(data), 7))


def publish(version: str, model: bytes, **more: bytes) -> Published:
    """A release of the model `größe` whose TFLite file is `model`."""
    spec = TensorSpec("x", "float32", (-1, 4))
    artifact = Artifact(
        format="tflite",
        file="model.tflite",
        sha256=hashlib.sha256(model).hexdigest(),
        size_bytes=max(1, len(model)),
        io_dtype="float32",
        input_grids=(None,),
        output_grids=(None,),
    )
    manifest = Manifest("größe", version, (spec,), (spec,), (artifact,))
    content = {"manifest.json": manifest.to_json().encode(), "model.tflite": model, "golden.npz": b"golden"}
    content |= {name.replace("__", "/"): data for name, data in more.items()}
    files = {path: File(hashlib.sha256(data).hexdigest(), len(data)) for path, data in content.items()}
    return Published(Release("größe", version, files), content)
