"""What every peer is given: the same weights and the same data, as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Inputs:
    """Files of one network.

    Attributes:
        folder: that holds them.
    """

    folder: Path

    @property
    def exported(self) -> Path:
        """The program that `torch.export` saved, at batch one."""
        return self.folder / "float.pt2"

    @property
    def onnx(self) -> Path:
        """The float network as `torch.onnx` writes it."""
        return self.folder / "float.onnx"

    @property
    def tflite(self) -> Path:
        """The float network as litert-torch writes it; not there where it cannot."""
        return self.folder / "float.tflite"

    @property
    def samples(self) -> Path:
        """Calibration samples, float32 `[n, …]`."""
        return self.folder / "calibration.npy"

    def calibration(self) -> npt.NDArray[np.float32]:
        """The samples."""
        found: npt.NDArray[np.float32] = np.load(self.samples, allow_pickle=False)
        return found

    def module(self) -> Any:
        """The network as a module, in environments that have torch."""
        import torch

        return torch.export.load(self.exported).module()
