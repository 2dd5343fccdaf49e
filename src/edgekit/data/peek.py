"""The first sample of a data set, for a model that does not tell its input shapes."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np


def peek(spec: Any) -> tuple[np.ndarray, ...] | None:
    """One sample of the data as float32 (integers stay), batch axis first; None where it cannot be told cheaply.

    Args:
        spec: as for `open_data`.
    """
    if isinstance(spec, (str, Path)) and Path(spec).is_file() and zipfile.is_zipfile(spec):
        with np.load(spec, allow_pickle=False) as archive:
            return _from_arrays({k: archive[k] for k in archive.files if k.split("_y")[0] == k and k != "y"})
    if isinstance(spec, dict):
        return _from_arrays({k: v for k, v in spec.items() if not k.endswith("y")})
    if isinstance(spec, tuple) and spec and hasattr(spec[0], "shape"):
        return (_sample(spec[0]),)
    if isinstance(spec, list) and spec:
        return _from_batch(spec[0])
    return None


def _from_batch(batch: Any) -> tuple[np.ndarray, ...] | None:
    """A batch is `x`, `(x, y)` or `((x1, x2), y)`; a bare `(x1, x2)` cannot be told from `(x, y)`."""
    first = batch[0] if isinstance(batch, (tuple, list)) else batch
    inputs = first if isinstance(first, (tuple, list)) else (first,)
    return tuple(_sample(x) for x in inputs) if all(hasattr(x, "shape") for x in inputs) else None


def _from_arrays(arrays: dict[str, Any]) -> tuple[np.ndarray, ...] | None:
    for key in ("calib_x", "x", "train_x", "eval_x"):
        if key in arrays:
            return (_sample(arrays[key]),)
    return None


def _sample(array: Any) -> np.ndarray:
    one = np.asarray(array[:1])
    return one.astype(np.float32) if one.dtype.kind in "fu" else one
