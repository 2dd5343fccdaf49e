"""A small INT8 quantizer and the networks that the Core ML tests lower; the grid's rules in forty lines."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from edgekit_converters.program import Program, QuantizedProgram, TensorInfo

aten = torch.ops.aten
ACTIVATION = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-128,
    quant_max=127,
    qscheme=torch.per_tensor_affine,
    observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-12),
)
SHARED_OPS = {
    aten.max_pool2d.default, aten.upsample_nearest2d.vec, aten.reshape.default, aten.view.default,
    aten.flatten.using_ints, aten.permute.default, aten.transpose.int, aten.pixel_shuffle.default,
    aten.slice.Tensor, aten.pad.default, aten.unsqueeze.default, aten.squeeze.dim,
}  # fmt: skip
ARITHMETIC = {aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor, aten.avg_pool2d.default,
              aten.adaptive_avg_pool2d.default, aten.mean.dim, aten.upsample_bilinear2d.vec}  # fmt: skip
WEIGHTED = {
    aten.conv1d.default: 0,
    aten.conv2d.default: 0,
    aten.conv_transpose2d.input: 1,
    aten.linear.default: 0,
}
FUSED = {
    aten.relu.default,
    aten.relu_.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.relu6.default,
}
RECURRENT = {aten.lstm.input, aten.gru.input}


def _weight(axis: int) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=axis,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-12),
    )


class GridQuantizer(Quantizer):  # type: ignore[misc]
    """int8 affine activations, int8 per-channel weights, one grid through shape-only ops."""

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if node.op == "call_function" and "quantization_annotation" not in node.meta:
                self._annotate(node)
        return model

    def _annotate(self, node: Node) -> None:
        inputs: dict[Node, Any] = {}
        output: Any = ACTIVATION
        tensors = [a for a in node.all_input_nodes if isinstance(a.meta.get("val"), torch.Tensor)]
        floats = [a for a in tensors if a.meta["val"].dtype == torch.float32]
        if node.target in WEIGHTED:
            inputs = {node.args[0]: ACTIVATION, node.args[1]: _weight(WEIGHTED[node.target])}
            output = None if _only_feeds_fused(node) else ACTIVATION
        elif node.target in FUSED:
            inputs = {} if _only_feeds_fused(node.args[0]) else {node.args[0]: ACTIVATION}
        elif node.target in ARITHMETIC:
            inputs = dict.fromkeys(floats, ACTIVATION)
            output = None if _only_feeds_fused(node) else ACTIVATION
        elif floats and (node.target in SHARED_OPS or node.target == aten.cat.default):
            first = floats[0]
            inputs = {first: ACTIVATION}
            shared = SharedQuantizationSpec((first, node))
            inputs.update(dict.fromkeys(floats[1:], shared))
            output = shared
        elif node.target in RECURRENT:
            inputs = {w: _weight(0) for w in node.args[2] if w.meta["val"].ndim == 2}
            inputs[node.args[0]] = ACTIVATION
            output = None
        else:
            return
        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map=inputs, output_qspec=output, _annotated=True
        )

    def validate(self, model: GraphModule) -> None:
        return None


def _only_feeds_fused(node: Node) -> bool:
    users = list(node.users)
    return node.target in (WEIGHTED.keys() | ARITHMETIC) and len(users) == 1 and users[0].target in FUSED


class Flat(nn.Module):
    """Returns a tuple whatever the network returns."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.net(*inputs)
        return result if isinstance(result, tuple) else (result,)


def example_program(
    module: nn.Module, example: tuple[torch.Tensor, ...], names: tuple[str, ...] = ("x",)
) -> Program:
    """Captures `module` the way the workbench does."""
    flat = Flat(module).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.export.export(flat, example).module(check_guards=False)
    outputs = flat(*example)
    return Program(
        graph=graph,
        inputs=tuple(_info(n, t) for n, t in zip(names, example, strict=True)),
        outputs=tuple(
            _info("output" if len(outputs) == 1 else f"output_{i}", t) for i, t in enumerate(outputs)
        ),
        example=example,
        dynamic_batch=False,
    )


def _info(name: str, t: torch.Tensor) -> TensorInfo:
    return TensorInfo(name, tuple(t.shape), str(t.dtype).removeprefix("torch."))


def quantized(
    module: nn.Module, example: tuple[torch.Tensor, ...], names: tuple[str, ...] = ("x",)
) -> QuantizedProgram:
    """Calibrates `module` on noise around `example` and folds its weights to int8."""
    source = example_program(module, example, names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_pt2e(copy.deepcopy(source.graph), GridQuantizer())
        for seed in range(2):
            prepared(*(_noise(t, seed) for t in example))
        graph = convert_pt2e(prepared, fold_quantize=True)
    program = Program(graph, source.inputs, source.outputs, example, dynamic_batch=False)
    return QuantizedProgram(program, (None,) * len(source.inputs), (None,) * len(source.outputs))


def _noise(t: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(t.shape, generator=generator) if t.is_floating_point() else t


class InvertedResidual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        mid = cin * expand
        self.residual = stride == 1 and cin == cout
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [nn.Conv2d(cin, mid, 1), nn.ReLU6()]
        layers += [nn.Conv2d(mid, mid, 3, stride, 1, groups=mid), nn.ReLU6(), nn.Conv2d(mid, cout, 1)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet_v2(classes: int = 1000) -> nn.Module:
    """MobileNetV2 with folded batch norms, for timing."""
    spec = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6()]
    cin = 32
    for expand, cout, n, stride in spec:
        for i in range(n):
            layers.append(InvertedResidual(cin, cout, stride if i == 0 else 1, expand))
            cin = cout
    layers += [
        nn.Conv2d(cin, 1280, 1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, classes),
    ]
    return nn.Sequential(*layers)
