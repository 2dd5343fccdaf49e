"""Where in the user's code an op comes from."""

from __future__ import annotations

import re

from torch.fx import Node


def find_source(node: Node) -> str:
    """`model.py:12`, else the module path `encoder.layers.0`, else ""."""
    trace = node.meta.get("stack_trace") or ""
    lines = re.findall(r'File "([^"<]+)", line (\d+)', trace)
    if lines:
        file, line = lines[-1]
        return f"{file}:{line}"
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values() if path]
    return paths[-1] if paths else ""
