"""What a training runs under: the same results every time, and memory that runs out said in words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from edgekit.errors import UsageError

# What the allocators of torch say on the CPU, where there is no exception of their own.
_NO_MEMORY: Final = ("can't allocate memory", "not enough memory", "out of memory")


@contextmanager
def deterministic() -> Iterator[None]:
    """Kernels whose sums come in the same order every time; earlier settings come back."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark, fill = torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory
    # cuBLAS reads this when it is first used in a process.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    # Filling memory before it is written costs time and finds mistakes in kernels, not in trainings.
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
        torch.utils.deterministic.fill_uninitialized_memory = fill


def no_memory(error: BaseException) -> bool:
    """Is this how Python, torch or its libraries say that memory ran out?"""
    if isinstance(error, MemoryError):
        return True
    said = str(error)
    # oneDNN says only that; a layer that it has no kernel for is a "primitive descriptor".
    unmade = "could not create a primitive" in said and "descriptor" not in said
    return isinstance(error, RuntimeError) and (unmade or any(words in said for words in _NO_MEMORY))


@contextmanager
def memory_named(batch_size: int) -> Iterator[None]:
    """Turn what is raised when memory runs out into an error with a way out.

    Raises:
        UsageError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not no_memory(error):
            raise
        said = str(error).splitlines()[0] if str(error) else "MemoryError"
        raise UsageError(
            f"memory ran out with batches of {batch_size}: {said}",
            expected="room for the activations of a batch, of the student and of its teacher",
            way_out=f"Set batch_size = {max(1, batch_size // 2)} in [train] of the recipe; finished epochs are kept.",
        ) from error
