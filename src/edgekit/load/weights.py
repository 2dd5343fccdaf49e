"""State dicts: finding the weights in a checkpoint and the network that they belong to."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from edgekit.errors import UsageError
from edgekit.usercode import current_folder_importable, imported

# Where training scripts put the weights, most specific first.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module")
# Prefixes that wrappers of a network add: DataParallel, torch.compile, Lightning.
PREFIXES = ("module.", "_orig_mod.", "model.")


def find_weights(value: object) -> dict[str, torch.Tensor] | torch.nn.Module | None:
    """The weights, or a whole module, inside what `torch.load` gave.

    Args:
        value: any object.

    Returns:
        A flat dict of tensors, a module, or None when there is neither.
    """
    if isinstance(value, torch.nn.Module):
        return value
    if not isinstance(value, Mapping):
        return None
    for key in WRAPPERS:
        if isinstance(value.get(key), (Mapping, torch.nn.Module)):
            return find_weights(value[key])
    tensors = {str(k): v for k, v in value.items() if isinstance(v, torch.Tensor)}
    return tensors or None


def fill(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], where: str) -> torch.nn.Module:
    """Load `weights` into `module`, prefix or not.

    Args:
        module: the network that the factory built; changed in place.
        weights: names to tensors.
        where: the file, for messages.

    Raises:
        UsageError: names or shapes do not match; some of them are listed.
    """
    wanted = module.state_dict()
    weights = dict(weights)
    for prefix in PREFIXES:
        if not wanted.keys() & weights.keys() and all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    missing = [k for k in wanted if k not in weights and not k.endswith("num_batches_tracked")]
    extra = [k for k in weights if k not in wanted and not k.endswith("num_batches_tracked")]
    wrong = [
        f"{k} is {tuple(weights[k].shape)}, the network wants {tuple(wanted[k].shape)}"
        for k in wanted
        if k in weights and weights[k].shape != wanted[k].shape
    ]
    if missing or extra or wrong:
        found = [
            f"{len(items)} {label} ({'; '.join(items[:3])}{'; …' if len(items) > 3 else ''})"
            for items, label in ((missing, "missing"), (extra, "unknown"), (wrong, "of another shape"))
            if items
        ]
        raise UsageError(
            f"{where}: the weights do not fit the network of the factory: {', '.join(found)}",
            expected=f"the {len(wanted)} tensors of {type(module).__name__}",
            way_out="Let --factory build exactly the network that was trained (same width, same number of "
            "classes).",
        )
    module.load_state_dict(weights, strict=False)
    return module


_WAY_OUT = (
    "Write a function without arguments that returns the network, and pass --factory module:function; the current "
    "folder is on the import path."
)


def build(factory: str) -> torch.nn.Module:
    """Import and call "module:callable"; the current folder is importable meanwhile.

    Raises:
        UsageError: not of that form, not importable, it raised, or it did not return a module.
    """
    make = imported(
        factory, named=f"--factory {factory}", expected="a callable without arguments", way_out=_WAY_OUT
    )
    with current_folder_importable():
        try:
            module = make()
        except Exception as error:
            raise _factory_error(
                factory, f"it raised {type(error).__name__}: {error}", "a callable that needs no arguments"
            ) from error
    if not isinstance(module, torch.nn.Module):
        raise _factory_error(factory, f"it returned a {type(module).__name__}", "a torch.nn.Module")
    return module


def _factory_error(factory: str, found: str, expected: str) -> UsageError:
    return UsageError(
        f"--factory {factory}: {found}",
        expected=expected,
        way_out=_WAY_OUT,
    )
