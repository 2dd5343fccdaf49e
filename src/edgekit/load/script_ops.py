"""What TorchScript's own ops mean in Python; everything else is an ATen op that torch has.

TorchScript has typed twins of Python's arithmetic, lists and strings. A row here maps a kind to a function
of its inputs; the row of an op that also takes tensors is used only when no input is one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

# c10::ScalarType, c10::Layout and c10::MemoryFormat are plain integers in TorchScript.
DTYPES = {
    0: torch.uint8, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.int64, 5: torch.float16,
    6: torch.float32, 7: torch.float64, 9: torch.complex64, 10: torch.complex128, 11: torch.bool,
    15: torch.bfloat16,
}  # fmt: skip
_DTYPE_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
_ENUMERATIONS: dict[str, dict[int, Any]] = {
    "dtype": DTYPES,
    "layout": {0: torch.strided},
    "memory_format": {
        0: torch.contiguous_format,
        1: torch.preserve_format,
        2: torch.channels_last,
        3: torch.channels_last_3d,
    },
}


def _slice(values: Sequence[Any], start: int | None, end: int | None, step: int = 1) -> Sequence[Any]:
    return values[slice(start, end, step)]


def _set_item(container: Any, key: Any, value: Any) -> Any:
    container[key] = value
    return container


def _append(values: list[Any], value: Any) -> list[Any]:
    values.append(value)
    return values


def _range_length(low: int, high: int, step: int) -> int:
    return len(range(low, high, step))


def _size(x: torch.Tensor, axis: int | None = None) -> Any:
    return list(x.shape) if axis is None else x.shape[axis]


def _number(value: Any) -> Any:
    """A size that passed through a 0-d tensor in a trace stays the size that it was."""
    return value.item() if isinstance(value, torch.Tensor) else value


def _int(value: Any) -> Any:
    value = _number(value)
    return value if isinstance(value, (int, torch.SymInt)) else int(value)


def _div(a: Any, b: Any, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return a / b
    return a // b if rounding_mode == "floor" else math.trunc(a / b)


def _scaled(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """`add` and `sub` of sizes in a trace carry the factor `alpha` of their tensor form."""
    return lambda a, b, alpha=1: function(a, b if alpha == 1 else b * alpha)


def _tensor(data: Any, dtype: int | None = None, *_: object) -> Any:
    kind = None if dtype is None else DTYPES[dtype]
    return torch.tensor(data, dtype=kind)


def _nothing(*_: Any) -> None:
    return None


# On numbers, lists, strings and dicts; a tensor among the inputs sends the node to ATen instead.
ON_VALUES: dict[str, Callable[..., Any]] = {
    "aten::add": _scaled(operator.add), "aten::sub": _scaled(operator.sub), "aten::mul": operator.mul,
    "aten::div": _div, "aten::floordiv": operator.floordiv, "aten::floor_divide": operator.floordiv,
    "aten::remainder": operator.mod, "aten::pow": operator.pow, "aten::neg": operator.neg, "aten::abs": abs,
    "aten::floor": math.floor, "aten::ceil": math.ceil, "aten::sqrt": math.sqrt, "aten::exp": math.exp,
    "aten::log": math.log, "aten::round": round, "aten::eq": operator.eq, "aten::ne": operator.ne,
    "aten::lt": operator.lt, "aten::le": operator.le, "aten::gt": operator.gt, "aten::ge": operator.ge,
    "aten::__and__": operator.and_, "aten::__or__": operator.or_, "aten::__xor__": operator.xor,
    "aten::slice": _slice, "aten::copy": list, "aten::list": list, "aten::len": len,
    "aten::append": _append, "aten::insert": list.insert, "aten::pop": lambda c, *k: c.pop(*k),
    "aten::extend": list.extend, "aten::index": lambda c, v: c.index(v),
    "aten::__getitem__": operator.getitem,
    "aten::_set_item": _set_item, "aten::Delete": operator.delitem, "prim::min": min, "prim::max": max,
    "aten::min": min, "aten::max": max, "aten::str": str, "aten::all": all, "aten::any": any,
    "aten::sum": sum,
    "aten::clear": lambda c: c.clear(), "aten::reverse": lambda c: c.reverse(),
    "aten::sort": lambda c, *_: c.sort(),
}  # fmt: skip

# On anything, tensors too.
ALWAYS: dict[str, Callable[..., Any]] = {
    "aten::size": _size, "aten::dim": lambda x: x.dim(), "aten::numel": lambda x: x.numel(),
    "aten::len": lambda x: x.shape[0] if isinstance(x, torch.Tensor) else len(x),
    "aten::__is__": operator.is_, "aten::__isnot__": operator.is_not, "aten::__not__": operator.not_,
    "aten::__contains__": operator.contains, "aten::keys": lambda d: list(d.keys()),
    "aten::values": lambda d: list(d.values()), "aten::items": lambda d: list(d.items()),
    "aten::get": lambda d, *k: d.get(*k), "aten::format": lambda s, *a: s.format(*a), "aten::warn": _nothing,
    "aten::percentFormat": lambda s, *a: s % a, "aten::__range_length": _range_length,
    "aten::__derive_index": lambda i, start, step: start + i * step, "aten::Int": _int,
    "aten::IntImplicit": _int,
    "aten::Float": lambda v: float(_number(v)), "aten::FloatImplicit": lambda v: float(_number(v)),
    "aten::Bool": bool, "aten::ScalarImplicit": _number, "aten::item": _number, "aten::tensor": _tensor,
    "aten::as_tensor": lambda v, *a: v if isinstance(v, torch.Tensor) else _tensor(v, *a[:1]),
    "aten::is_floating_point": lambda x: x.is_floating_point(), "aten::is_complex": lambda x: x.is_complex(),
    # Saying that gradients are wanted keeps torch.nn's attention off kernels that nobody can lower.
    "aten::requires_grad": lambda _: True, "prim::requires_grad": lambda _: True,
    "aten::is_grad_enabled": lambda: True,
    "aten::is_scripting": lambda: True,
    "prim::NumToTensor": lambda v: v, "prim::unchecked_cast": lambda v: v,
    "aten::_unwrap_optional": lambda v: v,
    "prim::unchecked_unwrap_optional": lambda v: v, "prim::data": lambda v: v.detach(),
    "prim::Print": _nothing,
    "prim::device": lambda _: torch.device("cpu"),
    "prim::is_cuda": lambda _: False, "prim::is_nested": lambda _: False, "prim::is_sparse": lambda _: False,
    "prim::type": lambda d: d.type, "prim::is_quantized": lambda _: False,
    "prim::is_mkldnn": lambda _: False, "prim::is_meta": lambda _: False,
    "prim::layout": lambda _: 0,
    "prim::dtype": lambda x: _DTYPE_NUMBERS[x.dtype], "prim::Uninitialized": _nothing,
    "prim::rangelist": lambda n: list(range(n)),
    "prim::ListConstruct": lambda *v: list(v), "prim::TupleConstruct": lambda *v: v,
    "prim::DictConstruct": lambda *v: dict(zip(v[::2], v[1::2], strict=True)),
    "prim::TupleIndex": operator.getitem, "aten::detach": lambda x: x,
}  # fmt: skip


def aten_call(schema_text: str, values: Sequence[Any]) -> Any:
    """Run an ATen op as TorchScript would: high level where TorchScript's own form is lower.

    Args:
        schema_text: the node's schema.
        values: its inputs in schema order.
    """
    schema = torch._C.parse_schema(schema_text)
    namespace, _, name = schema.name.partition("::")
    if name == "_convolution":
        return _convolution(*values[:9])
    op = getattr(getattr(getattr(torch.ops, namespace), name), schema.overload_name or "default")
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument, value in zip(schema.arguments, values, strict=False):
        # Numbers after the first argument stay numbers: `add.Tensor(x, 1)` is how torch itself records them.
        plain = _plain(argument.name, value, "" if args else str(argument.type))
        if argument.kwarg_only:
            kwargs[argument.name] = plain
        else:
            args.append(plain)
    return op(*args, **{key: value for key, value in kwargs.items() if value is not None})


def _plain(name: str, value: Any, kind: str) -> Any:
    """Enumerations from integers, the CPU for every device, a tensor where one is wanted."""
    if name == "device" and value is not None:
        return torch.device("cpu")
    if name == "pin_memory":
        return None
    table = next((t for suffix, t in _ENUMERATIONS.items() if name.endswith(suffix)), None)
    if table is not None and isinstance(value, int) and not isinstance(value, bool):
        return table[value]
    if kind == "Tensor" and isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        return torch.scalar_tensor(
            value, dtype=torch.int64 if isinstance(value, (int, torch.SymInt)) else None
        )
    return value


def _convolution(
    x: Any,
    w: Any,
    b: Any,
    stride: Any,
    pad: Any,
    dilation: Any,
    transposed: bool,
    output_pad: Any,
    groups: int,
) -> Any:
    dims = w.dim() - 2
    if transposed:
        plain = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[dims - 1]
        return plain(x, w, b, stride, pad, output_pad, groups, dilation)
    return (torch.conv1d, torch.conv2d, torch.conv3d)[dims - 1](x, w, b, stride, pad, dilation, groups)
