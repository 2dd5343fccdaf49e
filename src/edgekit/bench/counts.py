"""What a census counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class OpCensus:
    """Operators of a file by what they compute in.

    Attributes:
        int8: integer kernels by op name.
        hybrid: int8 weights with float ends (dynamic or weight-only).
        floating: float kernels.
        boundary: quantize and dequantize steps between the two.
        other: index and shape arithmetic, neither of the two.
        unfused: the float kernels that read a dequantized activation: what the runtime did not fuse.
        partitions: parts of the graph that a delegate took, 0 where the runtime has none.
        outside: ops that no delegate took.
    """

    int8: Counter[str] = field(default_factory=Counter)
    hybrid: Counter[str] = field(default_factory=Counter)
    floating: Counter[str] = field(default_factory=Counter)
    boundary: Counter[str] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)
    unfused: Counter[str] = field(default_factory=Counter)
    partitions: int = 0
    outside: Counter[str] = field(default_factory=Counter)

    def all(self) -> set[str]:
        """Names of all operators."""
        return {*self.int8, *self.hybrid, *self.floating, *self.boundary, *self.other}

    @property
    def int8_ops(self) -> int:
        """Number of integer kernels."""
        return self.int8.total()
