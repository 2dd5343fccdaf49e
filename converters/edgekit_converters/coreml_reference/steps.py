"""What the evaluator runs: a block of steps, each with its function and its arguments bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Name:
    """A variable, looked up when the step runs."""

    name: str


@dataclass(frozen=True, slots=True)
class Step:
    """One operation, ready to run.

    Attributes:
        op: MIL op type.
        function: computes it from keyword arguments; None for control flow.
        constants: arguments known now.
        variables: arguments by variable name, for a list argument a tuple of names and constants.
        outputs: names that the results get.
        blocks: nested blocks of control flow.
        spent: variables that nothing reads after this step.
    """

    op: str
    function: Callable[..., Any] | None
    constants: dict[str, Any]
    variables: dict[str, Name | tuple[Any, ...]]
    outputs: tuple[str, ...]
    blocks: tuple[Block, ...]
    spent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A straight list of steps.

    Attributes:
        inputs: names bound on entry, loop variables or none.
        steps: in order.
        outputs: per output its name, or its value where it is a constant.
        constants: values of all constants of the block, read by nested blocks and outputs.
    """

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Any, ...]
    constants: dict[str, Any]


def names_of(step: Step) -> Iterator[str]:
    """Variables that a step reads, also inside its blocks."""
    for bound in step.variables.values():
        for item in bound if isinstance(bound, tuple) else (bound,):
            if isinstance(item, Name):
                yield item.name
    for block in step.blocks:
        for inner in block.steps:
            yield from names_of(inner)
        yield from (o.name for o in block.outputs if isinstance(o, Name))
