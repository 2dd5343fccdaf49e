"""Runs a graph that was captured at one batch size at another one.

`torch.export.export(model, (x,))` without dynamic shapes writes the batch of its example into the graph:
`view(x, [1, 768])`, `expand(token, [1, 1, 192])`, `zeros([2, 1, 64])`. `Replay` computes the same graph
and, for each of those ops, derives the size that the *present* batch asks for. Exporting a `Replay` gives a
graph with a free batch. The derivation is a heuristic; the caller proves the outcome numerically and else
keeps the old graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.traceback import preserve_node_meta

aten = torch.ops.aten
Shape = Sequence[Any]


class Replay(torch.nn.Module):  # type: ignore[misc]
    """A flat graph as a module that accepts other batch sizes.

    Args:
        graph: flat graph whose nodes carry `meta["val"]` of the batch at which it was captured.
        batch: that batch.
    """

    def __init__(self, graph: GraphModule, batch: int) -> None:
        super().__init__()
        self._batch = batch
        for name, child in graph.named_children():
            self.add_module(name, child)
        for name, parameter in graph.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in graph.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self._plain = {k: v for k, v in vars(graph).items() if isinstance(v, torch.Tensor)}
        self._steps = graph.graph

    def forward(self, *args: torch.Tensor) -> Any:
        """Flat inputs in, flat tuple out."""
        # Source lines and module paths of the nodes go on to those that are recorded for them.
        with preserve_node_meta():
            return _Rebatching(self, self._steps, self._batch).run(*args)


class _Rebatching(Interpreter):  # type: ignore[misc]
    """Interpreter that repairs the sizes written for the captured batch.

    `_inside` says for every value how many blocks lie before the batch within the axis that holds it: 1 where
    the batch is outermost (`[batch * heads, …]`), `length` after `[length, batch, …]` became one axis.
    """

    def __init__(self, module: torch.nn.Module, steps: torch.fx.Graph, batch: int) -> None:
        super().__init__(module, graph=steps)
        self._batch = batch
        self._inside: dict[Node, int] = {}

    def run_node(self, n: Node) -> Any:
        sources = [source for source in n.all_input_nodes if source in self._inside]
        if sources:
            self._inside[n] = self._inside[sources[0]]
        name = getattr(n.target, "_opname", "") if n.op == "call_function" else ""
        if name not in _RULES and name not in _VIEWS:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        args = self._view(n, tuple(args)) if name in _VIEWS else _RULES[name](n, tuple(args))
        return n.target(*args, **kwargs)

    def _view(self, node: Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Let the output axis that holds the batch take what is there (-1)."""
        then, out = _static(node.args[0]), _static(node)
        if then is None or out is None:
            return args
        axis = _grown_axis(args[0].shape, then)
        if axis is None:
            return args
        before = prod(then[:axis]) * self._inside.get(node.args[0], 1)
        chosen = _axis_of_batch(before, self._batch, axis, out)
        if chosen is None:
            return args
        self._inside[node] = max(before // max(prod(out[:chosen]), 1), 1)
        sizes = list(out)
        sizes[chosen] = -1
        return (args[0], sizes, *args[2:])


def _axis_of_batch(before: int, batch: int, axis: int, out: tuple[int, ...]) -> int | None:
    """Where a view puts the batch, by row-major order.

    An output axis can hold the batch if what lies before it divides what lay before the batch, and the same
    behind. Axes of size one leave several: one that begins or ends where the batch did is likelier, and
    features (the last axis) hardly ever take the batch in.
    """
    behind = prod(out) // max(before * batch, 1)
    candidates = [
        i
        for i in range(len(out))
        if before % max(prod(out[:i]), 1) == 0
        and behind % max(prod(out[i + 1 :]), 1) == 0
        and out[i] % batch == 0
    ]

    def doubt(i: int) -> tuple[bool, bool, bool, bool]:
        begins, ends = prod(out[:i]) == before, prod(out[i + 1 :]) == behind
        return (not (begins and ends), i == len(out) - 1, i != axis, not ends)

    return min(candidates, key=doubt, default=None)


def _static(node: object) -> tuple[int, ...] | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, torch.Tensor) or not all(isinstance(s, int) for s in value.shape):
        return None
    return tuple(value.shape)


def _grown_axis(now: Shape, then: Shape) -> int | None:
    """The one axis whose size is no longer what it was."""
    axes = [i for i, (a, b) in enumerate(zip(now, then, strict=True)) if not _is(a, b)]
    return axes[0] if len(axes) == 1 else None


def _is(a: Any, b: int) -> bool:
    """Equal, without asking a symbolic size (a free batch is never a plain number)."""
    return isinstance(a, int) and a == b


def _expand(node: Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Axes that keep their size say so with -1."""
    then, out = _static(node.args[0]), _static(node)
    if then is None or out is None:
        return args
    extra = len(out) - len(then)
    sizes = [-1 if i >= extra and size == then[i - extra] else size for i, size in enumerate(out)]
    return (args[0], sizes, *args[2:])


def _cat(node: Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Constants (class tokens, positions) that had the captured batch are spread over the present one."""
    thens = [_static(source) for source in node.args[0]]
    if any(then is None for then in thens):
        return args
    tensors = list(args[0])
    grown = [
        (axis, tensor.shape[axis])
        for tensor, then in zip(tensors, thens, strict=True)
        if (axis := _grown_axis(tensor.shape, then)) is not None  # type: ignore[arg-type]
    ]
    if not grown:
        return args
    axis, size = grown[0]
    for i, (tensor, then) in enumerate(zip(tensors, thens, strict=True)):
        if _is(tensor.shape[axis], then[axis]):  # type: ignore[index]
            tensors[i] = _spread(tensor, axis, size)
    return (tensors, *args[1:])


def _spread(tensor: torch.Tensor, axis: int, size: Any) -> torch.Tensor:
    first = tensor if _is(tensor.shape[axis], 1) else tensor.narrow(axis, 0, 1)
    return first.expand(*[size if i == axis else -1 for i in range(tensor.dim())])


def _recurrent(_: Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Initial states `(layers, batch, width)` follow the batch of the sequence."""
    batch_first = args[-1]
    if not isinstance(batch_first, bool) or args[0].dim() != 3:
        return args
    size = args[0].shape[0 if batch_first else 1]
    states = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
    fixed = [_spread(s, 1, size) if isinstance(s.shape[1], int) else s for s in states]
    return (args[0], fixed if isinstance(args[1], (list, tuple)) else fixed[0], *args[2:])


_VIEWS = ("view", "reshape", "_unsafe_view")
_RULES: dict[str, Callable[[Node, tuple[Any, ...]], tuple[Any, ...]]] = {
    "expand": _expand,
    "cat": _cat,
    "stack": _cat,
    "lstm": _recurrent,
    "gru": _recurrent,
    "rnn_tanh": _recurrent,
}
