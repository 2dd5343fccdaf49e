"""The clean-up passes in their order, each proven on the outputs before the next one starts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from edgekit_converters.cleanup import (
    activations,
    affine,
    attention,
    batch_norm,
    broadcasts,
    composites,
    constants,
    dead,
    functional,
    identities,
    linears,
    padding,
    pooling,
    powers,
    spelling,
    transposed,
    uncommon,
)
from edgekit_converters.errors import EdgekitError
from edgekit_converters.program import Program

Tensors = tuple[torch.Tensor, ...]

PASSES: tuple[tuple[str, Callable[[GraphModule], int]], ...] = (
    ("functional calls", functional.run),
    ("core ATen spelling", spelling.run),
    ("identities", identities.run),
    ("broadcasts", broadcasts.run),
    ("constants", constants.run),
    ("linear layers", linears.run),
    ("formulas", composites.run),
    ("attention", attention.run),
    ("powers", powers.run),
    ("uncommon activations", uncommon.run),
    ("activations", activations.run),
    ("padding", padding.run),
    ("batch norm folding", batch_norm.run),
    ("transposed convolutions", transposed.run),
    ("affine folding", affine.run),
    ("lone batch norm", batch_norm.run_alone),
    ("pooling", pooling.run),
    ("identities again", identities.run),
    ("duplicates", dead.merge_duplicates),
    ("dead code", dead.run),
)

# Largest difference that rounding in another order may cause, relative to the largest output.
_RELATIVE_BOUND = 1e-5
# Share of integer outputs that may flip, because an argmax over a picture has near ties.
_UNEQUAL_BOUND = 1e-3
# A network that amplifies rounding is allowed this multiple of what one rounding of its input does to it.
_NOISE_FACTOR = 16.0


@dataclass(frozen=True, slots=True)
class CleanupNote:
    """What one pass did.

    Attributes:
        name: the pass, in words.
        rewrites: number of rewrites, at least 1; passes that found nothing leave no note.
        max_error: largest absolute output difference to the untouched program, over all proof inputs; for an
            integer output the share of unequal elements.
    """

    name: str
    rewrites: int
    max_error: float

    def __post_init__(self) -> None:
        """Refuses a note about nothing."""
        if self.rewrites < 1 or not self.max_error >= 0:
            raise ValueError(
                f"a note needs rewrites >= 1 and max_error >= 0, got {self.rewrites}, {self.max_error}"
            )


def clean(program: Program) -> tuple[Program, tuple[CleanupNote, ...]]:
    """Brings a float program into the forms that the quantizer and the converters expect.

    Args:
        program: the float program; it is not changed. Its tensors are shared with the result, not copied.

    Returns:
        the cleaned program, and a note for each pass that changed something, in order.

    Raises:
        EdgekitError: a pass changed the output; this is a defect of edgekit, and the pass is named.
        LoweringError: an in-place call has no functional form.
    """
    graph = _copy(program.graph)
    refresh_meta(graph, program.example)
    proof = _Proof.of(program)
    notes: list[CleanupNote] = []
    for name, rewrite in PASSES:
        count = rewrite(graph)
        if not count:
            continue
        graph.graph.eliminate_dead_code()
        graph.graph.lint()
        graph.recompile()
        notes.append(CleanupNote(name, count, proof.check(graph, name)))
    graph = _copy(graph)  # leaves behind the tensors that no node reads any more
    refresh_meta(graph, program.example)
    return replace(program, graph=graph), tuple(notes)


def refresh_meta(graph: GraphModule, example: Sequence[torch.Tensor]) -> None:
    """Recomputes `meta["val"]` of every node.

    The fake tensors of the placeholders are kept where they are, so a symbolic batch stays symbolic;
    otherwise they are made from `example` with fixed shapes.

    Args:
        graph: module to annotate.
        example: one tensor per placeholder.
    """
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    inputs = [node.meta.get("val") for node in placeholders]
    mode = next((val.fake_mode for val in inputs if hasattr(val, "fake_mode")), None)
    if mode is None:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        inputs = [mode.from_tensor(tensor, static_shapes=True) for tensor in example]
    # The Python decompositions of lstm and gru take a symbolic batch, the C++ ones do not.
    with torch.no_grad(), enable_python_dispatcher():
        FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*inputs)


def _copy(graph: GraphModule) -> GraphModule:
    """A new module with a copy of the graph and the same tensors, without those that no node reads."""
    fresh = GraphModule(graph, copy.deepcopy(graph.graph))
    fresh.meta = dict(graph.meta)
    return fresh.eval()


@dataclass(frozen=True, slots=True)
class _Proof:
    """Inputs, the outputs of the untouched program on them, and how far rounding alone may move those.

    Attributes:
        inputs: each entry is one call.
        expected: outputs of each call.
        bounds: allowed absolute difference for each output of each call.
    """

    inputs: tuple[Tensors, ...]
    expected: tuple[Tensors, ...]
    bounds: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, program: Program) -> _Proof:
        original = _copy(program.graph)
        inputs = _proof_inputs(_with_marks(program, original))
        expected = tuple(_outputs(original, call) for call in inputs)
        nudged = tuple(_outputs(original, tuple(_nudge(tensor) for tensor in call)) for call in inputs)
        bounds = tuple(
            tuple(_bound(clean_output, noisy) for clean_output, noisy in zip(*pair, strict=True))
            for pair in zip(expected, nudged, strict=True)
        )
        return cls(inputs, expected, bounds)

    def check(self, graph: GraphModule, name: str) -> float:
        """Largest difference to the expected outputs; raises when it is over the bound."""
        worst = 0.0
        for call, expected, bounds in zip(self.inputs, self.expected, self.bounds, strict=True):
            found = _outputs(graph, call)
            if len(found) != len(expected):
                raise _broken(name, f"{len(expected)} outputs became {len(found)}")
            for index, (want, got, bound) in enumerate(zip(expected, found, bounds, strict=True)):
                error = _difference(want, got)
                if not error <= bound:
                    raise _broken(name, f"output {index} moved by {error:.3g}, allowed {bound:.3g}")
                worst = max(worst, error)
        return worst


def _with_marks(program: Program, graph: GraphModule) -> Program:
    """Integer examples of nothing but zeros become ones and zeros, where the network takes them.

    A mask of zeros hides everything, and what attention gives for a row that sees nothing is a matter of spelling:
    zero in torch, the mean of all values in a softmax of large negative numbers.
    """
    marked = tuple(_marks(tensor) for tensor in program.example)
    try:
        _outputs(graph, marked)
    except (IndexError, RuntimeError, ValueError):
        # An index into a table of one row, or a size.
        return program
    return replace(program, example=marked)


def _marks(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point() or tensor.any():
        return tensor
    length = tensor.shape[-1] if tensor.dim() else 1
    seen = torch.arange(length) < (length + 1) // 2
    return seen.to(tensor.dtype).expand(tensor.shape).clone()


def _proof_inputs(program: Program) -> tuple[Tensors, ...]:
    """The example, normal noise in its shapes, and where the batch is free a batch of three."""
    generator = torch.Generator().manual_seed(0)

    def noise(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    drawn = tuple(noise(tensor) for tensor in program.example)
    if not program.dynamic_batch:
        return program.example, drawn
    tripled = tuple(
        torch.cat([example, noise(example), noise(example)]) if info.batch and example.dim() else example
        for info, example in zip(program.inputs, program.example, strict=True)
    )
    return program.example, tripled


def _outputs(graph: GraphModule, call: Tensors) -> Tensors:
    with torch.no_grad():
        # Copies, because the untouched program may write to its inputs.
        return tuple(torch.as_tensor(output) for output in graph(*(tensor.clone() for tensor in call)))


def _nudge(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * (1 + 2**-22) if tensor.is_floating_point() else tensor


def _bound(expected: torch.Tensor, nudged: torch.Tensor) -> float:
    noise = _difference(expected, nudged)
    if not expected.is_floating_point():
        return max(_UNEQUAL_BOUND, noise)
    finite = expected[expected.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return max(_RELATIVE_BOUND * scale, _NOISE_FACTOR * noise if noise < 1e-2 * scale else 0.0, 1e-12)


def _difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Largest absolute difference of floats, share of unequal integers.

    Infinite when shape, type or the places of NaN and infinity differ.
    """
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    if not expected.is_floating_point():
        return float((expected != found).double().mean()) if expected.numel() else 0.0
    finite = expected.isfinite()
    special = ~finite
    if not torch.equal(finite, found.isfinite()):
        return float("inf")
    if not torch.equal(expected[special].nan_to_num(nan=0.5), found[special].nan_to_num(nan=0.5)):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    return float((expected[finite].double() - found[finite].double()).abs().max())


def _broken(name: str, what: str) -> EdgekitError:
    return EdgekitError(
        f"clean-up pass `{name}` changed the result of the model: {what}. "
        "This is a defect of edgekit; please report it with the model."
    )
