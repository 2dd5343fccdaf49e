"""Channels-last forms of ops that litert-torch's layout pass has no rule for, or a wrong one.

Without a rule an op stays channels-first, and a TRANSPOSE stands on each side of it. Seen in litert-torch 0.10:
a broadcast between transposes loses them on the way (the file then has the axes mixed up), and `repeat` keeps the
counts of the channels-first axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch.fx import Node


def pad_last(node: Node) -> None:
    """Pads are listed from the last axis backwards: WHC becomes CWH."""
    given = node.args[1]
    assert isinstance(given, (list, tuple))
    pads = [*given, *[0] * (8 - len(given))]
    node.args = (node.args[0], [*pads[4:6], *pads[0:2], *pads[2:4], *pads[6:8]], *node.args[2:])


def keep(node: Node) -> None:
    """Element-wise: the axes do not matter."""
    del node


def sizes_last(node: Node) -> None:
    """Sizes or counts listed by axis: NCHW becomes NHWC."""
    batch, channels, *plane = node.args[1]
    node.args = (node.args[0], [batch, *plane, channels], *node.args[2:])


RULES: Final[tuple[tuple[object, Callable[[Node], None]], ...]] = (
    (torch.ops.aten.constant_pad_nd.default, pad_last),
    (torch.ops.aten.elu.default, keep),
    (torch.ops.aten.expand.default, sizes_last),
    (torch.ops.aten.repeat.default, sizes_last),
)


@contextmanager
def channels_last_rules() -> Iterator[None]:
    """Lend the rules to litert-torch; its registries are left as they were."""
    from litert_torch._convert.fx_passes.optimize_layout_transposes_pass import layout_check, layout_rewrite

    registries = (layout_rewrite.rewriters, layout_check.nhwcable_node_checkers)
    kept = [dict(registry) for registry in registries]
    for target, rule in RULES:
        registries[0][target] = rule
        # Without a check of its own an op is channels-last where its inputs are.
        registries[1].pop(target, None)
    try:
        yield
    finally:
        for registry, before in zip(registries, kept, strict=True):
            registry.clear()
            registry.update(before)
