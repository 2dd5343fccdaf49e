"""What flows through the converters: a float program, then the same program on the integer grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch
from torch.fx import GraphModule


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output of a program.

    Attributes:
        name: as the user's model names it (`x`, `tokens`, `logits`); outputs without a name are `output`
            or `output_0`, `output_1`, ….
        shape: concrete shape at batch one, e.g. `(1, 3, 224, 224)`.
        dtype: numpy name: "float32", "int64", "int32", "bool".
        batch: axis 0 is a batch that may grow.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    batch: bool = True


@dataclass(frozen=True)
class Program:
    """A float network as one ATen graph.

    Attributes:
        graph: callable with the flat inputs in order; returns a flat tuple. Ops are those of
            `torch.export.export(...).module()` (`aten.conv2d`, `aten.linear`, `aten.hardswish`, …, not the core
            decomposition), weights are `get_attr` nodes, no guards, no in-place ops, evaluation mode.
        inputs: one per placeholder.
        outputs: one per element of the output tuple.
        example: tensors of the input shapes at batch one, used for tracing only.
        dynamic_batch: the graph accepts any batch size on every input whose `batch` is true.
    """

    graph: GraphModule
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    example: tuple[torch.Tensor, ...]
    dynamic_batch: bool


@dataclass(frozen=True, slots=True)
class Grid:
    """Affine int8 grid of a tensor: `real = scale * (q - zero_point)`, `q` in [-128, 127]."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class QuantizedProgram:
    """A program on the INT8 grid; the single truth that every format is lowered from.

    Attributes:
        program: `graph` holds `torch.ops.quantized_decomposed.quantize_per_tensor/dequantize_per_tensor` pairs
            around every op that is on the grid. Weights are int8 buffers followed by
            `dequantize_per_channel` (torchao `convert_pt2e(fold_quantize=True)`); biases are float32 values that
            are exact multiples of `s_in * s_w`. Running it in torch is the quantized reference.
        input_grids: one per input, None where the input stays float or is an index.
        output_grids: one per output, None where the output stays float.
        kept_float: node name to the reason, for every op that could be on the grid and is not.
        weight_bits: 8, or 7 for targets whose integer kernels saturate.
        dynamic: linear layers whose weight is on the grid quantize their float input at each call, over what
            `DYNAMIC_RANGES` says of the format; formats that are not in it compute them in float.
    """

    program: Program
    input_grids: tuple[Grid | None, ...]
    output_grids: tuple[Grid | None, ...]
    kept_float: dict[str, str] = field(default_factory=dict)
    weight_bits: int = 8
    dynamic: bool = False


DYNAMIC_RANGES: Final = {"onnx": "tensor", "tflite": "row"}
"""Format to what one range is taken of at run time, by the kernels of its runtime: all of an input, or each row."""
