"""Carries out a plan: units and whole branches, in one step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.stages.prune.branches import Branch, without
from edgekit.stages.prune.cut import cut
from edgekit.stages.prune.trace import Structure
from edgekit_converters.program import Program


def remove(program: Program, structure: Structure, among: Sequence[Branch], keep: np.ndarray) -> Program:
    """The program without what a mask leaves out.

    Args:
        program: that was traced; it is not changed.
        structure: of it.
        among: its branches, in the order of the mask.
        keep: bool per unit, then per branch, and True at the end.

    Raises:
        LoweringError: the narrower program does not run as planned.
    """
    units = np.append(keep[: structure.n_units], True)
    gone = [each for each, stays in zip(among, keep[structure.n_units : -1], strict=True) if not stays]
    return without(cut(program, structure, units), gone)
