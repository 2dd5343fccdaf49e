"""Gathering, scattering, sorting and making tensors."""

from __future__ import annotations

import torch

from edgekit_converters.coreml_reference.ops.arguments import Tensor, flag, integer, ints

# MIL's scatter modes as torch's reductions; `update` and the inverse operations are spelt out below.
REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _wrapped(indices: Tensor, size: int) -> Tensor:
    wide = indices.to(torch.int64)
    return torch.where(wide < 0, wide + size, wide)


def gather(
    x: Tensor,
    *,
    indices: Tensor,
    axis: Tensor | None = None,
    batch_dims: Tensor | None = None,
    validate_indices: Tensor | None = None,  # noqa: ARG001 -- always checked here
) -> Tensor:
    """Slices of x along an axis, in the shape of the indices; the first `batch_dims` axes belong together."""
    at, batch = integer(axis) % x.ndim, integer(batch_dims)
    places = _wrapped(indices, x.shape[at])
    if batch == 0:
        return _gather_one(x, places, at)
    lead = x.shape[:batch]
    rows = [
        _gather_one(a, b, at - batch)
        for a, b in zip(x.flatten(0, batch - 1), places.flatten(0, batch - 1), strict=True)
    ]
    return torch.stack(rows).reshape(*lead, *rows[0].shape)


def _gather_one(x: Tensor, places: Tensor, at: int) -> Tensor:
    flat = x.index_select(at, places.reshape(-1))
    return flat.reshape(*x.shape[:at], *places.shape, *x.shape[at + 1 :])


def gather_along_axis(
    x: Tensor,
    indices: Tensor,
    axis: Tensor | None = None,
    validate_indices: Tensor | None = None,  # noqa: ARG001 -- always checked here
) -> Tensor:
    """`x[…, indices[…, j, …], …]` along one axis; x and indices have the same rank."""
    at = integer(axis)
    places = _wrapped(indices, x.shape[at])
    wide = [p if i == at % x.ndim else n for i, (p, n) in enumerate(zip(places.shape, x.shape, strict=True))]
    return torch.gather(x, at, places.expand(wide))


def gather_nd(
    x: Tensor,
    indices: Tensor,
    batch_dims: Tensor | None = None,
    validate_indices: Tensor | None = None,  # noqa: ARG001 -- always checked here
) -> Tensor:
    """Slices of x at the index tuples on the last axis of the indices."""
    batch = integer(batch_dims)
    if batch == 0:
        columns = indices.unbind(-1)
        return x[tuple(_wrapped(c, x.shape[i]) for i, c in enumerate(columns))]
    rows = [
        gather_nd(a, b) for a, b in zip(x.flatten(0, batch - 1), indices.flatten(0, batch - 1), strict=True)
    ]
    return torch.stack(rows).reshape(*x.shape[:batch], *rows[0].shape)


def _merged(old: Tensor, new: Tensor, mode: str) -> Tensor:
    if mode == "update":
        return new
    if mode == "sub":
        return old - new
    if mode == "div":
        return old / new
    raise ValueError(f"scatter has no mode {mode!r}")


def scatter(
    data: Tensor,
    *,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor | None = None,
    mode: str = "add",
    validate_indices: Tensor | None = None,  # noqa: ARG001 -- always checked here
) -> Tensor:
    """Merges slices of `updates` into `data` at the indices of one axis."""
    at = integer(axis) % data.ndim
    places = _wrapped(indices, data.shape[at])
    shape = [1] * data.ndim
    shape[at] = -1
    wide = places.reshape(shape).expand(updates.shape)
    return scatter_along_axis(data, indices=wide, updates=updates, axis=torch.tensor(at), mode=mode)


