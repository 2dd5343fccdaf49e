"""Convolutions in one to three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F

from edgekit_converters.coreml_reference.ops.arguments import Tensor, integer, ints

CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def padding_of(
    pad_type: str, pad: Sequence[int], size: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Resolves MIL's padding to (before, after) for each spatial axis.

    Args:
        pad_type: `valid`, `custom`, `same` (the odd element goes after) or `same_lower` (it goes before).
        pad: before, after, before, … for `custom`.
        size: spatial input sizes.
        kernel: kernel sizes with dilation counted in.
        strides: steps.

    Returns:
        One pair an axis.

    Raises:
        ValueError: there is no such padding.
    """
    if pad_type == "valid":
        return [(0, 0)] * len(kernel)
    if pad_type == "custom":
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(len(kernel))]
    totals = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(size, kernel, strides, strict=True)]
    if pad_type == "same":
        return [(t // 2, t - t // 2) for t in totals]
    if pad_type == "same_lower":
        return [(t - t // 2, t // 2) for t in totals]
    raise ValueError(f"there is no padding {pad_type!r}")


def flat_padding(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Orders (before, after) pairs as `F.pad` takes them: last axis first."""
    return [side for pair in reversed(pairs) for side in pair]


def conv(
    x: Tensor,
    *,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Convolution of x (n, C_in, …) with weight (C_out, C_in / groups, …)."""
    rank = x.ndim - 2
    steps, spread = ints(strides, [1] * rank), ints(dilations, [1] * rank)
    kernel = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], spread, strict=True)]
    pairs = padding_of(pad_type, ints(pad), x.shape[2:], kernel, steps)
    symmetric = all(before == after for before, after in pairs)
    if not symmetric:
        x = F.pad(x, flat_padding(pairs))
    inside = [before for before, _ in pairs] if symmetric else [0] * rank
    return CONVOLUTIONS[rank](x, weight, bias, steps, inside, spread, integer(groups, 1))


def conv_transpose(
    x: Tensor,
    *,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Tensor | None = None,
    output_shape: Tensor | None = None,
    pad_type: str = "valid",
    strides: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Transposed convolution of x (n, C_in, …) with weight (C_in, C_out / groups, …).

    The result without padding is cut by `pad`, or to `output_shape`; what lies beyond it is bias alone.
    """
    rank = x.ndim - 2
    steps, spread = ints(strides, [1] * rank), ints(dilations, [1] * rank)
    full = TRANSPOSED[rank](x, weight, None, steps, 0, 0, integer(groups, 1), spread)
    if pad_type == "same":
        sizes = [n * s for n, s in zip(x.shape[2:], steps, strict=True)]
        starts = [max(0, f - n) // 2 for f, n in zip(full.shape[2:], sizes, strict=True)]
    else:
        pairs = padding_of(pad_type, ints(pad), full.shape[2:], weight.shape[2:], steps)
        starts = [before for before, _ in pairs]
        sizes = [f - sum(pair) for f, pair in zip(full.shape[2:], pairs, strict=True)]
    if output_shape is not None:
        sizes = ints(output_shape)[2:]
    ends = [start + size - f for start, size, f in zip(starts, sizes, full.shape[2:], strict=True)]
    cut = F.pad(full, flat_padding([(-start, end) for start, end in zip(starts, ends, strict=True)]))
    return cut if bias is None else cut + bias.reshape(1, -1, *[1] * rank)
