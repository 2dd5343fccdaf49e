"""The quantized reference: the graph in torch, with convolutions and linear layers in exact integers.

Integer kernels accumulate int8 products in int32 and multiply the sum once, in float32, by `s_in * s_w / s_out`
before they round. The same order of operations here gives the same integers, bit for bit; a float convolution of
dequantized values would put every value that lies close to a rounding tie on a side of its own.

Linear layers that quantize their input at run time take the range of what they are given, zero included, in 255 steps
(ONNX `DynamicQuantizeLinear`, XNNPACK's qd8); their output is float.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch.fx import GraphModule, Interpreter, Node

from edgekit_converters.program import DYNAMIC_RANGES, QuantizedProgram

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed

INTEGER_OPS: Final = frozenset(
    {aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding, aten.linear.default}
)
CHANNEL_AXIS: Final = 1
# Steps of a range that is found at run time.
STEPS: Final = 255

Disturb = Callable[[torch.Tensor], torch.Tensor]


class Reference:
    """Runs a quantized program as the integer kernels do.

    Args:
        program: on the grid; its graph is not changed.
        format: whose kernels; what is quantized at run time depends on it. None computes that in float.
        disturb: given activations in steps of their grid right before they are rounded; returns what is rounded.
    """

    def __init__(
        self, program: QuantizedProgram, format: str | None = None, *, disturb: Disturb | None = None
    ) -> None:
        self._graph = program.program.graph
        nodes = self._graph.graph.nodes
        self._plan = {n: p for n in nodes if (p := _plan(self._graph, n)) is not None}
        self._range = DYNAMIC_RANGES.get(format or "") if program.dynamic else None
        self._dynamic = {n: _Dynamic(self._graph, n) for n in nodes if self._range and is_dynamic(n)}
        self._disturb = disturb or _as_it_is

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Outputs for one batch, in the order of the program."""
        with torch.no_grad():
            run = _Run(
                self._graph, self._plan, self._dynamic, by_row=self._range == "row", disturb=self._disturb
            )
            return tuple(run.run(*inputs))


def is_dynamic(node: Node) -> bool:
    """A linear layer that a dynamic program quantizes the input of: its weight is on the grid, its input is float."""
    if node.op != "call_function" or node.target is not aten.linear.default:
        return False
    x, w = node.args[0], node.args[1]
    return (
        isinstance(x, Node)
        and isinstance(w, Node)
        and x.target is not qd.dequantize_per_tensor.default
        and w.target is qd.dequantize_per_channel.default
    )


def dynamic_weights(program: QuantizedProgram) -> frozenset[bytes]:
    """Weights of the layers of `is_dynamic`, int8 `[outputs, inputs]`, as their bytes."""
    graph = program.program.graph
    return frozenset(
        _constant(graph, weight.args[0]).contiguous().numpy().tobytes()
        for node in graph.graph.nodes
        if is_dynamic(node) and isinstance(weight := node.args[1], Node)
    )


def _as_it_is(x: torch.Tensor) -> torch.Tensor:
    return x


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


class _Dynamic:
    """Constants of one linear layer whose input is quantized at run time: weights as integers, their scales, bias."""

    def __init__(self, graph: GraphModule, node: Node) -> None:
        w = node.args[1]
        assert isinstance(w, Node)
        self.weight = _constant(graph, w.args[0]).to(torch.float32)
        self.scales = _constant(graph, w.args[1]).to(torch.float32)


class _Run(Interpreter):  # type: ignore[misc]
    """One pass; the sums of integer layers wait for the quantize op that reads them."""

    def __init__(
        self,
        graph: GraphModule,
        plan: Mapping[Node, _Integer],
        dynamic: Mapping[Node, _Dynamic],
        *,
        by_row: bool,
        disturb: Disturb,
    ) -> None:
        super().__init__(graph)
        self.plan, self.dynamic, self.by_row, self.disturb = plan, dynamic, by_row, disturb

    def run_node(self, n: Node) -> Any:
        layer = self.plan.get(n)
        if layer is not None:
            return self._sum(n, layer)
        if n in self.dynamic:
            return self._linear(n, self.dynamic[n])
        source = n.args[0] if n.args else None
        if n.target is qd.quantize_per_tensor.default and isinstance(source, Node):
            return self._requantize(n, source) if source in self.plan else self._quantize(n)
        return super().run_node(n)

    def _quantize(self, node: Node) -> torch.Tensor:
        """The nearest integer to `x / scale`; torch's own op multiplies by a rounded reciprocal instead."""
        (x, scale, zero_point, low, high, *_), _ = self.fetch_args_kwargs_from_env(node)
        divisor = torch.tensor(float(scale), dtype=torch.float32)
        steps = torch.round(self.disturb(x / divisor))
        return torch.clamp(steps + zero_point, low, high).to(torch.int8)

    def _linear(self, node: Node, layer: _Dynamic) -> torch.Tensor:
        """Sums of integers times both scales, then the bias; a row of zeros has the scale 1."""
        (x, _, *rest), kwargs = self.fetch_args_kwargs_from_env(node)
        bias = rest[0] if rest else kwargs.get("bias")
        low, high = (
            (x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)) if self.by_row else (x.min(), x.max())
        )
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        scale = torch.where(high > low, (high - low) / STEPS, 1.0)
        zero_point = torch.round((-low / scale).clamp(0, STEPS))
        integers = torch.clamp(torch.round(self.disturb(x / scale)) + zero_point, 0, STEPS) - zero_point
        real = node.target(integers, layer.weight) * (scale * layer.scales)
        return real if bias is None else real + bias

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
        steps = torch.round(self.disturb(sums * factor))
        return torch.clamp(steps + zero_point, low, high).to(torch.int8)


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
