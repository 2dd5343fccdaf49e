"""Small summaries of many numbers that add up: whoever merges them, in whatever order, counts the same.

A `Sketch` counts values in bins whose edges grow by a constant factor, so that every quantile is within `ACCURACY` of a
value that was there, relative to it (DDSketch: Masson, Rim and Lee, VLDB 2019). `Moments` are mean and variance as
Chan, Golub and LeVeque add them (1979). Standard library only; the counts are whole, so their sums are exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from edgekit_runtime.strict_json import ContractError, Fields, check_whole, is_real, show, within

ACCURACY: Final = 0.02
GROWTH: Final = (1 + ACCURACY) / (1 - ACCURACY)
LOG_GROWTH: Final = math.log(GROWTH)
# What is smaller counts as zero; what is larger, infinity with it, as this large.
SMALLEST, LARGEST = 1e-9, 1e12
# Sums stay there, so that one device that lies cannot make those of all others impossible.
MAX_COUNT: Final = 2**53
MAX_VALUE: Final = 1e150
MAX_DIGITS: Final = 5
LARGEST_SQUARES: Final = 1e306
FIRST_BIN: Final = math.ceil(math.log(SMALLEST) / LOG_GROWTH)
LAST_BIN: Final = math.ceil(math.log(LARGEST) / LOG_GROWTH)


def bin_of(size: float) -> int:
    """The bin of a number above zero: `(GROWTH^(bin-1), GROWTH^bin]`."""
    return min(max(math.ceil(math.log(min(size, LARGEST)) / LOG_GROWTH), FIRST_BIN), LAST_BIN)


@dataclass(frozen=True, slots=True)
class Sketch:
    """How often numbers of each size occurred.

    Attributes:
        below: bin of the size to count, of numbers below zero.
        zeros: numbers that are zero, or nearer to it than `SMALLEST`.
        above: bin to count, of numbers above zero.
    """

    below: Mapping[int, int] = field(default_factory=dict)
    zeros: int = 0
    above: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_whole("zeros", self.zeros, 0, MAX_COUNT)
        for key, bins in (("below", self.below), ("above", self.above)):
            for number, count in bins.items():
                # A check makes its message first, and a window has hundreds of bins.
                if type(number) is type(count) is int and (
                    FIRST_BIN <= number <= LAST_BIN and 1 <= count <= MAX_COUNT
                ):
                    continue
                check_whole(f"{key} (a bin)", number, FIRST_BIN, LAST_BIN)
                check_whole(f"{key}.{number}", count, 1, MAX_COUNT)

    @staticmethod
    def of(*values: float) -> Sketch:
        """Of a few numbers; NaN is none.

        Raises:
            ValueError: one is NaN.
        """
        sketch = Sketch()
        for value in values:
            if math.isnan(value):
                raise ValueError("NaN has no size; count it apart")
            if abs(value) < SMALLEST:
                one = Sketch(zeros=1)
            elif value > 0:
                one = Sketch(above={bin_of(value): 1})
            else:
                one = Sketch(below={bin_of(-value): 1})
            sketch = sketch.merged(one)
        return sketch

    @property
    def n(self) -> int:
        """Numbers that were counted."""
        return self.zeros + sum(self.below.values()) + sum(self.above.values())

    def quantile(self, share: float) -> float:
        """A number that about this share is at or below; NaN where nothing was counted.

        Args:
            share: from 0 to 1.
        """
        left = math.ceil(share * self.n) if share else 1
        ordered = [
            *((-_middle(b), self.below[b]) for b in sorted(self.below, reverse=True)),
            (0.0, self.zeros),
            *((_middle(b), self.above[b]) for b in sorted(self.above)),
        ]
        for value, count in ordered:
            left -= count
            if count and left <= 0:
                return value
        return math.nan

    def merged(self, other: Sketch) -> Sketch:
        """Both together."""
        return Sketch(
            added(self.below, other.below), total(self.zeros, other.zeros), added(self.above, other.above)
        )

    def to_tree(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "below": {str(number): self.below[number] for number in sorted(self.below)},
            "zeros": self.zeros,
            "above": {str(number): self.above[number] for number in sorted(self.above)},
        }

    @staticmethod
    def from_tree(value: object, path: str) -> Sketch:
        """Read it back.

        Raises:
            ContractError: it is no sketch.
        """
        tree = Fields(value, path, required=("below", "zeros", "above"))
        below, above = _bins(tree, "below"), _bins(tree, "above")
        return within(path, lambda: Sketch(below, tree.whole("zeros"), above))


@dataclass(frozen=True, slots=True)
class Moments:
    """How many numbers, around what, how widely spread.

    Attributes:
        n: how many.
        mean: 0 where there are none.
        squares: sum of squared distances from the mean.
        low: smallest, 0 where there are none.
        high: largest.
    """

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = 0.0
    high: float = 0.0

    def __post_init__(self) -> None:
        check_whole("n", self.n, 0, MAX_COUNT)
        for key in ("mean", "squares", "low", "high"):
            most = MAX_VALUE if key != "squares" else LARGEST_SQUARES
            if not is_real(getattr(self, key)) or abs(getattr(self, key)) > most:
                raise ContractError(key, show(getattr(self, key)), f"a number of at most {most:g}")
        if self.squares < 0:
            raise ContractError("squares", show(self.squares), "at least 0")

    @property
    def variance(self) -> float:
        """Of the numbers that were seen; 0 where there are none."""
        return self.squares / self.n if self.n else 0.0

    def merged(self, other: Moments) -> Moments:
        """Both together."""
        if not self.n or not other.n:
            return self if self.n else other
        n = min(self.n + other.n, MAX_COUNT)
        apart = other.mean - self.mean
        # Weights of both sides, so that it does not matter which of them comes first.
        mean = (self.n * self.mean + other.n * other.mean) / n
        squares = self.squares + other.squares + apart * apart * (self.n * other.n / n)
        mean, squares = min(max(mean, -MAX_VALUE), MAX_VALUE), min(squares, LARGEST_SQUARES)
        return Moments(n, mean, squares, min(self.low, other.low), max(self.high, other.high))

    def to_tree(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "n": self.n,
            "mean": self.mean,
            "squares": self.squares,
            "low": self.low,
            "high": self.high,
        }

    @staticmethod
    def from_tree(value: object, path: str) -> Moments:
        """Read them back.

        Raises:
            ContractError: they are none.
        """
        tree = Fields(value, path, required=("n", "mean", "squares", "low", "high"))
        real = [tree.real(key) for key in ("mean", "squares", "low", "high")]
        return within(path, lambda: Moments(tree.whole("n"), *real))


def total(one: int, other: int) -> int:
    """Of two counts."""
    return min(one + other, MAX_COUNT)


def added(one: Mapping[Any, int], other: Mapping[Any, int]) -> dict[Any, int]:
    """Counts by key, of both."""
    return {
        key: total(one.get(key, 0), other.get(key, 0)) for key in (*one, *(k for k in other if k not in one))
    }


def _middle(number: int) -> float:
    """The value whose distance from both ends of a bin is the same, relative to them."""
    return 2 * GROWTH**number / (GROWTH + 1)


def _bins(tree: Fields, key: str) -> dict[int, int]:
    found = {}
    for name, count in tree.mapping(key).items():
        if len(name) > MAX_DIGITS or not name.removeprefix("-").isdecimal() or str(int(name)) != name:
            raise ContractError(f"{key}.{show(name)}", show(name), "the number of a bin")
        found[int(name)] = count
    return found
