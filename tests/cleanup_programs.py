"""Small programs for the clean-up tests."""

import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgekit_converters.cleanup import clean
from edgekit_converters.program import Program, TensorInfo


def program_of(module: nn.Module, example: tuple[Tensor, ...], *, dynamic: bool = False) -> Program:
    """Exports a module at batch one, or with a free batch."""
    module.eval()
    drawn, shapes = example, None
    if dynamic:
        # A batch of one would be taken for a constant.
        drawn = tuple(torch.cat([tensor, tensor]) for tensor in example)
        shapes = tuple({0: torch.export.Dim("batch", max=64)} for _ in example)
    with warnings.catch_warnings():
        # Recurrent layers gather their weights anew while they are traced.
        warnings.filterwarnings("ignore", message="The tensor attribute")
        exported = torch.export.export(Flat(module, len(example)).eval(), drawn, dynamic_shapes=shapes)
    graph = exported.module(check_guards=False)
    outputs = graph(*example)
    return Program(
        graph=graph,
        inputs=tuple(_info(f"x{index}", tensor) for index, tensor in enumerate(example)),
        outputs=tuple(_info(f"output_{index}", tensor) for index, tensor in enumerate(outputs)),
        example=example,
        dynamic_batch=dynamic,
    )


def op_counts(program: Program) -> Counter[str]:
    """How often each op is called, by its name without overload: "conv2d", "hardtanh", ….

    Constants count as "get_attr".
    """
    graph = program.graph.graph
    return Counter(
        "get_attr"
        if node.op == "get_attr"
        else str(getattr(node.target, "__name__", node.target)).split(".")[0]
        for node in graph.nodes
        if node.op in ("call_function", "get_attr")
    )


class Flat(nn.Module):
    """Gives any model of one or two inputs a flat tuple of outputs."""

    def __init__(self, module: nn.Module, inputs: int) -> None:
        super().__init__()
        self.module = module
        self.inputs = inputs

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
        result = self.module(x) if self.inputs == 1 else self.module(x, y)
        if isinstance(result, dict):
            return tuple(result.values())
        return tuple(result) if isinstance(result, tuple | list) else (result,)


def _info(name: str, tensor: Tensor) -> TensorInfo:
    return TensorInfo(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


class Formula(nn.Module):
    """A function of tensors and layers as a module: `Formula(lambda x, conv: conv(x).relu(), conv)`."""

    def __init__(self, function: Callable[..., object], *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs, *self.layers)


def cleaned(
    function: Callable[..., object], *layers: nn.Module, shape: tuple[int, ...], dynamic: bool = False
) -> Program:
    """The cleaned program of `function`; fails when its output on other inputs is not the module's."""
    module = Formula(function, *layers).eval()
    generator = torch.Generator().manual_seed(3)
    program, _ = clean(program_of(module, (torch.randn(1, *shape, generator=generator),), dynamic=dynamic))
    batch = torch.randn(3 if dynamic else 1, *shape, generator=generator)
    with torch.no_grad():
        wanted = module(batch.clone())
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for want, got in zip(wanted, program.graph(batch), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    return program


def settled_norm(norm: nn.Module, seed: int = 0) -> nn.Module:
    """Gives a batch norm the statistics and parameters of a trained one."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (norm.running_mean, norm.weight, norm.bias):
        if tensor is not None:
            tensor.data.normal_(generator=generator)
    norm.running_var.uniform_(0.2, 3.0, generator=generator)
    return norm
