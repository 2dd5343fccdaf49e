"""How far estimates were off for networks and boards that had no part in them, and the interval that follows.

The evidence is data beside this file: for every network that was predicted and measured, the logarithm of measured
over predicted. `benchmarks/prediction.py` and `benchmarks/boards.py` write it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

COVERAGE: Final = 0.9
EVIDENCE: Final = "evidence.json"


@dataclass(frozen=True, slots=True)
class Residual:
    """One estimate that was compared with a measurement.

    Attributes:
        basis: "calibrated" or "class", how it was made.
        group: network or board; all of a group are left out together.
        format: "onnx" or "tflite".
        precision: "int8" or "float32".
        threads: that it ran with.
        log_ratio: natural logarithm of measured over predicted, before any correction.
    """

    basis: str
    group: str
    format: str
    precision: str
    threads: int
    log_ratio: float


@dataclass(frozen=True, slots=True)
class Spread:
    """What estimates of one kind are corrected by, and how far they may be off.

    Attributes:
        bias: logarithm that is added to an estimate.
        width: logarithm on both sides of the corrected one within which `COVERAGE` of all lie.
        n: residuals behind it.
    """

    bias: float
    width: float
    n: int


def spread(
    residuals: Iterable[Residual], basis: str, format: str, precision: str, threads: int = 1
) -> Spread:
    """Correction and width for an estimate.

    The correction is the median over groups of the same format, precision and threads, as far as there are any. The
    width is the hierarchical conformal quantile (Lee, Barber & Willett 2023) of what is left when each group in turn is
    left out: groups count alike, however many residuals they have, and one more group may be anything. So few groups
    that this leaves no quantile give the largest of all.

    Args:
        residuals: all evidence.
        basis: "calibrated" or "class".
        format: "onnx" or "tflite".
        precision: of the file's multiplications.
        threads: that it runs with.

    Raises:
        ValueError: there is no evidence of this basis.
    """
    known = [each for each in residuals if each.basis == basis]
    if not known:
        raise ValueError(f"no evidence for estimates by {basis!r}")
    sizes = Counter(each.group for each in known)
    left = sorted(
        (abs(each.log_ratio - _bias(_without(known, each.group), each)), 1 / sizes[each.group])
        for each in known
    )
    asked = Residual(basis, "", format, precision, threads, 0.0)
    return Spread(_bias(known, asked), _quantile(left, COVERAGE * (len(sizes) + 1)), len(known))


def _quantile(weighted: Sequence[tuple[float, float]], wanted: float) -> float:
    """The first value, ascending, that with all before it weighs as much as wanted; else the last."""
    weight = 0.0
    for value, own in weighted:
        weight += own
        if weight >= wanted - 1e-9:
            return value
    return weighted[-1][0]


def _without(known: Sequence[Residual], group: str) -> list[Residual]:
    others = [each for each in known if each.group != group]
    return others or list(known)


def _bias(known: Sequence[Residual], asked: Residual) -> float:
    """Median over groups, from those that are most alike and at least three."""
    ladders = (
        lambda r: (r.format, r.precision, r.threads > 1),
        lambda r: (r.format, r.precision),
        lambda r: r.precision,
        lambda _: "",
    )
    for alike in ladders:
        by_group: dict[str, list[float]] = {}
        for each in known:
            if alike(each) == alike(asked):
                by_group.setdefault(each.group, []).append(each.log_ratio)
        if len(by_group) >= 3:
            return _median([_median(values) for values in by_group.values()])
    return _median([each.log_ratio for each in known])


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


@cache
def evidence() -> tuple[Residual, ...]:
    """All residuals that come with the package."""
    text = resources.files("edgekit.bench.predict").joinpath(EVIDENCE).read_text("utf-8")
    return tuple(Residual(*row) for row in json.loads(text)["residuals"])


@cache
def known_spread(basis: str, format: str, precision: str, threads: int) -> Spread:
    """`spread` over the evidence of the package."""
    return spread(evidence(), basis, format, precision, threads)
