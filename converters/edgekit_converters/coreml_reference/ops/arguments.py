"""Reading op arguments: MIL passes sizes, axes and flags as tensors."""

from __future__ import annotations

from typing import TypeAlias

import torch

Tensor: TypeAlias = torch.Tensor

TYPES: dict[str, torch.dtype] = {
    "bool": torch.bool,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "uint32": torch.int64,
}


def ints(value: Tensor | None, default: list[int] | None = None) -> list[int]:
    """Reads a list of integers or flags; a scalar is a list of one."""
    if value is None:
        return [] if default is None else default
    return [int(v) for v in value.reshape(-1).tolist()]


def integer(value: Tensor | None, default: int = 0) -> int:
    """Reads one integer."""
    return default if value is None else int(value)


def number(value: Tensor | None, default: float = 0.0) -> float:
    """Reads one number."""
    return default if value is None else float(value)


def flag(value: Tensor | None, default: bool = False) -> bool:
    """Reads one truth value."""
    return default if value is None else bool(value)


def along(vector: Tensor, axis: int, rank: int) -> Tensor:
    """Shapes a vector so that it broadcasts along `axis` of a tensor of `rank`; scalars stay."""
    if vector.ndim == 0:
        return vector
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


def same_type(result: Tensor, like: Tensor) -> Tensor:
    """Returns `result` in the type of `like`: torch widens integer sums, MIL does not."""
    return result if result.dtype == like.dtype else result.to(like.dtype)
