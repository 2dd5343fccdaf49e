"""Small programs for the clean-up tests."""

import warnings
from collections import Counter

import torch
from torch import Tensor, nn

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
