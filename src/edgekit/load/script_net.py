"""A TorchScript model as an ordinary module, without its source code.

`ScriptNet` holds the weights under their own names and computes the inlined TorchScript graph node by node.
Running it under `torch.export` gives the same high-level ATen ops that the author's Python would: torch's
own converter turns convolutions into their core form and fixes the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from edgekit.errors import LoweringError
from edgekit.load.script_ops import ALWAYS, ON_VALUES, aten_call


class ScriptNet(torch.nn.Module):  # type: ignore[misc]
    """Interpreter of one TorchScript `forward`.

    Args:
        script: scripted or traced, in evaluation mode, on the CPU.

    Attributes:
        input_names: of the tensors that `forward` takes.
    """

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self._graph = script.graph.copy()
        torch._C._jit_pass_inline(self._graph)
        self._fixed: dict[str, Any] = {}
        self._pointers: dict[tuple[int, tuple[int, ...]], str] = {}
        for name, value in script.named_parameters():
            self._register(name, value, parameter=True)
        for name, value in script.named_buffers():
            self._register(name, value, parameter=False)
        values = list(self._graph.inputs())
        self._fixed[values[0].debugName()] = ("", script._c)
        self.input_names = [v.debugName().split(".")[0] for v in values[1:]]
        self._inputs = [v.debugName() for v in values[1:]]
        self._resolve(self._graph)
        self._now: Any = None

    def forward(self, *args: Any) -> Any:
        """The arguments of the script's `forward`, and what it returns."""
        env: dict[str, Any] = dict(zip(self._inputs, args, strict=True))
        return self._run(self._graph, env)[0]

    def where(self) -> str:
        """Source line of the node that ran last, for messages; "" before the first run."""
        return source_of_node(self._now) if self._now is not None else ""

    def _register(self, name: str, value: torch.Tensor, *, parameter: bool) -> None:
        owner, _, leaf = name.rpartition(".")
        module: torch.nn.Module = self
        for part in owner.split(".") if owner else []:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]
        value = value.detach()
        if value.dtype in (torch.float16, torch.bfloat16, torch.float64):
            value = value.float()
        if parameter:
            module.register_parameter(leaf, torch.nn.Parameter(value, requires_grad=False))
        else:
            module.register_buffer(leaf, value)

    def _resolve(self, block: Any) -> None:
        """Evaluate the attribute reads and tensor constants once: they do not depend on the inputs."""
        for node in _nodes(block):
            kind = node.kind()
            if kind == "prim::GetAttr":
                path, owner = self._fixed[node.input().debugName()]
                name = node.s("name")
                value = owner.getattr(name)
                full = f"{path}.{name}" if path else name
                self._fixed[node.output().debugName()] = self._fixed_value(full, value)
            elif kind == "prim::Constant":
                value = node.output().toIValue()
                if isinstance(value, torch.Tensor) and value.dim() == 0 and value.dtype != torch.bool:
                    value = value.item()  # traces write Python's numbers as tensors
                name = f"constant_{len(self._fixed)}"
                self._fixed[node.output().debugName()] = self._fixed_value(name, value)
            elif kind == "prim::SetAttr":
                raise LoweringError(
                    format="torch",
                    op="prim::SetAttr",
                    where=source_of_node(node),
                    why="the model keeps state between calls",
                    way_out="Return the state as an output and take it as an input.",
                )

    def _fixed_value(self, path: str, value: Any) -> Any:
        if isinstance(value, (torch._C.ScriptModule, torch._C.ScriptObject)):
            return (path, value)
        if isinstance(value, torch.Tensor):
            return _Weight(self._weight(path, value))
        if isinstance(value, (list, tuple)) and value and all(isinstance(v, torch.Tensor) for v in value):
            return [_Weight(self._weight(f"{path}_{i}", v)) for i, v in enumerate(value)]
        return value

    def _weight(self, path: str, value: torch.Tensor) -> str:
        """The registered name of a tensor; one that is not registered becomes a buffer."""
        key = (value.data_ptr(), tuple(value.shape))
        if not self._pointers:
            for name, own in [*self.named_parameters(), *self.named_buffers()]:
                self._pointers.setdefault((own.data_ptr(), tuple(own.shape)), name)
        try:
            _lookup(self, path)
        except AttributeError:
            known = self._pointers.get(key) if value.numel() else None
            if known is not None:
                return known
            self._register(path, value, parameter=False)
        return path

    def _read(self, env: dict[str, Any], name: str) -> Any:
        if name in env:
            return env[name]
        value = self._fixed[name]
        if isinstance(value, list):
            return [_lookup(self, v.path) if isinstance(v, _Weight) else v for v in value]
        return _lookup(self, value.path) if isinstance(value, _Weight) else value

    def _run(self, block: Any, env: dict[str, Any]) -> list[Any]:
        for node in block.nodes():
            kind = node.kind()
            if kind in ("prim::GetAttr", "prim::Constant"):
                continue
            self._now = node
            values = [self._read(env, v.debugName()) for v in node.inputs()]
            outputs = [v.debugName() for v in node.outputs()]
            if kind == "prim::If":
                branch = list(node.blocks())[0 if values[0] else 1]
                results = self._run(branch, env)
            elif kind == "prim::Loop":
                results = self._loop(node, values, env)
            elif kind in ("prim::ListUnpack", "prim::TupleUnpack"):
                results = list(values[0])
            else:
                result = self._call(node, kind, values)
                results = list(result) if len(outputs) > 1 else [result]
            env.update(zip(outputs, results, strict=False))
        return [self._read(env, v.debugName()) for v in _returns(block)]

    def _loop(self, node: Any, values: list[Any], env: dict[str, Any]) -> list[Any]:
        count, going, carried = values[0], values[1], values[2:]
        body = next(iter(node.blocks()))
        names = [v.debugName() for v in body.inputs()]
        step = 0
        while step < count and going:
            env.update(zip(names, [step, *carried], strict=True))
            going, *carried = self._run(body, env)
            step += 1
        return carried

    def _call(self, node: Any, kind: str, values: list[Any]) -> Any:
        if kind in ALWAYS:
            return ALWAYS[kind](*values)
        if kind == "prim::RaiseException":
            raise RuntimeError(f"the model raised: {values[0]}")
        if kind == "prim::isinstance":
            return _is_instance(values[0], node)
        has_tensor = any(isinstance(v, torch.Tensor) for v in values)
        if kind in ON_VALUES and not has_tensor:
            return ON_VALUES[kind](*values)
        if kind in ("aten::__getitem__", "aten::append", "aten::_set_item"):
            return ON_VALUES[kind](*values)
        if kind.startswith("prim::") or node.schema() == "(no schema)":
            raise LoweringError(
                format="torch",
                op=kind,
                where=self.where(),
                why="this TorchScript construct is not a tensor op",
                way_out="Export the model with torch.export.save instead of TorchScript.",
            )
        return aten_call(node.schema(), values)


class _Weight:
    """The place of a tensor in the module tree."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path


def _lookup(module: torch.nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _returns(block: Any) -> list[Any]:
    return list(block.outputs())


def _is_instance(value: Any, node: Any) -> bool:
    kinds = {
        "Tensor": torch.Tensor,
        "int": int,
        "float": float,
        "str": str,
        "bool": bool,
        "NoneType": type(None),
    }
    return any(isinstance(value, kinds.get(str(t), ())) for t in node.tys("types"))


def source_of_node(node: Any) -> str:
    """`file:line` of a TorchScript node, or ""."""
    for line in str(node.sourceRange()).splitlines():
        if line.strip().startswith("File "):
            parts = line.strip().split(", ")
            return parts[0].removeprefix("File ").strip('"') + ":" + parts[1].removeprefix("line ")
    return ""
