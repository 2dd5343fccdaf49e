"""The state of a training on disk: whole or not there, whenever the power goes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from edgekit.errors import UsageError
from edgekit.staging import NO_ROOM


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state in the place of the last one: beside it, to the disk, then one rename.

    Args:
        path: file to write; its folder is made.
        state: tensors, numbers, strings, lists and dicts.

    Raises:
        UsageError: the disk is full or cannot be written; the last state is still there.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        room = error.errno in NO_ROOM
        raise UsageError(
            f"{path}: {error.strerror} while the training was saved",
            expected="room for the state of the training" if room else "a folder that can be written",
            way_out="Free some room and go on with --resume, or choose another place with -o.",
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a directory
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read what `save` wrote; tensors come to the CPU, nothing in the file is run.

    Args:
        path: of the file.
        fingerprint: of the training that wants to go on; the state carries its own under this key.

    Returns:
        The state, or None where there is no file.

    Raises:
        UsageError: the file is damaged, or the state of another training.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state["fingerprint"]
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{path}: cannot be read as the state of a training: {said}",
            expected="the file as it was written",
            way_out="Delete it; the training then starts anew.",
        ) from error
    if found != fingerprint:
        raise UsageError(
            f"{path}: belongs to another training",
            expected="the same network, data and settings as when it was interrupted",
            way_out="Delete it, or start without --resume.",
        )
    return state
