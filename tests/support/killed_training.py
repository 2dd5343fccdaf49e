"""A training that is killed (SIGKILL) at random moments and gone on with: `python -m … FOLDER` prints what came of it.

Torch is loaded once; every attempt is a process of its own, forked before any training has run in its parent.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer imports it: once here, not in every attempt
from tests.support.tiny_training import ConvNet, digest, learn, seeded

from edgekit.stages.train.fit import Epoch

EPOCHS, ATTEMPTS = 40, 6


def start(state: Path, epochs: int) -> tuple[int, int]:
    """Fork a process that trains and says a line per epoch; returns its id and the pipe that it speaks through."""
    ear, mouth = os.pipe()
    child = os.fork()
    if child:
        os.close(mouth)
        return child, ear
    os.close(ear)
    module = seeded(ConvNet)
    fitted: tuple[Epoch, ...] = learn(
        module, state, lambda text: os.write(mouth, f"{text}\n".encode()), epochs=epochs
    ).history
    os.write(mouth, f"weights {digest(module)} {fitted[-1].epoch}\n".encode())
    os._exit(0)


def heard(ear: int, lines: int) -> str:
    """What is said until so many lines have come or the pipe is closed."""
    said = b""
    while said.count(b"\n") < lines:
        select.select([ear], [], [])
        part = os.read(ear, 1)
        if not part:
            break
        said += part
    return said.decode()


def whole(state: Path) -> tuple[str, int]:
    """Let a training run to its end; returns the digest of its weights, and how many epochs it said it trained."""
    child, ear = start(state, EPOCHS)
    said = heard(ear, sys.maxsize)
    os.waitpid(child, 0)
    return said.split("weights ")[1].split()[0], said.count("epoch ")


def main(folder: Path) -> None:
    """Train without and with interruptions."""
    torch.set_num_threads(1)
    moments = random.Random(7)
    uninterrupted, _ = whole(folder / "whole")
    killed = 0
    for _ in range(ATTEMPTS):
        child, ear = start(folder / "killed", EPOCHS)
        heard(ear, moments.randrange(1, 8))
        time.sleep(moments.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        os.close(ear)
    weights, epochs = whole(folder / "killed")
    print(
        json.dumps(
            {
                "uninterrupted": uninterrupted,
                "weights": weights,
                "killed": killed,
                "attempts": ATTEMPTS,
                "epochs": EPOCHS,
                "epochs_of_the_last": epochs,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
