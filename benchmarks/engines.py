"""Saved files run on one thread, in the runtime that a user has; nothing of edgekit is involved."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Engine:
    """A loaded file.

    Attributes:
        predict: one sample `[1, …]` as the torch network takes it, to the first output, both float32.
        prepare: puts a sample in place and gives the bare call that is timed.
    """

    predict: Callable[[Array], Array]
    prepare: Callable[[Array], Callable[[], object]]


def open_onnx(path: Path) -> Engine:
    """An ONNX file in ONNX Runtime's CPU provider, by kernels that do not clip, whoever wrote it."""
    # Here, as the environments of peers, which import this module for runtimes of their own, lack it.
    from edgekit_runtime.backends.onnx_sessions import open_session, session_options

    session = open_session(path, session_options(1, severity=3))
    (name,) = (value.name for value in session.get_inputs())
    output = session.get_outputs()[0].name

    def prepare(sample: Array) -> Callable[[], object]:
        feed = {name: sample}
        return lambda: session.run([output], feed)

    return Engine(lambda sample: np.asarray(session.run([output], {name: sample})[0]), prepare)


def open_tflite(path: Path) -> Engine:
    """A TFLite file in LiteRT with its default delegate (XNNPACK)."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    target = interpreter.get_output_details()[0]

    def place(sample: Array) -> None:
        shape = tuple(source["shape"])
        if sample.shape != shape and sample.transpose(0, 2, 3, 1).shape == shape:
            sample = sample.transpose(0, 2, 3, 1)
        interpreter.set_tensor(source["index"], _to_grid(sample, source))

    def predict(sample: Array) -> Array:
        place(sample)
        interpreter.invoke()
        return _from_grid(interpreter.get_tensor(target["index"]), target)

    def prepare(sample: Array) -> Callable[[], object]:
        place(sample)
        return interpreter.invoke  # type: ignore[no-any-return]

    return Engine(predict, prepare)


def open_openvino(path: Path) -> Engine:
    """A model of OpenVINO on its CPU plugin, told to answer soon rather than many at once."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()

    def predict(sample: Array) -> Array:
        request.infer({0: sample})
        return np.array(request.get_output_tensor(0).data, np.float32)

    def prepare(sample: Array) -> Callable[[], object]:
        request.set_input_tensor(0, openvino.Tensor(np.ascontiguousarray(sample)))
        return request.infer  # type: ignore[no-any-return]

    return Engine(predict, prepare)


def open_ncnn(path: Path) -> Engine:
    """A network of ncnn, with the names that pnnx gives to its ends."""
    import ncnn

    network = ncnn.Net()
    network.opt.num_threads = 1
    if network.load_param(str(path)) or network.load_model(str(path.with_suffix(".bin"))):
        raise ValueError(f"{path}: ncnn does not read it")
    (source, *_), (target, *_) = network.input_names(), network.output_names()

    def call(given: Any) -> Any:
        extractor = network.create_extractor()
        extractor.input(source, given)
        return extractor.extract(target)[1]

    def predict(sample: Array) -> Array:
        # A batch of one has no axis there.
        return np.array(call(ncnn.Mat(np.ascontiguousarray(sample[0]))), np.float32)[None]

    def prepare(sample: Array) -> Callable[[], object]:
        given = ncnn.Mat(np.ascontiguousarray(sample[0])).clone()
        return lambda: call(given)

    return Engine(predict, prepare)


def open_mnn(path: Path) -> Engine:
    """A network of MNN on its CPU backend."""
    import MNN

    interpreter = MNN.Interpreter(str(path))
    session = interpreter.createSession({"numThread": 1, "backend": "CPU"})
    source, target = interpreter.getSessionInput(session), interpreter.getSessionOutput(session)

    def place(sample: Array) -> None:
        plain = np.ascontiguousarray(sample, np.float32)
        source.copyFrom(MNN.Tensor(plain.shape, MNN.Halide_Type_Float, plain, MNN.Tensor_DimensionType_Caffe))

    def predict(sample: Array) -> Array:
        place(sample)
        interpreter.runSession(session)
        shape = target.getShape()
        found = MNN.Tensor(
            shape, MNN.Halide_Type_Float, np.zeros(shape, np.float32), MNN.Tensor_DimensionType_Caffe
        )
        target.copyToHostTensor(found)
        return np.array(found.getNumpyData(), np.float32).reshape(shape)

    def prepare(sample: Array) -> Callable[[], object]:
        place(sample)
        return lambda: interpreter.runSession(session)

    return Engine(predict, prepare)


# Ending of a file to the module of its runtime and what opens it.
OPENERS: dict[str, tuple[str, Callable[[Path], Engine]]] = {
    ".onnx": ("onnxruntime", open_onnx),
    ".tflite": ("ai_edge_litert.interpreter", open_tflite),
    ".xml": ("openvino", open_openvino),
    ".param": ("ncnn", open_ncnn),
    ".mnn": ("MNN", open_mnn),
}


def import_runtime(path: Path) -> None:
    """Import what opens a file, so that its memory is not counted as the file's."""
    importlib.import_module(OPENERS[path.suffix][0])


def open_file(path: Path) -> Engine:
    """The engine for a file, told by its ending."""
    return OPENERS[path.suffix][1](path)


def predict_all(engine: Engine, samples: Array) -> Array:
    """Outputs `[n, …]` of `n` samples, one call each, as a device does it."""
    return np.concatenate([engine.predict(samples[i : i + 1]) for i in range(len(samples))])


def _to_grid(sample: Array, details: dict[str, Any]) -> Array:
    if details["dtype"] == np.float32:
        return np.ascontiguousarray(sample, np.float32)
    scale, zero = details["quantization"]
    bounds = np.iinfo(details["dtype"])
    steps: Array = np.clip(np.round(sample / scale) + zero, bounds.min, bounds.max)
    return steps.astype(details["dtype"])


def _from_grid(value: Array, details: dict[str, Any]) -> Array:
    if details["dtype"] == np.float32:
        return value
    scale, zero = details["quantization"]
    real: Array = (value.astype(np.float32) - zero) * np.float32(scale)
    return real
