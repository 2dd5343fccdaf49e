"""Torch ops that coremltools' exported-program front end lacks, or converts to something else without a word.

Seen in coremltools 9.0: `reciprocal` adds 1e-4 to its argument, `add` and `sub` drop `alpha`, `gelu` drops
`approximate`, `rms_norm` scales its epsilon with the input, and resizing with antialiasing is converted as
resizing without.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Var = Any

# Registered by coremltools under a conversion of another op; better decomposed, or refused.
MISREAD = frozenset(
    {
        "_upsample_bilinear2d_aa",
        "_upsample_bilinear2d_aa.vec",
        "_upsample_bicubic2d_aa",
        "_upsample_bicubic2d_aa.vec",
    }
)


def _arguments(context: Any, node: Any) -> list[Any]:
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    return list(_get_inputs(context, node))


def _option(node: Any, name: str, default: Any) -> Any:
    """Reads a keyword-only argument, which the front end keeps as a list of one."""
    found = (node.kwinputs or {}).get(name)
    return default if not found else found[0]


def _builder() -> Any:
    from coremltools.converters.mil.mil import Builder

    return Builder


def _floats(*values: Var) -> list[Var]:
    from coremltools.converters.mil.frontend._utils import promote_input_dtypes

    return list(promote_input_dtypes(list(values)))


def identity(context: Any, node: Any) -> None:
    """Converts `clone`; kept as an op, so that a tensor can leave the program under two names."""
    context.add(_builder().identity(x=_arguments(context, node)[0], name=node.name))


def reciprocal(context: Any, node: Any) -> None:
    """Converts `reciprocal` to a division."""
    (x,) = _arguments(context, node)
    context.add(_builder().real_div(x=np.float32(1), y=_as_float(x), name=node.name))


def _as_float(x: Var) -> Var:
    from coremltools.converters.mil.mil import types

    return x if types.is_float(x.dtype) else _builder().cast(x=x, dtype="fp32")


def scaled(operation: str) -> Callable[[Any, Any], None]:
    """Makes the conversion of `add` or `sub` with its `alpha`."""

    def convert(context: Any, node: Any) -> None:
        x, y = _arguments(context, node)[:2]
        alpha = _option(node, "alpha", 1)
        x, y = _floats(x, y)
        if _is_bool(x):
            x, y = (_builder().cast(x=v, dtype="int32") for v in (x, y))
        if alpha != 1:
            y, factor = _floats(y, _builder().const(val=alpha))
            x, y = _floats(x, _builder().mul(x=y, y=factor))
        context.add(getattr(_builder(), operation)(x=x, y=y, name=node.name))

    return convert


def _is_bool(x: Var) -> bool:
    from coremltools.converters.mil.mil import types

    return bool(types.is_bool(x.dtype))


def gelu(context: Any, node: Any) -> None:
    """Converts `gelu`, exact or by tanh."""
    (x,) = _arguments(context, node)
    mode = "TANH_APPROXIMATION" if _option(node, "approximate", "none") == "tanh" else "EXACT"
    context.add(_builder().gelu(x=x, mode=mode, name=node.name))


def trunc(context: Any, node: Any) -> None:
    """Converts `trunc`."""
    (x,) = _arguments(context, node)
    context.add(_towards_zero(x, node.name))


def _towards_zero(x: Var, name: str) -> Var:
    mb = _builder()
    return mb.mul(x=mb.sign(x=x), y=mb.floor(x=mb.abs(x=x)), name=name)


def fmod(context: Any, node: Any) -> None:
    """Converts `fmod`: the remainder with the sign of the dividend."""
    mb = _builder()
    x, y = _floats(*_arguments(context, node)[:2])
    whole = _towards_zero(mb.real_div(x=x, y=y), node.name + "_whole")
    context.add(mb.sub(x=x, y=mb.mul(x=y, y=whole), name=node.name))


def prod(context: Any, node: Any) -> None:
    """Converts `prod`, of all elements or along one axis."""
    x, *rest = _arguments(context, node)
    axes = None if not rest or rest[0] is None else [int(rest[0].val)]
    keep = bool(rest[1].val) if len(rest) > 1 else False
    context.add(_builder().reduce_prod(x=x, axes=axes, keep_dims=keep, name=node.name))


def isinf(context: Any, node: Any) -> None:
    """Converts `isinf`."""
    (x,) = _arguments(context, node)
    context.add(_builder().equal(x=_builder().abs(x=x), y=np.float32(math.inf), name=node.name))


def logical(operation: str) -> Callable[[Any, Any], None]:
    """Makes the conversion of a bitwise op between truth values.

    Raises:
        ValueError: (at conversion) the operands are integers, for which MIL has no bitwise ops.
    """

    def convert(context: Any, node: Any) -> None:
        x, y = _arguments(context, node)[:2]
        if not (_is_bool(x) and _is_bool(y)):
            raise ValueError("Core ML has bitwise operations between truth values only")
        context.add(getattr(_builder(), operation)(x=x, y=y, name=node.name))

    return convert


def lerp(context: Any, node: Any) -> None:
    """Converts `lerp`: `x + weight·(y − x)`."""
    mb = _builder()
    x, y, weight = _arguments(context, node)
    context.add(mb.add(x=x, y=mb.mul(x=weight, y=mb.sub(x=y, y=x)), name=node.name))


def log_sigmoid(context: Any, node: Any) -> None:
    """Converts `log_sigmoid`: `−softplus(−x)`."""
    mb = _builder()
    (x,) = _arguments(context, node)
    turned = mb.mul(x=mb.softplus(x=mb.mul(x=x, y=np.float32(-1))), y=np.float32(-1), name=node.name)
    context.add(turned)


def where_scalar(context: Any, node: Any) -> None:
    """Converts `where` with a number on one side or both."""
    condition, a, b = _arguments(context, node)
    a, b = _floats(a, b)
    context.add(_builder().select(cond=condition, a=a, b=b, name=node.name))


def unfold(context: Any, node: Any) -> None:
    """Converts `Tensor.unfold`: windows along an axis, their elements on a new last axis."""
    mb = _builder()
    x, axis, size, step = _arguments(context, node)
    at = int(axis.val) % x.rank
    windows = mb.sliding_windows(x=x, axis=at, size=size, stride=step)
    order = [i for i in range(windows.rank) if i != at + 1] + [at + 1]
    context.add(mb.transpose(x=windows, perm=order, name=node.name))


def rms_norm(context: Any, node: Any) -> None:
    """Converts `rms_norm`: `weight·x / √(mean(x²) + eps)` over the last axes."""
    mb = _builder()
    x, shape, *rest = _arguments(context, node)
    weight, eps = (*rest, None, None)[:2]
    # PyTorch's default is the resolution of the type.
    epsilon = np.finfo(np.float32).eps if eps is None else np.float32(eps.val)
    axes = list(range(-len(shape.val), 0))
    mean = mb.reduce_mean(x=mb.square(x=x), axes=axes, keep_dims=True)
    factor = mb.rsqrt(x=mean, epsilon=epsilon)
    if weight is None:
        context.add(mb.mul(x=x, y=factor, name=node.name))
    else:
        context.add(mb.mul(x=mb.mul(x=x, y=factor), y=weight, name=node.name))


ELEMENTARY: dict[str, Callable[[Any, Any], None]] = {
    "clone": identity,
    "reciprocal": reciprocal,
    "add": scaled("add"),
    "sub": scaled("sub"),
    "gelu": gelu,
    "trunc": trunc,
    "fmod": fmod,
    "prod": prod,
    "prod.dim_int": prod,
    "isinf": isinf,
    "bitwise_or": logical("logical_or"),
    "bitwise_xor": logical("logical_xor"),
    "rms_norm": rms_norm,
    "lerp": lerp,
    "log_sigmoid": log_sigmoid,
    "where.scalar": where_scalar,
    "where.scalarself": where_scalar,
    "where.scalarother": where_scalar,
    "unfold": unfold,
}