def scatter_along_axis(
    data: Tensor,
    *,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor | None = None,
    mode: str = "add",
    validate_indices: Tensor | None = None,  # noqa: ARG001 -- always checked here
) -> Tensor:
    """Merges single elements of `updates` into `data` along one axis."""
    at = integer(axis)
    places = _wrapped(indices, data.shape[at])
    if mode in REDUCTIONS:
        return data.scatter_reduce(at, places, updates, REDUCTIONS[mode])
    return data.scatter(at, places, _merged(data.gather(at, places), updates, mode))


def scatter_nd(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    mode: str = "add",
    validate_indices: Tensor | None = None,  # noqa: ARG001 -- always checked here
) -> Tensor:
    """Merges slices of `updates` into `data` at index tuples."""
    places = tuple(_wrapped(c, data.shape[i]) for i, c in enumerate(indices.unbind(-1)))
    if mode == "add":
        return data.index_put(places, updates, accumulate=True)
    merged = {"mul": torch.mul, "max": torch.maximum, "min": torch.minimum}.get(mode)
    new = merged(data[places], updates) if merged else _merged(data[places], updates, mode)
    return data.index_put(places, new)


def one_hot(
    indices: Tensor,
    one_hot_vector_size: Tensor,
    axis: Tensor | None = None,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    """`on_value` at the index on a new axis, `off_value` elsewhere; an index outside gives none."""
    on = torch.tensor(1, dtype=torch.int32) if on_value is None else on_value
    off = torch.tensor(0, dtype=torch.int32) if off_value is None else off_value
    hot = indices.unsqueeze(-1) == torch.arange(integer(one_hot_vector_size), dtype=indices.dtype)
    return torch.where(hot, on, off).movedim(-1, integer(axis, -1))


def non_zero(x: Tensor) -> Tensor:
    """Index tuples of all elements that are not zero, one a row."""
    return torch.nonzero(x).to(torch.int32)


def topk(
    x: Tensor,
    *,
    k: Tensor | None = None,
    axis: Tensor | None = None,
    ascending: Tensor | None = None,
    sort: Tensor | None = None,  # noqa: ARG001 -- a sorted result is one of those allowed
    return_indices: Tensor | None = None,
    output_indices_dtype: str = "int32",  # noqa: ARG001 -- uint16 is computed in int32 here
) -> tuple[Tensor, ...]:
    """The k largest (or smallest) elements along an axis and their places; equal ones in their order."""
    at = integer(axis, -1)
    count = integer(k, 1)
    places = torch.sort(x, dim=at, descending=not flag(ascending), stable=True).indices
    places = places.narrow(at, 0, x.shape[at] if count == -1 else count)
    values = torch.gather(x, at, places)
    return (values, places.to(torch.int32)) if flag(return_indices, True) else (values,)


def argsort(x: Tensor, axis: Tensor | None = None, ascending: Tensor | None = None) -> Tensor:
    """Places in sorted order along an axis; equal elements in their order."""
    return torch.sort(x, dim=integer(axis, -1), descending=not flag(ascending), stable=True).indices.to(
        torch.int32
    )


def cumsum(
    x: Tensor, axis: Tensor | None = None, exclusive: Tensor | None = None, reverse: Tensor | None = None
) -> Tensor:
    """Running sum along an axis; exclusive leaves out the element itself."""
    at = integer(axis)
    ordered = x.flip(at) if flag(reverse) else x
    sums = torch.cumsum(ordered, at).to(x.dtype)
    if flag(exclusive):
        sums = torch.cat([torch.zeros_like(sums.narrow(at, 0, 1)), sums.narrow(at, 0, x.shape[at] - 1)], at)
    return sums.flip(at) if flag(reverse) else sums


def range_1d(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    """`start, start + step, …` below `end`."""
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


def fill(shape: Tensor, value: Tensor | None = None) -> Tensor:
    """A tensor of one value."""
    filling = torch.tensor(0.0) if value is None else value
    return filling.expand(ints(shape)).clone()


def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    """A tensor of one value in the shape of another."""
    filling = torch.tensor(0.0) if value is None else value
    return filling.expand(ref_tensor.shape).clone()
