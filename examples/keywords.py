"""Keyword spotting from recordings to files for a device: train a DS-CNN on spoken digits, compress it under a budget.

`python -m examples.keywords [--download] [--out keywords-out]`; docs/keywords.md walks through it. The exit status is
that of `edgekit compress`: 0 when every limit of the budget holds, 3 when not, 2 when the data is missing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor, nn

import edgekit
from edgekit.errors import EdgekitError, UsageError
from edgekit.progress import shown
from edgekit.report import summary
from examples import keywords_data
from examples.keywords_sound import SHAPE, SOUND

DIGITS: Final = 10
CHANNELS: Final = 96
BLOCKS: Final = 4
EPOCHS: Final = 12
BATCH: Final = 50
LEARNING_RATE: Final = 5e-3
# Speech starts earlier or later, and voices are higher or lower: frames and bands that training moves inputs by.
SHIFT: Final = (6, 1)

MODEL: Final = "keywords.pt2"
DATA: Final = "keywords.npz"
RECIPE: Final = "keywords.toml"
OUT: Final = Path("keywords-out")
BUNDLE: Final = "keywords-edgekit"
# In the units of `edgekit.compress`. INT8 alone gives files of 75 to 81 kB, so that a search has to prune.
BUDGET: Final[Mapping[str, Any]] = {"max_drop": 0.015, "max_latency_ms": 1.0, "max_size_mb": 0.045}
# Passes over the recordings for every network that the search trains.
STUDENT_EPOCHS: Final = 8

ACCEPTED, MISSED, INTERRUPTED = 0, 3, 130


class KeywordNet(nn.Module):
    """DS-CNN (Zhang et al. 2017): a convolution, then depthwise 3×3 and pointwise 1×1 in turn.

    Args:
        channels: width of every layer.
        blocks: number of depthwise and pointwise pairs.
    """

    def __init__(self, channels: int = CHANNELS, blocks: int = BLOCKS) -> None:
        super().__init__()
        layers = [
            nn.Conv2d(1, channels, (10, 4), stride=(4, 2), padding=(4, 1), bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        for _ in range(blocks):
            layers += [
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(channels, DIGITS)

    def forward(self, x: Tensor) -> Tensor:
        """Log-mel spectrograms `[n, 1, 64, 32]` to logits `[n, 10]`."""
        return self.classifier(self.dropout(self.features(x).mean((2, 3))))


def train(
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    *,
    epochs: int = EPOCHS,
    channels: int = CHANNELS,
    seed: int = 0,
) -> nn.Module:
    """Train the network, half a minute of one core.

    Args:
        x: float32 `[n, 1, 64, 32]`.
        y: int64 `[n]`, 0 to 9.
        epochs: passes over the recordings.
        channels: width of the network.
        seed: of the weights, the order and the shifts.

    Returns:
        The network in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
        torch.manual_seed(seed)
        # Depthwise convolutions are twice as fast with the channels last.
        model = KeywordNet(channels).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        steps = epochs * -(-len(inputs) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        for _ in range(epochs):
            for chosen in torch.randperm(len(inputs), generator=generator).split(BATCH):
                optimizer.zero_grad()
                logits = model(_shifted(inputs[chosen], generator))
                nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05).backward()
                optimizer.step()
                schedule.step()
    return model.to(memory_format=torch.contiguous_format).eval()


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """A batch moved by a few frames and bands, with silence where it was."""
    frames, bands = SHIFT
    padded = nn.functional.pad(x, (bands, bands, frames, frames), value=-1.0)
    i, j = (int(torch.randint(0, 2 * most + 1, (), generator=generator)) for most in SHIFT)
    moved = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
    return moved.contiguous(memory_format=torch.channels_last)


