"""The quantized reference: the graph in torch, with convolutions and linear layers in exact integers.

Integer kernels accumulate int8 products in int32 and multiply the sum once, in float32, by `s_in * s_w / s_out`
before they round. The same order of operations here gives the same integers, bit for bit; a float convolution of
dequantized values would put every value that lies close to a rounding tie on a side of its own.
"""

from __future__ import annotations

import operator
from typing import Any, Final

import torch
from torch.fx import GraphModule, Interpreter, Node

from edgekit_converters.program import QuantizedProgram

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed

INTEGER_OPS: Final = frozenset(
    {aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding, aten.linear.default}
)
CHANNEL_AXIS: Final = 1


class Reference:
    """Runs a quantized program as the integer kernels do.

    Args:
        program: on the grid; its graph is not changed.
    """

    def __init__(self, program: QuantizedProgram) -> None:
        self._graph = program.program.graph
        self._plan = {n: p for n in self._graph.graph.nodes if (p := _plan(self._graph, n)) is not None}

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Outputs for one batch, in the order of the program."""
        with torch.no_grad():
            return tuple(_Run(self._graph, self._plan).run(*inputs))


class _Integer:
    """Constants of one integer layer: weights and bias as float32 integers, `s_in * s_w` per channel."""

    def __init__(self, graph: GraphModule, node: Node) -> None:
        x, w = node.args[0], node.args[1]
        assert isinstance(x, Node)
        assert isinstance(w, Node)
        scales = _constant(graph, w.args[1])
        self.input_scale = float(x.args[1])
        self.weight = _constant(graph, w.args[0]).to(torch.float32)
        self.scale = torch.tensor(self.input_scale) * scales.to(torch.float32)
        bias = node.args[2] if len(node.args) > 2 else None
        steps = scales.to(torch.float64) * self.input_scale
        self.bias = (
            None if bias is None else (_constant(graph, bias).to(torch.float64) / steps).round().float()
        )


class _Run(Interpreter):  # type: ignore[misc]
    """One pass; the sums of integer layers wait for the quantize op that reads them."""

    def __init__(self, graph: GraphModule, plan: dict[Node, _Integer]) -> None:
        super().__init__(graph)
        self.plan = plan

    def run_node(self, n: Node) -> Any:
        layer = self.plan.get(n)
        if layer is not None:
            return self._sum(n, layer)
        source = n.args[0] if n.args else None
        if n.target is qd.quantize_per_tensor.default and isinstance(source, Node):
            return self._requantize(n, source) if source in self.plan else self._quantize(n)
        return super().run_node(n)

    def _quantize(self, node: Node) -> torch.Tensor:
        """The nearest integer to `x / scale`; torch's own op multiplies by a rounded reciprocal instead."""
        (x, scale, zero_point, low, high, *_), _ = self.fetch_args_kwargs_from_env(node)
        divisor = torch.tensor(float(scale), dtype=torch.float32)
        return torch.clamp(torch.round(x / divisor) + zero_point, low, high).to(torch.int8)

    def _sum(self, node: Node, layer: _Integer) -> torch.Tensor:
        """int32 sums as float32; |sum| < 2^24 is exact, beyond it int32 → float32 rounds as the kernels do."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        integers = torch.round(args[0] / layer.input_scale)
        result = node.target(integers, layer.weight, layer.bias, *args[3:], **kwargs)
        assert isinstance(result, torch.Tensor)
        return result.round_()

    def _requantize(self, node: Node, source: Node) -> torch.Tensor:
        sums = self.env[source]
        scale, zero_point, low, high = node.args[1:5]
        factor = self.plan[source].scale / torch.tensor(float(scale), dtype=torch.float32)
        if source.target is not aten.linear.default:
            factor = factor.reshape(-1, *[1] * (sums.dim() - 1 - CHANNEL_AXIS))
        return torch.clamp(torch.round(sums * factor) + zero_point, low, high).to(torch.int8)


def _plan(graph: GraphModule, node: Node) -> _Integer | None:
    """Constants of a layer whose input, weight and every reader are on the grid; None for everything else."""
    if node.op != "call_function" or node.target not in INTEGER_OPS or not node.users:
        return None
    x, w = node.args[0], node.args[1]
    on_grid = (
        isinstance(x, Node)
        and isinstance(w, Node)
        and x.target is qd.dequantize_per_tensor.default
        and w.target is qd.dequantize_per_channel.default
        and all(u.target is qd.quantize_per_tensor.default for u in node.users)
    )
    bias = node.args[2] if len(node.args) > 2 else None
    if not on_grid or not (bias is None or (isinstance(bias, Node) and bias.op == "get_attr")):
        return None
    return _Integer(graph, node)


def _constant(graph: GraphModule, node: Any) -> torch.Tensor:
    value = operator.attrgetter(str(node.target))(graph)
    assert isinstance(value, torch.Tensor)
    return value.detach()
