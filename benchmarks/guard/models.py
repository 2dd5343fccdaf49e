"""A small fixed ONNX network, in a bundle, in the store of a device; made without the toolkit that is guarded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import Golden, write_golden
from edgekit_runtime.backends.onnx_sessions import EXACT, saturates
from edgekit_runtime.bundle import Bundle
from edgekit_runtime.contract import Artifact, Manifest, TensorSpec
from edgekit_runtime.manager import Manager
from edgekit_runtime.store import Store

SHAPE = (1, 3, 24, 24)
CLASSES = 10
X = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def onnx_file(path: Path, seed: int = 0) -> Path:
    """Two convolutions, a mean and a linear layer, with weights by seed."""
    generator = np.random.default_rng(seed)
    shapes = {"a": (16, 3, 3, 3), "b": (16, 16, 3, 3), "c": (CLASSES, 16)}
    weights = [
        numpy_helper.from_array((generator.normal(size=shape) * 0.2).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], strides=[2, 2]),
        helper.make_node("Relu", ["h"], ["i"]),
        helper.make_node("Conv", ["i", "b"], ["j"]),
        helper.make_node("Relu", ["j"], ["k"]),
        helper.make_node("GlobalAveragePool", ["k"], ["m"]),
        helper.make_node("Flatten", ["m"], ["n"]),
        helper.make_node("Gemm", ["n", "c"], ["y"], transB=1),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        for name, shape in (("x", SHAPE), ("y", (1, CLASSES)))
    ]
    graph = helper.make_graph(nodes, "guard", *ends, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString(deterministic=True))
    return path


def bare_session(path: Path) -> Any:
    """The file in ONNX Runtime alone, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if saturates():
        options.add_session_config_entry(EXACT, "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def bare_call(path: Path) -> Callable[[], Any]:
    """One prediction as an application without a library would make it."""
    session = bare_session(path)
    return lambda: session.run(["y"], {"x": X})[0]


def bundle(folder: Path, version: str, seed: int) -> Bundle:
    """The network as a version."""
    folder.mkdir()
    content = onnx_file(folder / "model.onnx", seed).read_bytes()
    artifact = Artifact(
        format="onnx", file="model.onnx", sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content),
        io_dtype="float32", input_grids=(None,), output_grids=(None,),
    )  # fmt: skip
    ends = [(TensorSpec(name, "float32", shape),) for name, shape in (("x", SHAPE), ("y", (1, CLASSES)))]
    manifest = Manifest("guard", version, ends[0], ends[1], (artifact,), task="classification")
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    write_golden(folder, Golden((X,), (bare_call(folder / "model.onnx")(),), (0.01,), (1.0,)))
    return Bundle.open(folder)


def driven(path: Path, *bundles: Bundle) -> Manager:
    """The driver of a new store that takes these bundles without trying them out."""
    store = Store(path)
    store.make()
    known = {each.release().id: each for each in bundles}
    return Manager(
        store,
        fetch=lambda release: store.add_release(known[release].release(), known[release].read),
        stage=lambda _: None,
    )
