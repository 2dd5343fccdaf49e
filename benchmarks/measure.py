"""Figures: accuracy of outputs against labels and the float network, and latencies that compare fairly."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Array = npt.NDArray[Any]


class Latency(TypedDict):
    """Milliseconds of one call."""

    p10: float
    p50: float
    p90: float
    n: int


class Quality(TypedDict, total=False):
    """Shares are in percent; `top1` is there only where there are labels."""

    top1: float
    agreement: float
    snr_db: float
    n: int


def float_outputs(module: nn.Module, samples: Array, batch: int = 64) -> Array:
    """The float network's outputs for `[n, …]` samples."""
    with torch.no_grad():
        parts = [module(torch.from_numpy(samples[i : i + batch])) for i in range(0, len(samples), batch)]
    outputs: Array = torch.cat(parts).numpy()
    return outputs


def quality(outputs: Array, reference: Array, labels: Array | None = None) -> Quality:
    """Top-1, agreement with the float network in percent, and signal to quantization noise in decibels."""
    noise = float(((outputs - reference) ** 2).sum())
    result = Quality(
        agreement=round(100 * float((outputs.argmax(1) == reference.argmax(1)).mean()), 3),
        # JSON has no infinity; the float network against itself has no ratio.
        snr_db=round(10 * float(np.log10((reference**2).sum() / noise)), 2) if noise else None,
        n=len(outputs),
    )
    if labels is not None:
        result["top1"] = round(100 * float((outputs.argmax(1) == labels).mean()), 3)
    return result


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 60, sample_ms: float = 2.0
) -> dict[str, list[float]]:
    """Time calls in turn, so that a slow second of the machine meets all of them.

    Args:
        calls: what to time, by name.
        rounds: samples of each; the order rotates from round to round.
        sample_ms: a sample repeats its call until it lasts about this long, for networks of microseconds.

    Returns:
        Milliseconds per call, `rounds` values each; the values of one round belong together.
    """
    repeats = {name: max(1, round(sample_ms / max(_warm(call), 1e-4))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            call = calls[name]
            call()  # the caches hold the neighbour's weights
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) * 1000 / repeats[name])
    return times


def latency(times: list[float]) -> Latency:
    """Percentiles of the samples in milliseconds."""
    deciles = statistics.quantiles(times, n=10)
    return Latency(
        p10=round(deciles[0], 4),
        p50=round(statistics.median(times), 4),
        p90=round(deciles[-1], 4),
        n=len(times),
    )


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over the rounds of ours ÷ theirs; below one, ours is faster."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 4)


def _warm(call: Callable[[], object], calls: int = 5) -> float:
    """Milliseconds of the fastest of a few calls."""
    best = float("inf")
    for _ in range(calls):
        start = time.perf_counter()
        call()
        best = min(best, (time.perf_counter() - start) * 1000)
    return best
