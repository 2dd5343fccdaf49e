"""The on-device side of edgekit: runs models, and keeps versions of them that survive power cuts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit_runtime.backends import Settings
    from edgekit_runtime.errors import DeviceError
    from edgekit_runtime.model import Model
    from edgekit_runtime.runtime import Runtime
    from edgekit_runtime.shadow.settings import Shadow

__all__ = ["DeviceError", "Model", "Runtime", "Settings", "Shadow"]

_HOMES = {
    "Model": "model",
    "Runtime": "runtime",
    "Settings": "backends",
    "Shadow": "shadow.settings",
    "DeviceError": "errors",
}


def __getattr__(name: str) -> Any:
    # The wire types need the standard library alone; numpy comes with the first model.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"edgekit_runtime.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'edgekit_runtime' has no attribute {name!r}")
