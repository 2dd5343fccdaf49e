"""The conversion itself: one call of coremltools between our capture and our package writer."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from edgekit_converters.coreml.capture import WAY_OUT, can_decompose, capture
from edgekit_converters.coreml.elementary import ELEMENTARY, MISREAD
from edgekit_converters.coreml.package import write_package
from edgekit_converters.coreml.quiet import borrowed
from edgekit_converters.coreml.recurrent import RECURRENT
from edgekit_converters.errors import LoweringError
from edgekit_converters.program import Program, QuantizedProgram, TensorInfo
from edgekit_converters.source import find_source


def export_coreml(program: QuantizedProgram, path: Path) -> None:
    """Writes a program on the INT8 grid as a Core ML package (ML program, W8A8, iOS 17 and macOS 14).

    Inputs and outputs carry the program's names; characters outside `[A-Za-z0-9_]`, which Core ML does not
    take, become `_`. Batch size is one. int64 and bool tensors become int32 at the ends.

    Args:
        program: what to write.
        path: the package directory, made anew; by custom it ends in `.mlpackage`. The same program gives the
            same bytes wherever and whenever it is written.

    Raises:
        LoweringError: coremltools is missing, or it cannot express an op.
        OSError: `path` cannot be written.
    """
    with borrowed({**ELEMENTARY, **RECURRENT}) as coremltools:
        from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

        supported = set(_TORCH_OPS_REGISTRY.name_to_func_mapping) - MISREAD
        model = _lower(coremltools, program.program, supported)
        write_package(model.get_spec(), Path(model.weights_dir) / "weight.bin", path)


def _lower(coremltools: Any, program: Program, supported: set[str]) -> Any:
    """Converts; an op whose conversion fails on its arguments is decomposed, and all begins anew."""
    try:
        exported = capture(program, supported)
    except LoweringError:
        raise
    except Exception as error:  # torch.export has no common error either
        raise _lowering_error(error, None) from error
    while True:
        try:
            return _convert(coremltools, exported, program)
        except Exception as error:
            # Not narrower: the converter passes on whatever numpy, its asserts and its table look-ups raise.
            kind = _kind_in_conversion(error)
            if kind not in supported or not can_decompose(kind, exported):
                raise _lowering_error(error, exported) from error
            supported = supported - {kind}
            try:
                exported = capture(program, supported)
            except Exception:  # noqa: BLE001 -- as above
                # The decomposition leads nowhere; the first failure is the one that the user can act on.
                raise _lowering_error(error, exported) from error


def _convert(coremltools: Any, exported: ExportedProgram, program: Program) -> Any:
    return coremltools.convert(
        exported,
        inputs=[
            coremltools.TensorType(name=i.name, dtype=_end_dtype(coremltools, i)) for i in program.inputs
        ],
        outputs=[coremltools.TensorType(name=o.name) for o in program.outputs],
        minimum_deployment_target=coremltools.target.iOS17,
        # Scales are float32 values: in float16 they, and every value between two quantizations, lose 13 bits.
        # Results would cross rounding boundaries, and the grid would not be the one that was calibrated.
        compute_precision=coremltools.precision.FLOAT32,
        skip_model_load=True,
    )


def _end_dtype(coremltools: Any, info: TensorInfo) -> Any:
    # Core ML arrays are floats or int32; None keeps the exported type, of which int64 becomes int32.
    return coremltools.converters.mil.mil.types.int32 if info.dtype == "bool" else None


def _node_in_conversion(error: Exception) -> Any:
    # coremltools keeps the node in the frame of its node loop and does not put it into the exception.
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "convert_single_node":
            return frame.f_locals["node"]
    return None


def _kind_in_conversion(error: Exception) -> str:
    converted = _node_in_conversion(error)
    return converted.kind if converted is not None else ""


def _lowering_error(error: Exception, exported: ExportedProgram | None) -> LoweringError:
    converted = _node_in_conversion(error)
    name = converted.name if converted is not None else None
    nodes = exported.graph.nodes if exported is not None else ()
    node = next((n for n in nodes if n.name == name), None)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return LoweringError(
        format="coreml",
        op=f"aten.{converted.kind}" if converted is not None else "the graph",
        where=find_source(node) if node else "",
        why=lines[0].rstrip("."),
        way_out=WAY_OUT,
    )
