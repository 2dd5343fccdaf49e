"""Releases of a model that adds a constant: the answer tells which version gave it."""

from __future__ import annotations

import hashlib
import io
from functools import cache

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgekit_runtime.contract import Artifact, File, Manifest, Release, TensorSpec
from edgekit_runtime.store import Store
from support.releases import Published

WIDTH = 16


@cache
def adder(constant: float, *, weight_bytes: int = 0) -> Published:
    """A release whose ONNX file adds `constant` to 16 numbers.

    Args:
        constant: that is added; NaN makes every answer NaN.
        weight_bytes: of ballast, so that its memory shows.
    """
    tensor = helper.make_tensor_value_info
    nodes = [helper.make_node("Add", ["x", "c"], ["y"])]
    weights = [numpy_helper.from_array(np.float32(constant), "c")]
    if weight_bytes:
        # Numbers that no optimization folds away: the sum of what is picked is zero.
        weights += [
            numpy_helper.from_array(np.zeros((weight_bytes // 64, WIDTH), np.float32), "w"),
            numpy_helper.from_array(np.int64(0), "zero"),
        ]
        nodes = [
            helper.make_node("ArgMax", ["x"], ["i"], axis=1, keepdims=0),
            helper.make_node("Gather", ["w", "i"], ["row"], axis=0),
            helper.make_node("Add", ["x", "row"], ["z"]),
            helper.make_node("Add", ["z", "c"], ["y"]),
        ]
        weights = weights[:2]
    ends = [[tensor(name, TensorProto.FLOAT, ["n", WIDTH])] for name in ("x", "y")]
    made = helper.make_model(
        helper.make_graph(nodes, "adder", *ends, weights),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    model = made.SerializeToString()
    artifact = Artifact(
        "onnx", "model.onnx", hashlib.sha256(model).hexdigest(), len(model), "float32", (None,), (None,)
    )
    specs = [(TensorSpec(name, "float32", (-1, WIDTH)),) for name in ("x", "y")]
    manifest = Manifest("adder", f"1.0.{abs(hash((constant, weight_bytes))) % 10**6}", *specs, (artifact,))
    golden = io.BytesIO()
    x = np.zeros((2, WIDTH), np.float32)
    np.savez(
        golden, input_0=x, output_0=x + np.nan_to_num(np.float32(constant)), step=[1.0], tolerance_steps=[1.0]
    )
    content = {
        "manifest.json": manifest.to_json().encode(), "model.onnx": model, "golden.npz": golden.getvalue(),
    }  # fmt: skip
    files = {path: File(hashlib.sha256(data).hexdigest(), len(data)) for path, data in content.items()}
    return Published(Release("adder", manifest.version, files), content)


def add(store: Store, published: Published) -> str:
    """Take a release in; returns its id."""
    store.add_release(published.release, published.read)
    return published.release.id
