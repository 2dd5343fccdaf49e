"""Releases of a small classifier: one that serves, good ones to come, and bad ones of every kind.

The input is 16 numbers; the classes are told by a matrix. Devices whose second number is above `MARK` show what a
release that drifts does badly on.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgekit_runtime.contract import Artifact, File, Manifest, Release, TensorSpec
from support.releases import Published

WIDTH, CLASSES = 16, 5
MODEL: Final = "classifier"
LABELS: Final = ("none", "person", "cat", "parcel", "car")
MARK: Final = 3.0
SLOW_WIDTH, SLOW_LAYERS = 512, 48

Matrix = NDArray[np.float32]


def weights(seed: int = 0) -> Matrix:
    """Float32 [WIDTH, CLASSES]."""
    return np.random.default_rng(seed).normal(size=(WIDTH, CLASSES)).astype(np.float32)


def baseline() -> Published:
    """What serves."""
    return _published("1.0.0", weights())


def good() -> Published:
    """The same with a little noise in its weights, as of another calibration."""
    noise = np.random.default_rng(1).normal(size=(WIDTH, CLASSES)).astype(np.float32)
    return _published("2.0.0", weights() + 0.005 * noise)


def wrong_weights() -> Published:
    """Another network altogether."""
    return _published("2.1.0", weights(7))


def swapped_labels() -> Published:
    """The right network, with two of its classes in each other's place."""
    return _published("2.2.0", weights()[:, [0, 2, 1, 3, 4]])


def slow() -> Published:
    """The right answers, many times as slowly."""
    wide = np.zeros((WIDTH, SLOW_WIDTH), np.float32)
    wide[:, :WIDTH] = np.eye(WIDTH)
    back = np.zeros((SLOW_WIDTH, CLASSES), np.float32)
    back[:WIDTH] = weights()
    # Weights that are zero where it matters, and that no optimizer can know to be.
    layer = np.eye(SLOW_WIDTH, dtype=np.float32) + 1e-9
    nodes = [helper.make_node("MatMul", ["x", "wide"], ["h0"])]
    for k in range(SLOW_LAYERS):
        nodes += [
            helper.make_node("MatMul", [f"h{k}", "layer"], [f"m{k}"]),
            helper.make_node("Elu", [f"m{k}"], [f"e{k}"], alpha=1.0),
            # What a rectifier would lose is added again.
            helper.make_node("Sub", [f"m{k}", f"e{k}"], [f"d{k}"]),
            helper.make_node("Add", [f"e{k}", f"d{k}"], [f"h{k + 1}"]),
        ]
    nodes.append(helper.make_node("MatMul", [f"h{SLOW_LAYERS}", "back"], ["y"]))
    return _published("2.3.0", weights(), nodes=nodes, tensors={"wide": wide, "layer": layer, "back": back})


def crashes_on_load() -> Published:
    """A file that vouches for a model and is none."""
    whole = _published("2.4.0", weights())
    bad = b"\x08\x09" + b"\xff" * 50
    manifest = Manifest.from_json(whole.content["manifest.json"])
    artifact = replace(manifest.artifacts[0], sha256=hashlib.sha256(bad).hexdigest(), size_bytes=len(bad))
    document = replace(manifest, artifacts=(artifact,)).to_json().encode()
    return _release("2.4.0", {**whole.content, "model.onnx": bad, "manifest.json": document})


def nan_on_some() -> Published:
    """NaN where the first number is above one; the known answers of the self-test are below it."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("Gather", ["x", "first"], ["x0"], axis=1),
        helper.make_node("Greater", ["x0", "one"], ["high"]),
        helper.make_node("Where", ["high", "nan", "zero"], ["bad"]),
        helper.make_node("Add", ["scores", "bad"], ["y"]),
    ]
    tensors = {
        "first": np.array([0], np.int64), "one": np.float32(1), "nan": np.float32(np.nan), "zero": np.float32(0),
    }  # fmt: skip
    return _published("2.5.0", weights(), nodes=nodes, tensors=tensors)


def drifts_on_a_cohort() -> Published:
    """Right but for inputs above `MARK`, where it takes every class for the next one."""
    shifted = np.roll(weights(), 1, axis=1)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["right"]),
        helper.make_node("MatMul", ["x", "shifted"], ["wrong"]),
        helper.make_node("Gather", ["x", "second"], ["x1"], axis=1),
        helper.make_node("Greater", ["x1", "mark"], ["marked"]),
        helper.make_node("Where", ["marked", "wrong", "right"], ["y"]),
    ]
    tensors = {"shifted": shifted, "second": np.array([1], np.int64), "mark": np.float32(MARK)}
    return _published("2.6.0", weights(), nodes=nodes, tensors=tensors)


BAD: Final[Mapping[str, Callable[[], Published]]] = MappingProxyType(
    {
        "wrong weights": wrong_weights,
        "swapped labels": swapped_labels,
        "slow": slow,
        "crashes on load": crashes_on_load,
        "NaN on some inputs": nan_on_some,
        "drifts on one cohort": drifts_on_a_cohort,
    }
)


def inputs(n: int, *, marked: bool, seed: int) -> Matrix:
    """What a device sees: float32 [n, WIDTH]."""
    x = np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(np.float32)
    x[:, 1] = MARK + 1 if marked else np.minimum(x[:, 1], MARK - 1)
    return x


def _published(
    version: str,
    w: Matrix,
    *,
    nodes: list[NodeProto] | None = None,
    tensors: Mapping[str, NDArray[np.generic] | np.generic] = MappingProxyType({}),
) -> Published:
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])]
        for name, width in (("x", WIDTH), ("y", CLASSES))
    ]
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])]
    used = {name for node in nodes for name in node.input}
    known = [
        numpy_helper.from_array(np.asarray(t), name)
        for name, t in {"w": w, **tensors}.items()
        if name in used
    ]
    made = helper.make_model(
        helper.make_graph(nodes, MODEL, *ends, known),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    model = made.SerializeToString()
    artifact = Artifact(
        "onnx", "model.onnx", hashlib.sha256(model).hexdigest(), len(model), "float32", (None,), (None,)
    )
    manifest = Manifest(
        MODEL, version,
        (TensorSpec("x", "float32", (-1, WIDTH)),), (TensorSpec("y", "float32", (-1, CLASSES), "logits"),),
        (artifact,), task="classification", labels=LABELS,
    )  # fmt: skip
    golden = io.BytesIO()
    x = np.minimum(inputs(4, marked=False, seed=3), 1)
    np.savez(golden, input_0=x, output_0=x @ w, step=[0.01], tolerance_steps=[1.0])
    content = {
        "manifest.json": manifest.to_json().encode(), "model.onnx": model, "golden.npz": golden.getvalue(),
    }  # fmt: skip
    return _release(version, content)


def _release(version: str, content: dict[str, bytes]) -> Published:
    files = {path: File(hashlib.sha256(data).hexdigest(), len(data)) for path, data in content.items()}
    return Published(Release(MODEL, version, files), content)
