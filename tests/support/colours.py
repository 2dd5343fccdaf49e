"""A model that tells which colour a picture has most of, as a bundle: small, real, and right."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgekit_runtime.contract import Artifact, File, Manifest, Release, TensorSpec
from support.releases import Published

LABELS = ("red", "green", "blue")
SIDE = 8


def colours(version: str = "1.0.0", *, gain: float = 20.0) -> Published:
    """A release whose scores are the means of the channels.

    Args:
        version: of the model.
        gain: of the scores.
    """
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "gain"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
        numpy_helper.from_array(np.float32(gain), "gain"),
    ]
    ends = [
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    ]
    made = helper.make_model(
        helper.make_graph(nodes, "colours", *ends, weights),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    model = made.SerializeToString()
    artifact = Artifact(
        "onnx", "model.onnx", hashlib.sha256(model).hexdigest(), len(model), "float32", (None,), (None,)
    )
    manifest = Manifest(
        "colours", version,
        (TensorSpec("x", "float32", (-1, 3, SIDE, SIDE), "image"),), (TensorSpec("y", "float32", (-1, 3), "logits"),),
        (artifact,), task="classification", labels=LABELS, preprocessing={"resize": [SIDE, SIDE]},
    )  # fmt: skip
    x = np.random.default_rng(0).random((4, 3, SIDE, SIDE), np.float32)
    golden = io.BytesIO()
    np.savez(golden, input_0=x, output_0=gain * x.mean((2, 3)), step=[0.01], tolerance_steps=[1.0])
    content = {
        "manifest.json": manifest.to_json().encode(), "model.onnx": model, "golden.npz": golden.getvalue(),
    }  # fmt: skip
    files = {path: File(hashlib.sha256(data).hexdigest(), len(data)) for path, data in content.items()}
    return Published(Release("colours", version, files), content)


def write_bundle(published: Published, folder: Path) -> Path:
    """The bundle as a directory."""
    for path, data in published.content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def write_pictures(folder: Path) -> Path:
    """One plain picture of each colour as PPM, in a folder named like its label."""
    for channel, label in enumerate(LABELS):
        pixels = np.full((6, 10, 3), 40, np.uint8)
        pixels[..., channel] = 220
        (folder / label).mkdir(parents=True)
        (folder / label / f"{label}.ppm").write_bytes(b"P6\n# made by hand\n10 6\n255\n" + pixels.tobytes())
    return folder
