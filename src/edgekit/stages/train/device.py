"""Where a network is trained, and in which arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.stages.train.losses import Reading
from edgekit.stages.train.trainable import Trainable

BFLOAT16, FLOAT32 = "bfloat16", "float32"


def device_for(wish: str) -> str:
    """The device of a wish.

    Args:
        wish: "auto", "cpu" or "cuda".

    Raises:
        UsageError: there is no such device here.
    """
    if wish == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wish.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(
            f"--device {wish}: torch {torch.__version__} finds no CUDA device here",
            expected="auto or cpu",
            way_out="Leave --device out, or install a CUDA build of torch and the driver.",
        )
    return wish


def precision_for(
    wish: str, module: Trainable, samples: tuple[Tensor, ...], device: str, readings: Sequence[Reading]
) -> tuple[str, tuple[str, ...]]:
    """The arithmetic of a training.

    Args:
        wish: "auto", "float32" or "bfloat16".
        module: to be trained; it is run forth and back once.
        samples: inputs.
        device: to train on.
        readings: of the outputs. Plain values are not trained in bfloat16 unasked: its eight bits are too coarse.

    Returns:
        "float32" or "bfloat16", and notes.
    """
    if wish != "auto":
        return wish, ()
    if any(reading.kind == "values" for reading in readings) or not _fast_bfloat16(device):
        return FLOAT32, ()
    try:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            outputs, _ = module(*(x[:2].to(device) for x in samples))
            sum(y.float().mean() for y in outputs if y.is_floating_point()).backward()
    except RuntimeError as error:
        return FLOAT32, (f"trained in float32, as bfloat16 does not run: {str(error).splitlines()[0]}",)
    finally:
        module.zero_grad()
    return BFLOAT16, ()


def _fast_bfloat16(device: str) -> bool:
    """Does the processor multiply in bfloat16 by itself?"""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
