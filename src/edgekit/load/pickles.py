"""Reads pickles without running them.

A pickle is a program: unpickling can call any function. So nothing here imports or calls what a file names.
"""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy._core.multiarray as _multiarray
import torch

from edgekit.errors import UsageError
from edgekit.load.archive import damaged
from edgekit.load.sniff import LEGACY_MAGIC

# Plain values that training scripts keep beside the weights; their constructors do nothing but hold data.
_HARMLESS = [argparse.Namespace, np.dtype, np.ndarray, *{type(np.dtype(c)) for c in "?bBhHiIlLqQefd"}]
_HARMLESS_FUNCTIONS = [
    (_multiarray.scalar, "numpy.core.multiarray.scalar"),
    (_multiarray.scalar, "numpy._core.multiarray.scalar"),
    (_multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    (_multiarray._reconstruct, "numpy._core.multiarray._reconstruct"),
]
_WEIGHTS_ONLY = ("torch.", "torch", "collections", "numpy", "argparse", "_codecs")


def named_by(path: Path) -> list[str]:
    """Dotted names of the classes and functions that unpickling would import, beyond plain tensors.

    Args:
        path: a torch file, zip or legacy, or a bare pickle.

    Returns:
        Sorted names; empty when the file names nothing unusual.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            data = b"".join(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    else:
        data = path.read_bytes()
    names = _globals(data)
    return sorted(
        n for n in names if n.split(".")[0] not in _WEIGHTS_ONLY or n.startswith("torch.nn.modules")
    )


def _globals(data: bytes) -> set[str]:
    """Every global of the pickles at the head of `data`; stops where the pickles stop."""
    names: set[str] = set()
    stream = io.BytesIO(data)
    strings: list[str] = []
    try:
        while stream.tell() < len(data):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    names.add(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.add(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    except (ValueError, IndexError, UnicodeDecodeError, EOFError):
        return names  # tensor bytes follow the pickles in a legacy file
    return names


def load_pickled(path: Path, *, trust: bool) -> Any:
    """Load what `torch.save` wrote; code of the file runs only when it is trusted.

    Args:
        path: a torch file, zip or legacy.
        trust: allow the unpickling of classes.

    Returns:
        The object, on the CPU.

    Raises:
        UsageError: the file needs trust, is damaged, or names code that cannot be imported.
    """
    try:
        with torch.serialization.safe_globals([*_HARMLESS, *_HARMLESS_FUNCTIONS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = named_by(path)
        if not names:
            raise damaged(path, str(error).splitlines()[0]) from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        RecursionError,
    ) as error:
        raise damaged(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    if not trust:
        raise UsageError(
            f"{path}: a pickled object of {', '.join(names[:3])}{', …' if len(names) > 3 else ''}; "
            f"unpickling runs "
            "code that the file chooses, so nothing was unpickled",
            expected="an exported program, TorchScript, or a state dict",
            way_out="Pass --trust if you made the file or trust who did; or save it with torch.export.save.",
        )
    return _load_trusted(path)


def _load_trusted(path: Path) -> Any:
    try:
        if not zipfile.is_zipfile(path) and LEGACY_MAGIC not in path.open("rb").read(32):
            with path.open("rb") as stream:
                return pickle.load(stream)  # noqa: S301 - the user said --trust
        return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{path}: the source code of the model is not importable here: {error}",
            expected="the package or module that defines the model, on the import path",
            way_out="Run edgekit in the folder of that source, or install it; or save with "
            "torch.export.save, which "
            "needs no source.",
        ) from error
    except Exception as error:  # the file's own code runs here and may raise anything
        raise damaged(path, f"{type(error).__name__}: {error}") from error
