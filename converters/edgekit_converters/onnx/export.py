"""The conversion: torch's exporter gives the graph, our rewrites give it the form that fuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import torch

from edgekit_converters.errors import LoweringError
from edgekit_converters.onnx.dynamic import dynamic_linears
from edgekit_converters.onnx.names import free_end_names
from edgekit_converters.onnx.rewrites import REWRITES
from edgekit_converters.program import Program, QuantizedProgram
from edgekit_converters.quiet import quiet_torch
from edgekit_converters.source import find_source
from edgekit_converters.store import batched, capture

OPSET: Final = 18
"""The oldest opset that torch writes; ONNX Runtime reads it from 1.14 on, so old device images can."""

GELU_OPSET: Final = 20
"""The first opset with Gelu; spelled out in parts it takes twice the time. ONNX Runtime 1.17."""

WAY_OUT: Final = "Replace the op in the model by supported ones, or leave onnx out of --format."


def export_onnx(program: QuantizedProgram | Program, path: Path) -> None:
    """Write a program as one self-contained ONNX file.

    A quantized program becomes QDQ with uint8 activations: zero points are shifted by 128, the grid is the
    same. ONNX Runtime's x86 kernels fuse only that form, its ARM kernels fuse both. Linear layers of a dynamic
    program become DynamicQuantizeLinear and MatMulInteger. The batch dimension is dynamic where the program
    allows it. The same program gives the same bytes.

    Args:
        program: on the grid, or float for the float twin.
        path: file to write.

    Raises:
        LoweringError: an op has no ONNX form.
    """
    import onnx_ir as ir

    source = program.program if isinstance(program, QuantizedProgram) else program
    model = _torch_export(source)
    free_end_names(model)
    dynamic = isinstance(program, QuantizedProgram) and program.dynamic
    for rewrite in (dynamic_linears, *REWRITES) if dynamic else REWRITES:
        rewrite(model)
    _tidy(model)
    ir.save(model, path)


def _torch_export(program: Program) -> Any:
    args = batched(program)[0] if program.dynamic_batch else program.example
    with quiet_torch():
        try:
            exported = capture(program)
            onnx_program = torch.onnx.export(
                exported,
                args,
                dynamo=True,
                opset_version=GELU_OPSET if _has_gelu(program) else OPSET,
                input_names=[i.name for i in program.inputs],
                output_names=[o.name for o in program.outputs],
                optimize=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise _lowering_error(program, error) from error
    return onnx_program.model


def _has_gelu(program: Program) -> bool:
    return bool(program.graph.graph.find_nodes(op="call_function", target=torch.ops.aten.gelu.default))


def _lowering_error(program: Program, error: Exception) -> LoweringError:
    """Name the op and its line; torch's exporter says them somewhere in a chain of causes."""
    text = ""
    cause: BaseException | None = error.__cause__ or error
    while cause is not None:
        text = f"{text}\n{cause}"
        cause = cause.__cause__
    # An op that is decomposed on the way is named by its parts: `aten.erfinv` by `prims.erf_inv`.
    parts = {name.replace("_", "") for name in re.findall(r"target=torch\.ops\.\w+\.(\w+)", text)}
    for node in program.graph.graph.nodes:
        if node.op != "call_function":
            continue
        base = str(node.target).split(".")[1] if "." in str(node.target) else node.name
        if str(node.target) in text or f"'{node.name}'" in text or base.replace("_", "") in parts:
            return LoweringError(
                format="onnx",
                op=str(node.target).removesuffix(".default"),
                where=find_source(node),
                why="torch.onnx has no translation for it",
                way_out=WAY_OUT,
            )
    return LoweringError(
        format="onnx",
        op="the model",
        where="",
        why=text.strip().splitlines()[0][:300].rstrip("."),
        way_out=WAY_OUT,
    )


def _tidy(model: Any) -> None:
    """Drop what differs between machines (paths in stack traces) and what nobody reads."""
    model.producer_name, model.producer_version = "edgekit", ""
    model.doc_string = ""
    model.metadata_props.clear()
    graph = model.graph
    graph.name = "edgekit"
    graph.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for out in node.outputs:
            out.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()


def opset_of(path: Path) -> int:
    """Opset of a saved file."""
    import onnx_ir as ir

    return int(ir.load(path).graph.opset_imports[""])
