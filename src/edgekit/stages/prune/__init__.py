"""Structured pruning: which channels, heads and hidden units go, and the narrower program without them."""

from edgekit.stages.prune.choose import Chosen, choose, removable_branches
from edgekit.stages.prune.costs import macs
from edgekit.stages.prune.cut import cut
from edgekit.stages.prune.groups import groups
from edgekit.stages.prune.plain import plain
from edgekit.stages.prune.remove import remove
from edgekit.stages.prune.trace import Structure, keep_all, trace

__all__ = [
    "Chosen",
    "Structure",
    "choose",
    "cut",
    "groups",
    "keep_all",
    "macs",
    "plain",
    "removable_branches",
    "remove",
    "trace",
]
