"""The conversion itself: one call of litert-torch between our unfolding and the file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.fx import GraphModule

from edgekit_converters.errors import LoweringError
from edgekit_converters.program import Program, QuantizedProgram
from edgekit_converters.quiet import quiet_native
from edgekit_converters.reference import dynamic_weights
from edgekit_converters.source import find_source
from edgekit_converters.tflite.barrier import stop_spreading
from edgekit_converters.tflite.hybrid import dynamic_linears
from edgekit_converters.tflite.layout import channels_last_rules
from edgekit_converters.tflite.shortcut import convolve_shortcuts
from edgekit_converters.tflite.unfold import unfold_weights

WAY_OUT: Final = "Replace the op in the model by supported ones, or leave tflite out of --format."
IMAGE_RANK: Final = 4


def export_tflite(
    program: QuantizedProgram | Program, path: Path, *, layout: str = "nchw", io_dtype: str = "float32"
) -> None:
    """Write a program as one TFLite file with batch size one.

    Integer inside; the ends are float32, or the integers themselves with `io_dtype="int8"`. int64 inputs and
    outputs become int32, which is what LiteRT has kernels for. Names of inputs and outputs are those of the
    program, in the default signature.

    Args:
        program: on the grid, or float for the float twin.
        path: file to write.
        layout: "nchw" keeps the axes of the torch model; "nhwc" takes inputs of rank 4 with channels last.
        io_dtype: "float32" or "int8".

    Raises:
        LoweringError: litert-torch is missing, or an op has no TFLite form.
        OSError: `path` cannot be written.
    """
    quantized = isinstance(program, QuantizedProgram)
    source = program.program if isinstance(program, QuantizedProgram) else program
    graph = source.graph
    if quantized:
        graph = unfold_weights(graph)
        convolve_shortcuts(graph)
        stop_spreading(graph)
    wrapped = _Named(graph, source, layout).eval()
    with quiet_native(), torch.no_grad():
        litert_torch = _import_litert()
        config = _quant_config() if quantized else None
        try:
            # The pairs at the ends have to go for integer ends; where there are none there is nothing to move.
            strict = io_dtype == "float32" or not _has_grid_at_ends(program)
            with _exact_grid(strict=strict), channels_last_rules():
                model = litert_torch.convert(wrapped, sample_kwargs=wrapped.example(), quant_config=config)
                content = model.model_content()
        except Exception as error:
            # The library raises whatever its MLIR bindings raise; each means that this graph has no TFLite
            # form.
            raise _lowering_error(source, error) from error
    if isinstance(program, QuantizedProgram) and program.dynamic:
        content = dynamic_linears(content, dynamic_weights(program))
    # Not by the library: its writer ends the process when the disk is full.
    path.write_bytes(content)


def _has_grid_at_ends(program: QuantizedProgram | Program) -> bool:
    return isinstance(program, QuantizedProgram) and any((*program.input_grids, *program.output_grids))


class _Named(nn.Module):  # type: ignore[misc]
    """The graph with keyword inputs and a dict of outputs, which is how litert-torch learns their names."""

    def __init__(self, graph: GraphModule, program: Program, layout: str) -> None:
        super().__init__()
        # Not `self.graph`: torch.export turns the module into a GraphModule, which owns that name.
        self.body = graph
        # litert-torch warns of training mode; an exported graph refuses `.eval()` because it has only one
        # mode.
        object.__setattr__(graph, "training", False)
        self.program = program
        self.last = [layout == "nhwc" and len(i.shape) == IMAGE_RANK for i in program.inputs]

    def eval(self) -> _Named:
        object.__setattr__(self, "training", False)
        return self

    def example(self) -> dict[str, torch.Tensor]:
        """Inputs at batch one, in the layout of the file."""
        tensors = zip(self.program.inputs, self.program.example, self.last, strict=True)
        return {
            _identifier(i.name): x.permute(0, 2, 3, 1).contiguous() if last else x for i, x, last in tensors
        }

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        tensors = [inputs[_identifier(i.name)] for i in self.program.inputs]
        args = [x.permute(0, 3, 1, 2) if last else x for x, last in zip(tensors, self.last, strict=True)]
        outputs = self.body(*args)

        return {_identifier(o.name): y for o, y in zip(self.program.outputs, outputs, strict=True)}


def _identifier(name: str) -> str:
    """A name that Python keywords and TFLite signatures both take."""
    return re.sub(r"\W", "_", name)


def _quant_config() -> Any:
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config()))


@contextmanager
def _exact_grid(*, strict: bool) -> Iterator[None]:
    """Have the converter take the quantize/dequantize pairs literally.

    Otherwise it moves them as it sees fit: float islands become hybrid ops, and the pairs at the ends of the
    graph are stripped. The option exists in its configuration, but `convert` does not pass it on.
    """
    from litert_converter.mlir._mlir_libs import converter_api_ext

    convert = converter_api_ext.run_convert_to_tfl_passes

    def literal(module: Any, manager: Any, config: Any) -> Any:
        config.strict_qdq_mode = strict
        return convert(module, manager, config)

    converter_api_ext.run_convert_to_tfl_passes = literal
    try:
        yield
    finally:
        converter_api_ext.run_convert_to_tfl_passes = convert


def _import_litert() -> Any:
    # Two allocators and a GPU probe less; neither is used here.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        import litert_torch
    except ImportError as error:
        raise LoweringError(
            format="tflite",
            op="the model",
            where="",
            why=f"litert-torch cannot be imported ({error})",
            way_out="Install it with `pip install 'edgekit[tflite]'`, or leave tflite out of --format.",
        ) from error
    return litert_torch


def _lowering_error(program: Program, error: Exception) -> LoweringError:
    if isinstance(error, LoweringError):
        return error
    text = f"{type(error).__name__}: {error}"
    for node in program.graph.graph.nodes:
        if node.op == "call_function" and str(node.target).removesuffix(".default") in text:
            return LoweringError(
                format="tflite",
                op=str(node.target).removesuffix(".default"),
                where=find_source(node),
                why="litert-torch has no lowering for it",
                way_out=WAY_OUT,
            )
    first = next((line for line in text.splitlines() if line.strip()), "unknown")
    return LoweringError(
        format="tflite", op="the model", where="", why=first[:300].rstrip("."), way_out=WAY_OUT
    )
