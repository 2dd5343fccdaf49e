"""Turns the operations of an ML program into steps: a function, its constants, its variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekit_converters.coreml_reference.integer_layers import IntegerWeight, in_integers, integer_weight
from edgekit_converters.coreml_reference.ops.table import OPS
from edgekit_converters.coreml_reference.package import Package, broken_package
from edgekit_converters.coreml_reference.steps import Block, Name, Step, names_of
from edgekit_converters.coreml_reference.values import value_of
from edgekit_converters.errors import LoweringError

CONTROL_FLOW = ("cond", "while_loop")
MAX_NESTING = 8


def plan_block(block: Any, package: Package, known: dict[str, Any], depth: int = 0) -> Block:
    """Plans a block; constants are evaluated here, once.

    Args:
        block: `Block` message.
        package: where weights are read.
        known: constants of the enclosing blocks.
        depth: nesting so far.

    Returns:
        The plan.

    Raises:
        LoweringError: an op is unknown to this evaluator, or the block is malformed.
    """
    if depth > MAX_NESTING:
        raise broken_package(package.path, f"its blocks are nested more than {MAX_NESTING} deep")
    constants = dict(known)
    weights: dict[int, IntegerWeight] = {}
    steps: list[Step] = []
    for operation in block.operations:
        outputs = tuple(o.name for o in operation.outputs)
        if operation.type == "const":
            constants[outputs[0]] = value_of(operation.attributes["val"], package)
        elif operation.type.startswith("constexpr_"):
            arguments = {k: value_of(v, package) for k, v in operation.attributes.items() if k != "name"}
            value = constants[outputs[0]] = _function(operation.type, outputs)(**arguments)
            if operation.type == "constexpr_affine_dequantize" and (weight := integer_weight(arguments)):
                weights[id(value)] = weight
        else:
            steps.append(_step(operation, outputs, package, constants, depth))
    inputs = tuple(i.name for i in block.inputs)
    results = tuple(constants.get(name, Name(name)) for name in block.outputs)
    planned = in_integers(steps, weights, results)
    return Block(inputs, _with_lifetimes(planned, results), results, constants)


def _step(
    operation: Any, outputs: tuple[str, ...], package: Package, known: dict[str, Any], depth: int
) -> Step:
    function = None if operation.type in CONTROL_FLOW else _function(operation.type, outputs)
    constants: dict[str, Any] = {}
    variables: dict[str, Name | tuple[Any, ...]] = {}
    for parameter, argument in operation.inputs.items():
        bound = tuple(_binding(b, package, known) for b in argument.arguments)
        if len(bound) == 1 and parameter not in ("values", "loop_vars"):
            if isinstance(bound[0], Name):
                variables[parameter] = bound[0]
            else:
                constants[parameter] = bound[0]
        else:
            variables[parameter] = bound
    blocks = tuple(plan_block(b, package, known, depth + 1) for b in operation.blocks)
    return Step(operation.type, function, constants, variables, outputs, blocks, ())


def _binding(binding: Any, package: Package, known: dict[str, Any]) -> Any:
    if binding.WhichOneof("binding") == "value":
        return value_of(binding.value, package)
    return known.get(binding.name, Name(binding.name))


def _function(op: str, outputs: tuple[str, ...]) -> Callable[..., Any]:
    if op not in OPS:
        raise LoweringError(
            format="coreml",
            op=f"MIL {op}",
            where=", ".join(outputs),
            why="the reference evaluator has no function for it, so the file cannot be proven here",
            way_out="Prove the bundle on macOS, where Core ML itself runs, or replace the op in the model.",
        )
    return OPS[op]


def _with_lifetimes(steps: list[Step], results: tuple[Any, ...]) -> tuple[Step, ...]:
    kept = {r.name for r in results if isinstance(r, Name)}
    made: set[str] = set()
    for step in steps:
        made.update(step.outputs)
    planned: list[Step] = []
    for step in reversed(steps):
        # Only what this block made may be dropped; names from outside belong to the enclosing block.
        spent = tuple(sorted((set(names_of(step)) | set(step.outputs)) & made - kept))
        kept.update(spent)
        planned.append(
            Step(step.op, step.function, step.constants, step.variables, step.outputs, step.blocks, spent)
        )
    return tuple(reversed(planned))
