"""Where in the user's code an op comes from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import torch
from torch.fx import Node

TORCH: Final = Path(torch.__file__).parent


def find_source(node: Node) -> str:
    """The user's line: `model.py:12`; else the module path `encoder.layers.0`; else a line inside of torch, or "".

    Args:
        node: of any graph that came from `torch.export`, which keeps the stack of the call.
    """
    frames = re.findall(r'File "([^"<]+)", line (\d+)', node.meta.get("stack_trace") or "")
    lines = [f"{file}:{line}" for file, line in frames]
    own = [at for at, (file, _) in zip(lines, frames, strict=True) if not Path(file).is_relative_to(TORCH)]
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values() if path]
    return next((found[-1] for found in (own, paths, lines) if found), "")
