"""Numbers for people: three digits that matter, and the unit; "–" for what was not measured."""

from __future__ import annotations

__all__ = [
    "NONE",
    "change",
    "count",
    "decibels",
    "judged",
    "milliseconds",
    "percent",
    "points",
    "size",
    "times",
    "value",
]

NONE = "–"
# Metrics between 0 and 1 that people read as percent.
SHARES = frozenset({"top1", "f1", "agreement"})


def size(size_bytes: float | None) -> str:
    """Bytes in the decimal units that stores and budgets use: 1.32 MB."""
    return _scaled(size_bytes, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1)))


def count(number: float | None) -> str:
    """A plain count: 386 M."""
    return _scaled(number, (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1)))


def milliseconds(ms: float | None) -> str:
    """A latency: 1.57 ms, 42.0 µs."""
    return NONE if ms is None else f"{_three(ms)} ms" if ms >= 0.1 else f"{_three(ms * 1e3)} µs"


def percent(share: float | None, digits: int = 2) -> str:
    """A share of one: 98.80%."""
    return NONE if share is None else f"{share * 100:.{digits}f}%"


def value(number: float | None, metric: str) -> str:
    """A value of a metric, percent where it is a share."""
    if number is None:
        return NONE
    return percent(number) if metric in SHARES else f"{number:.4g}"


def judged(number: float | None, metric: str, n: int | None, usual: int) -> str:
    """A value of a metric, with the number of inputs where it is not the usual one: 97.66% of 128."""
    text = value(number, metric)
    return text if n in (None, usual) else f"{text} {'of' if metric in SHARES else 'on'} {n}"


def points(number: float | None, metric: str) -> str:
    """A difference of a metric: 0.35 points, or the bare number where the metric is no share."""
    if number is None:
        return NONE
    return f"{number * 100:.2f} points" if metric in SHARES else f"{number:.4g}"


def change(drop: float | None, metric: str) -> str:
    """A drop as the change that it is, with its sign: −0.35 points."""
    if drop is None:
        return NONE
    text = points(abs(drop), metric)
    # what rounds to nothing has no sign
    zero = not any(digit in text for digit in "123456789")
    return f"±{text}" if zero else f"{'−' if drop > 0 else '+'}{text}"


def decibels(db: float | None) -> str:
    """A signal-to-noise ratio: 35.7 dB."""
    return NONE if db is None else f"{db:.1f} dB"


def steps(number: float | None) -> str:
    """Steps of a grid: 1, or 0.5."""
    return NONE if number is None else f"{number:g}"


def times(factor: float | None) -> str:
    """A factor: 2.3×."""
    return NONE if factor is None else f"{factor:.2f}×" if factor < 10 else f"{factor:.1f}×"


def _scaled(number: float | None, units: tuple[tuple[str, float], ...]) -> str:
    if number is None:
        return NONE
    unit, scale = next(((unit, scale) for unit, scale in units if abs(number) >= scale), units[-1])
    text = f"{number:.0f}" if scale == 1 else _three(number / scale)
    return f"{text} {unit}".rstrip()


def _three(number: float) -> str:
    """Three digits that matter, no exponent."""
    return (
        f"{number:.0f}" if abs(number) >= 100 else f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"
    )