def accuracy(model: nn.Module, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> float:
    """Share of the recordings that are told right."""
    with torch.no_grad():
        return float((model(torch.from_numpy(x)).argmax(1).numpy() == y).mean())


def save(model: nn.Module, data: keywords_data.Arrays, folder: Path) -> None:
    """Write what the command takes: the network as an exported program, which needs no source code, and the arrays.

    Args:
        model: in evaluation mode.
        data: as `keywords_data.arrays` gives it.
        folder: to write into.
    """
    batch = {0: torch.export.Dim("batch", min=1)}
    exported = torch.export.export(model, (torch.zeros(2, *SHAPE),), dynamic_shapes=(batch,))
    torch.export.save(exported, folder / MODEL)
    np.savez(folder / DATA, **data)
    (folder / RECIPE).write_text(recipe(), encoding="utf-8")


def recipe() -> str:
    """What the files cannot say of themselves, so that a device takes samples and gives words."""
    numbers = "\n".join(f"{name} = {value}" for name, value in asdict(SOUND).items())
    words = ", ".join(f'"{digit}"' for digit in range(DIGITS))
    return f'[model]\ntask = "classification"\nlabels = [{words}]\n\n[preprocessing.sound]\n{numbers}\n'


def command(folder: Path, epochs: int, budget: Mapping[str, Any]) -> list[str]:
    """The command that does what `compress` does."""
    limits = [
        word for name, limit in budget.items() for word in (f"--{name.replace('_', '-')}", f"{limit:g}")
    ]
    paths = [str(folder / MODEL), "--data", str(folder / DATA), "--recipe", str(folder / RECIPE)]
    return ["edgekit", "compress", *paths, "-o", str(folder / BUNDLE), *limits, "--epochs", str(epochs)]


def compress(folder: Path, epochs: int, budget: Mapping[str, Any], console: Console) -> bool:
    """Compress what `save` wrote into all three formats; print the table and where the report is.

    Args:
        folder: of the model and the data; the bundle goes there, too.
        epochs: of every network that is trained.
        budget: limits, as `edgekit.compress` takes them.
        console: to print on.

    Returns:
        Whether every limit holds.
    """
    with shown(Console(stderr=True, highlight=False)) as progress:
        bundle = edgekit.compress(
            folder / MODEL,
            data=folder / DATA,
            recipe=folder / RECIPE,
            out=folder / BUNDLE,
            epochs=epochs,
            progress=progress,
            command=shlex.join(command(folder, epochs, budget)),
            **budget,
        )
    console.print(summary(bundle.report))
    console.print(f"report: {bundle.path / 'report.html'}", soft_wrap=True)
    return bool(bundle.report["accepted"])


def run(options: argparse.Namespace, console: Console) -> int:
    """From the recordings to the report.

    Raises:
        EdgekitError: the data is missing or cannot be used.
    """
    _make(options.out)
    if options.download:
        archive = keywords_data.download(options.data or keywords_data.DOWNLOADED)
    else:
        archive = keywords_data.find([options.data] if options.data else keywords_data.PLACES)
    started = time.monotonic()
    console.print(
        f"{archive}: spectrograms and training take about half a minute of one core", soft_wrap=True
    )
    data = keywords_data.arrays(keywords_data.read(archive))
    model = train(data["train_x"], data["train_y"], epochs=options.epochs, seed=options.seed)
    save(model, data, options.out)
    told = accuracy(model, data["eval_x"], data["eval_y"])
    console.print(
        f"trained on {len(data['train_y'])} recordings in {time.monotonic() - started:.0f} s: "
        f"{told:.1%} of {len(data['eval_y'])} others told right",
        soft_wrap=True,
    )
    console.print(shlex.join(command(options.out, options.student_epochs, BUDGET)), soft_wrap=True)
    if options.train_only:
        return ACCEPTED
    held = compress(options.out, options.student_epochs, BUDGET, console)
    console.print(f"{time.monotonic() - started:.0f} s in all")
    return ACCEPTED if held else MISSED


def _make(folder: Path) -> None:
    """Make the folder of the results before anything takes long."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {folder}: {error.strerror}",
            expected="a folder, or a name for a new one",
            way_out="Name another.",
        ) from error


def _passes(text: str) -> int:
    """Read a number of epochs."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m examples.keywords", description=__doc__)
    places = " or ".join(map(str, keywords_data.PLACES))
    made.add_argument("--data", type=Path, help=f"archive of the recordings; default: {places}")
    made.add_argument("--download", action="store_true", help=f"fetch it first: {keywords_data.URL}")
    made.add_argument("--out", type=Path, default=OUT, help="folder for what is written")
    made.add_argument("--epochs", type=_passes, default=EPOCHS, help="of the network")
    made.add_argument("--student-epochs", type=_passes, default=STUDENT_EPOCHS, help="of what was pruned")
    made.add_argument("--seed", type=int, default=0, help="of the training")
    made.add_argument("--train-only", action="store_true", help="leave the compression to the command shown")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the example; errors that are meant for the user become a message."""
    options = parser().parse_args(arguments)
    try:
        return run(options, Console(highlight=False, width=max(110, Console().width)))
    except EdgekitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
