"""One operator to time, as data: what it is for estimates, and what a file with it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgekit.bench.layers import LayerShape
from edgekit.bench.predict.ops import Op

# Operators without weights that stand in a file.
LINKS: Final = 9


@dataclass(frozen=True, slots=True)
class Probe:
    """An operator to time.

    Attributes:
        op: as a file with it would be read.
        layer: its shape, where it has weights.
        dims: `[1, side, side, channels]`, `[rows, row]` or as the tables of `products` say, where
            it has none.
        order: of these axes in the result of a transposition.
        copies: of a layer whose weights are to fill memory; None leaves their number to its work.
    """

    op: Op
    layer: LayerShape | None = None
    dims: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    copies: int | None = None
