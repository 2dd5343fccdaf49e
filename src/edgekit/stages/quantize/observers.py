"""Observers: what calibration remembers of each tensor, and the scale and zero point that follow from it.

One calibration pass feeds every method: an activation observer keeps the exact minimum and maximum and a
histogram, so `minmax`, `percentile`, `mse` and `entropy` are four ways of reading the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torchao.quantization.pt2e.observer import UniformQuantizationObserverBase

BINS: Final = 2048
# Values that enter the histogram per call; a deterministic stride picks them. The extremes are always exact.
SAMPLE: Final = 1 << 16
PERCENTILE: Final = 99.99
LEVELS: Final = 256

Clip = Callable[[np.ndarray, np.ndarray, float], tuple[float, float]]


class Histogram:
    """Counts of values over a range that grows by doubling, so that counts are never re-estimated.

    Growing merges neighbouring bins pairwise: exact, whatever the order of the batches.
    """

    def __init__(self) -> None:
        self.counts: np.ndarray = np.zeros(BINS, dtype=np.float64)
        self.width = 0.0
        self.low = float("inf")
        self.high = float("-inf")

    def add(self, x: torch.Tensor) -> None:
        """Take in a tensor of any shape; empty tensors change nothing."""
        if x.numel() == 0:
            return
        low, high = (float(v) for v in torch.aminmax(x))
        self.low, self.high = min(self.low, low), max(self.high, high)
        flat = x.reshape(-1)
        if flat.numel() > SAMPLE:
            flat = flat[:: flat.numel() // SAMPLE]
        self._grow(max(abs(low), abs(high)))
        half = BINS // 2 * self.width
        counts = torch.histc(flat.float(), bins=BINS, min=-half, max=half)
        self.counts += counts.numpy().astype(np.float64)

    def edges(self) -> np.ndarray:
        """Bin edges, float64 `[BINS + 1]`, symmetric around zero."""
        return (np.arange(BINS + 1) - BINS // 2) * self.width

    def _grow(self, magnitude: float) -> None:
        if self.width == 0.0:
            self.width = max(magnitude, 1e-12) / (BINS // 2)
        while self.width * (BINS // 2) < magnitude:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, dtype=np.float64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.width *= 2


def clip_minmax(counts: np.ndarray, edges: np.ndarray, level: float) -> tuple[float, float]:
    """The whole range."""
    del counts, level
    return float(edges[0]), float(edges[-1])


def clip_percentile(counts: np.ndarray, edges: np.ndarray, level: float) -> tuple[float, float]:
    """Cut `(100 - level) / 2` percent of the values at each end."""
    tail = (100.0 - level) / 200.0
    cumulative = np.cumsum(counts) / counts.sum()
    low = int(np.searchsorted(cumulative, tail))
    high = int(np.searchsorted(cumulative, 1.0 - tail))
    return float(edges[low]), float(edges[min(high + 1, len(edges) - 1)])


def clip_mse(counts: np.ndarray, edges: np.ndarray, level: float) -> tuple[float, float]:
    """The range whose 256 levels reconstruct the histogram with the least squared error.

    Banner et al., "Post-training 4-bit quantization of convolution networks" (2019): clipping noise against
    rounding noise; here minimised on the histogram itself instead of a fitted distribution.
    """
    del level
    centers = (edges[:-1] + edges[1:]) / 2
    best, chosen = np.inf, (float(edges[0]), float(edges[-1]))
    for low, high in _candidates(counts, edges):
        q_low, q_high = min(low, 0.0), max(high, 0.0)
        step = (q_high - q_low) / (LEVELS - 1)
        if step <= 0:
            continue
        clipped = np.clip(centers, q_low, q_high)
        outside = (centers - clipped) ** 2
        error = float(np.dot(counts, np.where(outside > 0, outside, step * step / 12)))
        if error < best:
            best, chosen = error, (low, high)
    return chosen


def clip_entropy(counts: np.ndarray, edges: np.ndarray, level: float) -> tuple[float, float]:
    """The range whose quantized histogram has the least Kullback-Leibler divergence from the true one.

    Migacz, "8-bit inference with TensorRT" (GTC 2017), on both ends of an affine range.
    """
    del level
    total = counts.sum()
    best, chosen = np.inf, (float(edges[0]), float(edges[-1]))
    for low, high in _candidates(counts, edges):
        i, j = int(np.searchsorted(edges, low)), int(np.searchsorted(edges, high))
        if j - i < LEVELS:
            continue
        inner = counts[i:j].copy()
        reference = inner.copy()
        reference[0] += counts[:i].sum()
        reference[-1] += counts[j:].sum()
        bucket = np.arange(j - i) * LEVELS // (j - i)
        mass = np.bincount(bucket, weights=inner, minlength=LEVELS)
        filled = np.bincount(bucket, weights=inner > 0, minlength=LEVELS)
        q = np.where(inner > 0, mass[bucket] / np.maximum(filled[bucket], 1), 0.0)
        p = reference / total
        q = (q + 1e-9) / (q.sum() + 1e-9 * len(q))
        nonzero = p > 0
        divergence = float(np.sum(p[nonzero] * np.log(p[nonzero] / q[nonzero])))
        if divergence < best:
            best, chosen = divergence, (low, high)
    return chosen


def _candidates(counts: np.ndarray, edges: np.ndarray) -> list[tuple[float, float]]:
    """Ranges to try: each end shrunk from its extreme towards zero, both ends by the same share or one alone."""
    used = np.nonzero(counts)[0]
    low, high = float(edges[used[0]]), float(edges[used[-1] + 1])
    shares = np.linspace(0.3, 1.0, 29)
    both = [(low * s, high * s) for s in shares]
    upper = [(low, high * s) for s in shares[:-1]]
    lower = [(low * s, high) for s in shares[:-1]]
    return both + upper + lower


METHODS: Final[dict[str, Clip]] = {
    "minmax": clip_minmax,
    "percentile": clip_percentile,
    "mse": clip_mse,
    "entropy": clip_entropy,
}


def affine(low: float, high: float, quant_min: int, quant_max: int) -> tuple[float, int]:
    """Scale and zero point of an affine grid that holds `[low, high]` and represents zero exactly.

    Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference"
    (2018), section 2.1.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (quant_max - quant_min)
    # float32 is what every file format stores; smaller steps would be denormal there.
    scale = float(np.float32(max(scale, 1e-9)))
    zero_point = int(np.clip(round(quant_min - low / scale), quant_min, quant_max))
    return scale, zero_point


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
        h = self.histogram
        if h.low > h.high:
            return 0.0, 0.0
        low, high = METHODS[self.method](h.counts, h.edges(), self.percentile)
        return max(low, h.low), min(high, h.high)

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale (float32 `[1]`) and zero point (int64 `[1]`)."""
        scale, zero_point = affine(*self.range(), self.quant_min, self.quant_max)
        return torch.tensor([scale]), torch.tensor([zero_point])


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
        flat = self.weight.transpose(0, self.ch_axis).flatten(1)
        largest = flat.abs().amax(dim=1)
        # A dead channel needs some scale; one that represents zero exactly in every format.
        scale = torch.where(largest > 0, largest / self.quant_max, torch.full_like(largest, 1.0 / self.quant_max))
        return scale.clamp_min(1e-9), torch.zeros_like(scale, dtype=torch.int64)
