"""Saved files run on one thread, in the runtime that a user has; nothing of edgekit is involved."""

from __future__ import annotations

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
    """An ONNX file in ONNX Runtime's CPU provider."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
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


OPENERS: dict[str, Callable[[Path], Engine]] = {".onnx": open_onnx, ".tflite": open_tflite}


def open_file(path: Path) -> Engine:
    """The engine for a file, told by its ending."""
    return OPENERS[path.suffix](path)


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
