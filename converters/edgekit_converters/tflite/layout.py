"""Channels-last forms of ops that litert-torch's layout pass has no rule for.

Without a rule an op stays channels-first, and a TRANSPOSE stands on each side of it.
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


RULES: Final[tuple[tuple[object, Callable[[Node], None]], ...]] = (
    (torch.ops.aten.constant_pad_nd, pad_last),
    (torch.ops.aten.elu, keep),
)


@contextmanager
def channels_last_rules() -> Iterator[None]:
    """Lend the rules to litert-torch; its registry is left as it was."""
    from litert_torch._convert.fx_passes.optimize_layout_transposes_pass import layout_rewrite

    registry = layout_rewrite.rewriters
    kept = dict(registry)
    for target, rule in RULES:
        if target not in registry:
            registry.register(target)(rule)
    try:
        yield
    finally:
        registry.clear()
        registry.update(kept)
