"""Releases of a model that adds a constant: the answer tells which version gave it."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from functools import cache

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgekit_runtime.contract import Artifact, Compatibility, File, Manifest, Release, TensorSpec
from edgekit_runtime.store import Store
from support.releases import Published

WIDTH = 16
NOTHING_ASKED = Compatibility()


@cache
def adder(
    constant: float, *, weight_bytes: int = 0, output: str = "y", max_latency_ms: float | None = None
) -> Published:
    """A release whose ONNX file adds `constant` to 16 numbers.

    Args:
        constant: that is added; NaN makes every answer NaN.
        weight_bytes: of ballast, so that its memory shows; at least 1024.
        output: name of the answer.
        max_latency_ms: that its manifest allows.
    """
    nodes = [helper.make_node("Add", ["x", "c"], [output])]
    weights = [numpy_helper.from_array(np.float32(constant), "c")]
    if weight_bytes:
        # Numbers that no optimization folds away: the row that is picked holds zeros.
        weights.append(numpy_helper.from_array(np.zeros((weight_bytes // 64, WIDTH), np.float32), "w"))
        nodes = [
            helper.make_node("ArgMax", ["x"], ["i"], axis=1, keepdims=0),
            helper.make_node("Gather", ["w", "i"], ["row"], axis=0),
            helper.make_node("Add", ["x", "row"], ["z"]),
            helper.make_node("Add", ["z", "c"], [output]),
        ]
    version = f"1.0.{abs(hash((constant, weight_bytes))) % 10**6}"
    added = np.nan_to_num(np.float32(constant))
    return _published(nodes, weights, version, output, added, Compatibility(max_latency_ms=max_latency_ms))


@cache
def endless() -> Published:
    """A release that never answers."""
    value, truth = helper.make_tensor_value_info, numpy_helper.from_array(np.bool_(True), "go")
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["on_"]), helper.make_node("Add", ["v", "c"], ["v_"])],
        "body",
        [
            value("n", TensorProto.INT64, []),
            value("on", TensorProto.BOOL, []),
            value("v", TensorProto.FLOAT, None),
        ],
        [value("on_", TensorProto.BOOL, []), value("v_", TensorProto.FLOAT, None)],
    )
    nodes = [helper.make_node("Loop", ["times", "go", "x"], ["y"], body=body)]
    weights = [
        numpy_helper.from_array(np.float32(1), "c"), numpy_helper.from_array(np.int64(2**62), "times"), truth,
    ]  # fmt: skip
    return _published(nodes, weights, "1.1.0", "y", np.float32(0))


def _published(
    nodes: list[NodeProto],
    weights: list[TensorProto],
    version: str,
    output: str,
    added: np.float32,
    compatibility: Compatibility = NOTHING_ASKED,
) -> Published:
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH])] for name in ("x", output)]
    made = helper.make_model(
        helper.make_graph(nodes, "adder", *ends, weights),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    model = made.SerializeToString()
    artifact = Artifact(
        "onnx", "model.onnx", hashlib.sha256(model).hexdigest(), len(model), "float32", (None,), (None,)
    )
    specs = [(TensorSpec(name, "float32", (-1, WIDTH)),) for name in ("x", output)]
    manifest = Manifest("adder", version, *specs, (artifact,), compatibility=compatibility)
    golden = io.BytesIO()
    x = np.zeros((2, WIDTH), np.float32)
    np.savez(golden, input_0=x, output_0=x + added, step=[1.0], tolerance_steps=[1.0])
    content = {
        "manifest.json": manifest.to_json().encode(), "model.onnx": model, "golden.npz": golden.getvalue(),
    }  # fmt: skip
    files = {path: File(hashlib.sha256(data).hexdigest(), len(data)) for path, data in content.items()}
    return Published(Release("adder", manifest.version, files), content)


def add(store: Store, published: Published) -> str:
    """Take a release in; returns its id."""
    store.add_release(published.release, published.read)
    return published.release.id


def unloadable(like: Published) -> Published:
    """A release that vouches for a model that is none."""
    bad = b"\x08\x09" + b"\xff" * 50
    manifest = Manifest.from_json(like.content["manifest.json"])
    artifact = replace(manifest.artifacts[0], sha256=hashlib.sha256(bad).hexdigest(), size_bytes=len(bad))
    document = replace(manifest, version="9.9.9", artifacts=(artifact,)).to_json().encode()
    content = {**like.content, "model.onnx": bad, "manifest.json": document}
    files = {path: File(hashlib.sha256(data).hexdigest(), len(data)) for path, data in content.items()}
    return Published(Release("adder", "9.9.9", files), content)
