"""The grid quantizer: a `GridPlan` as torchao PT2E annotations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from edgekit.stages.quantize.observers import ActivationObserver, PerChannelWeightObserver
from edgekit.stages.quantize.plan import GridPlan
from edgekit.stages.quantize.rules import RULES, Kind
from edgekit_converters.program import Grid

ACTIVATION_MIN, ACTIVATION_MAX = -128, 127


class GridQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates exactly what the plan says and nothing else.

    Args:
        plan: made by `make_plan` for the same graph.
        weight_bits: 8 → [-127, 127]; 7 → [-63, 63] for targets whose integer kernels saturate in 16 bits; and so on
            down to 4 → [-7, 7].
    """

    def __init__(self, plan: GridPlan, *, weight_bits: int = 8) -> None:
        super().__init__()
        self.plan = plan
        self.weight_max = 2 ** (weight_bits - 1) - 1

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write the annotations into `node.meta`."""
        by_name = {n.name: n for n in model.graph.nodes}
        inputs: dict[str, dict[Node, QuantizationSpecBase]] = {}
        for op, (weight, axis) in self.plan.weights.items():
            inputs.setdefault(op.split("#")[0], {})[by_name[weight]] = self._weight_spec(axis)
        for constant, op in self.plan.constants:
            inputs.setdefault(op, {})[by_name[constant]] = self._constant_spec(by_name, op)
        for name, node in by_name.items():
            root = self.plan.group.get(name)
            output = None if root is None else self._output_spec(name, by_name[root])
            edges = inputs.get(name, {})
            if root is None and not edges:
                continue
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                input_qspec_map=edges, output_qspec=output, allow_implicit_sharing=False, _annotated=True
            )
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: the plan was made from this graph."""

    def _constant_spec(self, by_name: dict[str, Node], op: str) -> QuantizationSpecBase:
        """What is concatenated lies on the common grid; an operand of arithmetic has its own."""
        if RULES.get(by_name[op].target) is Kind.SHARED:
            return SharedQuantizationSpec(by_name[self.plan.group[op]])
        return _activation_spec()

    def _output_spec(self, name: str, root: Node) -> QuantizationSpecBase:
        if root.name != name:
            return SharedQuantizationSpec(root)
        fixed = self.plan.fixed.get(name)
        return _fixed_spec(fixed) if fixed else _activation_spec()

    def _weight_spec(self, axis: int) -> QuantizationSpec:
        return QuantizationSpec(
            dtype=torch.int8,
            observer_or_fake_quant_ctr=_constructor(PerChannelWeightObserver),
            quant_min=-self.weight_max,
            quant_max=self.weight_max,
            qscheme=torch.per_channel_symmetric,
            ch_axis=axis,
        )


def _activation_spec() -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=_constructor(ActivationObserver),
        quant_min=ACTIVATION_MIN,
        quant_max=ACTIVATION_MAX,
        qscheme=torch.per_tensor_affine,
    )


def _fixed_spec(grid: Grid) -> FixedQParamsQuantizationSpec:
    return FixedQParamsQuantizationSpec(
        dtype=torch.int8,
        scale=grid.scale,
        zero_point=grid.zero_point,
        quant_min=ACTIVATION_MIN,
        quant_max=ACTIVATION_MAX,
        qscheme=torch.per_tensor_affine,
    )


def _constructor(observer: type[torch.nn.Module]) -> Callable[..., torch.nn.Module]:
    return observer
