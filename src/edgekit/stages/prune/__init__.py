"""Structured pruning: which channels, heads and hidden units go, and the narrower program without them."""

from edgekit.stages.prune.costs import Cost, macs, milliseconds, shapes
from edgekit.stages.prune.cut import cut
from edgekit.stages.prune.groups import Group, groups
from edgekit.stages.prune.importance import importance
from edgekit.stages.prune.plan import Plan, plan
from edgekit.stages.prune.trace import Structure, trace

__all__ = [
    "Cost",
    "Group",
    "Plan",
    "Structure",
    "cut",
    "groups",
    "importance",
    "macs",
    "milliseconds",
    "plan",
    "shapes",
    "trace",
]
