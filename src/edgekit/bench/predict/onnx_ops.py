"""Operators of a `.onnx` file: QDQ groups are one integer operator, as ONNX Runtime makes of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from edgekit.bench.predict.ops import (
    TO_SPACE,
    Op,
    Shape,
    behind,
    convolution,
    elementwise,
    piece,
    turned,
    weighted,
    whole_tensors,
)
from edgekit.errors import UsageError

# Only other axes for the same bytes, or known before the first run.
FREE: Final = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Shape", "Size", "Constant"}
    | {"ConstantOfShape", "Range", "Cast"}
)
# Fused into what they follow.
CLAMPS: Final = frozenset({"Relu", "Clip"})
BEFORE_CLAMP: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add"})
# Fused into convolutions in float.
BENT: Final = frozenset({"Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "LeakyRelu"})
ELEMENTWISE: Final[Mapping[str, str]] = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "QLinearSoftmax"), "softmax"),
    **dict.fromkeys(
        ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization"), "norm"
    ),
    "RMSNormalization": "norm",
    "BatchNormalization": "mul",
    **dict.fromkeys(
        (
            "Sigmoid",
            "Tanh",
            "Exp",
            "Log",
            "HardSwish",
            "HardSigmoid",
        ),
        "activation",
    ),
    **dict.fromkeys(("Pow", "Sqrt", "Div", "Sin", "Cos", "Swish"), "activation"),
    **dict.fromkeys(("Concat", "Slice", "Split", "Gather", "GatherND", "Expand", "Tile"), "move"),
    **dict.fromkeys(("ScatterND", "Compress"), "move"),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), "shuffle"),
    "Resize": "resize",
    "Pad": "pad",
    **dict.fromkeys(("Clip", "Relu", "LeakyRelu", "Min", "Max", "Abs", "Neg"), "clip"),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), "reduce"),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"), "collapse"),
    **dict.fromkeys(("Add", "Sub", "Sum", "Not", "And", "Or", "Equal", "Greater", "Less"), "add"),
    **dict.fromkeys(("GreaterOrEqual", "LessOrEqual", "Sign", "Floor", "Ceil", "Round", "Reciprocal"), "add"),
    "Mul": "mul",
    "PRelu": "prelu",
    **dict.fromkeys(("Softplus", "Mish"), "softplus"),
    **dict.fromkeys(("Elu", "Selu", "Celu"), "elu"),
    "Where": "choose",
    **dict.fromkeys(("Gelu", "Erf"), "gelu"),
    "Transpose": "transpose",
    "DynamicQuantizeLinear": "convert",
}
# What has no integer kernel in ONNX Runtime, or stands between the two.
NEVER_INTEGERS: Final = frozenset(
    {
        "Einsum",
        "QuantizeLinear",
        "DequantizeLinear",
        "LayerNormalization",
        "Gelu",
        "PRelu",
        "ConvTranspose",
        "LSTM",
        "GRU",
        "RNN",
    }
)
# Convolutions and pools work on channels in blocks, or last; these hand on what they get, and all others need the
# axes as they are.
BLOCKED: Final = frozenset({"Conv", "MaxPool", "AveragePool", "GlobalAveragePool"})
CARRIED: Final = frozenset(
    {"Add", "Mul", "Sub", "Relu", "Clip", "Sigmoid", "HardSwish", "HardSigmoid", "QuantizeLinear"}
    | {"DequantizeLinear", "BatchNormalization", "Concat", "Resize"}
)
CHANNELS_LAST: Final = (0, 2, 3, 1)
# They read no more than they write.
CUTTING: Final = frozenset({"Slice", "Gather", "GatherND"})
# Fewer channels than in a block are read as they are.
BLOCK: Final = 8
EIGHT_BITS: Final = (2, 3)  # TensorProto UINT8, INT8
POOLS: Final[Mapping[str, str]] = {"MaxPool": "pool", "AveragePool": "average", "LpPool": "average"}


def read(path: Path) -> tuple[Op, ...]:
    """Operators of a file at batch one, in its order.

    Raises:
        UsageError: it is no ONNX file, or its shapes do not follow from its inputs.
    """
    import onnx

    try:
        model = onnx.load(str(path))
        for value in model.graph.input:
            for axis in value.type.tensor_type.shape.dim:
                axis.dim_value = max(1, axis.dim_value)
        for value in (*model.graph.output, *model.graph.value_info):
            for axis in value.type.tensor_type.shape.dim:
                if axis.dim_param:
                    axis.ClearField("dim_param")
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # protobuf and the shape inference raise whatever their C++ side threw
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{path}: {first}", expected="an ONNX file", way_out="Write the file again, or give another."
        ) from error
    return tuple(_Graph(model.graph, path).ops())


class _Graph:
    """A graph with what is known of its tensors."""

    def __init__(self, graph: Any, path: Path) -> None:
        self.graph, self.path = graph, path
        self.shapes: dict[str, Shape] = {}
        self.integers: set[str] = set()
        for value in (*graph.input, *graph.value_info, *graph.output):
            axes = value.type.tensor_type.shape.dim
            self.shapes[value.name] = tuple(max(1, axis.dim_value) for axis in axes)
            if value.type.tensor_type.elem_type in EIGHT_BITS:
                self.integers.add(value.name)
        self.constants: set[str] = set()
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        for tensor in graph.initializer:
            self.shapes[tensor.name] = tuple(tensor.dims)
            self.constants.add(tensor.name)
        self.makers: dict[str, Any] = {}
        self.users: dict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            self.makers.update(dict.fromkeys(node.output, node))
            # What is made of constants alone is folded before the first run.
            if all(name in self.constants for name in node.input if name):
                self.constants.update(node.output)
            for name in node.input:
                self.users[name].append(node)
        self.outputs = {value.name for value in graph.output}

    def ops(self) -> Iterable[Op]:
        for node in self.graph.node:
            if not node.output or node.output[0] in self.constants or node.op_type in FREE:
                continue
            op = self._op(node)
            if op is not None:
                yield op
            yield from self._turned(node)
            if node.op_type in ("Softmax", "LogSoftmax"):
                yield from self._to_last(node)

    def _turned(self, node: Any) -> Iterable[Op]:
        """Copies into another order of axes that ONNX Runtime puts in front of a node."""
        blocked = node.op_type in BLOCKED
        if self._carries(node):
            return
        for name in dict.fromkeys(node.input):
            shape = self.shapes.get(name, ())
            images = len(shape) == 4 and shape[1] >= BLOCK and math.prod(shape[2:]) > 1
            if (
                name in self.makers
                and name not in self.constants
                and images
                and blocked != self._in_blocks(name)
            ):
                integers = name in self.integers or self.makers[name].op_type == "DequantizeLinear"
                label = f"order of {name}"
                if integers:
                    yield turned("int8", shape, CHANNELS_LAST, label)
                else:
                    yield elementwise(
                        "blocks", "float32", math.prod(shape), run=math.prod(shape[2:]), name=label
                    )

    def _to_last(self, node: Any) -> Iterable[Op]:
        """In float, what is not along the last axis has it put there and back."""
        shape = self._shape(node.input[0])
        axis, order = int(_attribute(node, "axis", -1)) % len(shape), list(range(len(shape)))
        if axis == len(shape) - 1 or self._in_integers(node):
            return
        order[axis], order[-1] = order[-1], order[axis]
        for source in (shape, tuple(shape[i] for i in order)):
            yield turned("float32", source, order, f"order of {node.name}")

    def _in_blocks(self, name: str) -> bool:
        """Is a tensor made by convolutions, or by what hands on their order?"""
        maker = self.makers.get(name)
        while maker is not None and self._carries(maker):
            maker = self.makers.get(maker.input[0])
        return maker is not None and maker.op_type in BLOCKED

    def _carries(self, node: Any) -> bool:
        """Does it hand on the order of axes? In float only what has equal shapes does."""
        if node.op_type not in CARRIED or (_interpolates(node) and not self._read_as_integers(node.input[0])):
            return False
        if node.op_type == "Concat" and not self._in_integers(node):
            return all(self._in_blocks(name) for name in node.input)
        shapes = {self.shapes.get(name) for name in node.input if name not in self.constants}
        return node.op_type not in ("Add", "Mul", "Sub") or len(shapes) == 1 or self._in_integers(node)

    def _op(self, node: Any) -> Op | None:
        kind = node.op_type
        if kind in ("QuantizeLinear", "DequantizeLinear"):
            return self._conversion(node)
        if kind in CLAMPS and self._follows(node):
            return None
        if self._is_swish(node) or (kind in BENT and self._ends_convolution(node)):
            return None
        precision = "int8" if self._in_integers(node) or kind.endswith("Integer") else "float32"
        read = _BY_TYPE.get(kind, _Graph._small)
        return read(self, node, precision, self._shape(node.output[0]))

    def _convolution(self, node: Any, precision: str, result: Shape) -> Op:
        groups = int(_attribute(node, "group", 1))
        return convolution(
            precision, self._shape(node.input[1]), groups, result, self._reads(node), node.name
        )

    def _small(self, node: Any, precision: str, result: Shape) -> Op:
        kind, elements = node.op_type, max(math.prod(result), self._reads(node, most=True))
        if kind in POOLS:
            taps = math.prod(_attribute(node, "kernel_shape", (1,)))
            # In blocks of channels, or with channels last, are only pools of images.
            found = POOLS[kind] if len(result) == 4 or precision == "int8" else "strip"
            return elementwise(found, precision, math.prod(result), taps=taps, name=node.name)
        source = self._shape(node.input[0])
        if kind == "Transpose":
            backwards = tuple(reversed(range(len(source))))
            return turned(precision, source, _attribute(node, "perm", backwards), node.name)
        found = ELEMENTWISE.get(kind, "add")
        if kind == "Slice" and len(node.input) > 4 and any(n != 1 for n in self._integers(node.input[4])):
            found = "slice"
        if kind in CUTTING:
            elements = math.prod(result)
        if kind == "Resize" and not _interpolates(node):
            found = "nearest"
        run = 1 if found == "slice" else self._run(node, source, result)
        if found == "resize" or (found == "nearest" and precision == "int8"):
            run = self._channels_together(node, source, result)
        if found == "collapse":
            run = self._behind(node, source)
        wide = TO_SPACE if kind == "DepthToSpace" else 1
        if found in ("add", "mul"):
            read = [name for name in node.input if name and name not in self.constants]
            wide = whole_tensors([math.prod(self._shape(name)) for name in read], elements)
        op = elementwise(found, precision, elements, run=run, wide=wide, name=node.name)
        return replace(op, unknown="" if kind in ELEMENTWISE else kind)

    def _behind(self, node: Any, source: Shape) -> int:
        """As `behind`, in the order of axes that there is when it runs."""
        axes = _attribute(node, "axes", ()) or [n for name in node.input[1:] for n in self._integers(name)]
        if not (self._in_integers(node) and self._in_blocks(node.input[0])):
            return behind(source, axes)
        # Integer convolutions leave channels last.
        order = [0, *range(2, len(source)), 1]
        return behind([source[axis] for axis in order], [order.index(axis % len(source)) for axis in axes])

    def _run(self, node: Any, source: Shape, result: Shape) -> int:
        """Elements that lie side by side before and after, or that belong together otherwise."""
        kind, rank = node.op_type, len(result)
        if kind in ("Softmax", "LogSoftmax"):
            return source[int(_attribute(node, "axis", -1)) % rank]
        if kind in ("LayerNormalization", "RMSNormalization"):
            return math.prod(source[_attribute(node, "axis", -1) % rank :])
        if kind in ("InstanceNormalization", "GroupNormalization"):
            return math.prod(source[2:])
        if kind in ("Concat", "Split"):
            whole = result if kind == "Concat" else source
            parts = len(node.input) if kind == "Concat" else len(node.output)
            return math.prod(whole[_attribute(node, "axis", 0) % rank :]) // max(1, parts)
        if ELEMENTWISE.get(kind) in ("move", "pad") and len(source) == rank:
            return piece(source, result)
        return 1

    def _channels_together(self, node: Any, source: Shape, result: Shape) -> int:
        """Channels that lie side by side: of axes that are last, and between integer convolutions."""
        if len(result) < 2:
            return 1
        if source[1] != result[1]:
            return result[-1]
        between = self._in_blocks(node.input[0]) and self._into_blocks(node.output[0])
        return result[1] if between and self._read_as_integers(node.input[0]) else 1

    def _read_as_integers(self, name: str) -> bool:
        maker = self.makers.get(name)
        return name in self.integers or (maker is not None and maker.op_type == "DequantizeLinear")

    def _into_blocks(self, name: str) -> bool:
        """Is a tensor read by convolutions, be it by way of what hands on the order?"""
        return any(
            user.op_type in BLOCKED or (user.op_type in CARRIED and self._into_blocks(user.output[0]))
            for user in self.users[name]
        )

    def _is_swish(self, node: Any) -> bool:
        """A tensor times its sigmoid: ONNX Runtime makes one operator of both, in float."""
        if node.op_type != "Mul" or node.input[0] == node.input[1]:
            return False
        for one, other in (node.input, reversed(node.input)):
            maker = self.makers.get(one)
            if maker is not None and maker.op_type == "Sigmoid" and list(maker.input) == [other]:
                return not self._in_integers(maker)
        return False

    def _ends_convolution(self, node: Any) -> bool:
        """Is it computed by the float convolution that it follows?"""
        maker = self.makers.get(node.input[0])
        alone = maker is not None and maker.op_type == "Conv" and len(self.users[node.input[0]]) == 1
        return alone and not self._in_integers(maker)

    def _integers(self, name: str) -> list[int]:
        """Of a constant; empty where it is none."""
        from onnx import numpy_helper

        found = self.stored.get(name)
        return [] if found is None else [int(n) for n in numpy_helper.to_array(found).ravel()]

    def _product(self, node: Any, precision: str, result: Shape) -> Op:
        left, constant = self._shape(node.input[0]), node.input[1] in self.constants
        depth = left[-1] if left else 1
        if node.op_type == "Gemm" and _attribute(node, "transA", 0):
            depth = left[0]
        outs = result[-1] if result else 1
        positions = max(1, math.prod(result) // max(1, outs))
        return weighted(
            "linear" if constant else "matmul",
            precision,
            (depth, outs, 1, positions),
            reads=self._reads(node),
            name=node.name,
        )

    def _summed(self, node: Any, precision: str, result: Shape) -> Op:
        """A product of two tensors in Einstein's notation; other sums are counted as an elementwise operator."""
        equation = _attribute(node, "equation", b"").decode().replace(" ", "")
        ins, _, out = equation.partition("->")
        terms = ins.split(",")
        if len(terms) != 2 or not out or not equation.replace(",", "").replace("->", "").isalpha():
            return self._small(node, precision, result)
        sizes: dict[str, int] = {}
        for term, name in zip(terms, node.input, strict=True):
            sizes.update(zip(term, self._shape(name), strict=True))
        depth = math.prod(size for letter, size in sizes.items() if letter not in out)
        outs = math.prod(sizes[letter] for letter in out if letter not in terms[0])
        positions = max(1, math.prod(result) // outs)
        shape = (depth, outs, 1, positions)
        return weighted("einsum", precision, shape, reads=self._reads(node), name=node.name)

    def _transposed(self, node: Any, precision: str, result: Shape) -> Op:
        """Each input position is multiplied by the whole filter."""
        del result
        weight, source = self._shape(node.input[1]), self._shape(node.input[0])
        groups = int(_attribute(node, "group", 1))
        outs, taps = weight[1], math.prod(weight[2:])
        positions = math.prod((source[0], *source[2:]))
        shape = (source[1] // groups, outs * groups, taps, positions)
        return weighted("transposed", precision, shape, reads=self._reads(node), name=node.name)

    def _recurrent(self, node: Any, precision: str, result: Shape) -> Op:
        """All steps of all directions."""
        del result
        inputs, again = self._shape(node.input[1]), self._shape(node.input[2])
        source = self._shape(node.input[0])
        directions = max(1, inputs[0])
        shape = (inputs[2] + again[2], inputs[1], 1, directions * source[0])
        return weighted("recurrent", precision, shape, reads=self._reads(node), name=node.name)

    def _conversion(self, node: Any) -> Op | None:
        """Between integers and floats that do meet; inside a group of integer operators there are none."""
        inside, outside = node.input[0], node.output[0]
        if node.op_type == "QuantizeLinear":
            maker = self.makers.get(inside)
            grouped = maker is not None and self._in_integers(_behind_clamps(self, maker))
        else:
            users = self.users[outside]
            grouped = (
                bool(users) and outside not in self.outputs and all(self._in_integers(user) for user in users)
            )
        if grouped:
            return None
        return elementwise("convert", "int8", math.prod(self._shape(outside)), name=node.name)

    def _in_integers(self, node: Any) -> bool:
        """Does it read integers, or stand between DequantizeLinear and QuantizeLinear?"""
        if node.op_type in NEVER_INTEGERS or _interpolates(node):
            return False
        if node.input and node.input[0] in self.integers:
            return True
        given = [name for name in node.input if name and name not in self.constants]
        makers = [self.makers.get(name) for name in given]
        if not makers or any(maker is None or maker.op_type != "DequantizeLinear" for maker in makers):
            return False
        return all(self._quantized(name) for name in node.output if name)

    def _quantized(self, name: str) -> bool:
        users = self.users[name]
        if not users or name in self.outputs:
            return False
        if len(users) == 1 and users[0].op_type in CLAMPS:
            return self._quantized(users[0].output[0])
        return all(user.op_type == "QuantizeLinear" for user in users)

    def _follows(self, node: Any) -> bool:
        maker = self.makers.get(node.input[0])
        return maker is not None and maker.op_type in BEFORE_CLAMP and len(self.users[node.input[0]]) == 1

    def _reads(self, node: Any, *, most: bool = False) -> int:
        """Elements of the activations that it reads, or of the largest of them."""
        sizes = [math.prod(self._shape(n)) for n in node.input if n and n not in self.constants]
        return max(sizes, default=0) if most else sum(sizes)

    def _shape(self, name: str) -> Shape:
        found = self.shapes.get(name)
        if found is None:
            raise UsageError(
                f"{self.path}: the shape of {name!r} is not known",
                expected="shapes that follow from the inputs",
                way_out="Export the model with fixed shapes but for the batch.",
            )
        return found


_BY_TYPE: Final[Mapping[str, Callable[[_Graph, Any, str, Shape], Op]]] = {
    **dict.fromkeys(("Conv", "ConvInteger"), _Graph._convolution),
    "ConvTranspose": _Graph._transposed,
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger"), _Graph._product),
    "Einsum": _Graph._summed,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _Graph._recurrent),
}


def _interpolates(node: Any) -> bool:
    return node.op_type == "Resize" and bool(_attribute(node, "mode", b"nearest") != b"nearest")


def _behind_clamps(graph: _Graph, node: Any) -> Any:
    """What a clamp stands behind."""
    while node.op_type in CLAMPS and node.input[0] in graph.makers:
        before = graph.makers[node.input[0]]
        if before.op_type not in BEFORE_CLAMP:
            return node
        node = before
    return node


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default
