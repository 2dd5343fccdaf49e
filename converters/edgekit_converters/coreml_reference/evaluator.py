"""Runs the plan of a package on arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit_converters.coreml_reference.package import broken_package, read_package
from edgekit_converters.coreml_reference.plan import plan_block
from edgekit_converters.coreml_reference.steps import Block, Name, Step
from edgekit_converters.errors import LoweringError

# ArrayFeatureType.ArrayDataType of FeatureTypes.proto.
INPUT_TYPES: dict[int, type[np.generic]] = {
    65552: np.float16,
    65568: np.float32,
    65600: np.float64,
    131104: np.int32,
}
# A loop in an untrusted file must end; the longest that we emit has one round a time step.
MAX_ROUNDS = 1_000_000


class CoreMLReference:
    """A saved `.mlpackage`, evaluated by the definitions of its MIL ops.

    Integers are exact: quantize divides by the scale, rounds half to even, adds the zero point and
    saturates. Floats are float32 as the file says; sums may be in another order than on a device.

    Args:
        path: the package directory.

    Raises:
        LoweringError: it is not a readable package, or has an op that this evaluator does not know.
    """

    def __init__(self, path: Path) -> None:
        package = read_package(Path(path))
        program = package.spec.mlProgram
        if "main" not in program.functions:
            raise broken_package(path, "its program has no function `main`")
        function = program.functions["main"]
        if function.opset not in function.block_specializations:
            raise broken_package(path, f"its program has no block for opset {function.opset!r}")
        message = function.block_specializations[function.opset]
        self._path = Path(path)
        self._message = message
        self._block = plan_block(message, package, {})
        description = package.spec.description
        self._inputs = {i.name: i.type.multiArrayType for i in description.input}
        self.input_names: tuple[str, ...] = tuple(self._inputs)
        self.output_names: tuple[str, ...] = tuple(o.name for o in description.output)
        if len(message.outputs) != len(self.output_names):
            raise broken_package(path, "its description and its program differ in outputs")

    def ops(self) -> Counter[str]:
        """Counts the ops of the program by MIL type, nested blocks and constants included."""
        return Counter(_op_types(self._message))

    def predict(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Evaluates the program.

        Args:
            inputs: one array for each input name, of its shape. All may have N samples on axis 0 where the
                model takes one; they are then evaluated one by one and the outputs joined on axis 0.

        Returns:
            One array for each output name.

        Raises:
            LoweringError: an input is missing, unknown or of another shape; or an op fails on its arguments.
        """
        if set(inputs) != set(self._inputs):
            raise self._refused(f"the inputs are {sorted(inputs)}", f"expected {sorted(self._inputs)}")
        samples = [self._predict_one(one) for one in self._samples(inputs)]
        if len(samples) == 1:
            return samples[0]
        return {name: np.concatenate([s[name] for s in samples]) for name in self.output_names}

    def _samples(self, inputs: dict[str, NDArray[Any]]) -> Iterator[dict[str, torch.Tensor]]:
        counts = set()
        for name, kind in self._inputs.items():
            expected, got = tuple(kind.shape), tuple(np.shape(inputs[name]))
            if got == expected:
                counts.add(1)
            elif (
                expected
                and got[1:] == expected[1:]
                and len(got) == len(expected)
                and expected[0] == 1
                and got[0]
            ):
                counts.add(got[0])
            else:
                raise self._refused(f"input {name!r} has shape {got}", f"expected {expected}")
        if len(counts) > 1:
            raise self._refused(f"the inputs have {sorted(counts)} samples", "expected one count")
        for index in range(max(counts, default=1)):
            yield {
                name: torch.from_numpy(
                    np.ascontiguousarray(
                        array[index : index + 1] if array.shape != tuple(kind.shape) else array,
                        INPUT_TYPES.get(kind.dataType, np.float32),
                    )
                )
                for name, kind, array in ((n, k, np.asarray(inputs[n])) for n, k in self._inputs.items())
            }

    def _predict_one(self, inputs: dict[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            results = _run(self._block, dict(inputs))
        return {n: r.numpy() for n, r in zip(self.output_names, results, strict=True)}

    def _refused(self, found: str, expected: str) -> LoweringError:
        return LoweringError(
            format="coreml",
            op="the input",
            where=str(self._path),
            why=f"{found}, {expected}",
            way_out="Give every input of the model, in its own shape or with more samples on axis 0.",
        )


def _op_types(block: Any) -> Iterator[str]:
    for operation in block.operations:
        yield operation.type
        for nested in operation.blocks:
            yield from _op_types(nested)


def _run(block: Block, values: dict[str, Any]) -> list[Any]:
    for step in block.steps:
        results = _evaluate(step, values)
        if not isinstance(results, (tuple, list)):
            results = (results,)
        values.update(zip(step.outputs, results, strict=True))
        for name in step.spent:
            values.pop(name, None)
    return [_look_up(o, values) for o in block.outputs]


def _look_up(item: Any, values: dict[str, Any]) -> Any:
    return values[item.name] if isinstance(item, Name) else item


def _evaluate(step: Step, values: dict[str, Any]) -> Any:
    try:
        arguments: dict[str, Any] = {
            key: [_look_up(i, values) for i in bound] if isinstance(bound, tuple) else values[bound.name]
            for key, bound in step.variables.items()
        }
        if step.function is not None:
            return step.function(**step.constants, **arguments)
        return _while(step, arguments, values) if step.op == "while_loop" else _cond(step, arguments, values)
    except (RuntimeError, IndexError, KeyError, ValueError, TypeError, NotImplementedError) as error:
        raise LoweringError(
            format="coreml",
            op=f"MIL {step.op}",
            where=", ".join(step.outputs),
            why=f"the reference evaluator fails on it ({error})",
            way_out="Write the file again; if it fails unchanged, report it together with the model.",
        ) from error


def _while(step: Step, arguments: dict[str, Any], values: dict[str, Any]) -> list[Any]:
    condition, body = step.blocks
    state = arguments["loop_vars"]
    for _ in range(MAX_ROUNDS):
        (more,) = _run(condition, {**values, **dict(zip(condition.inputs, state, strict=True))})
        if not bool(more):
            return list(state)
        state = _run(body, {**values, **dict(zip(body.inputs, state, strict=True))})
    raise RuntimeError(f"the loop did not end within {MAX_ROUNDS} rounds")


def _cond(step: Step, arguments: dict[str, Any], values: dict[str, Any]) -> list[Any]:
    taken = {**step.constants, **arguments}["pred"]
    return _run(step.blocks[0] if bool(taken) else step.blocks[1], dict(values))
