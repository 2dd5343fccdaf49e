"""Observers: what calibration remembers of each tensor, and the scale and zero point that follow from it.

One calibration pass feeds every method: an activation observer keeps the exact minimum and maximum and a
histogram, so `minmax`, `percentile`, `mse` and `entropy` are four ways of reading the same memory.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e.observer import UniformQuantizationObserverBase

from edgekit.errors import UsageError
from edgekit.stages.quantize.clipping import METHODS, PERCENTILE, Floats
from edgekit_converters.program import Grid

__all__ = [
    "BINS",
    "METHODS",
    "PERCENTILE",
    "ActivationObserver",
    "Histogram",
    "PerChannelWeightObserver",
    "affine",
    "refuse_non_finite",
    "weight_scales",
]

BINS: Final = 4096
# Values that enter the histogram per call; a deterministic stride picks them. The extremes are always exact.
SAMPLE: Final = 1 << 16
# A tensor of zeros needs bins of some width.
_SMALLEST_MAGNITUDE: Final = 1e-12
# Smaller steps would be denormal in the float32 that every file format stores.
_SMALLEST_STEP: Final = 1e-9


class Histogram:
    """Counts of values over a range that grows by doubling, so that counts are never re-estimated.

    Bin widths are powers of two and growing merges neighbouring bins pairwise: exact, whatever the order of
    the batches.

    Attributes:
        counts: values per bin, float64 `[BINS]`; the bins lie symmetrically around zero.
        width: of a bin, in real units; 0 before the first value.
        low: exact smallest finite value, `inf` before the first.
        high: exact largest finite value, `-inf` before the first.
        non_finite: how many values were NaN or infinite; they are not counted.
    """

    def __init__(self) -> None:
        self.counts: Floats = np.zeros(BINS, dtype=np.float64)
        self.width = 0.0
        self.low = math.inf
        self.high = -math.inf
        self.non_finite = 0

    def add(self, x: torch.Tensor) -> None:
        """Take in a tensor of any shape; empty tensors change nothing."""
        if x.numel() == 0:
            return
        low, high = (float(v) for v in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = x[torch.isfinite(x)]
            self.non_finite += x.numel() - finite.numel()
            self.add(finite)
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        flat = x.reshape(-1)
        if flat.numel() > SAMPLE:
            flat = flat[:: flat.numel() // SAMPLE]
        self._grow(max(abs(low), abs(high)))
        # float64, in which a division by a power of two is exact even at the ends of float32.
        places = (flat.double() / self.width).floor_().to(torch.int64) + BINS // 2
        self.counts += torch.bincount(places, minlength=BINS).numpy()

    def edges(self) -> Floats:
        """Bin edges, float64 `[BINS + 1]`, symmetric around zero."""
        return np.arange(-BINS // 2, BINS // 2 + 1, dtype=np.float64) * self.width

    def range(self, method: str, percentile: float = PERCENTILE) -> tuple[float, float]:
        """The range to be represented, in real units; `(0, 0)` if nothing was seen.

        Args:
            method: key of `METHODS`.
            percentile: share of values, in percent, that "percentile" keeps.
        """
        if self.low > self.high:
            return 0.0, 0.0
        low, high = METHODS[method](self.counts, self.edges(), percentile)
        return max(low, self.low), min(high, self.high)

    def _grow(self, magnitude: float) -> None:
        # The power of two just above: the largest value stays inside the last bin.
        needed = 2.0 ** math.frexp(max(magnitude, _SMALLEST_MAGNITUDE))[1] / (BINS // 2)
        if self.width == 0.0:
            self.width = needed
        while self.width < needed:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, dtype=np.float64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.width *= 2


def affine(low: float, high: float, quant_min: int, quant_max: int) -> tuple[float, int]:
    """Scale and zero point of an affine grid that holds `[low, high]` and represents zero exactly.

    Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference" (2018), section 2.1.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (quant_max - quant_min)
    scale = float(np.float32(max(scale, _SMALLEST_STEP)))
    zero_point = int(np.clip(round(quant_min - low / scale), quant_min, quant_max))
    return scale, zero_point


def refuse_non_finite(graph: GraphModule) -> None:
    """Stop a calibration whose tensors are not all finite: a grid made without them would hide the defect.

    Args:
        graph: graph with observers that have seen data.

    Raises:
        UsageError: names the first tensor, in the order of computation, that held NaN or infinity.
    """
    for node in graph.graph.find_nodes(op="call_module", sort=True):
        observer = graph.get_submodule(str(node.target))
        if not isinstance(observer, ActivationObserver) or not observer.histogram.non_finite:
            continue
        source = node.args[0]
        what = f"calibration: {observer.histogram.non_finite} values of tensor `{source}` are NaN or infinite"
        if source.op == "placeholder":
            raise UsageError(what, expected="finite inputs", way_out="remove or mend those samples")
        raise UsageError(
            what,
            expected="a network whose float outputs are finite on the calibration data",
            way_out=f"check the preprocessing of the data, or the weights that lead to `{source}`",
        )


class ActivationObserver(UniformQuantizationObserverBase):  # type: ignore[misc]
    """Per-tensor affine int8. `method` and `percentile` may be changed after calibration."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.histogram = Histogram()
        self.method = "minmax"
        self.percentile = PERCENTILE

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Remember `x` and pass it on."""
        self.histogram.add(x.detach())
        return x

    def range(self) -> tuple[float, float]:
        """The range to be represented, in real units; `(0, 0)` if nothing was seen."""
        return self.histogram.range(self.method, self.percentile)

    def grid(self, method: str, percentile: float = PERCENTILE) -> Grid:
        """The grid that another method would choose; the observer is not changed."""
        return Grid(*affine(*self.histogram.range(method, percentile), self.quant_min, self.quant_max))

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale (float32 `[1]`) and zero point (int64 `[1]`)."""
        grid = self.grid(self.method, self.percentile)
        return torch.tensor([grid.scale]), torch.tensor([grid.zero_point])


def weight_scales(weight: torch.Tensor, axis: int, limit: int) -> torch.Tensor:
    """Symmetric scales `max |w| / limit`, float32 `[channels]`.

    Args:
        weight: float32, any shape.
        axis: of the output channels.
        limit: largest integer: 127, 63, 31, 15 or 7 for 8 to 4 bits.
    """
    largest = weight.transpose(0, axis).flatten(1).abs().amax(dim=1)
    # A dead channel needs some scale; one that represents zero exactly in every format.
    scale = torch.where(largest > 0, largest / limit, torch.full_like(largest, 1.0 / limit))
    return scale.clamp_min(_SMALLEST_STEP)


class PerChannelWeightObserver(UniformQuantizationObserverBase):  # type: ignore[misc]
    """Per-output-channel symmetric int8 for constant weights, scale = max |w| / quant_max."""

    def __init__(self, *, ch_axis: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ch_axis = ch_axis
        self.weight = torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Remember the weight and pass it on."""
        self.weight = x.detach()
        return x

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales (float32 `[channels]`) and zero points (int64 `[channels]`, all zero)."""
        scale = weight_scales(self.weight, self.ch_axis, self.quant_max)
        return scale, torch.zeros_like(scale, dtype=torch.int64)
