"""Operators of a `.tflite` file, read from its bytes; nothing is run."""

from __future__ import annotations

import importlib
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

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
)
from edgekit.errors import UsageError

FREE: Final = frozenset({"SHAPE", "CAST", "FILL", "RANGE"})
# The same bytes under other axes, in another place.
COPIES: Final = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS"})
ELEMENTWISE: Final = {
    **dict.fromkeys(("SOFTMAX", "LOG_SOFTMAX"), "softmax"),
    **dict.fromkeys(("L2_NORMALIZATION", "LOCAL_RESPONSE_NORMALIZATION"), "norm"),
    **dict.fromkeys(
        ("LOGISTIC", "TANH", "HARD_SWISH", "EXP", "LOG", "ELU", "POW", "SQRT", "RSQRT", "DIV"),
        "activation",
    ),
    **dict.fromkeys(("CONCATENATION", "SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V", "PAD", "PACK"), "move"),
    **dict.fromkeys(("UNPACK", "GATHER", "GATHER_ND", "TILE", "BROADCAST_TO", "REVERSE_V2"), "move"),
    **dict.fromkeys(("DEPTH_TO_SPACE", "SPACE_TO_DEPTH"), "shuffle"),
    **dict.fromkeys(COPIES, "copy"),
    "RESIZE_NEAREST_NEIGHBOR": "nearest",
    "RESIZE_BILINEAR": "resize",
    "MIRROR_PAD": "mirror",
    "PADV2": "pad",
    **dict.fromkeys(("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "ABS"), "clip"),
    **dict.fromkeys(("MINIMUM", "MAXIMUM", "NEG"), "clip"),
    "MEAN": "reduce",
    **dict.fromkeys(("SUM", "REDUCE_MAX", "REDUCE_MIN"), "collapse"),
    **dict.fromkeys(("MUL", "SQUARED_DIFFERENCE", "SQUARE"), "mul"),
    **dict.fromkeys(("QUANTIZE", "DEQUANTIZE"), "convert"),
    "TRANSPOSE": "transpose",
    "GELU": "gelu",
    **dict.fromkeys(("ADD", "SUB", "ADD_N"), "add"),
    "PRELU": "prelu",
    **dict.fromkeys(
        ("SELECT", "SELECT_V2", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "EQUAL"), "choose"
    ),
}
# Kernels of LiteRT itself, where XNNPACK has none for integers: tables that it looks up, and what it computes.
INTEGERS_LIKE: Final = {
    **dict.fromkeys(("EXP", "LOG"), "gelu"),
    **dict.fromkeys(("RELU", "RELU6", "RELU_N1_TO_1", "ABS", "HARD_SWISH", "SQUARED_DIFFERENCE"), "prelu"),
}
# What XNNPACK looks up in integers: 256 values.
LOOKED_UP: Final = frozenset({"LOGISTIC", "TANH", "LEAKY_RELU", "ELU", "QUANTIZE"})
PAIRED: Final = frozenset({"ADD", "SUB", "MUL"})
MOST_IN_TABLE: Final = 10
POOLS: Final = {"MAX_POOL_2D": "pool", "AVERAGE_POOL_2D": "average", "L2_POOL_2D": "average"}
# They read no more than they write.
CUTTING: Final = frozenset({"SLICE", "STRIDED_SLICE", "GATHER", "GATHER_ND"})
FOLDED: Final = FREE | COPIES | {"DEQUANTIZE", "QUANTIZE"}
# What is done to the weights of a transposed convolution.
TURNING: Final = frozenset({"REVERSE_V2", "TRANSPOSE"})
INTEGERS: Final = frozenset({"INT8", "UINT8", "INT16"})


def read(path: Path) -> tuple[Op, ...]:
    """Operators of the first subgraph of a file, in its order.

    Raises:
        UsageError: it is no TFLite file, or the schema of such files is not installed.
    """
    try:
        schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    except ImportError as error:
        raise UsageError(
            f"{path}: TFLite files cannot be read ({error})",
            expected="ai-edge-litert",
            way_out="pip install 'edgekit[tflite]'",
        ) from error
    try:
        content = path.read_bytes()
        if content[4:8] != b"TFL3":
            raise ValueError(f"begins with {content[:8]!r}")  # noqa: TRY301 - told like all that is wrong with a file
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        return tuple(_Graph(model, schema).ops())
    except UsageError:
        raise
    except Exception as error:  # a damaged flatbuffer raises whatever it meets
        raise UsageError(
            f"{path}: {error}", expected="a TFLite file", way_out="Write the file again, or give another."
        ) from error


class _Graph:
    """A subgraph with the names of its codes and types."""

    def __init__(self, model: Any, schema: Any) -> None:
        self.model, self.graph = model, model.subgraphs[0]
        self.codes: dict[int, str] = {
            v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)
        }
        self.types: dict[int, str] = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
        self.constants = {i for i, t in enumerate(self.graph.tensors) if self._has_content(t)}
        self.users: dict[int, list[str]] = defaultdict(list)
        for operator in self.graph.operators:
            for tensor in dict.fromkeys(map(int, operator.inputs)):
                self.users[tensor].append(self._code(operator))
        for tensor in self.graph.outputs:
            self.users[int(tensor)].append("")
        # What is looked up, and what all was computed on the way from one tensor to it.
        self.tables: dict[int, frozenset[int]] = {}
        self.turned: set[int] = set()

    def _code(self, operator: Any) -> str:
        code = self.model.operatorCodes[operator.opcodeIndex]
        return self.codes.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM")

    def _has_content(self, tensor: Any) -> bool:
        data = self.model.buffers[tensor.buffer].data
        return data is not None and len(data) > 0

    def ops(self) -> list[Op]:
        found: list[Op] = []
        for operator in self.graph.operators:
            name = self._code(operator)
            ins = [int(i) for i in operator.inputs if i >= 0]
            outs = [int(i) for i in operator.outputs]
            # Turned weights are turned anew in every call; the interpreter folds nothing but conversions.
            if name in FOLDED and all(i in self.constants for i in ins):
                self.constants.update(outs)
            elif name in TURNING and all(i in self.constants | self.turned for i in ins):
                # Part of the convolution that reads them.
                self.turned.update(outs)
            elif name not in FREE and outs and not self._fused(name, ins, outs):
                found.append(self._op(name, operator, ins, outs))
        return found

    def _fused(self, name: str, ins: list[int], outs: list[int]) -> bool:
        """XNNPACK pads inside of the convolution that reads, and makes one table of what follows from one tensor."""
        if name in ("PAD", "PADV2"):
            return self.users[outs[0]] in (["CONV_2D"], ["DEPTHWISE_CONV_2D"])
        if name not in LOOKED_UP | PAIRED or not {self._type(i) for i in (*ins, *outs)} <= INTEGERS:
            return False
        varying = {i for i in ins if not self._is_number(i)}
        for before in varying & self.tables.keys():
            known = self.tables[before]
            if len(self.users[before]) == 1 and varying <= known and len(known) <= MOST_IN_TABLE:
                self.tables[outs[0]] = known | {outs[0]}
                return True
        if len(varying) == 1 and not varying & self.constants:
            # A square is looked up, too, but nothing joins it.
            squared = len(ins) > 1 and ins[0] == ins[1]
            self.tables[outs[0]] = frozenset() if squared else frozenset({*varying, outs[0]})
        return False

    def _is_number(self, tensor: int) -> bool:
        """A constant of one element."""
        return tensor in self.constants and math.prod(self._shape(tensor)) == 1

    def _op(self, name: str, operator: Any, ins: list[int], outs: list[int]) -> Op:
        result, label = self._shape(outs[0]), f"{name} {self._name(outs[0])}"
        precision = self._precision(name, ins, outs)
        reads = sum(math.prod(self._shape(i)) for i in ins if i not in self.constants)
        if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            return self._convolution(name, precision, ins, result, reads, label)
        if name == "CONV_3D":
            *kernel, depth, filters = self._shape(ins[1])
            weight, channels_first = (filters, depth, *kernel), (result[0], result[-1], *result[1:-1])
            return convolution(precision, weight, 1, channels_first, reads, label)
        if name == "TRANSPOSE_CONV":
            weight, source = self._shape(ins[1]), self._shape(ins[2])
            shape = (source[-1], weight[0], math.prod(weight[1:3]), math.prod(source[:-1]))
            # XNNPACK takes constant weights only: with turned ones it runs as it does in INT8 files, on one thread.
            like = "int8" if ins[1] in self.turned else precision
            return weighted("transposed", like, shape, reads=reads, name=label)
        if name in ("FULLY_CONNECTED", "BATCH_MATMUL"):
            return self._product(name, operator, precision, ins, result, reads, label)
        if "LSTM" in name or "RNN" in name:
            source = self._shape(ins[0])
            shape = (source[-1] + result[-1], 4 * result[-1], 1, math.prod(source[:-1]))
            return weighted("recurrent", precision, shape, reads=reads, name=label)
        return self._small(name, operator, precision, ins, result, label)

    def _small(
        self, name: str, operator: Any, precision: str, ins: list[int], result: Shape, label: str
    ) -> Op:
        if name in POOLS:
            options = operator.builtinOptions
            taps = options.filterHeight * options.filterWidth
            return elementwise(POOLS[name], precision, math.prod(result), taps=taps, name=label)
        if name == "STABLEHLO_REDUCE_WINDOW":
            taps = math.prod(int(n) for n in operator.builtinOptions2.windowDimensions)
            return elementwise("window", precision, math.prod(result), taps=taps, name=label)
        if name == "TRANSPOSE" and ins[1] in self.constants:
            return turned(precision, self._shape(ins[0]), self._integers(ins[1]), label)
        most = max((math.prod(self._shape(i)) for i in ins if i not in self.constants), default=0)
        kind = "activation" if int(operator.outputs[0]) in self.tables else ELEMENTWISE.get(name, "add")
        if precision == "int8":
            kind = INTEGERS_LIKE.get(name, kind)
        unknown = "" if name in ELEMENTWISE else name
        if name == "STRIDED_SLICE" and any(step != 1 for step in self._integers(ins[3])):
            kind = "slice"
        if name == "RESIZE_NEAREST_NEIGHBOR" and not operator.builtinOptions.halfPixelCenters:
            kind = "repeat"
        if name in CUTTING:
            most = 0
        run, wide = 1 if kind == "slice" else self._run(name, operator, ins, result), 1
        elements = max(most, math.prod(result))
        if kind in ("add", "mul"):
            # A number for each channel is read anew for each pixel; what is as large, or a single number, is not.
            repeated = any(1 < math.prod(self._shape(i)) < elements for i in ins)
            run, wide = (result[-1], 1) if repeated else (1, 2)
        elif name == "DEPTH_TO_SPACE":
            wide = TO_SPACE
        found = elementwise(kind, precision, elements, run=run, wide=wide, name=label)
        return replace(found, unknown=unknown)

    def _run(self, name: str, operator: Any, ins: list[int], result: Shape) -> int:
        """Elements that lie side by side before and after, or that belong together otherwise."""
        source, elements = self._shape(ins[0]), math.prod(result)
        if name in COPIES:
            return elements
        if name in (
            "SOFTMAX",
            "LOG_SOFTMAX",
            "L2_NORMALIZATION",
            "RESIZE_NEAREST_NEIGHBOR",
            "RESIZE_BILINEAR",
        ):
            return result[-1] if result else 1
        if ELEMENTWISE.get(name) == "collapse":
            return behind(source, self._integers(ins[1]))
        if name == "CONCATENATION":
            axis = operator.builtinOptions.axis % len(result)
            return math.prod(result[axis:]) // len(ins)
        if ELEMENTWISE.get(name) in ("move", "pad", "mirror") and len(source) == len(result):
            return piece(source, result)
        return 1

    def _convolution(
        self, name: str, precision: str, ins: list[int], result: Shape, reads: int, label: str
    ) -> Op:
        weight, source = self._shape(ins[1]), self._shape(ins[0])
        channels_first = (result[0], result[3], *result[1:3])
        # Of a single channel it is an ordinary convolution, and is computed as one.
        if name == "DEPTHWISE_CONV_2D" and source[3] > 1:
            filters = (weight[3], 1, *weight[1:3])
            return convolution(precision, filters, max(2, source[3]), channels_first, reads, label)
        if name == "DEPTHWISE_CONV_2D":
            return convolution(precision, (weight[3], 1, *weight[1:3]), 1, channels_first, reads, label)
        filters = (weight[0], weight[3], *weight[1:3])
        return convolution(precision, filters, source[3] // weight[3], channels_first, reads, label)

    def _product(
        self, name: str, operator: Any, precision: str, ins: list[int], result: Shape, reads: int, label: str
    ) -> Op:
        left, right = self._shape(ins[0]), self._shape(ins[1])
        depth = right[-1] if name == "FULLY_CONNECTED" else left[-1]
        if name == "BATCH_MATMUL" and operator.builtinOptions.adjX:
            depth = left[-2]
        outs = result[-1] if result else 1
        kind = "linear" if ins[1] in self.constants else "matmul"
        return weighted(kind, precision, (depth, outs, 1, math.prod(result) // outs), reads=reads, name=label)

    def _precision(self, name: str, ins: list[int], outs: list[int]) -> str:
        """Of the result; integer weights between float ends are multiplied in integers, too."""
        if name in ("QUANTIZE", "DEQUANTIZE"):
            return "int8"
        compares = self._type(outs[0]) == "BOOL"
        types = {self._type((ins if compares else outs)[0])}
        if name in ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D"):
            types.add(self._type(ins[1]))
        return "int8" if types & INTEGERS else "float32"

    def _integers(self, tensor: int) -> list[int]:
        """Of a constant of int32 or int64; empty where it is none."""
        found, dtype = self.graph.tensors[tensor], {"INT32": "<i4", "INT64": "<i8"}.get(self._type(tensor))
        if tensor not in self.constants or dtype is None:
            return []
        return [int(n) for n in np.frombuffer(bytes(self.model.buffers[found.buffer].data), dtype)]

    def _shape(self, tensor: int) -> Shape:
        shape = self.graph.tensors[tensor].shape
        return tuple(max(1, int(n)) for n in (shape if shape is not None else ()))

    def _type(self, tensor: int) -> str:
        return self.types.get(self.graph.tensors[tensor].type, "")

    def _name(self, tensor: int) -> str:
        name = self.graph.tensors[tensor].name
        return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")
