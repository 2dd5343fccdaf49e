"""What each layer costs at each width: INT8 layers of a network, measured by shape on this machine.

shape.py → grid.py → onnx_file.py, tflite_file.py → measure.py, store.py → model.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgekit.bench.layers.grid import grid_of
from edgekit.bench.layers.measure import measure_layers
from edgekit.bench.layers.model import LatencyModel
from edgekit.bench.layers.shape import LayerShape
from edgekit.bench.layers.store import default_store

__all__ = ["LatencyModel", "LayerShape", "default_store", "grid_of", "latency_model", "measure_layers"]


def latency_model(
    originals: Sequence[LayerShape],
    runtime: str,
    *,
    store: Path | None = None,
    step: Callable[[str], None] | None = None,
) -> LatencyModel:
    """Measure what is needed to answer for the layers of a network and all narrower ones.

    Args:
        originals: the prunable layers of the network as it is; one that stands there twice may be named twice.
        runtime: "onnx" or "tflite".
        store: as for `measure_layers`.
        step: called with a line on the progress.

    Raises:
        UsageError: as for `measure_layers`.
    """
    unique = tuple(dict.fromkeys(originals))
    points = measure_layers([p for shape in unique for p in grid_of(shape)], runtime, store=store, step=step)
    return LatencyModel(unique, points)
