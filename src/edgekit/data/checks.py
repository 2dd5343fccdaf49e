"""The looks that a careful engineer takes at data before trusting a number made from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from edgekit.errors import UsageError
from edgekit_converters.program import Program, TensorInfo

# Channels' standard deviations away from what batch norm saw in training, as a median over channels.
_RANGE_LIMIT = 4.0


def check_batch(
    batch: Sequence[np.ndarray], inputs: Sequence[TensorInfo], where: str, name: Callable[[int], str]
) -> tuple[np.ndarray, ...]:
    """Bring a raw batch to the dtypes of the inputs, or say what is wrong with it.

    Args:
        batch: one array per input, the batch on axis 0.
        inputs: of the model.
        where: for messages.
        name: what the user calls the sample at an index of the batch.

    Raises:
        UsageError: wrong number, shape or dtype, or values that are not finite.
    """
    if len(batch) != len(inputs):
        raise UsageError(
            f"{where}: {len(batch)} inputs",
            expected=f"{len(inputs)}: {', '.join(info.name for info in inputs)}",
            way_out="Name the arrays x_<input>, one for every input of the model.",
        )
    return tuple(_checked(value, info, where, name) for value, info in zip(batch, inputs, strict=True))


def _checked(value: np.ndarray, info: TensorInfo, where: str, name: Callable[[int], str]) -> np.ndarray:
    if value.shape[1:] != info.shape[1:]:
        raise wrong_shape(value.shape, info, where)
    if info.dtype.startswith("float"):
        with np.errstate(over="ignore"):  # what float32 cannot hold is named below
            cast = value.astype(np.float32)
        if (bad := _first(~np.isfinite(cast))) is not None:
            raise UsageError(
                f"{where}: input {info.name} holds {value[bad]} in {name(bad[0])}",
                expected="finite float32 numbers",
                way_out="Remove or mend these samples; NaN would poison every statistic.",
            )
        return cast
    if value.dtype.kind == "f" and (bad := _first(value != np.round(value))) is not None:
        raise UsageError(
            f"{where}: input {info.name} holds {value[bad]} in {name(bad[0])}, which is not whole",
            expected=f"{info.dtype}: the model takes indices",
            way_out="Pass the tokens or indices themselves.",
        )
    return value.astype(info.dtype)


def _first(marks: np.ndarray) -> tuple[int, ...] | None:
    """Index of the first true mark, None where there is none."""
    return tuple(int(i) for i in np.argwhere(marks)[0]) if marks.any() else None


def wrong_shape(shape: tuple[int, ...], info: TensorInfo, where: str) -> UsageError:
    """The error for data of another shape than the input; layouts are recognised."""
    got, want = tuple(shape[1:]), tuple(info.shape[1:])
    way_out = "Save the data in the shape that the model takes, or pass the right --input-shape."
    what = f"{where}: samples of shape {got} for input {info.name}"
    if len(got) == len(want) == 3 and (got[2], got[0], got[1]) == want:
        what += ": the data is NHWC (channels last), the model NCHW"
        way_out = 'Save x.transpose(0, 3, 1, 2), or set layout = "NCHW" in [preprocessing].'
    elif len(got) == len(want) == 3 and (got[1], got[2], got[0]) == want:
        what += ": the data is NCHW (channels first), the model NHWC"
        way_out = 'Save x.transpose(0, 2, 3, 1), or set layout = "NHWC" in [preprocessing].'
    elif len(got) + 1 == len(want) and want[0] == 1 and got == want[1:]:
        what += ": the channel axis is missing"
        way_out = "Save x[:, None]."
    return UsageError(what, expected=f"{want}", way_out=way_out)


def check_labels(labels: np.ndarray, classes: int, where: str, name: Callable[[int], str]) -> None:
    """Class numbers must be among the outputs of the model.

    Args:
        labels: integers of any shape.
        classes: size of the class axis of the model's output.
        where: for messages.
        name: what the user calls the sample at an index of the batch.

    Raises:
        UsageError: fractions, or a label outside 0…classes − 1.
    """
    if labels.dtype.kind == "f":
        # NaN differs from itself, an infinity does not.
        if (bad := _first((labels != np.round(labels)) | np.isinf(labels))) is not None:
            raise UsageError(
                f"{where}: the label {labels[bad]} of {name(bad[0])} is no class number",
                expected=f"class numbers 0…{classes - 1}",
                way_out="Pass class numbers, or choose a metric for real values: --metric mae.",
            )
        labels = labels.astype(np.int64)
    if (bad := _first((labels < 0) | (labels >= classes))) is not None:
        raise UsageError(
            f"{where}: the label {labels[bad]} of {name(bad[0])} is not a class of the model",
            expected=f"0…{classes - 1}: the model has {classes} outputs",
            way_out="Number the classes from 0, in the order of the model's outputs.",
        )


def check_range(program: Program, batch: Sequence[np.ndarray]) -> str | None:
    """Does the data look like what the first batch norm was trained on?

    Wrong scaling (0…255 for 0…1, a missing mean) is the commonest mistake and shows at once: the running
    statistics of the first batch norm are those of the training data after one linear layer.

    Args:
        program: float, before batch norms are folded.
        batch: one array per input.

    Returns:
        A warning for the report, or None when it fits or the network has no batch norm.
    """
    found = _first_norm_input(program, batch)
    if found is None:
        return None
    values, mean, var, eps = found
    axes = [0, *range(2, values.dim())]
    deviation = (var + eps).sqrt()
    shift = ((values.mean(axes) - mean).abs() / deviation).median().item()
    spread = (values.std(axes, correction=0) / deviation).median().item()
    if shift <= _RANGE_LIMIT and 1 / (2 * _RANGE_LIMIT) <= spread <= _RANGE_LIMIT:
        return None
    low, high = min(float(v.min()) for v in batch), max(float(v.max()) for v in batch)
    return (
        f"the data ({low:.3g}…{high:.3g}) does not look like the training data: after the first layer its "
        f"mean is "
        f"{shift:.1f} deviations away and its spread is {spread:.2g} times what the first batch norm "
        f"learned; "
        "check the preprocessing (scale, mean, std)"
    )


def _first_norm_input(
    program: Program, batch: Sequence[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float] | None:
    graph = program.graph
    norm = next((n for n in graph.graph.nodes if getattr(n.target, "_opname", "") == "batch_norm"), None)
    if norm is None or norm.args[3] is None:
        return None
    seen: list[torch.Tensor] = []

    class _Stop(Exception):  # noqa: N818 - a signal, raised and caught here
        pass

    class _Probe(torch.fx.Interpreter):  # type: ignore[misc]
        def run_node(self, n: torch.fx.Node) -> object:
            if n is norm:
                args, _ = self.fetch_args_kwargs_from_env(n)
                seen.extend((args[0], args[3], args[4]))
                raise _Stop
            return super().run_node(n)

    rows = len(batch[0]) if program.dynamic_batch else 1
    tensors = [torch.from_numpy(np.ascontiguousarray(v[:rows])) for v in batch]
    try:
        with torch.no_grad():
            _Probe(graph).run(*tensors)
    except _Stop:
        return seen[0], seen[1], seen[2], float(norm.args[7])
    return None
