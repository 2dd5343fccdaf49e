"""Such processors add uint8 × int8 products in pairs, in 16 bits that clip: a file means the same there nonetheless."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.support import without_vnni
from tests.support.tiny_runs import folder

from edgekit_runtime.backends import onnx_sessions

# Both as an application without a library would, and as every part of edgekit opens a file.
BOTH_WAYS = """
import json, sys
import numpy as np, onnxruntime
from edgekit_runtime.backends.onnx_sessions import open_session, saturates, session_options
x = np.load(sys.argv[2])
plain = onnxruntime.SessionOptions()
plain.intra_op_num_threads = 1
sessions = {
    "plain": onnxruntime.InferenceSession(sys.argv[1], plain, providers=["CPUExecutionProvider"]),
    "ours": open_session(sys.argv[1], session_options(1)),
}
found = {"saturates": saturates()}
for name, session in sessions.items():
    found[name] = session.run(None, {"x": x})[0].tolist()
print(json.dumps(found))
"""
COMPRESS = "import sys; from edgekit.cli import app; app(sys.argv[1:], prog_name='edgekit')"
# The largest sum of eight products is 255 of these.
STEP = 8 * 127.0


def layer(path: Path, weights: np.ndarray) -> Path:
    """x of uint8 steps of 1 → QLinearMatMul → uint8 steps of `STEP`, as QDQ."""
    tensors = {
        "one": np.float32(1), "zero": np.uint8(0), "w_int": weights, "w_zero": np.int8(0), "step": np.float32(STEP),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w_int", "one", "w_zero"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "step", "zero"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "step", "zero"], ["y"]),
    ]
    inner, outer = weights.shape
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outer])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def computed(tmp_path: Path, weights: np.ndarray, x: np.ndarray) -> dict[str, list[list[float]]]:
    """What both ways give on such a processor, and the integers that the file means."""
    np.save(tmp_path / "x.npy", x)
    done = without_vnni.python(
        tmp_path, BOTH_WAYS, layer(tmp_path / "layer.onnx", weights), tmp_path / "x.npy"
    )
    assert done.returncode == 0, done.stderr
    meant = STEP * np.rint(x.astype(np.int64) @ weights.astype(np.int64) / STEP)
    return {**json.loads(done.stdout), "meant": meant.tolist()}


def test_weights_of_eight_bits_are_computed_exactly_where_the_kernels_clip(tmp_path: Path) -> None:
    x = np.full((3, 8), 255, np.float32)
    found = computed(tmp_path, np.full((8, 4), 127, np.int8), x)
    assert found["saturates"]
    assert found["plain"] != found["meant"]
    assert found["ours"] == found["meant"]


def test_weights_of_seven_bits_never_clip(tmp_path: Path) -> None:
    x = np.full((3, 8), 255, np.float32)
    found = computed(tmp_path, np.full((8, 4), 63, np.int8), x)
    assert found["plain"] == found["ours"] == found["meant"]


def test_layers_that_share_weights_or_a_zero_point_are_computed_right_nonetheless(tmp_path: Path) -> None:
    shared = layer(tmp_path / "shared.onnx", np.full((8, 8), 127, np.int8))
    model = onnx.load(shared)
    (product,) = [node for node in model.graph.node if node.op_type == "MatMul"]
    again = [
        helper.make_node("MatMul", ["y", product.input[1]], ["m2"]),
        helper.make_node("QuantizeLinear", ["m2", "step2", "zero"], ["mq2"]),
        helper.make_node("DequantizeLinear", ["mq2", "step2", "zero"], ["y2"]),
    ]
    model.graph.node.extend(again)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(STEP * STEP), "step2"))
    model.graph.output[0].name = "y2"
    onnx.save(model, shared)
    x = np.array([[255] * 8, [255, 0] * 4, [1] * 8], np.float32)
    np.save(tmp_path / "x.npy", x)
    done = without_vnni.python(tmp_path, BOTH_WAYS, shared, tmp_path / "x.npy")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # 8 × 127 products of a layer, over a step of as many: the mean of what came in.
    meant = np.repeat(np.rint(x.mean(1, keepdims=True)), 8, axis=1) * STEP * STEP
    np.testing.assert_allclose(found["ours"], meant, atol=STEP * STEP)
    assert np.abs(np.array(found["plain"]) - meant).max() > 10 * STEP * STEP


@pytest.mark.slow
def test_a_model_is_compressed_and_proven_there(tmp_path: Path) -> None:
    given = ("compress", folder() / "model.pt2", "--data", folder() / "data.npz", "-o", tmp_path / "bundle")
    done = without_vnni.python(
        tmp_path, COMPRESS, *given, "--preset", "fast", "--allow-slower", "--format", "onnx"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    assert report["accepted"]


def test_a_processor_is_asked_what_it_computes_and_not_what_it_is_called() -> None:
    here = without_vnni.flags()
    if "avx2" in here:
        assert onnx_sessions.saturates() == (not here & {"avx512_vnni", "avx_vnni"})
    else:
        assert not onnx_sessions.saturates()


def test_a_build_that_lacks_the_probes_operator_is_taken_for_one_that_clips(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_sessions, "PROBE", b"no model")
    assert onnx_sessions.saturates.__wrapped__()


def test_the_probe_is_the_model_that_its_comment_tells() -> None:
    told = onnx.load_from_string(onnx_sessions.PROBE)
    onnx.checker.check_model(told)
    (node,), (weights,) = told.graph.node, told.graph.initializer
    assert (node.op_type, list(node.input)) == ("MatMulInteger", ["a", "w"])
    np.testing.assert_array_equal(numpy_helper.to_array(weights), np.full((4, 8), 127, np.int8))
