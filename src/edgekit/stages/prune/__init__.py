"""Structured pruning: which channels, heads and hidden units go, and the narrower program without them."""

from edgekit.stages.prune.choose import Chosen, choose, rank, removable_branches
from edgekit.stages.prune.costs import macs
from edgekit.stages.prune.cut import cut
from edgekit.stages.prune.damage import Curve, from_arrays, to_arrays
from edgekit.stages.prune.groups import groups
from edgekit.stages.prune.plain import plain
from edgekit.stages.prune.remove import remove
from edgekit.stages.prune.trace import Structure, keep_all, trace

__all__ = [
    "Chosen",
    "Curve",
    "Structure",
    "choose",
    "cut",
    "from_arrays",
    "groups",
    "keep_all",
    "macs",
    "plain",
    "rank",
    "removable_branches",
    "remove",
    "to_arrays",
    "trace",
]
