"""Why a model could not be run or captured, in words that name the layer, the line and the way out."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from edgekit.errors import EdgekitError, LoweringError, UsageError

_LIBRARY = Path(torch.__file__).parent
_HERE = Path(__file__).parent


def capture_failure(error: Exception, module: torch.nn.Module) -> EdgekitError:
    """The error to show when `torch.export` gave up on `module`.

    Args:
        error: what `torch.export` raised.
        module: the model, for its class name.

    Returns:
        A `LoweringError` with format "torch"; an `EdgekitError` is handed back unchanged.
    """
    if isinstance(error, EdgekitError):
        return error
    text = str(error)
    kind = type(error).__name__
    where = source_of(error)
    if "DataDependent" in kind or "data-dependent" in text.lower() or "Could not guard" in text:
        return LoweringError(
            format="torch",
            op="control flow that depends on data",
            where=where,
            why="one fixed graph cannot take a branch or a shape that depends on the values of a tensor",
            way_out="Use torch.where, or move the branch out of forward().",
        )
    unsupported = re.search(r"aten[.:]+[\w.]+", text)
    return LoweringError(
        format="torch",
        op=unsupported.group(0) if unsupported else type(module).__name__,
        where=where,
        why=f"torch.export raised {kind}: {_first_lines(text)}",
        way_out="Make `torch.export.export(model.eval(), example)` succeed, then pass the model again.",
    )


def source_of(error: BaseException) -> str:
    """`file:line` of the innermost frame that is neither torch nor this package, or ""."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        path = Path(frame.filename)
        if frame.filename.startswith("<") or _LIBRARY in path.parents or path.parent == _HERE:
            continue
        if "/torch/" not in frame.filename and "importlib" not in frame.filename:
            return f"{frame.filename}:{frame.lineno}"
    return ""


def _first_lines(text: str, limit: int = 300) -> str:
    return " ".join(text.split())[:limit]


@contextmanager
def _last_layer(module: torch.nn.Module) -> Iterator[list[str]]:
    """Names of the layers that were entered, in order."""
    entered: list[str] = []
    handles = []
    for name, layer in module.named_modules():
        if name and not isinstance(layer, torch.jit.ScriptModule):
            label = f"{name} ({layer})" if not list(layer.children()) else name
            handles.append(layer.register_forward_pre_hook(lambda *_, label=label: entered.append(label)))
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def run_once(module: torch.nn.Module, example: Sequence[Any]) -> None:
    """Run the model once on its example, so that a wrong shape is reported by the layer that refuses it.

    Raises:
        UsageError: the model raised; the message names the layer, the shapes given and what it said.
    """
    try:
        with torch.no_grad(), _last_layer(module) as entered:
            module(*example)
    except EdgekitError:
        raise
    except Exception as error:
        layer = f" in layer {entered[-1]}" if entered else ""
        shapes = ", ".join(str(tuple(v.shape)) for v in example if isinstance(v, torch.Tensor))
        where = source_of(error)
        raise UsageError(
            f"the model refuses inputs of shape {shapes}{layer}: {_first_lines(str(error))}"
            + (f" ({where})" if where else ""),
            expected=_expected(str(error)),
            way_out="Give the shape with the batch first, e.g. --input-shape 1,3,224,224, once for every "
            "input.",
        ) from error


def _expected(text: str) -> str:
    """What the layer wanted, read from torch's own message."""
    channels = re.search(r"to have (\d+) channels", text)
    if channels:
        return f"{channels.group(1)} channels on axis 1"
    if "positional argument" in text:
        return "one --input-shape for every input of forward()"
    product = re.search(r"shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)", text)
    if product:
        return f"{product.group(2)} features where the input has {product.group(1)}"
    last = re.search(r"Expected .*", text)
    return last.group(0)[:200] if last else "inputs that the model's own forward() accepts"
