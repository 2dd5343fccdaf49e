"""ONNX files of layers in float32, side by side as the INT8 ones are.

ONNX Runtime turns float convolutions into blocks of channels and back at the ends of a file. Inside a network the
results stay in blocks, so each copy hands on one pixel only, which costs nothing to turn back.
"""

from __future__ import annotations

import numpy as np

from edgekit.bench.layers import onnx_file
from edgekit.bench.layers.shape import LayerShape
from edgekit_converters.onnx.export import OPSET


def float_onnx_file(shape: LayerShape, copies: int, *, seed: int = 0) -> bytes:
    """The bytes of a file with one input `[1, in_channels, *size]` float32 and `copies` outputs.

    Args:
        shape: a convolution, or a linear layer, which reads `[rows, in_channels]`.
        copies: how many stand side by side.
        seed: of the weights.
    """
    from onnx import TensorProto, helper

    shape = onnx_file.as_exported(shape)
    file = onnx_file.File(np.random.default_rng(seed))
    op, attributes = onnx_file.spelled(shape)
    first, second = shape.out_channels, shape.in_channels // shape.groups
    if shape.transposed:
        first, second = shape.in_channels, shape.out_channels // shape.groups
    for index in range(copies):
        weight = file.generator.standard_normal((first, second, *shape.kernel), dtype=np.float32)
        bias = file.generator.standard_normal(shape.out_channels, dtype=np.float32)
        ins = ["x", file.constant(f"w{index}", weight), file.constant(f"b{index}", bias)]
        whole = f"y{index}" if shape.op == "linear" else f"whole{index}"
        file.nodes.append(helper.make_node(op, ins, [whole], **attributes))
        if shape.op != "linear":
            pool = {"kernel_shape": [1] * len(shape.size), "strides": list(shape.output_size)}
            file.nodes.append(helper.make_node("MaxPool", [whole], [f"y{index}"], **pool))
    ends = [(1, shape.in_channels, *shape.size), (1, shape.out_channels, *[1] * len(shape.size))]
    if shape.op == "linear":
        ends = [(shape.size[0], shape.in_channels), (shape.size[0], shape.out_channels)]
    graph = helper.make_graph(
        file.nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ends[0])],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ends[1]) for i in range(copies)],
        file.initializers,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    content: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=onnx_file.IR_VERSION
    ).SerializeToString()
    return content
